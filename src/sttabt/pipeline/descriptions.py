"""What an artifact is found by: of each stage all settings that influence what it makes, in a form that JSON keeps.

made_of: the fingerprints of the artifacts, by stage, that it is made from.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sttabt import __version__
from sttabt.data.sources import find_source
from sttabt.lit.configured import influences
from sttabt.pretrained.hub import find_pretrained
from sttabt.pretrained.weights import verify
from sttabt.settings import Settings, update_size
from sttabt.store.artifacts import checksum

TIMING = ("timing_batch", "timing_rounds")  # the settings of `evaluation` that decide how times are measured
IMAGES = ("crop", "mean", "std")  # settings of a model that say what becomes of images before it sees them


def describe_base(settings: Settings, trained: bool) -> dict[str, Any]:
    """trained: here; else the weights are used as they are given."""
    described = _weights(settings) | {"classes": settings.dataset.classes}
    if trained:
        described |= {
            "training": _without(asdict(settings.model.training), "global_batch_size"),
            "dataset": _data(settings),
        }
        described |= _training_context(settings, "base")
    return described


def describe_general(settings: Settings) -> dict[str, Any]:
    names = ("factor", "attention_loss", "attention_weight", "hidden_weight", "embedding_weight", "corpus_training")
    own = {name: value for name, value in asdict(settings.approx).items() if name in names}
    own["corpus_training"] = _without(own["corpus_training"], "global_batch_size")
    corpus = Path(settings.approx.corpus)
    own["corpus"] = checksum(corpus) if corpus.is_file() else settings.approx.corpus
    return _weights(settings) | own | _training_context(settings, "general")


def describe_approx(settings: Settings, made_of: Mapping[str, str]) -> dict[str, Any]:
    own = _without(asdict(settings.approx), "corpus", "corpus_training")  # the general network's
    own["training"] = _without(own["training"], "global_batch_size")
    if settings.approx.checkpoint:
        own = {name: own[name] for name in ("factor", "stem")}
        own["checkpoint"] = verify(Path(settings.approx.checkpoint), "", "approx.checkpoint")
    return {**made_of, "approx": own, "dataset": _data(settings), **_training_context(settings, "approx")}


def describe_prune(settings: Settings, made_of: Mapping[str, str]) -> dict[str, Any]:
    own: dict[str, Any] = asdict(settings.sparsity)
    own["training"] = _without(own["training"], "global_batch_size")
    return {**made_of, "sparsity": own, "dataset": _data(settings), **_training_context(settings, "prune")}


def describe_result(
    settings: Settings, made_of: Mapping[str, str], hardware: Mapping[str, Any], commit: str
) -> dict[str, Any]:
    """hardware: that which measures; commit: of the code, as another may score differently."""
    return {
        **made_of,
        "model": settings.model.name,
        "dataset": _data(settings) | {"metric": settings.dataset.metric},
        "sparsity": asdict(settings.sparsity),
        "evaluation": _without(asdict(settings.evaluation), *TIMING),
        "experiment": settings.name,
        "hardware": hardware,
        "commit": commit,
        "seed": settings.seed,
        "fast_dev_run": settings.fast_dev_run,
    }


def describe_timing(settings: Settings, result: Mapping[str, Any]) -> dict[str, Any]:
    """result: the description of the result whose times these are."""
    return {**result, "timing": {name: getattr(settings.evaluation, name) for name in TIMING}}


def _weights(settings: Settings) -> dict[str, Any]:
    """What decides the weights that training starts from, but for the seed and the head."""
    data = settings.dataset
    model = _without(asdict(settings.model), "name", "training", "fine_tune", "sha256", *IMAGES)
    if model["checkpoint"]:  # the same name may hold other weights
        model["checkpoint"] = verify(Path(model["checkpoint"]), settings.model.sha256, "model.checkpoint")
    if model["huggingface"] and (folder := Path(find_pretrained(model["huggingface"]))).is_dir():
        weights = ("*.safetensors", "*.bin", "config.json")
        files = sorted(path for pattern in weights for path in folder.glob(pattern))
        model["huggingface"] = {path.name: checksum(path) for path in files}
    sizes = {"channels": data.channels, "image_size": data.image_size, "max_tokens": data.max_tokens}
    return {"model": model, **sizes, "version": __version__}


def _data(settings: Settings) -> dict[str, Any]:
    """What decides the batches of training and evaluation, and the loss."""
    model = asdict(settings.model)
    described = _without(asdict(settings.dataset), "metric", "broken_share")
    if find_source(settings.dataset.source).holds == "images":
        described |= {name: model[name] for name in IMAGES}
    return described


def _training_context(settings: Settings, stage: str) -> dict[str, Any]:
    return {
        "seed": settings.seed,
        "version": __version__,
        "global_batch_size": update_size(settings, stage),
        "precision": settings.hardware.precision,
        "fast_dev_run": settings.fast_dev_run,
        **influences(settings),
    }


def _without(values: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name not in names}
