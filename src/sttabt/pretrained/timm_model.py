"""A model of timm by name, with the weights that timm knows of."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
from huggingface_hub.errors import HfHubHTTPError

from sttabt.backbones.base import Backbone
from sttabt.backbones.registry import adapt, served
from sttabt.errors import UserError, nearest
from sttabt.pretrained.built import Built
from sttabt.pretrained.classes import CONFIG, IMAGENET_CLASSES, ClassNames, configured_names, imagenet_names
from sttabt.pretrained.files import read_weights
from sttabt.pretrained.hub import use_hub
from sttabt.pretrained.jsons import read_json
from sttabt.pretrained.positions import warn_of_positions
from sttabt.pretrained.states import check_numbers

ELSEWHERE = ("hf-hub:", "hf_hub:", "local-dir:")  # timm's prefixes of a hub id and of a folder, with their own config
FOLDER = "local-dir:"
WEIGHTS = (".safetensors", ".bin", ".pth", ".pth.tar")
LIBRARY = "timm.models."


def build_timm(
    name: str, arguments: Mapping[str, Any], classes: int, channels: int, image_size: int, pretrained: bool = False
) -> Backbone:
    """A model of timm by name, hub id (`hf-hub:`) or folder (`local-dir:`), of a class that an adapter serves.

    `arguments` go to timm.create_model on top of the data set's sizes.
    Raises UserError when timm does not know the name, when it is another kind of model, or when the pretrained weights
    are neither on this machine nor to be had from the hub.
    """
    setting, architecture = f"model.timm={name}", name.split(".")[0]
    modules = {kind.split(".")[2] for kind in served() if kind.startswith(LIBRARY)}
    known = [known for module in sorted(modules) for known in timm.list_models(module=module)]
    if not name.startswith(ELSEWHERE) and architecture not in known:
        raise UserError(
            f"{setting} is no model of timm {timm.__version__} that can be pruned: {nearest(architecture, known)}"
        )
    if pretrained or name.startswith(ELSEWHERE):
        use_hub()  # an unreachable one is then not asked again and again
    if name.startswith(FOLDER):
        _check_folder(Path(name.removeprefix(FOLDER)), setting, pretrained)
    try:
        model: Any = timm.create_model(
            name, pretrained=pretrained, num_classes=classes, in_chans=channels, img_size=image_size, **arguments
        )
    except TypeError as error:
        raise UserError(f"model.arguments={arguments} do not fit {setting}: {error}") from error
    except (KeyError, ValueError, AssertionError, AttributeError) as error:  # a broken configuration
        reason = " ".join(str(error).split())
        raise UserError(f"{setting} cannot be built: {type(error).__name__} {reason}") from error
    except (OSError, HfHubHTTPError, RuntimeError) as error:
        reason = str(error).strip().partition("\n")[0]
        if "Invalid pretrained tag" in reason:
            raise UserError(f"{setting}: {reason} {nearest(name, timm.list_pretrained(f'{architecture}*'))}") from error
        if name.startswith(FOLDER):
            raise UserError(f"{setting} cannot be loaded from that folder: {' '.join(str(error).split())}") from error
        if isinstance(error, RuntimeError) and "No pretrained weights" not in reason:
            raise
        raise UserError(
            f"{setting}: its weights are not on this machine and could not be fetched: load them once with a network"
            f" (they are kept in HF_HOME), or set model.pretrained=false model.checkpoint=FILE ({reason})"
        ) from error
    try:
        return adapt(model)
    except UserError as error:
        raise UserError(f"{setting}: {error}") from error


def load_timm(
    name: str, arguments: Mapping[str, Any], classes: int, channels: int, image_size: int, pretrained: bool
) -> Built:
    """As `build_timm`, with what timm says of the weights; logs a warning where they are of another image size."""
    base = build_timm(name, arguments, classes, channels, image_size, pretrained)
    if not pretrained:
        return Built(base)
    given: Any = base.model.pretrained_cfg
    trained_at = given["input_size"][-1]
    if trained_at != image_size:  # timm has resized the position embedding
        rows, columns = base.grid
        warn_of_positions((trained_at * rows // image_size, trained_at * columns // image_size), base.grid)
    return Built(
        base,
        given["num_classes"] != classes,
        (tuple(given["mean"]), tuple(given["std"])),
        _class_names(given, f"model.timm={name}"),
    )


def _check_folder(folder: Path, setting: str, pretrained: bool) -> None:
    """Raises UserError for files in it that cannot be what they should be; timm casts whatever numbers it finds."""
    if not folder.is_dir():
        raise UserError(f"{setting}: {folder} is no folder: give one with {CONFIG} and weights")
    read_json(folder / CONFIG, setting)
    for file in sorted(folder.iterdir()) if pretrained else []:
        if file.name.endswith(WEIGHTS):
            check_numbers(read_weights(file, setting), f"{setting}: {file.name}")


def _class_names(given: Mapping[str, Any], source: str) -> ClassNames:
    """What the configuration says; of timm's own ImageNet-1k weights the order is known."""
    named = configured_names(given, source)
    if not named.names and "in1k" in (given.get("tag") or "") and given["num_classes"] == IMAGENET_CLASSES:
        return imagenet_names(source)
    return named
