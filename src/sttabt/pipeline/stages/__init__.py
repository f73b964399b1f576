"""A run goes through stages: base, general, approx, prune, evaluate, report. Each hands files to the next.

A stage is an object of its own file here (`pipeline.stage` says what one is). What it makes is found by what made it: a
hash of every setting that influences it. A finished artifact is used again, by this run or by any job of a sweep; jobs
that want the same one at the same time make it once (`pipeline.obtain`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from sttabt.backbones.base import Backbone
from sttabt.lit.launch import Nodes, found_hardware, prepare_process
from sttabt.lit.loggers import JobLoggers
from sttabt.methods import find_method
from sttabt.methods.base import Method
from sttabt.models.approximate import ApproximateNetwork
from sttabt.models.pruned import PrunedModel
from sttabt.pipeline.card import last_stage, write_card
from sttabt.pipeline.obtain import obtain
from sttabt.pipeline.stage import Artifact, Context, Stage
from sttabt.pipeline.stages.approx import ApproxStage
from sttabt.pipeline.stages.base import BaseStage
from sttabt.pipeline.stages.budget import BudgetStage, aimed_settings
from sttabt.pipeline.stages.evaluate import EvaluateStage
from sttabt.pipeline.stages.general import GeneralStage
from sttabt.pipeline.stages.prune import PruneStage
from sttabt.pipeline.stages.timing import TimingStage
from sttabt.report.build import make_report
from sttabt.report.gallery import GALLERY_FILE
from sttabt.report.predictions import PREDICTIONS_FILE
from sttabt.report.rows import ROW_FILE
from sttabt.settings import LoggerSettings, MethodSettings, Settings, method_settings
from sttabt.store.job import Job
from sttabt.system.files import reason, write_atomically

Artifacts = dict[str, Artifact]  # by stage
Result = TypeVar("Result")

log = logging.getLogger(__name__)


def run_stages(settings: Settings, job: Job) -> None:
    """Everything that `settings.stages` names. Artifacts go to paths.artifacts, the row to paths.output.

    Raises UserError when a stage that is left out has not been run with these settings before.
    """
    settings = replace(settings, hardware=found_hardware(settings.hardware))
    prepare_process(settings.hardware)
    wanted = set(settings.stages)
    with Nodes(settings.hardware, job.command) as nodes:
        logged = settings if nodes.first else replace(settings, logger=LoggerSettings(kind="none"))
        with JobLoggers(logged, job) as loggers:
            context = Context(settings, job, loggers, nodes)
            made: Artifacts = {}
            if "evaluate" in wanted and nodes.first:
                made = write_result(context)
            elif wanted & {"evaluate", "prune"}:
                made = pruned_model(context).artifacts
            elif "approx" in wanted:
                made = approx_network(context)[2]
            else:
                if "base" in wanted:
                    made = base_model(context)[1]
                if "general" in wanted and settings.approx.start == "general":
                    general_network(context)
    if "report" in wanted and nodes.first and not job.multirun:
        output = Path(settings.paths.output)
        log.info("report: %s", make_report([output], output / "report").page)
    if made and nodes.first:
        log.info("model: %s", how_to_load(made, settings.sparsity))


def how_to_load(made: Artifacts, sparsity: MethodSettings) -> str:
    """Python that gives the model of these artifacts under its method."""
    last = last_stage(made)
    folder = made[last].folder
    given = [repr(str(folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder))]
    trains = sparsity.trains
    if last in ("base", "approx") and not trains and sparsity.reads_approximation == (last == "approx"):
        kind = method_settings(sparsity.method)
        own = {name: getattr(sparsity, name) for name in kind.own_names()}
        changed = {name: value for name, value in own.items() if value != getattr(kind(method=sparsity.method), name)}
        given += [f"method={sparsity.method!r}"] * (sparsity.method != "dense")
        given += [f"{name}={value!r}" for name, value in changed.items()]
    return f"sttabt.load({', '.join(given)})".replace("'", '"')


def base_model(context: Context) -> tuple[Backbone, Artifacts]:
    """The dense base model, and its artifact."""
    stage = BaseStage(context)
    model = stage.model  # a mistake in it shows before anything is waited for or trained
    if {"prune", "evaluate"} & set(context.settings.stages):
        _method(context, model).check(model)
    artifact = obtain(stage)
    return stage.read(artifact), {"base": artifact}


def general_network(context: Context) -> Artifact:
    """The approximate network of the pretrained encoder."""
    return obtain(GeneralStage(context))


def approx_network(context: Context) -> tuple[Backbone, ApproximateNetwork, Artifacts]:
    """The base model, its approximate attention network, and the artifacts that they are."""
    model, artifacts = base_model(context)
    if context.settings.approx.start == "general":
        artifacts["general"] = general_network(context)
    stage = ApproxStage(context, artifacts, model)
    artifacts["approx"] = obtain(stage)
    return model, stage.read(artifacts["approx"]), artifacts


class Pruned(NamedTuple):
    """The model under `sparsity`, trained where the method trains; the same with averaged weights, where
    `sparsity.ema` asks for them; the artifacts that it is made of; and the context with what a budget found.
    """

    model: PrunedModel
    averaged: PrunedModel | None
    artifacts: Artifacts
    context: Context


def pruned_model(context: Context) -> Pruned:
    """What the stages until `prune` make. Under a budget the method's settings are those that it found."""
    sparsity, asked = context.settings.sparsity, bool(context.settings.budget.asked)
    network: ApproximateNetwork | None = None
    if sparsity.reads_approximation:
        dense, network, artifacts = approx_network(context)
    else:
        dense, artifacts = base_model(context)
    aimed: dict[str, Any] = {}
    if asked and sparsity.trains:
        untrained = PrunedModel(dense, _method(context, dense), network).eval()
        aim = BudgetStage(context, artifacts, untrained)
        sparsity, aimed = aimed_settings(aim, obtain(aim))
        context = context.under(sparsity)
    model, averaged = PrunedModel(dense, _method(context, dense), network), None
    if sparsity.trains:
        stage = PruneStage(context, artifacts, model, dense)
        artifacts["prune"] = obtain(stage)
        model, averaged = stage.read(artifacts["prune"])
    if asked:
        budget = BudgetStage(context, artifacts, model.eval(), aimed)
        artifacts["budget"] = obtain(budget)
        context = context.under(budget.read(artifacts["budget"]))
        if averaged is not None:
            averaged.method.settings = context.settings.sparsity
    return Pruned(model.eval(), averaged, artifacts, context)


