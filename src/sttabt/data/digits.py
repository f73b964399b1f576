"""Handwritten digits of scikit-learn: 1,797 images of 8x8 pixels in 10 classes, embedded in the package."""

from __future__ import annotations

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor
from torchvision.transforms import v2

from sttabt.data.base import AugmentedImages, Images, Splits, split_indices
from sttabt.settings import DatasetSettings, ModelSettings

TEST_SHARE, TEST_SEED = 0.2, 0  # the data set has no test split of its own: this one never changes
MEAN, DEVIATION = 0.305, 0.376  # of the training pixels after scaling to [0, 1]


def load(settings: DatasetSettings, _: ModelSettings | None = None) -> Splits:
    """Images scaled to `image_size` by bilinear interpolation, one channel; normalised in their own way."""
    digits = load_digits()
    images = torch.from_numpy(digits.images / 16.0).float()[:, None]
    labels = [int(label) for label in digits.target]
    rest, test = split_indices(labels, TEST_SHARE, TEST_SEED)
    train, validation = split_indices([labels[i] for i in rest], settings.validation_share, settings.split_seed)
    items: list[tuple[Tensor, int]] = list(zip(images, labels, strict=True))
    plain = [v2.Resize(settings.image_size, antialias=True), v2.Normalize([MEAN], [DEVIATION])]
    shift = v2.RandomAffine(
        degrees=10, translate=(0.1, 0.1), scale=(0.9, 1.1), interpolation=v2.InterpolationMode.BILINEAR
    )
    augmented = [plain[0], shift, plain[1]] if settings.augment else plain
    return Splits(
        train=AugmentedImages(items, np.take(rest, train).tolist(), v2.Compose(augmented), seed=settings.split_seed),
        validation=Images(items, np.take(rest, validation).tolist(), v2.Compose(plain)),
        test=Images(items, test, v2.Compose(plain)),
        class_names=tuple(str(name) for name in digits.target_names),
        mean=(MEAN,),
        deviation=(DEVIATION,),
    )
