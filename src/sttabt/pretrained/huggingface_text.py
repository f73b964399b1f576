"""A text classifier from the Hugging Face hub or a local folder, loaded by transformers and checked strictly.

Which families there are, their adapters say (backbones/text.py).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from torch import Tensor
from transformers import AutoConfig, PreTrainedConfig

from sttabt.backbones.registry import served
from sttabt.backbones.text import TextBackbone
from sttabt.errors import UserError, nearest
from sttabt.pretrained.built import Built
from sttabt.pretrained.classes import configured_names
from sttabt.pretrained.reading import hub_weights, quiet_library, read_hub
from sttabt.pretrained.states import below, common_prefixes

log = logging.getLogger(__name__)

STALE = "embeddings.position_ids"  # what constants that older versions saved end with


def build_text(huggingface: str, classes: int, pretrained: bool, arguments: Mapping[str, Any] | None = None) -> Built:
    """A text classifier by hub id or local folder, with a head of `classes` outputs.

    pretrained: load the weights too; weights without a classification head get a fresh one, which is logged.
    arguments: on top of the configuration (`hidden_dropout_prob`, ...). Raises UserError when nothing can be read
    there, when it is another kind of model, or when any other weight is missing, left over or of another shape.
    """
    source = f"model.huggingface={huggingface}"
    with quiet_library():
        config = read_hub(huggingface, lambda: AutoConfig.from_pretrained(huggingface, trust_remote_code=False))
        adapter, named = _adapter(huggingface, config.model_type), configured_names(config.to_dict(), source)
        if getattr(config, "quantization_config", None):
            raise UserError(f"{source} is quantised (quantization_config): give the floating-point weights")
        _change(config, {**(arguments or {}), "num_labels": classes})
        if not pretrained:
            return Built(read_hub(huggingface, lambda: adapter.from_config(config)))
        state = _unwrapped(hub_weights(huggingface), adapter.library().base_model_prefix, source)
        loaded: Any = read_hub(
            huggingface,
            lambda: adapter.library().from_pretrained(
                None,
                config=config,
                state_dict=state,
                attn_implementation="sdpa",
                dtype="float32",
                ignore_mismatched_sizes=True,  # so that they are named below
                output_loading_info=True,
            ),
        )
    model, found = loaded
    base = adapter(model.train())  # as every new module: the library hands it out in evaluation mode
    return Built(base, new_head=bool(_check(huggingface, found, base)), classes=named)


def _unwrapped(state: Mapping[str, Tensor], encoder: str, source: str) -> dict[str, Tensor]:
    """Without what wrappers put before all names (`_orig_mod.`); encoder: what the library itself puts before them."""
    prefix = common_prefixes(state)[-1].removesuffix(f"{encoder}.")
    if prefix:
        log.info("%s: '%s' before all names is taken off", source, prefix)
    return below(prefix, state)


def _adapter(huggingface: str, model_type: str) -> type[TextBackbone]:
    adapters = {
        kind.model_type: kind for kind in served().values() if issubclass(kind, TextBackbone) and not kind.embeds
    }
    if model_type not in adapters:
        raise UserError(
            f"model.huggingface={huggingface} is a {model_type}, which cannot be pruned here: choose one of"
            f" {', '.join(sorted(adapters))}"
        )
    return adapters[model_type]


def _change(config: PreTrainedConfig, arguments: dict[str, Any]) -> None:
    known = type(config)().to_dict()
    for name, value in arguments.items():
        if name != "num_labels" and name not in known:  # the library would swallow it
            raise UserError(f"model.arguments.{name} is unknown to {config.model_type}: {nearest(name, known)}")
        try:
            setattr(config, name, value)
        except StrictDataclassError as error:
            reason = " ".join(str(error).split())
            raise UserError(f"model.arguments.{name}={value} does not fit {config.model_type}: {reason}") from error


def _check(huggingface: str, found: Mapping[str, Any], base: TextBackbone) -> set[str]:
    """The parameters that start from random weights; raises UserError when any but a head's do."""
    missing = set(found["missing_keys"])
    unexpected = {name for name in found["unexpected_keys"] if not name.endswith(STALE)}
    classifier = {name for name in base.model.state_dict() if name.startswith(base.head_prefixes)}
    fresh = {name for head in (classifier, base.pooler) if head <= missing for name in head}
    pretraining = {name for name in unexpected if name.startswith(base.pretraining_heads)}
    if not classifier <= missing:
        fresh = set()  # a classifier without its pooler is a broken file
    wrong = [f"{name} is missing" for name in sorted(missing - fresh)]
    wrong += [f"{name} is unexpected" for name in sorted(unexpected - pretraining)]
    wrong += [
        f"{name} has shape {tuple(there)}, not {tuple(here)}" for name, there, here in sorted(found["mismatched_keys"])
    ]
    wrong += [" ".join(str(message).split()) for message in found.get("error_msgs") or ()]
    if wrong:
        raise UserError(
            f"model.huggingface={huggingface} holds other weights: {'; '.join(wrong[:3])} ({len(wrong)} in all)"
        )
    if fresh:
        log.info("%s has no %s: it starts from random weights", huggingface, ", ".join(sorted(fresh)))
    if pretraining:
        log.info("%s: %d tensors of its pretraining head are left out", huggingface, len(pretraining))
    return fresh
