"""Settings of the approximate attention network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sttabt.settings.fields import at_least, setting
from sttabt.settings.training import TrainingSettings


def _has_stem(settings: Any, _: str) -> str | None:
    return None if settings.model.lvvit else "the model has no convolutional stem"


def _is_distilled(settings: Any, _: str) -> str | None:
    return "approx.checkpoint gives the network" if settings.approx.checkpoint else None


def _reads_corpus(settings: Any, _: str) -> str | None:
    start = settings.approx.start
    return None if start == "general" else f"approx.start={start} reads no corpus"


@dataclass
class ApproxSettings:
    """The approximate attention network (METHOD section 1)."""

    factor: int = setting(4, "how many times narrower than the base model", at_least(1))
    attention_loss: str = setting(
        "kldiv",
        "how attention maps are compared: by divergence, or as TinyBERT does",
        choices=("kldiv", "tinybert"),
    )
    start: str = setting(
        "interpolated",
        "where distillation starts: the base model's weights interpolated, at random, or (general) from the network"
        " distilled on approx.corpus",
        choices=("interpolated", "random", "general"),
        when=_is_distilled,
    )
    stem: str = setting(
        "own",
        "of models with a convolutional stem: a narrow one of its own, or the base model's",
        choices=("own", "shared"),
        when=_has_stem,
    )
    checkpoint: str = setting("", "a local weights file, which is used as it is: nothing is distilled")
    attention_weight: float = setting(1.0, "weight of the attention maps in the loss", at_least(0))
    hidden_weight: float = setting(0.01, "weight of the hidden states in the loss", at_least(0))
    embedding_weight: float = setting(1.0, "weight of the embeddings in the loss", at_least(0))
    prediction_weight: float = setting(
        200.0, "weight of the prediction in the loss; 0 switches the term off", at_least(0)
    )
    training: TrainingSettings = setting(TrainingSettings, "how the stage approx distils", when=_is_distilled)
    corpus: str = setting(
        "",
        "unlabelled data for start=general: distil from the given weights before they are fine-tuned",
        when=_reads_corpus,
    )
    corpus_training: TrainingSettings = setting(TrainingSettings, "how the stage general distils", when=_reads_corpus)