def _method(context: Context, model: Backbone) -> Method:
    """The method of `sparsity`. Raises UserError for settings that this model cannot keep."""
    sparsity = context.settings.sparsity
    sparsity.check_model(model.layers, model.tokens)
    return find_method(sparsity.method)(sparsity, model.layers, model.outputs)


def write_result(context: Context) -> Artifacts:
    """The result row of this job, its predictions, and the images of its gallery, in paths.output; gives what the
    model is made of.
    """
    pruned = pruned_model(context)
    context, model, artifacts = pruned.context, pruned.model, pruned.artifacts
    stage = EvaluateStage(context, artifacts, model, pruned.averaged)
    result, (row, gallery) = _read_or_repeat(stage, stage.read)
    if context.settings.evaluation.timing_rounds:
        timing, untimed = TimingStage(stage, model), row
        _, row = _read_or_repeat(timing, lambda made: timing.read(made, untimed))
    output = Path(context.settings.paths.output)
    row.write(output / ROW_FILE)
    for name in (GALLERY_FILE, PREDICTIONS_FILE):  # there may be no gallery, and older results have no predictions
        if (result.folder / name).exists():
            write_atomically(output / name, (result.folder / name).read_bytes())
    made_of = {name: artifact.folder for name, artifact in artifacts.items()}
    context.loggers.result(row, gallery, made_of)
    if not context.job.multirun:  # a sweep writes every card once, at its end
        write_card(made_of[last_stage(made_of)])
    return artifacts


def _read_or_repeat(stage: Stage, read: Callable[[Artifact], Result]) -> tuple[Artifact, Result]:
    """What a measurement found; one that another version wrote, or wrote without checksums, and that cannot be read is
    set aside and made again.
    """
    artifact = obtain(stage)
    try:
        return artifact, read(artifact)
    except (ValueError, OSError) as error:
        aside = stage.context.store.put_aside(artifact.folder)
        log.warning(
            "%s cannot be read (%s): it is now %s, and is measured again", artifact.folder, reason(error), aside
        )
    artifact = obtain(stage)
    return artifact, read(artifact)
