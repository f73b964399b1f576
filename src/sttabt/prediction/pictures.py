"""A picture of each of the first predictions: which patches, or words, the layers still read."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from sttabt.prediction.predictor import Prediction, Predictor
from sttabt.report.figures import FULL_WIDTH, figure_style
from sttabt.report.gallery import Caption, Gallery, ImageGallery, TextGallery
from sttabt.report.images import draw_images, images_size
from sttabt.report.texts import draw_texts, texts_size

MOST = 32  # pictures: of more inputs nobody looks at
LONGEST = 60  # characters of a path in a title: its end
SAID = ("class", "probability", "score", "kept")  # what a title says


@dataclass(frozen=True, eq=False)
class _Unlabelled(Gallery):
    """Nobody says what the sample is; of an encoder, which predicts nothing, there is nothing to say."""

    predicts: bool

    def caption(self, index: int) -> Caption:
        return Caption("", super().caption(index).prediction if self.predicts else "", None)


@dataclass(frozen=True, eq=False)
class _Image(_Unlabelled, ImageGallery):
    pass


@dataclass(frozen=True, eq=False)
class _Text(_Unlabelled, TextGallery):
    pass


class Pictures:
    """Drawn into `folder`, which is made, as NUMBER-NAME.png in the order of the inputs; count: how many there are."""

    def __init__(self, folder: Path, predictor: Predictor) -> None:
        self.folder, self.predictor, self.count = folder, predictor, 0
        folder.mkdir(parents=True, exist_ok=True)

    def draw(self, predictions: Sequence[Prediction]) -> None:
        """Those of the first MOST inputs."""
        for each in predictions[: max(0, MOST - self.count)]:
            self.count += 1
            said = ", ".join(f"{name} {each.said[name]}" for name in SAID if name in each.said)
            where = each.item.where[-LONGEST:].encode("utf-8", "replace").decode()  # names of files may be any bytes
            title = f"{where}: {said}"
            name = re.sub(r"[^\w.-]+", "_", Path(each.item.file or each.item.content[0]).stem)[:60]
            line = f"-{each.item.line}" if each.item.line else ""
            with figure_style():
                self._figure(each, title).savefig(self.folder / f"{self.count:02d}-{name}{line}.png", dpi=200)

    def _figure(self, prediction: Prediction, title: str) -> Figure:
        method = self.predictor.model.method.title
        if self.predictor.reads_text:
            text = self._text(prediction)
            figure = Figure(figsize=(FULL_WIDTH, texts_size([(method, text)], 1)[1]))
            draw_texts(figure.subfigures(1, 1, squeeze=False)[0, 0], title, [(method, text)], 1)
            return figure
        image = self._image(prediction)
        figure = Figure(figsize=images_size([(method, image)], 1))
        draw_images(figure.subfigures(1, 1, squeeze=False)[0, 0], title, [(method, image)], 1)
        return figure

    def _text(self, prediction: Prediction) -> _Text:
        words = self.predictor.tokenizer.convert_ids_to_tokens(prediction.seen.tolist())
        alive = prediction.alive[None, :, : len(words)]
        return _Text(words=np.array([words], dtype=str), **self._common(prediction, alive))

    def _image(self, prediction: Prediction) -> _Image:
        base, inputs = self.predictor.model.base, self.predictor.preparation.inputs
        mean, std = (torch.tensor(inputs[name])[:, None, None] for name in ("mean", "std"))
        pixels = ((prediction.seen * std + mean).clamp(0, 1) * 255).round().to(torch.uint8)
        alive = prediction.alive[None]
        return _Image(
            images=pixels.permute(1, 2, 0)[None].numpy(),
            depth=alive[:, :-1].sum(1).numpy(),
            prefix=np.array(base.outputs),
            grid=np.array(base.grid),
            **self._common(prediction, alive),
        )

    def _common(self, prediction: Prediction, alive: torch.Tensor) -> dict[str, Any]:
        said, names = prediction.said, self.predictor.preparation.class_names
        place = said.get("score", 0)
        if "class" in said:
            place = names.index(said["class"]) if names else int(said["class"])
        kind = float if "score" in said else int
        return {
            "alive": alive.numpy(),
            "layers": np.array(alive.shape[1] - 1),
            "labels": np.array([place], kind),
            "predictions": np.array([place], kind),
            "class_names": np.array(() if "score" in said else names, dtype=str),
            "predicts": "embedding" not in said,
        }
