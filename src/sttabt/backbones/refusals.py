"""What a model is that no adapter serves, and what would serve instead."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from torch import nn

from sttabt.errors import nearest

_INSIDE = "prune what it holds, its .module, and wrap the result"
_GRAPH = "a graph has no layers to step through: prune the model that it was made of, and export or trace the result"
_ENCODER = "give a ForSequenceClassification or the plain Model of the same weights"
_VISION = "give its ForImageClassification, or the plain Model of the same weights"
_WEIGHTS = "weights say nothing of what is computed: give the model that they were loaded into"
# By what the qualified name of a class, or of one that it extends, begins with; the first that fits.
REASONS = {
    "torch.nn.parallel.distributed.": _INSIDE,
    "torch.nn.parallel.data_parallel.": _INSIDE,
    "torch.optim.swa_utils.": _INSIDE,
    "torch._dynamo.eval_frame.": "prune what was compiled, its ._orig_mod, and compile the result",
    "torch.jit.": _GRAPH,
    "torch.fx.": _GRAPH,
    "torch.export.": _GRAPH,
    "peft.": "merge the adapters into the weights and prune that, model.merge_and_unload()",
    "torch.nn.modules.container.Sequential": "prune the encoder in it, and put the result in its place",
    "timm.models.naflexvit.": "it reads images as lists of patches: a VisionTransformer of that size serves",
    "timm.models.eva.": "it has rotary positions or gated feed-forwards: a VisionTransformer of that size serves",
    "timm.models.vision_transformer_relpos.": "its attention adds relative positions: a VisionTransformer serves",
    "timm.models.beit.": "its attention adds relative positions: a VisionTransformer serves",
    "timm.models.swin": "it attends in windows of a grid, which dropped patches would tear: a VisionTransformer serves",
    "timm.models.": "it is no VisionTransformer of one width: timm.list_models('vit_*') names those that mostly serve",
    "transformers.models.modernbert.": "it has rotary positions and local attention: BERT or RoBERTa serve",
    "transformers.models.deberta": "its attention adds relative positions: BERT or RoBERTa serve",
    "transformers.models.albert.": "its layers share their weights: BERT or RoBERTa serve",
    "transformers.models.bert.": _ENCODER,
    "transformers.models.roberta.": _ENCODER,
    "transformers.models.xlm_roberta.": _ENCODER,
    "transformers.models.camembert.": _ENCODER,
    "transformers.models.electra.": _ENCODER,
    "transformers.models.distilbert.": _ENCODER,
    "transformers.models.vit.": _VISION,
    "transformers.models.deit.": _VISION,
    "transformers.models.dinov2": _VISION,
    "transformers.models.clip.": "give its vision_model or ForImageClassification, or timm's vit_*_clip_*",
    "transformers.models.siglip2.": "it reads images as lists of patches: a SiglipForImageClassification serves",
    "transformers.models.siglip.": "give its vision_model or ForImageClassification, or timm's vit_*_siglip_*",
    "transformers.models.": (
        "of transformers BERT, DistilBERT, ELECTRA and RoBERTa with its kin serve for texts, ViT, DeiT, DINOv2, CLIP"
        " and SigLIP for images: docs/MODELS.md names the classes"
    ),
    "sttabt.": "it is pruned already: prune the model that it was made of, or give its method another setting",
    "builtins.str": "it is a name: give the model, e.g. timm.create_model(name, pretrained=True)",
    "builtins.type": "it is a class: give a model of it",
    "builtins.dict": _WEIGHTS,
    "collections.OrderedDict": _WEIGHTS,
}

_GENERAL = ("", "transformers.models.")  # sentences that fit whatever has no better one
NAMED = 6  # classes of a library in a message


def refusal(model: Any, served: Collection[str]) -> str:
    """A line that says why a model cannot be pruned; served: qualified names of the classes that can.

    What holds a model that can be pruned (a module of one's own, CLIPModel) is told where, unless its class has a
    sentence that says so already.
    """
    kind = type(model)
    who = f"{'an' if kind.__name__[0] in 'AEIOU' else 'a'} {kind.__name__} cannot be pruned"
    bases = qualified_names(kind)
    found = next((start for start in REASONS if any(base.startswith(start) for base in bases)), "")
    if found in _GENERAL and isinstance(model, nn.Module):
        for name, part in model.named_modules():
            if name and set(qualified_names(type(part))) & set(served):
                held = f"a {type(part).__name__}, its .{name}"
                return f"{who}: it holds {held}: prune that, and put the result in its place"
    if found:
        return f"{who}: {REASONS[found]}"
    by_library: dict[str, list[str]] = {}
    for name in sorted(served):
        by_library.setdefault(name.partition(".")[0], []).append(name.rpartition(".")[2])
    near = nearest(kind.__name__, {name for names in by_library.values() for name in names})
    hint = f" ({near})" if near.startswith("did you mean") else ""
    known = "; ".join(
        f"{library}'s {', '.join(names[:NAMED])}{f' and {more} more' if (more := len(names) - NAMED) > 0 else ''}"
        for library, names in by_library.items()
    )
    return f"{who}{hint}: give one of {known} (docs/MODELS.md)"


def qualified_names(kind: type) -> list[str]:
    """Of a class and of those that it extends."""
    return [f"{base.__module__}.{base.__qualname__}" for base in kind.__mro__]
