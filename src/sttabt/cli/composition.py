"""Hydra's side of the settings: where the yaml files are, which schemas they meet, how they become Settings.

Importing this module registers the schemas and the resolver, in this process and in any that a launcher starts.
"""

from __future__ import annotations

import logging
import re
import secrets
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, cast

from hydra import compose, initialize_config_dir
from hydra.conf import HydraConf
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.utils import to_absolute_path
from omegaconf import MISSING, DictConfig, OmegaConf, open_dict

from sttabt.cli.checks import check
from sttabt.cli.checks.effects import without_effect
from sttabt.cli.renamed import read_old_names
from sttabt.data.sources import find_source
from sttabt.errors import UserError
from sttabt.settings import Settings, method_names, method_settings
from sttabt.settings.renamed import new_override
from sttabt.settings.schedules import KEY as SCHEDULES

VERSION_BASE = "1.3"
OF_SEARCH = ("space", "trials", "sampler", "seed", "storage")  # of the sweeper that hparams_search chooses
NO_NAME = re.compile(
    r"null|true|false|[+-]?(nan|inf|[\d_.]+(e[+-]?\d+)?)", re.IGNORECASE
)  # what Hydra reads as no text
OPEN_NODES = ("model.arguments", "trainer", "callbacks", SCHEDULES)  # whose keys are checked elsewhere

log = logging.getLogger(__name__)


def config_folder() -> Path:
    """The yaml files: inside an installed package, else beside src/ (a checkout, an editable install)."""
    package = Path(__file__).parents[1]
    installed = package / "conf"
    return installed if installed.is_dir() else package.parents[1] / "conf"


def read_settings(config: DictConfig) -> Settings:
    """Typed and checked settings of a composed config without its `hydra` node; relative paths become absolute.

    Composing once more against the schema finds what Hydra lets through: keys added with `+`, values still missing.

    Raises:
        UserError: a key that no schema has, a missing value, a value out of range.
        OmegaConfBaseException: a wrong type, an interpolation that leads nowhere.
    """
    values = cast(dict[str, Any], OmegaConf.to_container(config, resolve=True))
    if values["name"] == MISSING:
        raise UserError(f"no experiment is chosen: give experiment=NAME, one of: {', '.join(experiment_names())}")
    schema = _schema(values)
    known = set(_keys(OmegaConf.to_container(schema)))
    for key in _keys(values):
        if key not in known and not key.startswith(tuple(f"{node}." for node in OPEN_NODES)):
            raise UserError(unknown_setting(key))
    merged = OmegaConf.merge(schema, values)
    for key in sorted(OmegaConf.missing_keys(merged)):
        raise UserError(f"{key} is missing: give {key}=VALUE")
    settings = OmegaConf.to_object(merged)
    assert isinstance(settings, Settings)
    _make_absolute(settings.paths, "artifacts", "output")
    _make_absolute(settings.dataset, "path")
    _make_absolute(settings.model, "checkpoint")
    _make_absolute(settings.approx, "checkpoint")
    if Path(to_absolute_path(settings.model.huggingface)).is_dir():  # else a hub id or package:...
        _make_absolute(settings.model, "huggingface")
    data = settings.dataset
    data.name = data.name or find_source(data.source).default_name(data)
    given = HydraConfig.get().overrides.task if HydraConfig.initialized() else []
    check(settings, [override.partition("=")[0].lstrip("+~") for override in given])
    return settings


def read_job(config: DictConfig, output: str | Path) -> Settings:
    """`read_settings` of a job that Hydra composed but has not begun; `output` is the folder that it would get."""
    before = HydraConfig.instance().cfg
    config = config.copy()
    with open_dict(config):
        config.hydra.runtime.output_dir = str(Path(output).absolute())
    HydraConfig.instance().set_config(config)
    try:
        with open_dict(config):
            del config["hydra"]
        return read_settings(config)
    finally:
        HydraConfig.instance().cfg = before


def compose_settings(overrides: Sequence[str], output: str | Path = "runs/notebook") -> Settings:
    """The settings of one job, from Python: `compose_settings(["experiment=debug", "seed=1"])`."""
    overrides = [new_override(override) for override in overrides]
    for override in overrides:
        check_group(override)
    with initialize_config_dir(str(config_folder()), version_base=VERSION_BASE, job_name="sttabt"):
        config = compose("config", overrides=overrides, return_hydra_config=True)
        with open_dict(config):
            config.hydra.runtime.cwd = str(Path.cwd())
        settings = read_job(config, output)
    for line in without_effect(settings, overrides):
        log.warning(line)
    return settings


