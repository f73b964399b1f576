"""The suite in one line of Python: prune a live model, distil its approximate network, load what a run saved."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import fields, replace
from numbers import Real
from pathlib import Path
from typing import Any, cast

import torch
from lightning.fabric.utilities import move_data_to_device
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import Tensor, nn

from sttabt.backbones import adapt
from sttabt.backbones.base import Backbone
from sttabt.backbones.text import real_tokens
from sttabt.core.budget import Calibration
from sttabt.core.text import Text
from sttabt.data.sources import find_source
from sttabt.engine.dense import run_dense
from sttabt.errors import UserError, nearest
from sttabt.methods import find_method, restored_method
from sttabt.models.approximate import ApproximateNetwork, ApproximationWeights, approximation_loss
from sttabt.models.budget import calibrate as fit_to_budget
from sttabt.models.frozen import FrozenModel
from sttabt.models.frozen import freeze as freeze
from sttabt.models.pruned import PrunedModel
from sttabt.pretrained.build import build_base
from sttabt.pretrained.description import Preparation
from sttabt.runtimes.exporting import export as export
from sttabt.settings import BudgetSettings as Budget
from sttabt.settings import (
    MethodSettings,
    Settings,
    TrainedSettings,
    TunedSettings,
    check_budget,
    check_of_batches,
    method_names,
    method_settings,
)
from sttabt.settings.effects import no_effect
from sttabt.settings.fields import describe
from sttabt.settings.noted import noted_dataset, noted_model
from sttabt.settings.values import check_value, check_values
from sttabt.sharing.folder import STAGE as SAVED
from sttabt.sharing.folder import restore
from sttabt.sharing.hub import HUB_ID, fetch
from sttabt.store.artifacts import AVERAGED, CARD, RECORD, load_folder, parents, read_record
from sttabt.version import __version__

PRESETS: dict[str, tuple[str, dict[str, Any]]] = {  # files of conf/sparsity whose name is not their method's
    "backtracking_actual": ("backtracking", {"attention": "actual"}),
    "concrete_vision": ("concrete", {}),  # differs in how it is trained
}
TEXT_WEIGHTS = ApproximationWeights(attention=1.0, hidden=1.0, embedding=1.0, prediction=1.0)
CLIP = 0.5  # largest gradient norm of distillation
LOADED = ("base", "approx", "prune", "budget")  # stages whose artifacts are models by themselves
A_SHARE = "above 0 and at most 1, e.g. 0.5, or sttabt.Budget(time=0.5)"  # what a budget may be
LARGEST_RATE = 1.0  # at which weights are replaced rather than learned

log = logging.getLogger(__name__)


def prune(
    model: nn.Module,
    method: str = "backtracking",
    *,
    approx: ApproximateNetwork | int = 4,
    budget: float | Budget | None = None,
    calibration: Iterable[Any] | None = None,
    **settings: Any,
) -> PrunedModel:
    """`model` under a pruning method, in evaluation mode; the weights are shared, not copied.

    model: a timm VisionTransformer (ViT, DeiT, SigLIP), a classifier of transformers (BERT, RoBERTa, ViT, DINOv2, CLIP,
    ...), an encoder of transformers as an embedding (BertModel, CLIPVisionModel, ...), or a Backbone. docs/MODELS.md
    lists which work under which method.
    method, settings: as `sparsity` in the configs, e.g. `prune(vit, "backtracking", keep_ratio=0.4)`, or
    "backtracking_actual" and "concrete_vision".
    approx: the approximate attention network, where the method reads one; a number makes one that many times narrower,
    at its interpolated start, which guesses badly until `distil` has trained it.
    budget, calibration: instead of the method's knob, what the model may cost and batches to find that on, as
    `calibrate` takes them.

    The result is called as `model` is and returns what that returns; an embedding gives its vector alone,
    `pooler_output` (or `image_embeds`), without a pooler the mean of the tokens that are left; reading
    `last_hidden_state` is a UserError: dropped tokens have no row. Its `run(inputs)` gives `logits` (B, classes) and
    the `plan`, whose `alive` (B, L+1, N) says which token lived at which layer boundary; inputs are images (B, C,
    height, width) or a `text`. Inputs that the model cannot read (another size, kind of numbers or device, NaN, ids
    beyond the vocabulary, more tokens than positions, a text without a real token) are a UserError; a batch of nothing
    has no logits.
    Raises UserError for a model that cannot be pruned, an unknown method or setting, or a value out of its range.
    """
    base = adapt(model).eval()
    method, preset = PRESETS.get(method, (method, {}))
    sparsity = _sparsity(method, preset | settings)
    if (budget is None) != (calibration is None):
        raise UserError("budget and calibration belong together: give both, or give the method's own setting")
    asked = None if budget is None else _budget(budget, sparsity, settings)
    sparsity.check_model(base.layers, base.tokens)
    kind = find_method(method)
    pruning = kind(sparsity, base.layers, base.outputs)
    network = None
    if pruning.attention == "approximate":
        network = _network(base, approx)
    if isinstance(sparsity, TrainedSettings) and not isinstance(sparsity, TunedSettings):
        log.warning("%s starts untrained: `python -m sttabt.run sparsity=%s` trains it", pruning.title, method)
    pruned = PrunedModel(base, pruning, network).eval().to(next(base.parameters()).device)
    return pruned if asked is None else _calibrate(pruned, calibration, asked)


def calibrate(pruned: PrunedModel, budget: float | Budget, batches: Iterable[Any]) -> PrunedModel:
    """Finds the setting of the method with which `pruned` costs a share of the dense model; gives back `pruned`.

    budget: a share above 0 and at most 1 of multiply-adds, everything counted, or `Budget(time=0.5)` of time: of the
    frozen dense model's on a CPU, on which the pruned one is to be frozen, too, or with baseline="library" of the
    library's; batch and samples are those of `batches`.
    batches: as `distil` takes them; data for training or validation, never for testing.

    `pruned.calibration` says what was asked, reached and found. One line is logged where the budget cannot be reached:
    the nearest that can is taken. Distil the approximate network first: another one plans otherwise.
    Raises UserError for a method without such a setting, a share out of its range, or batches that cannot be read.
    """
    if isinstance(pruned, FrozenModel):
        raise UserError("a frozen model stays as it is: calibrate the model that was frozen, and freeze it again")
    _check_pruned(pruned)
    return _calibrate(pruned, batches, _budget(budget, pruned.method.settings, ()))


def distil(pruned: PrunedModel, batches: Iterable[Any], *, epochs: int = 1, learning_rate: float = 1e-4) -> PrunedModel:
    """Trains the approximate network of `pruned` to guess its base model's attention; gives back `pruned`.

    batches: an iterable that can be gone through `epochs` times, e.g. a DataLoader. A batch is images, a `text`, the
    encoding of a tokenizer or an image processor (`pixel_values`), or a pair of one of these and labels; labels are
    not used.

    The base model stays as it is. AdamW at a constant rate on the losses of METHOD section 1, on the device where the
    model is; the stage `approx` adds warm-up, validation and checkpoints.
    Raises UserError when the method reads no approximate network, a batch cannot be read, `batches` is empty, or the
    training diverges; the network is then as it was before.
    """
    if isinstance(pruned, FrozenModel):
        raise UserError("a frozen model cannot learn: distil the model that was frozen, and freeze it again")
    _check_pruned(pruned)
    if pruned.approx is None:
        raise UserError(f"{pruned.method.title} reads no approximate network: there is nothing to distil")
    check_batches("batches are", batches)
    if not isinstance(epochs, int) or epochs < 1:
        raise UserError(f"epochs={epochs} is out of range: it must be a whole number, at least 1")
    if not 0 < learning_rate <= LARGEST_RATE:
        raise UserError(f"learning_rate={learning_rate} is out of range: it must be above 0 and at most {LARGEST_RATE}")
    network = pruned.approx
    before = {name: value.clone() for name, value in network.state_dict().items()}
    network.train()
    try:
        _distil(pruned.base.eval(), network, batches, epochs, learning_rate)
    except BaseException:
        network.load_state_dict(before)
        raise
    finally:
        network.eval()
    return pruned


def text(encoding: Mapping[str, Tensor]) -> Text:
    """What a tokenizer gave with `return_tensors="pt", padding=True`, as a pruned BERT reads it.

    Raises UserError for padding in front of a text, a text without a real token, or without `input_ids`.
    """
    if not isinstance(encoding, Mapping):
        raise UserError(f"the encoding is a {type(encoding).__name__}: give a tokenizer's result")
    if "input_ids" not in encoding:
        raise UserError(f"the encoding has no input_ids, only {', '.join(encoding)}: give a tokenizer's result")
    ids = encoding["input_ids"]
    if not isinstance(ids, Tensor):
        raise UserError(f"input_ids is a {type(ids).__name__}: call the tokenizer with return_tensors='pt'")
    types = encoding.get("token_type_ids", torch.zeros_like(ids))
    return Text(ids, types, real_tokens(ids, encoding.get("attention_mask")))


@torch.inference_mode(False)  # weights that are made in inference mode could not be trained
def load(folder: str | Path, method: str = "", **settings: Any) -> PrunedModel:
    """The model that `save_pretrained` wrote, as a folder or an id of the Hugging Face hub (USER/MODEL), or that of an
    artifact of a run: one in the folder prune, budget, approx or base of `artifacts`.

    Its `preparation` says how inputs are made and what classes are called. A pruned model comes with the method that
    it was saved with, trained under, or brought to a budget with. A base model comes dense, an approximate network
    with its base model under back-tracking; `method` and `settings` prune them otherwise, as in `prune`.
    Raises UserError when an artifact is missing, damaged, or not a model by itself, or as `prune` does.
    """
    if not isinstance(folder, str | Path):
        raise UserError(f"folder={folder!r} is no path: give that of an artifact, artifacts/STAGE/FINGERPRINT")
    if HUB_ID.fullmatch(str(folder)) and not Path(folder).exists():
        folder = fetch(str(folder))
    folder = Path(folder).absolute()
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file: give the folder of a model; an exported file is read by open_exported")
    if not folder.exists():
        raise UserError(f"{folder} is not there: give the folder of a model, or an id of the hub as USER/MODEL")
    if not (folder / RECORD).exists():
        raise UserError(
            f"{folder} holds no {RECORD}: give a folder that save_pretrained wrote, or an artifact of a run,"
            " artifacts/STAGE/FINGERPRINT"
        )
    tensors, record = load_folder(folder)
    stage, notes = record["stage"], record["notes"]
    if stage not in (*LOADED, SAVED):
        raise UserError(
            f"{folder} is an artifact of stage {stage}, no model by itself: give one of {', '.join(LOADED)}"
        )
    described = isinstance(notes, dict) and ("settings" in notes or stage == SAVED)
    if not described or (stage != SAVED and record.get("version") != __version__):
        raise UserError(f"{folder} was made by another version of sttabt: make it again")
    if stage in ("prune", "budget", SAVED) and (method or settings):
        raise UserError(f"{folder} has its own method: leave method and settings out")
    try:
        if stage == SAVED:
            return restore(folder, tensors, record)
        preparation = _preparation(folder, record)
        base, network, pruned = _restored(folder, tensors, record)
    except UserError:
        raise
    except Exception as error:  # of a record or a configuration that is none, libraries raise anything
        reason = " ".join(str(error).split())
        raise UserError(
            f"{folder}: its record does not describe its weights ({type(error).__name__} {reason}): make it again"
        ) from error
    if pruned is None:
        given: dict[str, Any] = settings if network is None else {**settings, "approx": network}
        pruned = prune(base, method or ("dense" if network is None else "backtracking"), **given)
    pruned.preparation = preparation
    return pruned.eval()


def _restored(
    folder: Path, tensors: dict[str, Tensor], record: dict[str, Any]
) -> tuple[Backbone, ApproximateNetwork | None, PrunedModel | None]:
    """What an artifact's weights are of: a base model, its approximate network, or a model with its method."""
    notes, stage = record["notes"], record["stage"]
    settings, made_of = notes["settings"], parents(record["description"])
    parts = ("prune",) if "prune" in (stage, *made_of) else ("base", "approx")  # what was trained last has all weights
    weights = {part: load_folder(folder.parents[1] / part / made_of[part])[0] for part in parts if part in made_of}
    weights[stage] = tensors
    base = _saved_base(settings)
    if "prune" not in weights:
        base.load_state_dict(weights["base"], strict=True)
    if stage == "base":
        return base, None, None
    approx = settings["approx"]
    network = ApproximateNetwork(base, approx["factor"], approx["stem"] == "shared")
    if "approx" in weights:
        network.load_state_dict(weights["approx"], strict=True)
    if stage == "approx":
        return base, network, None
    pruning = restored_method(settings["sparsity"] | notes.get("found", {}), base)
    pruned = PrunedModel(base, pruning, network if "approx" in made_of else None)
    if "prune" in weights:
        trained = {name: value for name, value in weights["prune"].items() if not name.startswith(AVERAGED)}
        pruned.load_state_dict(trained, strict=True)
    if "calibration" in notes:
        pruned.calibration = Calibration(**notes["calibration"])
    return base, network, pruned


