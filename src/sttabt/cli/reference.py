"""`python -m sttabt.cli.reference` writes docs/SETTINGS.md: every setting with default, meaning and range."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from dataclasses import Field, fields
from pathlib import Path
from typing import Any

from omegaconf import MISSING

from sttabt.cli.help import may_be, meaning_of, names_of, rows
from sttabt.settings import (
    BenchSettings,
    ScheduleSettings,
    Settings,
    TrainedSettings,
    TrainingSettings,
    TunedSettings,
    method_names,
    method_settings,
)
from sttabt.settings.fields import describe, initial, is_node

FILE = "docs/SETTINGS.md"
HEAD = """# Settings

Written by `python -m sttabt.cli.reference` from the classes of `sttabt.settings`: change them, not this file.

A setting is given on the command line (`sttabt experiment=quickstart seed=1`) or in a yaml file. Files under conf/ may
give other values than these defaults; `sttabt --help model=NAME sparsity=NAME` shows what holds, and the settings that
other packages bring.
"""


def reference() -> str:
    """The page, in Markdown."""
    nodes = {each.name: each for each in fields(Settings) if is_node(each)}
    parts = [HEAD, _section("The run", "", Settings, [n for n in names_of(Settings) if n not in (*nodes, "sparsity")])]
    for name, each in nodes.items():
        parts.append(_section(f"`{name}`: {describe(each).meaning}", f"{name}.", each.default_factory))
        if name == "dataset":
            parts += list(_methods())
    trainings = "`model.training`, `approx.training`, `approx.corpus_training`, `sparsity.training`"
    parts.append(_section(f"Training: {trainings}", "", TrainingSettings))
    benchmark = "The benchmark, `python -m sttabt.bench`, beside `model` and `hardware`"
    parts.append(_section(benchmark, "bench.", BenchSettings))
    return "\n".join(parts)


def _methods() -> Iterator[str]:
    yield "## `sparsity`: the pruning method; its settings are chosen with it\n"
    for name in method_names():
        method = method_settings(name)
        if not method.__module__.startswith("sttabt."):
            continue  # of another package that happens to be installed
        text = f"{method.title} ({method.source})."
        text += f" `{method.knob_name()}` moves it along its curve." if method.knob_name() else ""
        if issubclass(method, TrainedSettings):
            trains = "It trains, if asked" if issubclass(method, TunedSettings) else "It trains"
            text += f" {trains}: see the settings of all methods that train."
        own = [each for each in names_of(method) if not _inherits(method, each)]
        yield _section(f"`sparsity={name}`", "sparsity.", method, own, text, level=3)
    yield _section("All methods that train", "sparsity.", TrainedSettings, level=3)
    text = (
        "NAME is that of a setting that can be scheduled, or `keep`: the one that says how many tokens are kept."
        " `schedule=temperature`, `schedule=keep` and `schedule=temperature_and_keep` give some."
    )
    yield _section("Schedules", "sparsity.schedules.NAME.", ScheduleSettings, text=text, level=3)


def _section(
    title: str, prefix: str, node: Any, names: Iterable[str] | None = None, text: str = "", level: int = 2
) -> str:
    lines = [_row(*found) for found in rows(node, prefix, names_of(node) if names is None else names)]
    table = ["| setting | default | meaning | may be |", "| --- | --- | --- | --- |", *lines, ""] if lines else []
    return "\n".join([f"{'#' * level} {title}", "", *([text, ""] if text else []), *table])


def _row(key: str, declared: Field[Any]) -> str:
    description = describe(declared)
    if declared.default_factory is TrainingSettings:
        return f"| `{key}.*` | | {description.meaning} | see Training |"
    value = initial(declared)
    as_yaml = json.dumps(value, ensure_ascii=False) if value != MISSING else ""
    default = f"`{as_yaml}`" if as_yaml else "none: give one"
    return f"| `{key}` | {default} | {meaning_of(description)} | {may_be(key, description)} |"


def _inherits(method: type, name: str) -> bool:
    """Whether the method leaves the setting as all methods that train have it."""
    return name in names_of(TrainedSettings) and name not in vars(method).get("__annotations__", {})


def main() -> None:
    """Writes the page into the working folder's docs/."""
    Path(FILE).write_text(reference(), encoding="utf-8")
    sys.stdout.write(f"{FILE}\n")


if __name__ == "__main__":
    main()
