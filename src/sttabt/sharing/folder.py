"""A pruned model as a folder by itself: an artifact (`store.artifacts`) of the stage `saved`, made of no other.

`model.safetensors` holds all weights, `config.json` the base model's configuration in its library's form,
`artifact.json` the method, the checksums of all files and how inputs are made; a tokenizer and the model card lie
beside.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sttabt.backbones.base import Backbone
from sttabt.backbones.registry import adapters
from sttabt.core.budget import Calibration
from sttabt.core.text import Text
from sttabt.errors import UserError, nearest
from sttabt.methods import restored_method
from sttabt.models.approximate import ApproximateNetwork
from sttabt.models.frozen import FrozenModel
from sttabt.models.pruned import PrunedModel
from sttabt.pretrained.classes import CONFIG
from sttabt.pretrained.description import Preparation, preparation_of
from sttabt.pretrained.jsons import read_json
from sttabt.sharing.card import saved_card
from sttabt.store.artifacts import CARD, RECORD, WEIGHTS, Claim, load_folder, read_record
from sttabt.system.files import disk_errors

STAGE = "saved"
FORMAT = 1  # of what the notes of the record say
COMPARED = 2  # random inputs on which what was written is compared with the model
IMAGE_ENTRIES = ("mean", "std", "crop", "interpolation")


def save(
    pruned: PrunedModel,
    folder: Path,
    tokenizer: Any = None,
    class_names: Sequence[str] | None = None,
    preprocessing: Mapping[str, Any] | None = None,
) -> Path:
    """See PrunedModel.save_pretrained. The folder is there whole, or as it was."""
    if isinstance(pruned, FrozenModel):
        raise UserError("a frozen model is for one machine: save the model that was frozen, and freeze it again")
    preparation = _given(pruned, tokenizer, class_names, preprocessing)
    if tokenizer is None and pruned.preparation is not None and pruned.preparation.tokenizer is not None:
        tokenizer = pruned.preparation.load_tokenizer()
    _check_target(folder)
    with _replacing(folder) as partial:
        _write(pruned, partial, preparation, tokenizer, folder.name)
        _check_same(pruned, partial)
    return folder


def restore(folder: Path, tensors: Mapping[str, Tensor], record: Mapping[str, Any]) -> PrunedModel:
    """The model of a saved folder that `load_folder` read, in evaluation mode, on the CPU.

    Raises UserError for a folder of a newer version; what does not fit raises whatever it leads to.
    """
    notes = record["notes"]
    if notes["format"] > FORMAT:
        raise UserError(f"{folder} was saved by a newer version of sttabt ({record['version']}): install that one")
    base = _backbone(notes["backbone"]).rebuilt(read_json(folder / CONFIG, str(folder)))
    network = None
    if notes["approx"] is not None:
        network = ApproximateNetwork(base, notes["approx"]["factor"], notes["approx"]["share_stem"])
    pruned = PrunedModel(base, restored_method(notes["method"], base), network)
    _take_kinds(pruned, tensors)
    pruned.load_state_dict(tensors, strict=True)
    if notes["calibration"] is not None:
        pruned.calibration = Calibration(**notes["calibration"])
    own = str(folder) if notes["tokenizer"] else None
    card = (folder / CARD).read_text(encoding="utf-8") if (folder / CARD).is_file() else ""
    pruned.preparation = Preparation(tuple(notes["class_names"]), notes["inputs"], own, card)
    return pruned.eval()


def _given(
    pruned: PrunedModel, tokenizer: Any, names: Sequence[str] | None, preprocessing: Mapping[str, Any] | None
) -> Preparation:
    """What is given goes before what the model knows. Raises UserError for what does not fit the model."""
    base = pruned.base
    found = pruned.preparation or preparation_of(base)
    if names is not None:
        if base.embeds:
            raise UserError("class_names have no effect on a model without a classifier: leave them out")
        if isinstance(names, str) or len(names) != base.architecture.classes or not all(map(str, names)):
            raise UserError(
                f"class_names={names!r} do not fit: give {base.architecture.classes} names, in the order of the logits"
            )
        found = replace(found, class_names=tuple(map(str, names)))
    if tokenizer is not None:
        if not base.may_pad:
            raise UserError("tokenizer has no effect on a model of images: leave it out")
        if not hasattr(tokenizer, "save_pretrained"):
            raise UserError(f"tokenizer is a {type(tokenizer).__name__}: give one of transformers")
        if len(tokenizer) > base.model.config.vocab_size:
            raise UserError(
                f"the tokenizer knows {len(tokenizer)} tokens, but the model embeds {base.model.config.vocab_size}:"
                " give the model's own"
            )
    known = ("tokens",) if base.may_pad else IMAGE_ENTRIES
    for name in preprocessing or {}:
        if name not in known:
            raise UserError(f"preprocessing has an entry {name}: {nearest(name, known)}")
    for name in ("mean", "std"):
        values = (preprocessing or {}).get(name)
        if values is not None and len(values) != base.image_shape[0]:
            raise UserError(f"preprocessing: {name}={values} must be {base.image_shape[0]} numbers, one a channel")
    return replace(found, inputs={**found.inputs, **(preprocessing or {})})


def _write(pruned: PrunedModel, folder: Path, preparation: Preparation, tokenizer: Any, name: str) -> None:
    base, approx, settings = pruned.base, pruned.approx, pruned.method.settings
    method = settings.said(asdict(settings))
    configuration = _named(base, base.configuration(), preparation)
    (folder / CONFIG).write_text(json.dumps(configuration, indent=1) + "\n", encoding="utf-8")
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    notes = {
        "format": FORMAT,
        "backbone": type(base).__name__,
        "method": method,
        "approx": None if approx is None else {"factor": approx.factor, "share_stem": approx.share_stem},
        "calibration": None if pruned.calibration is None else asdict(pruned.calibration),
        "class_names": list(preparation.class_names),
        "inputs": dict(preparation.inputs),
        "tokenizer": tokenizer is not None,
    }
    description = {"backbone": notes["backbone"], "configuration": configuration, "method": method}
    Claim(folder, STAGE, description).finish(pruned.state_dict(), notes)
    (folder / WEIGHTS).chmod((folder / CONFIG).stat().st_mode)  # safetensors lets nobody else read them
    (folder / CARD).write_text(saved_card(pruned, preparation, tokenizer is not None, name), encoding="utf-8")


def _named(base: Backbone, configuration: dict[str, Any], preparation: Preparation) -> dict[str, Any]:
    """The configuration with names of classes, and of images with their preparation, where its library has them."""
    names, inputs = list(preparation.class_names), preparation.inputs
    if "model_type" in configuration:  # of transformers
        if names:  # by numbers as JSON has them: the record's fingerprint sorts them
            configuration["id2label"] = {str(place): each for place, each in enumerate(names)}
            configuration["label2id"] = {each: place for place, each in enumerate(names)}
        return configuration
    own = {
        "input_size": list(base.image_shape),
        "mean": inputs.get("mean"),
        "std": inputs.get("std"),
        "crop_pct": inputs.get("crop"),
        "interpolation": inputs.get("interpolation"),
        "num_classes": base.architecture.classes,
    }
    return configuration | {"label_names": names, "pretrained_cfg": own}


def _backbone(name: str) -> type[Backbone]:
    """The adapter of that name, of those that are installed: no file says what is imported."""
    found = {kind.__name__: kind for kind in adapters()}
    if name not in found:
        raise UserError(f"the model is a {name}, which no adapter here serves: install the package that brings it")
    return found[name]


def _take_kinds(pruned: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Weights of the kinds of numbers that were saved: loading them would cast to single precision."""
    for name, value in [*pruned.named_parameters(), *pruned.named_buffers()]:
        if name in tensors and value.dtype != tensors[name].dtype:
            value.data = value.data.to(tensors[name].dtype)


