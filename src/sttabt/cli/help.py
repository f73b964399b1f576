"""`sttabt --help [group=choice ...]`: what can be chosen, and every setting with its value and meaning."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import Field, fields
from pathlib import Path
from typing import Any

from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode
from omegaconf import MISSING, DictConfig, OmegaConf

from sttabt.cli.composition import config_folder
from sttabt.cli.sweep import assignments
from sttabt.data.sources import source_names
from sttabt.errors import UserError
from sttabt.settings import TRAININGS, MethodSettings, Settings, TrainingSettings, method_names, method_settings
from sttabt.settings.fields import Description, describe, initial, is_node

WIDTH = 100
LEFT = 34  # columns of a key and its value


def help_text(overrides: Sequence[str], own_folder: str | None = None) -> str:
    """What `--help` prints. own_folder: that of --config-dir. Raises one of sttabt.cli.messages.MISTAKES."""
    path = create_config_search_path(f"file://{config_folder()}")
    if own_folder is not None:
        folder = Path(own_folder).absolute()
        if not folder.is_dir():
            raise UserError(f"--config-dir {own_folder} is no folder: give one with yaml files")
        path.prepend("command-line", f"file://{folder}", SearchPathQuery(provider="schema"))
    hydra = Hydra.create_main_hydra2(task_name="sttabt", config_search_path=path)
    try:
        config = hydra.compose_config("config", list(overrides), run_mode=RunMode.RUN, with_log_configuration=False)
        loader = hydra.config_loader
        groups = {group: loader.get_group_options(group) for group in loader.list_groups("") if group != "hydra"}
    finally:
        GlobalHydra.instance().clear()
    every_method = not any(override.startswith(("sparsity=", "experiment=")) for override in overrides)
    listed = "\n".join(_line(group, ", ".join(choices), 16) for group, choices in groups.items())
    parts = [
        config.hydra.help.header.strip(),
        f"Groups (group=choice):\n{listed}\nsparsity=each_job is no method: every job of a sweep chooses its own.",
        *_settings(config, config.hydra.runtime.choices, every_method),
        config.hydra.help.footer.strip(),
    ]
    return "\n\n".join(parts) + "\n"


def section(title: str, node: type, values: dict[str, Any] | None, prefix: str, names: Iterable[str]) -> str:
    """A title, and a line or more for each of those settings of a class. values: what they are; None: its defaults."""
    lines = textwrap.wrap(title, WIDTH)
    for key, each in rows(node, prefix, names):
        description = describe(each)
        if each.default_factory is TrainingSettings:
            lines.append(_line(f"{key}.*", f"{description.meaning}: see TRAINING{_given(values, each.name)}"))
            continue
        value = initial(each) if values is None else _at(values, key.removeprefix(prefix))
        allowed = may_be(key, description)
        meaning = f"{meaning_of(description)} ({allowed})" if allowed else meaning_of(description)
        lines.append(_line(_assignment(key, value), meaning))
    return "\n".join(lines)


def meaning_of(description: Description) -> str:
    """What it means, and whether it can be scheduled."""
    return f"{description.meaning}; can be scheduled" if description.scheduled else description.meaning


def may_be(key: str, description: Description) -> str:
    """What a setting may be, in words; "" where any value will do."""
    choices = tuple(source_names()) if key == "dataset.source" else description.allowed
    if choices is not None:
        return f"one of {', '.join(choices)}"
    return description.rule.text if description.rule else ""


def rows(node: type, prefix: str, names: Iterable[str]) -> Iterator[tuple[str, Field[Any]]]:
    """(full key, field) of those settings of a class. A whole training is one of them: its settings are shown once."""
    for each in fields(node):
        if each.name in names and is_node(each) and each.default_factory is not TrainingSettings:
            inner: Any = each.default_factory
            yield from rows(inner, f"{prefix}{each.name}.", names_of(inner))
        elif each.name in names:
            yield f"{prefix}{each.name}", each


def names_of(node: type) -> list[str]:
    """Of the settings of a class, `method` aside: the choice of a method says it."""
    return [each.name for each in fields(node) if each.name != "method"]


def _settings(config: DictConfig, chosen: Mapping[str, str | None], every_method: bool) -> Iterator[str]:
    """A paragraph a node, with the values of the composed config."""
    values: Any = OmegaConf.to_container(config, resolve=False)
    yield section(
        "Settings (key=value):", Settings, values, "", [name for name in names_of(Settings) if name not in NODES]
    )
    for name, node in NODES.items():
        if name == "sparsity":
            yield from _methods(values["sparsity"], chosen.get("sparsity"), every_method)
        else:
            choice = f"{name}={chosen[name]}" if chosen.get(name) else name
            meaning = describe(_field(Settings, name)).meaning
            yield section(f"{choice}: {meaning}", node, values[name], f"{name}.", names_of(node))
    yield section(
        f"TRAINING is one of {', '.join(TRAININGS.values())}:",
        TrainingSettings,
        None,
        "TRAINING.",
        names_of(TrainingSettings),
    )


def _methods(values: dict[str, Any], choice: str | None, every_method: bool) -> Iterator[str]:
    if values.get("method", MISSING) == MISSING:
        listed = "\n".join(_line(name, method_settings(name).title, 16) for name in method_names())
        yield f"sparsity: every job of a sweep chooses one, or sparsity=NAME:\n{listed}"
        return
    yield _method(values["method"], choice, values)
    for name in method_names() if every_method else ():
        if name != values["method"]:
            yield _method(name, name, None)


def _method(name: str, choice: str | None, values: dict[str, Any] | None) -> str:
    node = method_settings(name)
    title = f"sparsity={choice}: {node.title} ({node.source})"
    return section(title, node, values, "sparsity.", names_of(node))


def _given(values: dict[str, Any] | None, name: str) -> str:
    training = {} if values is None else values[name]
    return f"; here {' '.join(_assignment(key, value) for key, value in training.items())}" if training else ""


def _line(left: str, right: str, width: int = LEFT) -> str:
    """`left`, and `right` wrapped beside it, or below it where it is too long."""
    indent = " " * (width + 3)
    text = textwrap.fill(
        right, WIDTH, initial_indent=indent, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )
    return f"  {left}\n{text}" if len(left) > width else f"  {left:{width}} {text.lstrip()}".rstrip()


def _assignment(key: str, value: Any) -> str:
    """As on the command line; references and what is missing stay as they are."""
    plain = isinstance(value, str) and ("${" in value or value == MISSING)
    return f"{key}={value}" if plain else assignments(key, [value])[0]


def _at(values: Any, key: str) -> Any:
    for name in key.split("."):
        values = values[name]
    return values


def _field(node: type, name: str) -> Any:
    return next(each for each in fields(node) if each.name == name)


NODES: dict[str, Any] = {
    each.name: each.default_factory if is_node(each) else MethodSettings
    for each in fields(Settings)
    if is_node(each) or each.name == "sparsity"
}
