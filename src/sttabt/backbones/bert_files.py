"""A BERT from the Hugging Face hub or from a local folder, loaded by transformers and checked strictly."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, BertConfig, BertForSequenceClassification

from sttabt.backbones.bert import Bert, new_model
from sttabt.backbones.hub_files import quiet_library, read_hub
from sttabt.errors import UserError, nearest

log = logging.getLogger(__name__)

PRETRAINING_HEAD = "cls."  # masked words and next sentence: what BERT was pretrained with
CLASSIFIER = {"classifier.weight", "classifier.bias"}
POOLER = {"bert.pooler.dense.weight", "bert.pooler.dense.bias"}
STALE = {"bert.embeddings.position_ids", "embeddings.position_ids"}  # constants that older versions saved


def build_bert(huggingface: str, classes: int, pretrained: bool, arguments: Mapping[str, Any] | None = None) -> Bert:
    """A BERT-architecture model by hub id or local folder, with a head of `classes` outputs.

    pretrained: load the weights too; weights without a classification head get a fresh one, which is logged.
    arguments: on top of the configuration (`hidden_dropout_prob`, ...). Raises UserError when nothing can be read
    there, when it is another kind of model, or when any other weight is missing, left over or of another shape.
    """
    with quiet_library():
        config = read_hub(huggingface, lambda: AutoConfig.from_pretrained(huggingface, trust_remote_code=False))
        if type(config) is not BertConfig:
            raise UserError(f"model.huggingface={huggingface} is a {config.model_type}, not a BERT: choose a BERT")
        _change(config, {**(arguments or {}), "num_labels": classes})
        if not pretrained:
            return Bert(read_hub(huggingface, lambda: new_model(config)))
        loaded: Any = read_hub(
            huggingface,
            lambda: BertForSequenceClassification.from_pretrained(
                huggingface,
                config=config,
                attn_implementation="sdpa",
                dtype="float32",
                ignore_mismatched_sizes=True,  # so that they are named below
                output_loading_info=True,
            ),
        )
    model, found = loaded
    fresh = _check(huggingface, found)
    base = Bert(model.train())  # as every new module: the library hands it out in evaluation mode
    base.head_is_new = bool(fresh)
    return base


def _change(config: BertConfig, arguments: dict[str, Any]) -> None:
    for name, value in arguments.items():
        if name != "num_labels" and name not in BertConfig().to_dict():  # the library would swallow it
            raise UserError(f"model.arguments.{name} is unknown to BERT: {nearest(name, BertConfig().to_dict())}")
        try:
            setattr(config, name, value)
        except StrictDataclassError as error:
            reason = " ".join(str(error).split())
            raise UserError(f"model.arguments.{name}={value} does not fit BERT: {reason}") from error


def _check(huggingface: str, found: Mapping[str, Any]) -> set[str]:
    """The parameters that start from random weights; raises UserError when any but a head's do."""
    missing, unexpected = set(found["missing_keys"]), set(found["unexpected_keys"]) - STALE
    fresh = {name for head in (CLASSIFIER, POOLER) if head <= missing for name in head}
    pretraining = {name for name in unexpected if name.startswith(PRETRAINING_HEAD)}
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