@torch.no_grad()
def _check_same(pruned: PrunedModel, folder: Path) -> None:
    """Raises UserError unless what was written gives the model's own logits, bit for bit."""
    remedy = "merge or take out what was added to it (LoRA: merge_and_unload())"
    try:
        found = restore(folder, *load_folder(folder))
    except (RuntimeError, TypeError, KeyError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"the model cannot be saved, as its configuration makes another one: {remedy} ({reason})"
        ) from error
    first = next(pruned.base.parameters())
    inputs = _inputs(pruned.base, pruned.method.counts, first)
    modes = [(module, module.training) for module in pruned.modules()]
    pruned.eval()
    try:
        expected, logits = pruned.run(inputs).logits, found.to(first.device).run(inputs).logits
    finally:
        for module, mode in modes:
            module.training = mode
    if not torch.equal(expected, logits):
        raise UserError(f"the model cannot be saved, as what its configuration makes computes something else: {remedy}")


def _inputs(base: Backbone, counts: Sequence[int] | None, first: Tensor) -> Any:
    """Random ones, the same each time. Texts are of two lengths, but where as many tokens of each are kept."""
    generator = torch.Generator().manual_seed(0)
    if not base.may_pad:
        return torch.randn(COMPARED, *base.image_shape, generator=generator).to(first.device, first.dtype)
    shape = (COMPARED, min(base.tokens, 16) if counts is None else base.tokens)
    config = base.model.config
    ids = torch.randint(config.vocab_size, shape, generator=generator)
    if (padding := config.pad_token_id) is not None:  # which RoBERTa refuses in a text
        ids[ids == padding] = (padding + 1) % config.vocab_size
    shorter = shape[1] // 2 if counts is None else shape[1]
    real = torch.arange(shape[1]) < torch.tensor([[shape[1]], [shorter]])
    return Text(*(field.to(first.device) for field in (ids, torch.zeros_like(ids), real)))


def _check_target(folder: Path) -> None:
    """Raises UserError for a place that holds anything but an earlier saved model, whole."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise UserError(f"folder={folder} is a file: give a folder, which is made")
    there = {path.name for path in folder.iterdir()}
    if not there:
        return
    remedy = "give a new folder"
    if RECORD not in there:
        raise UserError(f"folder={folder} is not empty, and no saved model: {remedy}")
    record = read_record(folder / RECORD)
    if record["stage"] != STAGE:
        raise UserError(f"folder={folder} is an artifact of a run: {remedy}")
    if others := sorted(there - {RECORD, WEIGHTS, CARD, *record["files"]}):
        raise UserError(f"folder={folder} holds {others[0]} beside a saved model: {remedy}")


@contextmanager
def _replacing(folder: Path) -> Iterator[Path]:
    """A folder to write to, which takes the place of `folder` at the end, or is gone."""
    mark = f"{os.getpid()}-{secrets.token_hex(4)}"
    partial, old = (folder.absolute().with_name(f".{folder.name}.{mark}.{end}") for end in ("partial", "old"))
    try:
        with disk_errors(folder):
            partial.mkdir(parents=True)
            yield partial
            if folder.exists():
                folder.rename(old)
            partial.rename(folder)
    finally:
        for path in (partial, old):
            shutil.rmtree(path, ignore_errors=True)
