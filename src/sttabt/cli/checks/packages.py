"""Packages that only some settings need, asked for before anything runs."""

from __future__ import annotations

from sttabt.data.checks import check_corpus
from sttabt.pretrained.libraries import check_libraries
from sttabt.settings import Settings
from sttabt.system.packages import need

OF_LOGGERS = ("tensorboard", "wandb")  # how the kinds of loggers begin that need one
OF_SOURCES = {"glue": "datasets", "image_table": "datasets"}


def check_packages(settings: Settings) -> None:
    """Raises UserError for a setting whose package is not installed."""
    check_libraries(settings.model)
    for package in OF_LOGGERS:
        if settings.logger.kind.startswith(package):
            need(package, f"logger.kind={settings.logger.kind}", ", or logger=csv")
    source = settings.dataset.source
    if source in OF_SOURCES:
        need(OF_SOURCES[source], f"dataset.source={source}")
    if settings.approx.start == "general" and not check_corpus(settings.approx.corpus):
        need("datasets", f"approx.corpus={settings.approx.corpus}", ", or give a text file")
