"""Hydra search path: the folders conf/ of installed packages that bring methods, sources or backbones."""

from hydra.core.config_search_path import ConfigSearchPath
from hydra.plugins.search_path_plugin import SearchPathPlugin

from sttabt.cli.packages import config_folders


class PackagesSearchPath(SearchPathPlugin):
    """They come after this package's own, so that none replaces a file of it."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        for package, folder in config_folders().items():
            search_path.append(provider=package, path=f"file://{folder}")
