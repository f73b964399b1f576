"""Yaml files with names of the last version: Hydra's source of files, which translates them as it reads."""

from __future__ import annotations

from typing import Any

from hydra._internal.core_plugins import file_config_source
from hydra._internal.sources_registry import SourcesRegistry
from hydra.plugins.config_source import ConfigResult
from omegaconf import DictConfig, OmegaConf

from sttabt.settings.renamed import new_choice, new_values


class FileConfigSource(file_config_source.FileConfigSource):
    """It has the name of Hydra's own, which Hydra then leaves out."""

    def load_config(self, config_path: str) -> ConfigResult:
        """As Hydra's, with the names of now in settings and in the list of defaults."""
        result = super().load_config(config_path)
        if isinstance(result.config, DictConfig):
            values: Any = OmegaConf.to_container(result.config, resolve=False)
            found = new_values(values, _prefix(config_path, result.header["package"]))
            found |= {"defaults": [_new_default(each) for each in values["defaults"]]} if "defaults" in values else {}
            if found != values:
                result.config = OmegaConf.create(found)
        return result


def read_old_names() -> None:
    """Let Hydra read yaml files with old names in this process."""
    SourcesRegistry.instance().types[FileConfigSource.scheme()] = FileConfigSource


def _prefix(config_path: str, package: str | None) -> str:
    """Of the keys in a file: its package, which is its group unless it says another."""
    node = config_path.rpartition("/")[0].replace("/", ".") if package in (None, "_group_") else str(package)
    return "" if node in ("", "_global_") else f"{node}."


def _new_default(each: Any) -> Any:
    if not isinstance(each, dict):
        return each
    return {key: new_choice(key.rpartition(" ")[2].lstrip("/"), choice) for key, choice in each.items()}
