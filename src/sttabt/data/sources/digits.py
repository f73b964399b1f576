"""Handwritten digits of scikit-learn: 1,797 images of 8x8 pixels in 10 classes, embedded in the package."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sttabt.data.labelled import LabelledImages
from sttabt.data.source import IMAGES, PREPARED, Source
from sttabt.settings import DatasetSettings, ModelSettings

if TYPE_CHECKING:
    from torch import Tensor

    from sttabt.data.base import Splits

TEST_SHARE, TEST_SEED = 0.2, 0  # the data set has no test split of its own: this one never changes
MEAN, STD = 0.305, 0.376  # of the training pixels after scaling to [0, 1]


class DigitsSource(Source):
    """Images scaled to `image_size` by bilinear interpolation, one channel, with a preparation of their own."""

    holds = "images"
    reads = IMAGES

    def check(self, dataset: DatasetSettings) -> None:
        """They need no file."""

    def load(self, dataset: DatasetSettings, model: ModelSettings) -> Splits:
        """The test split is a fifth of all; validation a stratified share of the rest."""
        import numpy as np
        from torchvision.transforms import v2

        from sttabt.data.base import Splits, split_indices
        from sttabt.data.images import AugmentedImages, Images

        digits, seed = Digits(), dataset.split_seed
        rest, test = split_indices(digits.labels, TEST_SHARE, TEST_SEED)
        train, validation = split_indices([digits.labels[i] for i in rest], dataset.validation_share, seed)
        resize, normalise = v2.Resize(dataset.image_size, antialias=True), v2.Normalize([MEAN], [STD])
        shift = v2.RandomAffine(
            degrees=10, translate=(0.1, 0.1), scale=(0.9, 1.1), interpolation=v2.InterpolationMode.BILINEAR
        )
        plain = v2.Compose([resize, normalise])
        augmented = v2.Compose([resize, shift, normalise]) if dataset.augment else plain
        return Splits(
            train=AugmentedImages(digits, np.take(rest, train).tolist(), augmented, seed=seed),
            validation=Images(digits, np.take(rest, validation).tolist(), plain),
            test=Images(digits, test, plain),
            class_names=digits.class_names,
            mean=(MEAN,),
            std=(STD,),
            contents={"all": digits.contents()},
        )

    def prepares(self, dataset: DatasetSettings, model: ModelSettings) -> dict[str, Any]:
        return {"mean": [MEAN], "std": [STD], "crop": 1.0, "interpolation": "bilinear"}

    def unused(self, dataset: DatasetSettings) -> dict[str, str]:
        prepared = [name for name in PREPARED if name not in IMAGES]
        return {
            "path": "digits come with scikit-learn",
            "class_names": "source digits has its own",
            **dict.fromkeys(prepared, "digits have their own preparation"),
        }


class Digits(LabelledImages):
    """Images (1, 8, 8) in [0, 1]."""

    def __init__(self) -> None:
        import torch
        from sklearn.datasets import load_digits

        digits = load_digits()
        self.images = torch.from_numpy(digits.images / 16.0).float()[:, None]
        self.labels = [int(label) for label in digits.target]
        self.class_names = tuple(str(name) for name in digits.target_names)

    def read(self, index: int) -> Tensor:
        return self.images[index]

    def where(self, index: int) -> str:
        return f"digit {index}"

    def contents(self) -> str:
        from sttabt.data.base import hash_of

        return hash_of(self.images, self.labels)
