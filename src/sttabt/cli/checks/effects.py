"""What the command line sets in vain: no mistake, but worth a warning."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from sttabt.cli.checks.training import mixing
from sttabt.settings import SOURCES, Settings

TEXT_SETTINGS = ("columns", "max_tokens")
IMAGE_SETTINGS = ("augment", "augmentation", "channels", "mean", "std", "broken_share")
TABLE_SETTINGS = ("hub_id", "configuration", "train_split", "test_split", "image_column")
DIGITS = "digits have their own preparation"
DIGITS_HAVE = ("augmentation", "mean", "std", "broken_share")
APPROXIMATIONS = ("approx.training", "approx.corpus_training")
FILE_SETTINGS = ("header", "encoding", "positive_above", "test_share")
OF_WANDB = ("project", "entity", "upload_weights")


def without_effect(settings: Settings, overrides: Iterable[str]) -> Iterator[str]:
    """One line for every override of the command line (`key=value`) that changes nothing in this job."""
    sparsity, training = settings.sparsity, settings.model.training
    method = sparsity.method
    approximate = method == "concrete" or getattr(sparsity, "attention", None) == "approximate"
    model, source = settings.model, settings.dataset.source
    given = bool(model.pretrained or model.checkpoint)
    trained = model.fine_tune or not given
    text = SOURCES[source] == "text"
    classes = settings.dataset.task == "classification"
    named = source in ("image_table", *(name for name, kind in SOURCES.items() if kind == "text"))
    transformed = not text and source != "digits"
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
        ("dataset.path", source != "digits", "digits come with scikit-learn"),
        *((f"dataset.{name}", text, "it is a setting of text") for name in TEXT_SETTINGS),
        *((f"dataset.{name}", source == "text_file", "it is for source text_file") for name in FILE_SETTINGS),
        *((f"dataset.{name}", not text, "it is a setting of images") for name in IMAGE_SETTINGS),
        *((f"model.{name}", not text, "it is a setting of images") for name in ("crop", "mean", "std")),
        *((f"dataset.{name}", text or transformed, DIGITS) for name in DIGITS_HAVE),
        *((f"model.{name}", text or transformed, DIGITS) for name in ("crop", "mean", "std")),
        ("dataset.augmentation", text or settings.dataset.augment, "dataset.augment=false leaves images as they are"),
        ("dataset.mean", text or not model.mean, "model.mean is set, which comes first"),
        ("dataset.std", text or not model.std, "model.std is set, which comes first"),
        *((f"dataset.{name}", source == "image_table", "it is for source image_table") for name in TABLE_SETTINGS),
        ("dataset.hub_id", source != "image_table" or not settings.dataset.path, "dataset.path gives a local copy"),
        ("dataset.label_column", named, f"source {source} has none"),
        ("dataset.class_names", text or source == "idx", f"source {source} has its own"),
        ("dataset.task_name", source == "glue", "it is for source glue"),
        ("dataset.test_share", not Path(settings.dataset.path).is_dir(), "the folder has a test split"),
        ("evaluation.timing_batch", settings.evaluation.timing_rounds > 0, "evaluation.timing_rounds=0 times nothing"),
        *((f"logger.{name}", settings.logger.kind.startswith("wandb"), "it is a setting of W&B") for name in OF_WANDB),
        ("model.training.warmup_epochs", training.epochs > 0, "model.training.epochs=0 trains nothing"),
    )
    for override in overrides:
        key = override.partition("=")[0].lstrip("+~")
        for node, effective, reason in uses:
            if not effective and (key == node or key.startswith(f"{node}.")) and override != "skip_approx=false":
                yield f"{override} has no effect: {reason}"
