"""What all cases of `sttabt.parity` have in common: the quantities, by one backbone or another."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from sttabt.backbones.base import Backbone
from sttabt.core.backtrack import Backtracking, Keep, backtrack
from sttabt.core.concrete import EPSILON, concrete_loss, concrete_plan
from sttabt.core.forward import received_attention
from sttabt.core.ltp import hard_mask, mask_loss, soft_mask
from sttabt.core.plan import SoftPlan, largest
from sttabt.core.trace import AttentionTrace
from sttabt.engine.attention import merge_heads, split_heads
from sttabt.engine.dense import DenseRun, run_dense
from sttabt.engine.dropped import run_dropped
from sttabt.engine.masked import run_masked
from sttabt.engine.online import LayerAttention, OnlineSoftRun, mask_online, run_online_soft
from sttabt.models.approximate import ApproximateNetwork, ApproximationWeights, approximation_loss
from sttabt.parity.check import ABSOLUTE, EXACT, RELATIVE, Check
from sttabt.pretrained.names import load_official_state, official_names, official_state

UNDEFINED = "not compared: the official value is NaN"
EMPTY = "not compared: the official rule leaves a sample without any token"
GIVEN = ("input.", "concrete.p_logit", "ltp.threshold")  # what the official implementation was given

Found = tuple[str, Tensor, float]  # quantity, what this project computes, tolerance


@dataclass(frozen=True)
class Case:
    """A folder of vectors and how this project runs it.

    base: built from the case's configuration; inputs: what it reads, from the vectors; prefix: of the encoder's
    weights; weights: of the distillation's terms, by attention loss; device: where it runs.
    """

    folder: Path
    meta: dict[str, Any]
    base: Backbone
    inputs: Callable[[dict[str, Tensor]], Any]
    prefix: str
    weights: dict[str, ApproximationWeights]
    device: str = "cpu"

    def read(self, name: str) -> dict[str, Tensor]:
        """The tensors of a file of the folder."""
        return load_file(self.folder / name, device=self.device)

    def loaded_base(self) -> Backbone:
        """The base model with the weights of the folder."""
        weights = self.read("base.safetensors")
        load_official_state(self.base, {key.removeprefix(self.prefix): value for key, value in weights.items()})
        return self.base.eval().to(self.device)


def check_quantities(case: Case) -> Iterator[Check]:
    """Every quantity of a case."""
    name, meta, base = case.folder.name, case.meta, case.loaded_base()
    network = ApproximateNetwork(base, meta["factor"]).eval().to(case.device)
    network.start_from(base)
    start = case.read("approx_interpolated_init.safetensors")
    started = official_state(network.backbone)
    for key in sorted(set(start) | {key for key in started if not key.startswith("classifier")}):
        yield compare(name, f"approx.interpolated_init.{key}", started.get(key), start.get(key), EXACT)
    network.load_official_state(case.read("approx.safetensors"))

    vectors = case.read("vectors.safetensors")
    left = {key for key in vectors if not key.startswith(GIVEN)}
    empty = _without_tokens(vectors)
    for quantity, value, tolerance in _quantities(case, network, vectors):
        left.discard(quantity)
        if quantity in empty:
            yield Check(name, quantity, skipped=EMPTY)
        else:
            yield compare(name, quantity, value.detach(), vectors.get(quantity), tolerance)
    for quantity in sorted(left):
        yield Check(name, quantity)  # nothing here computes it: that is a failure, not a choice


def _without_tokens(vectors: dict[str, Tensor]) -> set[str]:
    """What hangs on a sample all of whose tokens the official LTP drops: what it then computes is of no token."""
    masks = vectors.get("ltp.hard.masks")
    if masks is None or masks.any(-1).all():
        return set()
    return {"ltp.hard.logits", "ltp.hard.loss"} & set(vectors)


def _quantities(case: Case, network: ApproximateNetwork, vectors: dict[str, Tensor]) -> Iterator[Found]:
    base, meta, inputs = case.base, case.meta, case.inputs(vectors)
    with torch.no_grad():
        dense, approx = run_dense(base, inputs), run_dense(network.backbone, inputs)
    yield from _run("dense", dense)
    yield from _run("approx", approx)
    every_row = torch.ones_like(base.real(inputs))
    for kind, weights in case.weights.items():
        loss = approximation_loss(network, inputs, dense, kind, weights, every_row)
        for term in ("attention", "hidden", "embedding", "prediction", "total"):
            yield f"approx.loss.{kind}.{term}", getattr(loss, term)[None], RELATIVE
    if "topk" in meta:
        for index, keep in enumerate(meta["topk"]["ks"]):
            for source, trace in (("approx", approx.trace), ("absatt", dense.trace)):
                found = backtrack(trace, _official_keep(keep), meta["abt_p"])
                yield from _topk(base, inputs, found, f"topk.{source}.{index}")
            if f"forward.{index}.output_masks" in vectors:
                yield from _forward(base, inputs, keep, vectors[f"forward.{index}.output_masks"], f"forward.{index}")
    if "concrete" in meta:
        yield from _concrete(case, network, vectors)
    if "ltp" in meta:
        yield from _ltp(case, vectors)


def _run(name: str, run: DenseRun) -> Iterator[Found]:
    yield f"{name}.logits", run.logits, ABSOLUTE
    for layer in range(run.trace.layers):
        yield f"{name}.attention.{layer}", run.trace.probabilities(layer), ABSOLUTE


@torch.no_grad()
def _topk(base: Backbone, inputs: Any, found: Backtracking, name: str) -> Iterator[Found]:
    yield f"{name}.masks", found.plan.alive[:, :-1].float(), EXACT
    yield f"{name}.impacts", found.impacts, ABSOLUTE
    yield f"{name}.logits", run_dropped(base, inputs, found.plan), ABSOLUTE


@torch.no_grad()
def _forward(base: Backbone, inputs: Any, keeps: list[float], official: Tensor, name: str) -> Iterator[Found]:
    """The official rule in this project's engine: its choice is among all real tokens, the class token like any other.

    Where a layer keeps more than the one before it, tokens come back that received no attention at all: they tie at
    exactly 0, and which of them the official implementation took (`official`, (B, L, N)) is taken from it.
    """
    real = base.real(inputs)

    def select(layer: int, attention: LayerAttention, alive: Tensor) -> Tensor:
        received = attention.received(alive)
        importance = received.where(received > 0, official[:, layer] - 1)
        count = (keeps[layer] * real.sum(-1).double()).floor().long().clamp_min(1)
        return largest(importance, count, among=real)

    logits, alive = mask_online(base, inputs, select)
    yield f"{name}.output_masks", alive[:, 1:].float(), EXACT
    yield f"{name}.logits", logits, ABSOLUTE


@torch.no_grad()
def _ltp(case: Case, vectors: dict[str, Tensor]) -> Iterator[Found]:
    """The official rule: scores and loss count every row, padding and dropped ones too, and the class token can go."""
    base, settings, inputs = case.base, case.meta["ltp"], case.inputs(vectors)
    labels, threshold = vectors["input.labels"], vectors["ltp.threshold"]
    every = torch.ones_like(base.real(inputs))

    def soft(layer: int, attention: LayerAttention, real: Tensor) -> Tensor:
        return soft_mask(attention.received(every), threshold[layer], settings["temperature"])

    runs = {
        "soft": (run_online_soft(base, inputs, soft), ABSOLUTE),
        "hard": (_official_hard_ltp(base, inputs, threshold), EXACT),
    }
    for kind, (run, tolerance) in runs.items():
        loss = F.cross_entropy(run.logits, labels) + mask_loss(run.masks, every, settings["lambda_"])
        yield f"ltp.{kind}.masks", run.masks, tolerance
        yield f"ltp.{kind}.logits", run.logits, ABSOLUTE
        yield f"ltp.{kind}.loss", loss[None], RELATIVE


def _official_hard_ltp(base: Backbone, inputs: Any, threshold: Tensor) -> OnlineSoftRun:
    """Dropped rows are set to 0 and are not attended to, but go on to weigh as queries in the scores."""
    x, alive = base.embed(inputs), base.real(inputs)
    every, masks = torch.ones_like(alive), []
    for layer in range(base.layers):
        query, key, value = base.qkv(layer, x)
        probabilities = LayerAttention(base, query, key, value, alive).probabilities
        x = base.finish(layer, x, merge_heads(probabilities @ split_heads(value, base.heads)))
        alive = alive & hard_mask(received_attention(probabilities, every), threshold[layer])
        x = x * alive[..., None]
        masks.append(alive.float())
    return OnlineSoftRun(base.head(x[:, : base.outputs]), torch.stack(masks, 1))


def _concrete(case: Case, network: ApproximateNetwork, vectors: dict[str, Tensor]) -> Iterator[Found]:
    base, meta, inputs = case.base, case.meta, case.inputs(vectors)
    settings, labels = meta["concrete"], vectors["input.labels"]
    p_logit = vectors["concrete.p_logit"].clone().requires_grad_()
    trace = network(inputs)
    soft = concrete_plan(trace, p_logit, meta["abt_p"], settings["temperature"]).plan
    hold = partial(_hold, p_logit, trace, settings)

    logits = run_masked(base, inputs, soft, EPSILON)
    held = hold(soft)
    loss = F.cross_entropy(logits, labels) + held.p_logit + held.keep
    yield "concrete.soft.masks", soft.alive[:, :-1], ABSOLUTE
    yield "concrete.soft.logits", logits, ABSOLUTE
    yield "concrete.soft.loss", loss[None], RELATIVE
    yield "concrete.soft.loss_reg", held.p_logit[None], RELATIVE
    yield "concrete.soft.loss_ratio", held.keep[None], RELATIVE
    base.zero_grad()
    network.zero_grad()
    loss.backward()
    gradients = _gradients(base)
    gradients |= {f"approx.{name}": value for name, value in _gradients(network.backbone).items()}
    assert p_logit.grad is not None, "the loss holds the p_logits"
    gradients["p_logit"] = p_logit.grad
    for quantity in (name for name in vectors if name.startswith("concrete.soft.grad.")):
        value = gradients.get(quantity.removeprefix("concrete.soft.grad."))
        if value is not None:
            yield quantity, value, RELATIVE

    hard = soft.harden(settings["hard_threshold"])
    with torch.no_grad():
        logits = run_masked(base, inputs, hard, EPSILON)
        held = hold(soft)  # the official loss counts the soft masks in either mode
        yield "concrete.hard.masks", hard.alive[:, :-1].float(), EXACT
        yield "concrete.hard.logits", logits, ABSOLUTE
        yield "concrete.hard.loss", (F.cross_entropy(logits, labels) + held.p_logit + held.keep)[None], RELATIVE


def _hold(p_logit: Tensor, trace: AttentionTrace, settings: dict, plan: SoftPlan) -> Any:
    return concrete_loss(
        p_logit, plan.alive, trace.real, settings["init_p_logit"], settings["lambda_p"], settings["lambda_mask"]
    )


def _gradients(backbone: Any) -> dict[str, Tensor]:
    """Gradients under the short names of the vectors: layer0.query.weight, classifier.weight, ..."""
    gradients = {
        name: torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        for name, parameter in backbone.model.named_parameters()
    }
    return {_short(name): value for name, value in official_names(backbone, gradients).items()}


def _short(name: str) -> str:
    return (
        name.replace("encoder.layer.", "layer")
        .replace("attention.attention.", "")
        .replace("attention.self.", "")
        .replace("attention.output", "output")
    )


def _official_keep(keep: Any) -> Keep:
    """The official reading of k: below 1 a ratio, else a number of tokens; `dynamic` chooses by importance."""
    if keep == "dynamic":
        return None
    if isinstance(keep, list):
        return [float(k) if k < 1 else int(k) for k in keep]
    return float(keep) if keep < 1 else int(keep)


def compare(case: str, quantity: str, ours: Tensor | None, theirs: Tensor | None, tolerance: float = ABSOLUTE) -> Check:
    """One line of the table: how far apart the two are; NaN on their side is not compared, NaN here alone fails."""
    if ours is None or theirs is None or ours.shape != theirs.shape:
        return Check(case, quantity, None, tolerance)
    if theirs.isnan().any() and not (ours.isnan() & ~theirs.isnan()).any():
        return Check(case, quantity, skipped=UNDEFINED)
    error = (ours - theirs).abs().max()
    if tolerance == RELATIVE:
        error = error / theirs.abs().max()
    return Check(case, quantity, float(error), tolerance)
