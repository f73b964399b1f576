"""`python -m sttabt.workspace entity=NAME [project=sttabt] [preview=FILE]`: the W&B workspace of a project's sweeps.

Saves a view into the project, which must be on the server already: cost against score, the tokens that were kept, and
the training of every stage. `preview=FILE` writes the view as JSON instead, and needs no account.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sttabt.cli.pairs import read_pairs
from sttabt.errors import UserError
from sttabt.settings import STAGES
from sttabt.system.faults import tell
from sttabt.system.signals import run_command

NAME = "sttabt"
OPTIONS = ("entity", "project", "preview")
TRAINED = [stage for stage in STAGES if stage not in ("evaluate", "report")]
COSTS = {
    "macs_share": "share of the dense multiply-adds",
    "occupancy": "share of tokens",
    "time_ratio": "share of time",
    "time_ratio_frozen": "share of the frozen dense model's time",
}
COLUMNS = ("score", "occupancy", "macs_share", "time_ratio", "label", "dataset", "seed")  # beside a run's name

log = logging.getLogger(__name__)


def workspace(entity: str, project: str) -> Any:
    """A `wandb_workspaces.workspaces.Workspace`; its `save()` puts it into the project.

    Raises UserError when the package wandb-workspaces is missing.
    """
    try:
        import wandb_workspaces.reports.v2 as wr
        import wandb_workspaces.workspaces as ws
    except ModuleNotFoundError as error:
        raise UserError("the workspace needs the package wandb-workspaces: pip install wandb-workspaces") from error
    score = wr.SummaryMetric("result/score")
    results: list[Any] = [
        wr.ScatterPlot(title=f"score against {title}", x=wr.SummaryMetric(f"result/{cost}"), y=score)
        for cost, title in COSTS.items()
    ]
    results.append(wr.BarPlot(title="score by method", metrics=["result/score"], groupby=wr.Config("sparsity.method")))
    kept: list[Any] = [
        wr.MediaBrowser(title="tokens that each layer reads", media_keys=["tokens/images", "tokens/texts"]),
        wr.WeavePanelSummaryTable(table_name="tokens/table"),
    ]
    sections = [
        ws.Section(name="Results", panels=results, is_open=True),
        ws.Section(name="Tokens that are kept", panels=kept, is_open=True),
        *(ws.Section(name=f"Training: {stage}", panels=[*_curves(wr, stage)]) for stage in TRAINED),
        ws.Section(name="What differs", panels=[wr.RunComparer(diff_only="split")]),
    ]
    columns = ["run:displayName", "run:jobType", *(f"summary:result/{name}" for name in COLUMNS)]
    runs = ws.RunsetSettings(pinned_columns=columns)
    return ws.Workspace(name=NAME, entity=entity, project=project, sections=sections, runset_settings=runs)


def main(arguments: Sequence[str]) -> int:
    """Returns the exit code: 0, or 2 for a user's mistake."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s: %(message)s")
    if {"-h", "--help"} & set(arguments):
        sys.stdout.write(f"{__doc__}")
        return 0
    try:
        _apply(read_pairs(arguments, OPTIONS))
    except Exception as error:
        return tell(error)
    return 0


def _apply(options: dict[str, str]) -> None:
    view = workspace(options.get("entity", ""), options.get("project", "sttabt"))
    if "preview" in options:
        path = Path(options["preview"])
        path.write_text(view._to_model().model_dump_json(indent=1), encoding="utf-8")
        log.info("view: %s", path)
        return
    if not options.get("entity"):
        raise UserError("entity is missing: give entity=NAME, the W&B user or team that has the project")
    import wandb

    from sttabt.lit.wandb_runs import has_key

    if not has_key():
        raise UserError("there is no W&B API key: run `wandb login`, or write the view with preview=FILE")
    try:
        view.save()
    except (wandb.errors.Error, ValueError, OSError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"entity={view.entity} project={view.project} takes no view: {reason}") from error
    log.info("view: %s", view.url)


def _curves(wr: Any, stage: str) -> list[Any]:
    step = f"{stage}/step"
    return [
        wr.LinePlot(title=f"{stage}: loss", x=step, y=[f"{stage}/loss"]),
        wr.LinePlot(title=f"{stage}: validation", x=step, y=[], metric_regex=f"{stage}/validation_.*"),
    ]


if __name__ == "__main__":
    run_command(lambda: main(sys.argv[1:]), "sttabt.workspace")
