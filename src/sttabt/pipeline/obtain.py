"""How a job comes to an artifact: it is there already, or it is made now, once, by all nodes together."""

from __future__ import annotations

import logging
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sttabt.errors import UserError
from sttabt.lit.fit import CHECKPOINT
from sttabt.pipeline.card import CARD, write_card
from sttabt.pipeline.stage import Artifact, Context, Stage
from sttabt.store.artifacts import MODEL_STAGES

log = logging.getLogger(__name__)


def obtain(stage: Stage) -> Artifact:
    """The finished artifact of `stage`, made now if it is not there and its stage is asked for.

    Raises UserError when it is not there and its stage is left out.
    """
    context, description = stage.context, stage.description()
    _check_asked(stage, description)
    folder = (_claim if context.nodes.first else _follow)(stage, description)
    if stage.name in MODEL_STAGES and context.nodes.first and not (folder / CARD).exists():
        write_card(folder)
    tensors, record = context.store.load(stage.name, description)
    return Artifact(tensors, folder, record["notes"])


def _check_asked(stage: Stage, description: dict[str, Any]) -> None:
    settings, store = stage.settings, stage.context.store
    left_out = stage.asked_by not in settings.stages or (stage.name == "approx" and settings.skip_approx)
    if left_out and store.find(stage.name, description) is None:
        remedy = "skip_approx=false" if stage.name in settings.stages else f"{stage.name} in stages"
        raise UserError(f"{store.missing_message(stage.name, description)}: make it with {remedy}")


def _claim(stage: Stage, description: dict[str, Any]) -> Path:
    """What the first node does: it makes the artifact with the others, unless it is finished."""
    context = stage.context
    with (
        context.store.claim(stage.name, description) as claim,
        context.nodes.making(f"{stage.name}/{claim.folder.name}", not claim.finished) as needed,
    ):
        if needed:
            started = time.perf_counter()
            with context.loggers.making(stage.name, claim.folder) as loggers:
                made = stage.make(claim.folder, loggers)
                seconds = time.perf_counter() - started
                claim.finish(made.tensors, {"seconds": seconds, **_about(context), **made.notes})
            (claim.folder / CHECKPOINT).unlink(missing_ok=True)
        else:
            log.info("stage %s is done already: %s", stage.name, claim.folder)
        return claim.folder


def _follow(stage: Stage, description: dict[str, Any]) -> Path:
    """What a further node does where the first one claims: it trains with it, and finds its files."""
    folder = stage.context.store.folder(stage.name, description)
    with stage.context.nodes.making(f"{stage.name}/{folder.name}", False) as needed:
        if needed:
            stage.make(folder, [])
    return folder


def _about(context: Context) -> dict[str, Any]:
    """Notes of an artifact for its card and for loading it; nothing depends on them."""
    return {"settings": asdict(context.settings), "command": context.job.command, "commit": context.job.commit}
