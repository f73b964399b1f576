"""What a user sets of Lightning itself: arguments of its Trainer (`trainer`) and callbacks (`callbacks`).

Importing this module imports no torch; checking arguments or callbacks does, when there are any.
"""

from __future__ import annotations

import inspect
import pkgutil
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate

from sttabt.errors import UserError, nearest
from sttabt.settings import Settings

if TYPE_CHECKING:
    from lightning.pytorch.callbacks import Callback

TRAININGS = "model.training, approx.training or sparsity.training"
# Arguments of Lightning's Trainer that the suite decides, and the setting that decides them.
OWNED = {
    "max_epochs": f"set epochs of {TRAININGS} instead",
    "max_steps": f"set epochs of {TRAININGS} instead",
    "max_time": f"weights must not depend on a machine's speed: set epochs of {TRAININGS} instead",
    "limit_train_batches": "set fast_dev_run=STEPS, or epoch_share of a training, instead",
    "limit_val_batches": "set fast_dev_run=STEPS instead",
    "limit_test_batches": "set fast_dev_run=STEPS instead",
    "limit_predict_batches": "set fast_dev_run=STEPS instead",
    "overfit_batches": "set fast_dev_run=STEPS, or epoch_share of a training, instead",
    "fast_dev_run": "set fast_dev_run=STEPS, without trainer, instead",
    "accelerator": "set hardware.accelerator instead",
    "devices": "set hardware.devices instead",
    "num_nodes": "set hardware.nodes instead",
    "strategy": "set hardware.devices and hardware.nodes instead, several of which train with DDP",
    "use_distributed_sampler": "set hardware.devices instead: the loaders give every process its own batches",
    "precision": "set hardware.precision instead",
    "accumulate_grad_batches": "set hardware.accumulate_grad_batches instead, or global_batch_size of a training",
    "gradient_clip_val": f"set grad_clip_norm of {TRAININGS} instead",
    "gradient_clip_algorithm": f"set grad_clip_norm of {TRAININGS} instead, which clips by norm",
    "callbacks": "set callbacks=NAME or callbacks.NAME._target_=CLASS instead",
    "logger": "set logger=NAME instead",
    "enable_checkpointing": "set resume instead: every stage keeps one checkpoint until its artifact is finished",
    "default_root_dir": "set paths.artifacts or paths.output instead",
    "plugins": "set hardware.precision, devices or nodes instead: the suite chooses the plugins",
    "barebones": "set logger=none instead",
}
# What changes no weight, and so is no part of an artifact's fingerprint.
HARMLESS_ARGUMENTS = (
    "log_every_n_steps",
    "enable_progress_bar",
    "enable_model_summary",
    "enable_autolog_hparams",
    "model_registry",
    "profiler",
    "detect_anomaly",
)
HARMLESS_CALLBACKS = (  # classes of Lightning
    "DeviceStatsMonitor",
    "LearningRateMonitor",
    "ModelCheckpoint",
    "ModelSummary",
    "OnExceptionCheckpoint",
    "ProgressBar",
    "RichModelSummary",
    "RichProgressBar",
    "ThroughputMonitor",
    "TQDMProgressBar",
)
VALIDATION = "validation"  # the validation metric of whatever stage trains, as a callback's `monitor`


def check_lightning(settings: Settings) -> None:
    """Raises UserError for an argument that the Trainer lacks or the suite owns, and for a callback that is none.

    Imports lightning, which takes seconds, if there is anything to check.
    """
    for name, value in settings.trainer.items():
        if name in OWNED:
            raise UserError(f"trainer.{name}={value}: {OWNED[name]}")
    if settings.trainer:
        from lightning import Trainer

        valid = inspect.signature(Trainer.__init__).parameters.keys() - {"self"} - OWNED.keys()
        for name in settings.trainer:
            if name not in valid:
                raise UserError(f"trainer.{name} is no argument of Lightning's Trainer: {nearest(name, valid)}")
    for name, node in settings.callbacks.items():
        if node is not None:  # null leaves out one that a group gives
            _check_callback(f"callbacks.{name}", node)


