"""Handwritten digits of scikit-learn: 1,797 images of 8x8 pixels in 10 classes, embedded in the package."""

from __future__ import annotations

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor
from torchvision.transforms import v2

from sttabt.data.base import Splits, split_indices
from sttabt.data.images import AugmentedImages, Images, ImageSource
from sttabt.settings import DatasetSettings, ModelSettings

TEST_SHARE, TEST_SEED = 0.2, 0  # the data set has no test split of its own: this one never changes
MEAN, STD = 0.305, 0.376  # of the training pixels after scaling to [0, 1]


class Digits(ImageSource):
    """Images (1, 8, 8) in [0, 1]."""

    def __init__(self) -> None:
        digits = load_digits()
        self.images = torch.from_numpy(digits.images / 16.0).float()[:, None]
        self.labels = [int(label) for label in digits.target]
        self.class_names = tuple(str(name) for name in digits.target_names)

    def read(self, index: int) -> Tensor:
        return self.images[index]

    def where(self, index: int) -> str:
        return f"digit {index}"


def load(settings: DatasetSettings, model: ModelSettings) -> Splits:
    """Images scaled to `image_size` by bilinear interpolation, one channel."""
    digits = Digits()
    rest, test = split_indices(digits.labels, TEST_SHARE, TEST_SEED)
    train, validation = split_indices([digits.labels[i] for i in rest], settings.validation_share, settings.split_seed)
    plain = [v2.Resize(settings.image_size, antialias=True), v2.Normalize([MEAN], [STD])]
    shift = v2.RandomAffine(
        degrees=10, translate=(0.1, 0.1), scale=(0.9, 1.1), interpolation=v2.InterpolationMode.BILINEAR
    )
    augmented = [plain[0], shift, plain[1]] if settings.augment else plain
    return Splits(
        train=AugmentedImages(digits, np.take(rest, train).tolist(), v2.Compose(augmented), seed=settings.split_seed),
        validation=Images(digits, np.take(rest, validation).tolist(), v2.Compose(plain)),
        test=Images(digits, test, v2.Compose(plain)),
        class_names=digits.class_names,
        mean=(MEAN,),
        std=(STD,),
    )