def check_group(override: str) -> None:
    """Raises UserError for a group of files that is given no name of one: null, a number, true."""
    key, _, value = override.partition("=")
    group = key.lstrip("+").partition("@")[0]
    wrong = next((each for each in value.split(",") if NO_NAME.fullmatch(each.strip())), None)
    if wrong is None:
        return
    # Any text may stand in front of the sign, so that it is not tried as a path.
    folders = {folder.relative_to(config_folder()).as_posix(): folder for folder in config_folder().rglob("*/")}
    if group not in folders:
        return
    names = [file.stem for file in folders[group].glob("*.yaml")]
    none = f"{group}=none for none of them, or " if "none" in names else ""
    rest = ", ".join(sorted(set(names) - {"none"}))
    raise UserError(f"{group}={wrong.strip()} names no file of this group: give {none}one of {rest}")


def unknown_setting(key: str) -> str:
    """One line: `key` is not a setting, and the nearest full key that is, or the methods that it belongs to."""
    if key == SCHEDULES:
        return f"{key} is for methods that train, as this one never does: set schedule=none, or choose another method"
    methods = [method for method in method_names() if key in _names(method)]
    if methods:
        return (
            f"{key} is not a setting of this method but of {', '.join(methods)}: choose one with sparsity=NAME"
            f" (in a sweep over methods write {key}='choice(VALUE)')"
        )
    if key in (searching := [f"hydra.sweeper.{name}" for name in OF_SEARCH]):
        return f"{key} is a setting of a search alone: choose one with hparams_search=NAME"
    if key.startswith("hydra.sweeper.space."):
        return (
            f"{key} is not in the space of this search: put a + before what is to be added, as in"
            " +hydra.sweeper.space.approx.factor={choices:[4,8]}"
        )
    valid = [*_hydra_names(), *searching] if key.startswith("hydra.") else setting_names()
    # A last name alone (factor=4), or one under the wrong node, is compared with last names.
    last_names = {name.rpartition(".")[2]: name for name in valid}
    close = get_close_matches(key, valid, n=1, cutoff=0.75)
    close = close or [last_names[name] for name in get_close_matches(key.rpartition(".")[2], last_names, n=1)]
    hint = f"did you mean '{close[0]}'?" if close else "`sttabt --cfg job` shows them all"
    return f"{key} is not a setting: {hint}"


def setting_names(method: str | None = None) -> list[str]:
    """The full key of every setting, of a method or of them all."""
    return sorted({name for each in ([method] if method else method_names()) for name in _names(each)})


def experiment_names() -> list[str]:
    """The experiments that the composition in progress can choose from."""
    return GlobalHydra.instance().config_loader().get_group_options("experiment")


def _schema(values: Mapping[str, Any]) -> DictConfig:
    method = values["sparsity"].get("method", MISSING)
    if method == MISSING:
        raise UserError(f"no method is chosen: give sparsity=NAME, one of: {', '.join(sorted(method_names()))}")
    schema = OmegaConf.structured(Settings)
    schema.sparsity = method_settings(str(method))
    return schema


def _names(method: str) -> list[str]:
    return list(_keys(OmegaConf.to_container(_schema({"sparsity": {"method": method}}))))


def _hydra_names() -> list[str]:
    names = [
        *_keys(OmegaConf.to_container(OmegaConf.structured(HydraConf))),
        "sweeper.grids",
        "sweeper.params",
        "sweeper.choose",
    ]
    return [f"hydra.{name}" for name in names]


def _make_absolute(node: Any, *names: str) -> None:
    for name in names:
        if getattr(node, name):
            setattr(node, name, to_absolute_path(getattr(node, name)))


def _keys(values: Any, prefix: str = "") -> Iterator[str]:
    for key, value in values.items():
        full = f"{prefix}{key}"
        yield full
        if isinstance(value, dict):
            yield from _keys(value, f"{full}.")


def _register() -> None:
    store = ConfigStore.instance()
    settings = OmegaConf.structured(Settings)
    for name in ("trainer", "callbacks"):  # any key may be added on the command line, without a +
        OmegaConf.set_struct(settings[name], False)
    store.store(name="schema_settings", node=settings)
    for method in method_names():
        node = OmegaConf.structured(method_settings(method))
        if "schedules" in node:
            OmegaConf.set_struct(node.schedules, False)
        store.store(name=f"schema_sparsity_{method}", node=node)
    # A sweep over methods chooses one in each job; until then any method's setting may stand on the command line.
    each_job = OmegaConf.create({"method": MISSING}, flags={"struct": False})
    store.store(name="schema_sparsity_each_job", node=each_job)
    OmegaConf.register_new_resolver("unique", lambda: secrets.token_hex(3), use_cache=True, replace=True)
    read_old_names()


_register()