def _distil(
    base: Backbone, network: ApproximateNetwork, batches: Iterable[Any], epochs: int, learning_rate: float
) -> None:
    device = next(base.parameters()).device
    weights = TEXT_WEIGHTS if base.may_pad else ApproximationWeights()
    optimizer = torch.optim.AdamW(network.parameters(), learning_rate, weight_decay=0.0)
    for epoch in range(epochs):
        losses = []
        for number, batch in enumerate(batches, 1):
            given = move_data_to_device(inputs_of(batch), device)
            base.check_inputs(given)
            with torch.no_grad():
                inputs = base.prepare(given)
                if not len(base.real(inputs)):
                    raise UserError(f"batch {number} is empty: give batches of one sample at least")
                target = run_dense(base, inputs)
            loss = approximation_loss(network, inputs, target, "kldiv", weights).total
            optimizer.zero_grad()
            loss.backward()
            norm = nn.utils.clip_grad_norm_(network.parameters(), CLIP)
            if not (loss.isfinite() and norm.isfinite()):
                raise UserError(
                    f"distillation diverged at batch {number} of epoch {epoch + 1} (loss {float(loss.detach()):.4g}):"
                    f" lower learning_rate={learning_rate}; the approximate network is as it was before"
                )
            optimizer.step()
            losses.append(float(loss.detach()))
        if not losses:
            raise UserError(f"batches gave nothing in epoch {epoch + 1}: give a DataLoader or a list, no iterator")
        log.info("epoch %d/%d loss %.4g", epoch + 1, epochs, sum(losses) / len(losses))


