"""Packages that only some settings need: all else runs on a machine that lacks them."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator

from sttabt.data.checks import check_corpus
from sttabt.errors import UserError
from sttabt.settings import Settings

OF_LOGGERS = ("tensorboard", "wandb")  # how the kinds of loggers begin that need one
OF_SOURCES = {"glue": "datasets", "image_table": "datasets"}


def check_packages(settings: Settings) -> None:
    """Raises UserError for a setting whose package is not installed, before anything runs."""
    for setting, package, otherwise in _needed(settings):
        # A folder of that name in the current one, as W&B makes it, is found too, but without an origin.
        found = importlib.util.find_spec(package)
        if found is None or found.origin is None:
            raise UserError(f"{setting} needs the package {package}: pip install {package}{otherwise}")


def _needed(settings: Settings) -> Iterator[tuple[str, str, str]]:
    """A setting with its value, the package, and what else one may do."""
    for package in OF_LOGGERS:
        if settings.logger.kind.startswith(package):
            yield f"logger.kind={settings.logger.kind}", package, ", or logger=csv"
    source = settings.dataset.source
    if source in OF_SOURCES:
        yield f"dataset.source={source}", OF_SOURCES[source], ""
    if settings.approx.start == "general" and not check_corpus(settings.approx.corpus):
        yield f"approx.corpus={settings.approx.corpus}", "datasets", ", or give a text file"
