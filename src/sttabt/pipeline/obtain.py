"""How a job comes to an artifact: it is there already, or it is made now, once, by all nodes together."""

from __future__ import annotations

import logging
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sttabt.errors import UserError
from sttabt.pipeline.card import write_card
from sttabt.pipeline.stage import Artifact, Context, Stage
from sttabt.store.artifacts import CARD, MODEL_STAGES, Claim, DamagedError

log = logging.getLogger(__name__)


def obtain(stage: Stage) -> Artifact:
    """The finished artifact of `stage`, made now if it is not there and its stage is asked for.

    It is made again where `remake` names its stage, and where what it is made of has other weights than then. Raises
    UserError when it is not there and its stage is left out, and when it is damaged: it is set aside then, so that the
    same command makes it.
    """
    context, description = stage.context, stage.description()
    _check_asked(stage, description)
    try:
        folder = (_claim if context.nodes.first else _follow)(stage, description)
        tensors, record = context.store.load(stage.name, description)
    except DamagedError as damaged:
        aside = context.store.set_aside(damaged.folder) if context.nodes.first else None
        where = f"its folder is now {aside}, and " if aside else ""
        raise UserError(f"{damaged.what}: {where}the same command makes the stage {stage.name} again") from damaged
    if stage.name in MODEL_STAGES and context.nodes.first and not (folder / CARD).exists():
        write_card(folder)
    return Artifact(tensors, record["sha256"], folder, record["notes"])


def _check_asked(stage: Stage, description: dict[str, Any]) -> None:
    store = stage.context.store
    if (remedy := _left_out(stage)) and store.find(stage.name, description) is None:
        raise UserError(f"{store.missing_message(stage.name, description)}: make it with {remedy}")


def _left_out(stage: Stage) -> str:
    """What would make the stage, where the settings say that it is not to be made; '' where they do not."""
    settings = stage.settings
    if stage.asked_by not in settings.stages:
        return f"{stage.asked_by} in stages"
    return "skip_approx=false" if stage.name == "approx" and settings.skip_approx else ""


def _claim(stage: Stage, description: dict[str, Any]) -> Path:
    """What the first node does: it makes the artifact with the others, unless it is finished."""
    context = stage.context
    made_of = {name: artifact.sha256 for name, artifact in stage.made_of.items()}
    with context.store.claim(stage.name, description, made_of) as claim:
        if claim.finished and (why := _why_again(stage, claim)):
            if remedy := _left_out(stage):
                raise UserError(f"{claim.folder} must be made again, {why}: make it with {remedy}")
            log.info("stage %s is made again, %s: %s", stage.name, why, claim.folder)
            claim.begin_again()
        with context.nodes.making(f"{stage.name}/{claim.folder.name}", not claim.finished) as needed:
            if needed:
                started = time.perf_counter()
                with context.loggers.making(stage.name, claim.folder) as loggers:
                    made = stage.make(claim.folder, loggers)
                    seconds = time.perf_counter() - started + made.notes.get("seconds_before", 0.0)
                    claim.finish(made.tensors, {"seconds": seconds, **_about(context), **made.notes})
            else:
                claim.clear()  # a job that was killed after the last line above left them
                log.info("stage %s is done already: %s", stage.name, claim.folder)
        return claim.folder


def _why_again(stage: Stage, claim: Claim) -> str:
    """Why an artifact that is there does not do; '' when it does. Jobs of a sweep remake what they share once."""
    job = stage.context.job
    made_here = job.multirun and claim.record()["notes"].get("sweep") == job.sweep
    if stage.asked_by in stage.settings.remake and not made_here:
        return f"since remake={stage.asked_by}"
    outdated = claim.outdated()
    return f"since the stage {outdated} gave other weights" if outdated else ""


def _follow(stage: Stage, description: dict[str, Any]) -> Path:
    """What a further node does where the first one claims: it trains with it, and finds its files."""
    folder = stage.context.store.folder(stage.name, description)
    with stage.context.nodes.making(f"{stage.name}/{folder.name}", False) as needed:
        if needed:
            stage.make(folder, [])
    return folder


def _about(context: Context) -> dict[str, Any]:
    """Notes of an artifact for its card and for loading it; nothing depends on them."""
    job = context.job
    return {"settings": asdict(context.settings), "command": job.command, "commit": job.commit, "sweep": job.sweep}
