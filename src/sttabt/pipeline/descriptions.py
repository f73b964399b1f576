"""What descriptions of stages have in common: settings that influence a result, in a form that JSON keeps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sttabt.data.sources import find_source
from sttabt.lit.configured import influences
from sttabt.pretrained.hub import find_pretrained
from sttabt.pretrained.weights import verify
from sttabt.settings import Settings, training_of, update_size
from sttabt.settings.dataset import PLACES
from sttabt.store.artifacts import fingerprint
from sttabt.system.files import checksum

TIMING = ("timing_batch", "timing_rounds")  # the settings of `evaluation` that decide how times are measured
IMAGES = ("crop", "mean", "std")  # settings of a model that say what becomes of images before it sees them


def weights_of(settings: Settings) -> dict[str, Any]:
    """What decides the weights that training starts from, but for the seed and the head."""
    data = settings.dataset
    model = without(asdict(settings.model), "name", "training", "fine_tune", "sha256", "class_names", *IMAGES)
    if model["checkpoint"]:  # the same name may hold other weights
        model["checkpoint"] = verify(Path(model["checkpoint"]), settings.model.sha256, "model.checkpoint")
    if model["huggingface"] and (folder := Path(find_pretrained(model["huggingface"]))).is_dir():
        weights = ("*.safetensors", "*.bin", "config.json")
        files = sorted(path for pattern in weights for path in folder.glob(pattern))
        model["huggingface"] = {path.name: checksum(path) for path in files}
    sizes = {"channels": data.channels, "image_size": data.image_size, "max_tokens": data.max_tokens}
    return {"model": model, **sizes}


def data_of(settings: Settings, contents: Mapping[str, str], tested: bool = False) -> dict[str, Any]:
    """What decides the batches of training, or where it is `tested` those of evaluation too, and the loss.

    contents: a hash of each split, which stands for the place of the data; {}: its place stands for what is there.
    """
    model = asdict(settings.model)
    described = without(asdict(settings.dataset), "name", "metric", "broken_share", *(PLACES if contents else ()))
    if contents:
        described["contents"] = {split: each for split, each in contents.items() if tested or split != "test"}
    if find_source(settings.dataset.source).holds == "images":
        described |= {name: model[name] for name in IMAGES}
    return described


def hash_of_tested(settings: Settings, contents: Mapping[str, str]) -> str:
    """How a hash of the test data begins, which tells them from others of that name; contents: as of `data_of`.

    Of a source that cannot say what its data are it is that of their place.
    """
    data = settings.dataset
    known = contents.get("test") or contents.get("all")
    return (known or fingerprint(dict(contents) or {name: getattr(data, name) for name in ("source", *PLACES)}))[:8]


def training_of_stage(settings: Settings, stage: str) -> dict[str, Any]:
    """What decides how that stage trains, beside its data: its `training`, and what all stages share."""
    training = training_of(settings, stage)
    assert training is not None, f"stage {stage} trains"
    return {
        "training": without(asdict(training), "global_batch_size"),
        "seed": settings.seed,
        "global_batch_size": update_size(settings, stage),
        "precision": settings.hardware.precision,
        "fast_dev_run": settings.fast_dev_run,
        **influences(settings),
    }


def method_of(settings: Settings) -> dict[str, Any]:
    """What decides how the method prunes, and trains."""
    return settings.sparsity.said(asdict(settings.sparsity))


def without(values: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name not in names}