def _budget(budget: Any, sparsity: MethodSettings, given: Iterable[str]) -> Budget:
    """Checked; given: names of settings of the method that are set beside it."""
    if not isinstance(budget, Budget):
        share = _plain(budget)
        if not isinstance(share, int | float) or isinstance(share, bool):
            raise UserError(f"budget={budget!r} is no share: give a number {A_SHARE}")
        budget = Budget(macs=float(share))
    asked = replace(budget, **{each.name: _plain(getattr(budget, each.name)) for each in fields(budget)})
    check_values(asked, "budget.")
    if not asked.asked:
        raise UserError(f"budget asks for nothing: give a share {A_SHARE}")
    settings = Settings(sparsity=sparsity, budget=asked)
    check_budget(settings, given)
    check_of_batches(settings)
    return asked


def _calibrate(pruned: PrunedModel, batches: Any, budget: Budget) -> PrunedModel:
    check_batches("calibration is", batches)
    device = next(pruned.base.parameters()).device
    given = [move_data_to_device(inputs_of(batch), device) for batch in batches]
    for inputs in given:
        pruned.base.check_inputs(inputs)
        pruned.base.check_numbers(inputs)  # which the library's own forward, timed beside, does not look at
    given = [inputs for inputs in given if len(pruned.base.real(inputs))]
    if not given:
        raise UserError("calibration gave nothing: give a DataLoader or a list of batches")
    fit_to_budget(pruned, given, budget)
    return pruned


