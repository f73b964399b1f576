"""What a source of data is. Imports no torch, since settings are checked before torch is loaded."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from sttabt.settings import DatasetSettings, ModelSettings
from sttabt.system.paths import not_a_folder

if TYPE_CHECKING:
    from sttabt.data.base import Splits

# Settings of a data set that every source reads.
COMMON = ("name", "source", "image_size", "classes", "task", "metric", "validation_share", "split_seed")
IMAGES = ("channels", "augment")  # every source of images reads these, too
PREPARED = (*IMAGES, "augmentation", "mean", "std", "broken_share")  # and these if sttabt.data.images prepares them
TEXT = ("columns", "label_column", "class_names", "max_tokens", "positive_above")  # every source of text
# What the files or folders of a split are called; what of these is not there is split off.
SPLIT_NAMES = {"train": ("train",), "validation": ("val", "valid", "validation"), "test": ("test",)}
PUBLISHED = ("imagenet", "glue_")  # how the names begin that figures show published results of


class Source(ABC):
    """One kind of data set: `dataset.source` names it. Its file imports what needs torch inside `load`.

    holds: what a batch has. reads: the settings of a data set that it uses beside COMMON.
    """

    holds: ClassVar[Literal["images", "text"]]
    reads: ClassVar[tuple[str, ...]]

    @abstractmethod
    def check(self, dataset: DatasetSettings) -> None:
        """Before torch is loaded: raises UserError for a setting or a file that cannot work, and says what to do."""

    @abstractmethod
    def load(self, dataset: DatasetSettings, model: ModelSettings) -> Splits:
        """Train, validation and test data; the test split depends on no seed. Raises UserError."""

    def prepares(self, dataset: DatasetSettings, model: ModelSettings) -> dict[str, Any]:
        """How an image is made for the model in evaluation: `mean` and `std` a channel, of pixels in [0, 1], the share
        of the shorter side that is seen as `crop`, and the `interpolation`. As sttabt.data.images does it.
        """
        mean, std = list(model.mean or dataset.mean), list(model.std or dataset.std)
        return {"mean": mean, "std": std, "crop": model.crop, "interpolation": "bicubic"}

    def default_name(self, dataset: DatasetSettings) -> str:
        """What results call the data where `dataset.name` is empty: as its file, its folder or its hub id is called."""
        path = Path(dataset.path)
        own = path.name.partition(".")[0] if not_a_folder(path) else path.name
        name = own or dataset.hub_id.rpartition("/")[2] or dataset.source
        return f"own_{name}" if name.startswith(PUBLISHED) else name

    def unused(self, dataset: DatasetSettings) -> dict[str, str]:
        """Settings of a data set that change nothing here, each with the reason where there is a special one."""
        return {}