def influences(settings: Settings) -> dict[str, Any]:
    """The part of `trainer` and `callbacks` that may change weights; {} where nothing does."""
    arguments = {name: value for name, value in settings.trainer.items() if name not in HARMLESS_ARGUMENTS}
    callbacks = {name: node for name, node in settings.callbacks.items() if node is not None and not _harmless(node)}
    return {name: part for name, part in (("trainer", arguments), ("callbacks", callbacks)) if part}


def new_arguments(settings: Settings) -> dict[str, Any]:
    """`trainer` as Lightning takes it: what has a `_target_` is made. Raises UserError when that fails."""
    return {name: _made(f"trainer.{name}", value) for name, value in settings.trainer.items()}


def new_callbacks(settings: Settings, stage: str, metric: str, mode: str) -> list[Callback]:
    """`callbacks` for one stage.

    metric, mode: of its validation, which `monitor: validation` stands for; `{stage}` in a text stands for its name.
    Raises UserError when one cannot be made, or is no Callback of Lightning.
    """
    from lightning.pytorch.callbacks import Callback

    made = []
    for name, node in settings.callbacks.items():
        if node is None:
            continue
        key, arguments = f"callbacks.{name}", _of_stage(node, stage)
        if arguments.get("monitor") == VALIDATION:
            arguments["monitor"] = metric
            if "mode" in inspect.signature(pkgutil.resolve_name(node["_target_"])).parameters:
                arguments.setdefault("mode", mode)
        callback = _made(key, arguments)
        if not isinstance(callback, Callback):
            raise UserError(_no_callback(key, node["_target_"]))
        made.append(callback)
    return made


def _check_callback(key: str, node: Any) -> None:
    from lightning.pytorch.callbacks import Callback

    if not (isinstance(node, Mapping) and isinstance(node.get("_target_"), str)):
        raise UserError(f"{key}={node} names no class: give {key}._target_=package.module.Class, its arguments beside")
    target = node["_target_"]
    try:
        found = pkgutil.resolve_name(target)
    except Exception as error:  # whatever a module of a user's own raises while it is imported
        raise UserError(f"{key}._target_={target} cannot be imported: {error}") from error
    if not callable(found) or (isinstance(found, type) and not issubclass(found, Callback)):
        raise UserError(_no_callback(key, target))
    _check_arguments(key, found, node)


def _check_arguments(key: str, target: Callable[..., Any], node: Mapping[str, Any]) -> None:
    parameters = inspect.signature(target).parameters
    kinds = {parameter.kind for parameter in parameters.values()}
    given = {name for name in node if not name.startswith("_")}  # others are Hydra's
    if inspect.Parameter.VAR_KEYWORD not in kinds:
        for name in given - parameters.keys():
            raise UserError(f"{key}.{name} is no argument of {target.__name__}: {nearest(name, parameters)}")
    for name, parameter in parameters.items():
        needed = parameter.default is parameter.empty and parameter.kind is not parameter.VAR_POSITIONAL
        if needed and parameter.kind is not parameter.VAR_KEYWORD and not given & {name} and "_args_" not in node:
            raise UserError(f"{key}.{name} is missing: give {key}.{name}=VALUE")


def _no_callback(key: str, target: str) -> str:
    return f"{key}._target_={target} is no Lightning Callback: give a subclass of lightning.pytorch.callbacks.Callback"


def _harmless(node: Mapping[str, Any]) -> bool:
    package, _, rest = node["_target_"].partition(".")
    return package == "lightning" and rest.rpartition(".")[2] in HARMLESS_CALLBACKS


def _of_stage(value: Any, stage: str) -> Any:
    if isinstance(value, Mapping):
        return {name: _of_stage(each, stage) for name, each in value.items()}
    if isinstance(value, list):
        return [_of_stage(each, stage) for each in value]
    return value.replace("{stage}", stage) if isinstance(value, str) else value


def _made(key: str, value: Any) -> Any:
    if not isinstance(value, Mapping | list):
        return value
    try:
        return instantiate(value, _convert_="all")
    except InstantiationException as error:
        raise UserError(f"{key} cannot be made: {error.__cause__ or error}") from error