def _check_pruned(model: Any) -> None:
    if not isinstance(model, PrunedModel):
        raise UserError(f"a {type(model).__name__} is not pruned: give what sttabt.prune gives")


def check_batches(name: str, batches: Any) -> None:
    """Raises UserError for what is no iterable of batches, but one of them."""
    if not isinstance(batches, Iterable) or isinstance(batches, Tensor | Mapping | Text):  # the last three are one
        raise UserError(f"{name} a {type(batches).__name__}: give a DataLoader or a list of batches")


def inputs_of(batch: Any) -> Any:
    """Images or a Text, without labels; an encoding has them as `pixel_values`, or as its tokens."""
    inputs = batch[0] if isinstance(batch, tuple | list) and batch and not isinstance(batch, Text) else batch
    if not isinstance(inputs, Mapping):
        return inputs
    return inputs["pixel_values"] if "pixel_values" in inputs else text(inputs)


def _sparsity(method: str, settings: Mapping[str, Any]) -> MethodSettings:
    if method not in method_names():
        raise UserError(f"method={method} is unknown: {nearest(str(method), (*method_names(), *PRESETS))}")
    schema = method_settings(method)
    own = schema.own_names()
    known = {field.name: describe(field) for field in fields(schema) if field.name in own}
    typed = OmegaConf.structured(schema)
    for name, value in settings.items():
        if name not in known:
            raise UserError(f"{name} is not a setting of {method}: {nearest(name, known) if known else 'it has none'}")
        try:
            typed[name] = _plain(value)  # OmegaConf takes no numbers of numpy or torch, and no fractions
        except OmegaConfBaseException as error:
            rule = known[name].rule
            why = f"it must be a number, {rule.text}" if rule else str(error).splitlines()[0]
            raise UserError(f"{name}={value!r} cannot be read: {why}") from error
    values = cast(dict[str, Any], OmegaConf.to_container(typed))
    for name in settings:
        check_value(name, values[name], known[name])
    sparsity = schema(method=method, **{name: values[name] for name in settings})
    for name in settings:
        if reason := no_effect(Settings(sparsity=sparsity), f"sparsity.{name}"):
            log.warning("%s=%s has no effect: %s", name, values[name], reason)
    return sparsity


