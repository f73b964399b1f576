"""The BERT cases of `sttabt.parity`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import BertConfig

from sttabt.backbones.bert import Bert
from sttabt.core.text import Text
from sttabt.models.approximate import ApproximationWeights
from sttabt.parity.case import Case, check_quantities
from sttabt.parity.check import Check

WEIGHTS = dict.fromkeys(("kldiv", "tinybert"), ApproximationWeights(hidden=1.0, prediction=1.0))


def check_bert(folder: Path, meta: dict[str, Any], device: str) -> Iterator[Check]:
    """Every quantity of a case whose `arch` is bert."""
    return check_quantities(replace(bert_case(folder, meta), device=device))


def bert_case(folder: Path, meta: dict[str, Any]) -> Case:
    """The case in `folder`, whose `arch` is bert."""
    return Case(folder, meta, Bert.from_config(BertConfig(**meta["config"])), _text, "bert.", WEIGHTS)


def _text(vectors: dict[str, Tensor]) -> Text:
    ids = vectors["input.input_ids"]
    types = vectors.get("input.token_type_ids", torch.zeros_like(ids))
    return Text(ids, types, vectors["input.attention_mask"].bool())
