"""A BERT or DistilBERT from the Hugging Face hub or a local folder, loaded by transformers and checked strictly."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, BertConfig, DistilBertConfig, PreTrainedConfig

from sttabt.backbones.bert import Bert, new_model
from sttabt.backbones.distilbert import DistilBert
from sttabt.errors import UserError, nearest
from sttabt.pretrained.library import quiet_library, read_hub

log = logging.getLogger(__name__)

CLASSIFIER = {"classifier.weight", "classifier.bias"}
STALE = {"bert.embeddings.position_ids", "embeddings.position_ids"}  # constants that older versions saved


@dataclass(frozen=True)
class Family:
    """adapter: of these models; pretraining: what the names of their pretraining head begin with; pooler: its names."""

    adapter: type[Bert]
    pretraining: tuple[str, ...]
    pooler: frozenset[str]


FAMILIES: dict[type[PreTrainedConfig], Family] = {
    BertConfig: Family(Bert, ("cls.",), frozenset({"bert.pooler.dense.weight", "bert.pooler.dense.bias"})),
    DistilBertConfig: Family(
        DistilBert,
        ("vocab_transform.", "vocab_layer_norm.", "vocab_projector."),
        frozenset({"pre_classifier.weight", "pre_classifier.bias"}),
    ),
}


def build_bert(huggingface: str, classes: int, pretrained: bool, arguments: Mapping[str, Any] | None = None) -> Bert:
    """A model of one of the FAMILIES by hub id or local folder, with a head of `classes` outputs.

    pretrained: load the weights too; weights without a classification head get a fresh one, which is logged.
    arguments: on top of the configuration (`hidden_dropout_prob`, ...). Raises UserError when nothing can be read
    there, when it is another kind of model, or when any other weight is missing, left over or of another shape.
    """
    with quiet_library():
        config = read_hub(huggingface, lambda: AutoConfig.from_pretrained(huggingface, trust_remote_code=False))
        family = FAMILIES.get(type(config))
        if family is None:
            raise UserError(
                f"model.huggingface={huggingface} is a {config.model_type}, not a BERT or DistilBERT: choose one"
            )
        adapter = family.adapter
        _change(config, {**(arguments or {}), "num_labels": classes})
        if not pretrained:
            return adapter(read_hub(huggingface, lambda: new_model(config, adapter.library)))
        loaded: Any = read_hub(
            huggingface,
            lambda: adapter.library.from_pretrained(
                huggingface,
                config=config,
                attn_implementation="sdpa",
                dtype="float32",
                ignore_mismatched_sizes=True,  # so that they are named below
                output_loading_info=True,
            ),
        )
    model, found = loaded
    fresh = _check(huggingface, found, family)
    base = adapter(model.train())  # as every new module: the library hands it out in evaluation mode
    base.head_is_new = bool(fresh)
    return base


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


def _check(huggingface: str, found: Mapping[str, Any], family: Family) -> set[str]:
    """The parameters that start from random weights; raises UserError when any but a head's do."""
    missing, unexpected = set(found["missing_keys"]), set(found["unexpected_keys"]) - STALE
    fresh = {name for head in (CLASSIFIER, family.pooler) if head <= missing for name in head}
    pretraining = {name for name in unexpected if name.startswith(family.pretraining)}
    if "classifier.weight" not in missing:
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