def _plain(value: Any) -> Any:
    """A real number of another library, or a fraction, as an int or a float; anything else as it is."""
    value = value.item() if getattr(value, "ndim", None) == 0 else value
    return float(value) if isinstance(value, Real) and not isinstance(value, int) else value


def _network(base: Backbone, approx: Any) -> ApproximateNetwork:
    """The network that was given, or a new one that is so many times narrower than `base`."""
    if isinstance(approx, ApproximateNetwork):
        for what in ("layers", "tokens", "outputs", "heads"):
            theirs, own = getattr(approx.backbone, what), getattr(base, what)
            if theirs != own:
                raise UserError(f"approx is of a model with {theirs} {what}, this one has {own}: give its own network")
        return approx
    if not isinstance(approx, int) or isinstance(approx, bool):
        raise UserError(f"approx={approx!r} is no network and no factor: give how many times narrower, e.g. 4")
    network = ApproximateNetwork(base, approx)
    network.start_from(base)
    log.warning("the approximate network is not distilled yet: sttabt.distil(pruned, batches) does it")
    return network


def _preparation(folder: Path, record: dict[str, Any]) -> Preparation | None:
    """What a run knew of its inputs and classes; None where its source of data is not here.

    Names of classes stand in the record of the artifact, or in those of which it is made, as far as they are there.
    """
    settings, made_of = record["notes"]["settings"], parents(record["description"])
    dataset, model = noted_dataset(settings), noted_model(settings)
    try:
        source = find_source(dataset.source)
    except UserError as error:
        log.warning("%s does not say how inputs are prepared: %s", folder, error)
        return None
    others = [folder.parents[1] / part / key / RECORD for part, key in made_of.items()]
    records = [record, *(read_record(path) for path in others if path.is_file())]
    names = tuple(next((found for each in records if (found := each["notes"].get("class_names"))), ()))
    card = (folder / CARD).read_text(encoding="utf-8") if (folder / CARD).is_file() else ""
    if source.holds == "images":
        size = {"height": dataset.image_size, "width": dataset.image_size, "pixels": "0 to 1"}
        return Preparation(names, size | source.prepares(dataset, model), card=card)
    given = () if dataset.task == "regression" else tuple(dataset.class_names) or names
    inputs = {"tokens": dataset.max_tokens, "truncation": True, "padding": "behind the text"}
    return Preparation(given, inputs | {"columns": list(dataset.columns)}, model.huggingface, card)


def _saved_base(settings: Mapping[str, Any]) -> Backbone:
    data = settings["dataset"]
    model = noted_model(settings)
    return build_base(model, data["classes"], data["channels"], data["image_size"], pretrained=False).base
