"""What the command line sets in vain: no mistake, but worth a warning."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from sttabt.cli.checks.training import mixing
from sttabt.data.sources import find_source, unused_settings
from sttabt.settings import Settings

OF_IMAGES = ("crop", "mean", "std")
APPROXIMATIONS = ("approx.training", "approx.corpus_training")
OF_WANDB = ("project", "entity", "upload_weights")


def without_effect(settings: Settings, overrides: Iterable[str]) -> Iterator[str]:
    """One line for every override of the command line (`key=value`) that changes nothing in this job."""
    sparsity, training = settings.sparsity, settings.model.training
    method = sparsity.method
    approximate = method == "concrete" or getattr(sparsity, "attention", None) == "approximate"
    model, source = settings.model, find_source(settings.dataset.source)
    given = bool(model.pretrained or model.checkpoint)
    trained = model.fine_tune or not given
    text = source.holds == "text"
    classes = settings.dataset.task == "classification"
    unused = unused_settings(settings.dataset)
    general = approximate and settings.approx.start == "general"
    # (a key or a node, whether it has an effect, why not)
    uses = (
        ("approx", approximate, f"{method} uses no approximate network here"),
        ("skip_approx", approximate, f"{method} uses no approximate network here"),
        ("approx.stem", bool(model.lvvit), "the model has no convolutional stem"),
        ("approx.start", not settings.approx.checkpoint, "approx.checkpoint gives the network"),
        ("approx.training", not settings.approx.checkpoint, "approx.checkpoint gives the network"),
        ("model.auxiliary", bool(model.lvvit), "it is for LV-ViT"),
        ("model.sha256", bool(model.checkpoint), "there is no model.checkpoint to check"),
        ("model.training.label_smoothing", classes, "a score has no classes to smooth"),
        ("sparsity.training.label_smoothing", classes, "a score has no classes to smooth"),
        *((f"{node}.label_smoothing", False, "an approximation has no labels to smooth") for node in APPROXIMATIONS),
        *((f"{node}.mix_share", mixed, f"{node} mixes no images") for node, mixed in mixing(settings)),
        ("approx.corpus", general, f"approx.start={settings.approx.start} reads no corpus"),
        ("approx.corpus_training", general, f"approx.start={settings.approx.start} reads no corpus"),
        ("model.training", trained, "the base model's weights are given, so the base stage trains nothing"),
        ("sparsity.keep_ratio", not getattr(sparsity, "dynamic", False), "sparsity.dynamic=true chooses the count"),
        ("sparsity.keep_ratio", not getattr(sparsity, "counts", []), "sparsity.counts gives the tokens of each layer"),
        ("sparsity.dynamic", not getattr(sparsity, "counts", []), "sparsity.counts gives the tokens of each layer"),
        *((f"dataset.{name}", False, reason) for name, reason in unused.items()),
        *((f"model.{name}", "mean" not in unused, unused.get("mean", "")) for name in OF_IMAGES),
        ("dataset.augmentation", text or settings.dataset.augment, "dataset.augment=false leaves images as they are"),
        ("dataset.mean", text or not model.mean, "model.mean is set, which comes first"),
        ("dataset.std", text or not model.std, "model.std is set, which comes first"),
        ("evaluation.timing_batch", settings.evaluation.timing_rounds > 0, "evaluation.timing_rounds=0 times nothing"),
        *((f"logger.{name}", settings.logger.kind.startswith("wandb"), "it is a setting of W&B") for name in OF_WANDB),
        ("model.training.warmup_epochs", training.epochs > 0, "model.training.epochs=0 trains nothing"),
    )
    for override in overrides:
        key = override.partition("=")[0].lstrip("+~")
        for node, effective, reason in uses:
            if not effective and (key == node or key.startswith(f"{node}.")) and override != "skip_approx=false":
                yield f"{override} has no effect: {reason}"
