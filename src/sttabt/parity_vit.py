"""The vision transformer cases of `sttabt.parity`."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from sttabt.approx import ApproximateNetwork, ApproximationWeights, approximation_loss
from sttabt.backbones.vit import ViT
from sttabt.core.backtrack import Backtracking, Keep, backtrack
from sttabt.core.concrete import EPSILON, concrete_loss, concrete_plan
from sttabt.core.plan import TokenPlan
from sttabt.core.trace import AttentionTrace
from sttabt.engine.dense import DenseRun, run_dense
from sttabt.engine.dropped import run_dropped
from sttabt.engine.masked import run_masked
from sttabt.errors import UserError, nearest
from sttabt.parity import ABSOLUTE, EXACT, RELATIVE, Check

ACTIVATIONS = {"gelu": nn.GELU, "relu": nn.ReLU, "silu": nn.SiLU}
VISION_WEIGHTS = {"kldiv": ApproximationWeights(), "tinybert": ApproximationWeights(attention=10.0)}
FORWARD = "not compared: here the class token always stays and the sets are nested"

Found = tuple[str, Tensor, float]  # quantity, what this project computes, tolerance


def check_vit(case: Path, meta: dict[str, Any]) -> Iterator[Check]:
    """Every quantity of a case whose `arch` is vit."""
    base = _base(meta["config"]).eval()
    base.load_official_state(
        {name.removeprefix("vit."): value for name, value in load_file(case / "base.safetensors").items()}
    )
    network = ApproximateNetwork(base, meta["factor"]).eval()
    network.start_from(base)
    start = load_file(case / "approx_interpolated_init.safetensors")
    started = network.backbone.official_state()
    for name in sorted(set(start) | {name for name in started if not name.startswith("classifier")}):
        yield _compare(case.name, f"approx.interpolated_init.{name}", started.get(name), start.get(name), EXACT)
    network.load_official_state(load_file(case / "approx.safetensors"))

    vectors = load_file(case / "vectors.safetensors")
    left = {name for name in vectors if not name.startswith(("input.", "concrete.p_logit"))}
    for quantity, value, tolerance in _quantities(base, network, meta, vectors):
        left.discard(quantity)
        yield _compare(case.name, quantity, value.detach(), vectors.get(quantity), tolerance)
    for quantity in sorted(left):
        if quantity.startswith("forward."):
            yield Check(case.name, quantity, skipped=FORWARD)
        elif quantity.startswith("ltp."):
            yield Check(case.name, quantity, skipped="not supported yet: learned thresholds")
        else:
            yield Check(case.name, quantity)  # nothing here computes it: that is a failure, not a choice


def _quantities(base: ViT, network: ApproximateNetwork, meta: dict, vectors: dict[str, Tensor]) -> Iterator[Found]:
    images = vectors["input.pixel_values"]
    with torch.no_grad():
        dense, approx = run_dense(base, images), run_dense(network.backbone, images)
    yield from _run("dense", dense)
    yield from _run("approx", approx)
    for kind, weights in VISION_WEIGHTS.items():
        loss = approximation_loss(network, images, dense, kind, weights)
        for term in ("attention", "hidden", "embedding", "prediction", "total"):
            yield f"approx.loss.{kind}.{term}", getattr(loss, term)[None], RELATIVE
    if "topk" in meta:
        for index, keep in enumerate(meta["topk"]["ks"]):
            for source, trace in (("approx", approx.trace), ("absatt", dense.trace)):
                found = backtrack(trace, _official_keep(keep), meta["abt_p"])
                yield from _topk(base, images, found, f"topk.{source}.{index}")
    if "concrete" in meta:
        yield from _concrete(base, network, meta, vectors)


def _run(name: str, run: DenseRun) -> Iterator[Found]:
    yield f"{name}.logits", run.logits, ABSOLUTE
    for layer in range(run.trace.layers):
        yield f"{name}.attention.{layer}", run.trace.probabilities(layer), ABSOLUTE


@torch.no_grad()
def _topk(base: ViT, images: Tensor, found: Backtracking, name: str) -> Iterator[Found]:
    yield f"{name}.masks", found.plan.alive[:, :-1].float(), EXACT
    yield f"{name}.impacts", found.impacts, ABSOLUTE
    yield f"{name}.logits", run_dropped(base, images, found.plan), ABSOLUTE


def _concrete(base: ViT, network: ApproximateNetwork, meta: dict, vectors: dict[str, Tensor]) -> Iterator[Found]:
    settings, labels, images = meta["concrete"], vectors["input.labels"], vectors["input.pixel_values"]
    p_logit = vectors["concrete.p_logit"].clone().requires_grad_()
    trace = network(images)
    soft = concrete_plan(trace, p_logit, meta["abt_p"], settings["temperature"])
    hold = partial(_hold, p_logit, trace, settings)

    logits = run_masked(base, images, soft, EPSILON)
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
        logits = run_masked(base, images, hard, EPSILON)
        held = hold(soft)  # the official loss counts the soft masks in either mode
        yield "concrete.hard.masks", hard.alive[:, :-1].float(), EXACT
        yield "concrete.hard.logits", logits, ABSOLUTE
        yield "concrete.hard.loss", (F.cross_entropy(logits, labels) + held.p_logit + held.keep)[None], RELATIVE


def _hold(p_logit: Tensor, trace: AttentionTrace, settings: dict, plan: TokenPlan) -> Any:
    return concrete_loss(
        p_logit, plan.alive, trace.real, settings["init_p_logit"], settings["lambda_p"], settings["lambda_mask"]
    )


def _gradients(backbone: Any) -> dict[str, Tensor]:
    """Gradients under the short names of the vectors: layer0.query.weight, classifier.weight, ..."""
    gradients = {
        name: torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        for name, parameter in backbone.model.named_parameters()
    }
    return {_short(name): value for name, value in backbone.official_names(gradients).items()}


def _short(name: str) -> str:
    return (
        name.replace("encoder.layer.", "layer")
        .replace("attention.attention.", "")
        .replace("attention.output", "output")
    )


def _official_keep(keep: Any) -> Keep:
    """The official reading of k: below 1 a ratio, else a number of tokens; `dynamic` chooses by importance."""
    if keep == "dynamic":
        return None
    if isinstance(keep, list):
        return [float(k) if k < 1 else int(k) for k in keep]
    return float(keep) if keep < 1 else int(keep)


def _base(config: dict[str, Any]) -> ViT:
    activation = config.get("hidden_act", "gelu")
    if activation not in ACTIVATIONS:
        raise UserError(f"config.hidden_act={activation} is unknown: {nearest(activation, ACTIVATIONS)}")
    return ViT(
        VisionTransformer(
            img_size=config["image_size"],
            patch_size=config["patch_size"],
            in_chans=config.get("num_channels", 3),
            num_classes=config["num_labels"],
            embed_dim=config["hidden_size"],
            depth=config["num_hidden_layers"],
            num_heads=config["num_attention_heads"],
            mlp_ratio=config["intermediate_size"] / config["hidden_size"],
            qkv_bias=config.get("qkv_bias", True),
            norm_layer=partial(nn.LayerNorm, eps=config["layer_norm_eps"]),
            act_layer=ACTIVATIONS[activation],
        )
    )


def _compare(case: str, quantity: str, ours: Tensor | None, theirs: Tensor | None, tolerance: float) -> Check:
    if ours is None or theirs is None or ours.shape != theirs.shape:
        return Check(case, quantity, None, tolerance)
    error = (ours - theirs).abs().max()
    if tolerance == RELATIVE:
        error = error / theirs.abs().max()
    return Check(case, quantity, float(error), tolerance)
