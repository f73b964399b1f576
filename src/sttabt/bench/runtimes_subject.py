"""What a comparison of runtimes measures: a model with random weights, or one that a run saved, with its data."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

from sttabt.api import load, prune
from sttabt.core.text import Text
from sttabt.data.base import Batch, evaluation_loader
from sttabt.errors import UserError
from sttabt.models.budget import calibrate
from sttabt.models.pruned import PrunedModel
from sttabt.pipeline.samples import even_sample
from sttabt.runtimes.counting import counts_at_budget, macs_share
from sttabt.runtimes.exporting import export
from sttabt.runtimes.saved import batches_of, splits_of
from sttabt.settings import BudgetSettings
from sttabt.store.artifacts import RECORD, read_record

FACTOR = 4  # of the approximate network of random weights
CALIBRATION = 256  # validation samples on which a budget is found
SAMPLES = 4  # random ones, which all keep as many tokens
TOKENS = 128  # of each random text
STAGES = ("approx", "prune", "budget")  # of which artifacts are compared
GIVE = [f"artifacts/{stage}/..." for stage in STAGES]
MINILM: dict[str, Any] = {
    "hidden_size": 384,
    "num_hidden_layers": 6,
    "num_attention_heads": 12,
    "intermediate_size": 1536,
}


@dataclass(frozen=True)
class Subject:
    """pruned: before any budget; calibration: batches on which budgets are found; timed: inputs by batch; tokens: of a
    text in a file, None of images; test: inputs and labels (B,) whose classes are predicted, None with random weights.
    Texts are padded to `tokens`.
    """

    name: str
    pruned: PrunedModel
    calibration: Sequence[Tensor | Text]
    timed: Mapping[int, Tensor | Text]
    tokens: int | None
    test: Batch | None

    def at(self, budget: float | None) -> Made:
        """The model at that budget; None: dense.

        With random weights model and file have the same counts. What was trained runs in torch as its method does, and
        in a file with as many tokens of every sample, each at the budget.
        """
        base, tokens = self.pruned.base, self.tokens or self.pruned.base.tokens
        if budget is None:
            return Made(self, prune(base, "dense"), None, [*[tokens] * base.layers, base.outputs], 1.0, 1.0)
        counts = counts_at_budget(self.pruned, self.calibration, budget, tokens)
        boundaries = [*counts, base.outputs]
        share = macs_share(self.pruned, boundaries, tokens)
        own = PrunedModel(base, copy.deepcopy(self.pruned.method), self.pruned.approx).eval()
        if self.test is None:
            own.method.settings = replace(own.method.settings, counts=counts)
            return Made(self, own, None, boundaries, share, share)
        reached = calibrate(own, self.calibration, BudgetSettings(macs=budget)).reached
        return Made(self, own, counts, boundaries, share, reached)


@dataclass(frozen=True)
class Made:
    """A model at a budget, and what its files are exported with: counts, None: its own.

    boundaries: tokens at every boundary of a file; file_share and own_share: of the dense multiply-adds, of file and
    model.
    """

    subject: Subject
    pruned: PrunedModel
    counts: list[int] | None
    boundaries: list[int]
    file_share: float
    own_share: float

    def export(self, path: Path, **options: Any) -> None:
        own = self.subject
        export(self.pruned, path, counts=self.counts, calibration=own.calibration, tokens=own.tokens, **options)


def random_subject(name: str, batches: Sequence[int]) -> Subject:
    """Random weights and inputs, the same each time: images of 224 pixels, or texts of TOKENS without padding."""
    torch.manual_seed(0)
    model = _library_model(name)
    draw = _texts if name == "minilm" else _images
    pruned, timed = prune(model, approx=FACTOR), {batch: draw(batch) for batch in batches}
    return Subject(name, pruned, [draw(SAMPLES)], timed, TOKENS if name == "minilm" else None, None)


def saved_subject(folder: Path, batches: Sequence[int], items: int, data: Path | None) -> Subject:
    """The model of an artifact, with its run's data: budgets on the validation split, `items` of the test split, at
    even places, whose classes are predicted. data: as in `splits_of`.

    Raises UserError for a model that is no classifier, or of which no file at a budget is made, and as `load` does.
    """
    record = read_record(folder.absolute() / RECORD) if (folder / RECORD).is_file() else {}
    if record.get("stage") not in STAGES:
        raise UserError(f"model={folder} is no artifact of a run that is pruned: give {' or '.join(GIVE)}")
    pruned = load(folder)
    if pruned.base.embeds:
        raise UserError(f"model={folder} is no classifier, so that it has no accuracy: give one")
    if not pruned.method.takes_counts or pruned.method.counts is not None:
        raise UserError(
            f"no file at a budget is made of model={folder}, {pruned.method.title}: give back-tracking by keep_ratio,"
            " or concrete masks"
        )
    splits = splits_of(record, data)
    if not splits.class_names:
        raise UserError(f"model={folder} predicts scores, so that it has no accuracy: give a classifier")
    total: int = len(splits.test)  # type: ignore[arg-type]
    if max(batches) > total:
        raise UserError(f"batches={list(batches)}: the test split has {total} samples: give fewer")
    calibration = list(batches_of(splits.validation, CALIBRATION))
    sizes = (min(items, total), *batches)
    test, *timed = (next(iter(evaluation_loader(even_sample(splits.test, size), size))) for size in sizes)
    name = f"{record['notes']['settings']['dataset']['name']}, {pruned.method.title}"
    inputs = {batch: each.inputs for batch, each in zip(batches, timed, strict=True)}
    if not isinstance(test.inputs, Text):
        return Subject(name, pruned, calibration, inputs, None, test)
    tokens = max(each.ids.shape[1] for each in (test.inputs, *inputs.values(), *calibration))
    pad = partial(_padded, tokens=tokens)
    inputs = {batch: pad(text) for batch, text in inputs.items()}
    return Subject(name, pruned, calibration, inputs, tokens, Batch(pad(test.inputs), test.labels))


def tensors_of(inputs: Tensor | Text) -> list[Tensor]:
    """In the order in which a file takes them."""
    return [inputs.ids, inputs.real, inputs.types] if isinstance(inputs, Text) else [inputs]


def inputs_of(tensors: Sequence[Tensor]) -> Tensor | Text:
    """Back from `tensors_of`."""
    if len(tensors) == 1:
        return tensors[0]
    ids, real, types = tensors
    return Text(ids, types, real)


def in_batches(tensors: Sequence[Tensor], batch: int) -> Iterator[list[Tensor]]:
    """Of so many samples each, the last one of what is left."""
    for start in range(0, len(tensors[0]), batch):
        yield [each[start : start + batch] for each in tensors]


def _padded(text: Text, tokens: int) -> Text:
    return Text(*(nn.functional.pad(each, (0, tokens - each.shape[1])) for each in text))


def _images(samples: int) -> Tensor:
    return torch.randn(samples, 3, 224, 224, generator=torch.Generator().manual_seed(1))


def _texts(samples: int) -> Text:
    ids = torch.randint(1000, 30000, (samples, TOKENS), generator=torch.Generator().manual_seed(1))
    return Text(ids, torch.zeros_like(ids), torch.ones_like(ids, dtype=torch.bool))


def _library_model(name: str) -> Any:
    if name != "minilm":
        # Of 1,000 classes that were never learned int8 finds another one as a rule, and its file would be refused.
        return timm.create_model(f"{name}_patch16_224", num_classes=2).eval()
    from transformers import BertConfig, BertForSequenceClassification

    return BertForSequenceClassification._from_config(BertConfig(**MINILM), attn_implementation="sdpa").eval()
