"""A model's predictions of inputs, in batches, whose order and size change nothing but rounding."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from timm.data import create_transform
from torch import Tensor

from sttabt.core.text import Text
from sttabt.data.labelled import MODES, UNREADABLE, read_image
from sttabt.engine.run import Run
from sttabt.errors import UserError
from sttabt.models.frozen import deployed
from sttabt.models.pruned import PrunedModel
from sttabt.prediction.inputs import Item
from sttabt.pretrained.description import Preparation, preparation_of

POOL = 16  # batches of texts that are sorted by length together
DIGITS = 4  # of probabilities: of more the last would differ from one size of batches to another
SIGNIFICANT = 5  # digits of a vector's numbers, whose sizes differ from model to model, likewise

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Prediction:
    """What the model says of one input. said: as a line of the result; seen: what it read, images (C, height, width) or
    ids of tokens (n,); alive: (L+1, N) bool, which token lived at which layer boundary.
    """

    item: Item
    said: dict[str, Any]
    seen: Tensor
    alive: Tensor


class Predictor:
    """`model` as it is deployed: frozen on a CPU, on a GPU where there is one.

    left_out: a line for each input that could not be read, as they come. Raises UserError for a model that does not say
    how its inputs are made.
    """

    def __init__(self, model: PrunedModel, batch: int) -> None:
        self.batch, self.left_out = batch, list[str]()
        self.preparation = model.preparation or preparation_of(model.base)
        self.reads_text = model.base.may_pad
        self.tokenizer: Any = self.preparation.load_tokenizer() if self.reads_text else None
        self.longest = min(int(self.preparation.inputs["tokens"]), model.base.tokens) if self.reads_text else 0
        self.transform: Any = None
        self.channels = 0
        if not self.reads_text:
            self.transform, self.channels = _transform(model, self.preparation)
        self.model = deployed(model.cuda() if torch.cuda.is_available() else model)
        self.first = next(self.model.base.parameters())

    def predict(self, items: Sequence[Item]) -> Iterator[list[Prediction]]:
        """Predictions in the order of the items, some at a time, without those that cannot be read."""
        yield from self._texts(items) if self.reads_text else self._images(items)

    def _images(self, items: Sequence[Item]) -> Iterator[list[Prediction]]:
        """The next batch is read while one is computed."""
        starts = range(0, len(items), self.batch)
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as threads:
            try:
                coming = self._read(threads, items[: self.batch])
                for start in starts:
                    chosen, waiting = items[start : start + self.batch], coming
                    coming = self._read(threads, items[start + self.batch : start + 2 * self.batch])
                    read = zip(chosen, (each.result() for each in waiting), strict=True)
                    whole = [(item, seen) for item, seen in read if self._is_whole(seen)]
                    yield self._predict(whole) if whole else []
            finally:
                threads.shutdown(wait=False, cancel_futures=True)

    def _read(self, threads: ThreadPoolExecutor, items: Sequence[Item]) -> list[Any]:
        return [threads.submit(self._open, item) for item in items]

    def _open(self, item: Item) -> Tensor | str:
        """The image as the model reads it, or a line that says why it cannot be read."""
        try:
            seen: Tensor = self.transform(read_image(Path(item.content[0]), self.channels))
        except UNREADABLE as error:
            reason = str(error).partition("\n")[0] or type(error).__name__
            return f"{item.where} cannot be read as an image ({reason}): it is left out"
        return seen

    def _is_whole(self, seen: Tensor | str) -> bool:
        if isinstance(seen, str):
            self.left_out.append(seen)
        return not isinstance(seen, str)

    def _texts(self, items: Sequence[Item]) -> Iterator[list[Prediction]]:
        """Of a pool the longest first, so that a batch has little padding."""
        for start in range(0, len(items), POOL * self.batch):
            pool = items[start : start + POOL * self.batch]
            rows = self._tokenised(pool)
            order = sorted(range(len(pool)), key=lambda place: -rows[place].shape[1])
            found: dict[int, Prediction] = {}
            for first in range(0, len(order), self.batch):
                places = order[first : first + self.batch]
                found |= zip(places, self._predict([(pool[place], rows[place]) for place in places]), strict=True)
            yield [found[place] for place in range(len(pool))]

    def _tokenised(self, items: Sequence[Item]) -> list[Tensor]:
        """Ids and types, (2, n), of each."""
        columns = [list(column) for column in zip(*(item.content for item in items), strict=True)]
        named: dict[str, Any] = {"return_token_type_ids": True, "return_attention_mask": False, "verbose": False}
        whole = self.tokenizer(*columns, **named)
        rows = list(zip(whole["input_ids"], whole["token_type_ids"], strict=True))
        long = [place for place, (ids, _) in enumerate(rows) if len(ids) > self.longest]
        for place in long:
            cut = self.tokenizer(*items[place].content, truncation=True, max_length=self.longest, **named)
            rows[place] = cut["input_ids"], cut["token_type_ids"]
        if long:
            more = f", the first is {items[long[0]].where}"
            log.warning("%d texts are longer than %d tokens and lose their ends%s", len(long), self.longest, more)
        return [torch.tensor(row) for row in rows]

    @torch.inference_mode()
    def _predict(self, whole: Sequence[tuple[Item, Tensor]]) -> list[Prediction]:
        """Of a batch of what could be read."""
        inputs = self._padded([seen for _, seen in whole]) if self.reads_text else torch.stack([s for _, s in whole])
        if isinstance(inputs, Tensor):
            run = self.model.run(inputs.to(self.first.device, self.first.dtype))
        else:
            run = self.model.run(Text(*(field.to(self.first.device) for field in inputs)))
        said, alive = self._said(run), run.plan.alive.cpu()
        return [
            Prediction(item, item.named | own, seen[0] if self.reads_text else seen, lived)
            for (item, seen), own, lived in zip(whole, said, alive, strict=True)
        ]

    def _padded(self, rows: Sequence[Tensor]) -> Text:
        lengths = torch.tensor([row.shape[1] for row in rows])
        real = torch.arange(int(lengths.max())) < lengths[:, None]
        padding = getattr(self.tokenizer, "pad_token_id", None) or 0
        ids, types = torch.full(real.shape, padding), torch.zeros(real.shape, dtype=torch.long)
        ids[real], types[real] = torch.cat([row[0] for row in rows]), torch.cat([row[1] for row in rows])
        return Text(ids, types, real)

    def _said(self, run: Run) -> list[dict[str, Any]]:
        """Class and probability, a score, or the vector of an encoder; tokens of each input, and the share of them
        kept, mean over layers.
        """
        logits, tokens = run.logits.float().cpu(), run.real.sum(-1).tolist()
        kept = run.plan.occupancy(run.real).double().mean(-1).tolist()
        common = [{"tokens": n, "kept": round(share, DIGITS)} for n, share in zip(tokens, kept, strict=True)]
        if self.model.base.embeds:
            vectors = [[float(f"{number:.{SIGNIFICANT}g}") for number in vector] for vector in logits.tolist()]
            return [{"embedding": vector} | own for vector, own in zip(vectors, common, strict=True)]
        if logits.shape[1] == 1:
            return [
                {"score": round(score, DIGITS)} | own for score, own in zip(logits[:, 0].tolist(), common, strict=True)
            ]
        probabilities, classes = logits.double().softmax(-1).max(-1)
        names = self.preparation.class_names or tuple(map(str, range(logits.shape[1])))
        found = zip(probabilities.tolist(), classes.tolist(), common, strict=True)
        return [{"class": names[place], "probability": round(p, DIGITS)} | own for p, place, own in found]


def _transform(model: PrunedModel, preparation: Preparation) -> tuple[Any, int]:
    """From an image of Pillow to what the model reads, and of how many channels."""
    inputs, (channels, height, width) = preparation.inputs, model.base.image_shape
    if inputs.get("mean") is None or inputs.get("std") is None:
        raise UserError(
            "the model does not say how its images are normalised: save it with"
            " save_pretrained(..., preprocessing={'mean': [...], 'std': [...]})"
        )
    if channels not in MODES:
        raise UserError(f"the model reads images of {channels} channels, which files of images do not have")
    made = create_transform(
        (height, width),
        crop_pct=inputs.get("crop"),
        interpolation=inputs.get("interpolation") or "bicubic",
        mean=tuple(inputs["mean"]),
        std=tuple(inputs["std"]),
    )
    return made, channels
