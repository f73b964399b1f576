"""Every figure and table by name, with the rows that it is drawn from and the runs that make such rows.

An installed package adds its own by an entry point of the group `sttabt.figures`: NAME = "package.module:ENTRY".
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

from sttabt.errors import UserError
from sttabt.report.ablation_lambda import draw_ablation_lambda
from sttabt.report.ablation_lines import draw_ablation_factor, draw_ablation_p
from sttabt.report.glue import draw_glue
from sttabt.report.imagenet import draw_keep_ratio, draw_macs
from sttabt.report.overhead import write_overhead
from sttabt.report.pareto import draw_pareto
from sttabt.report.points import Point
from sttabt.report.quality import draw_attention_quality
from sttabt.report.rivals import write_rivals
from sttabt.report.rivals_time import draw_rivals_time
from sttabt.report.search import draw_search
from sttabt.report.tasks import draw_tasks
from sttabt.report.tokens import Block, draw_tokens

GROUP = "sttabt.figures"
RUN = "python -m sttabt.run"
CONCRETE = f"{RUN} experiment=deit_concrete dataset.path=FOLDER"


@dataclass(frozen=True)
class Results:
    """What figures are drawn from."""

    datasets: dict[str, list[Point]]  # see `points_by_dataset`
    tokens: list[Block]  # of the galleries beside the rows, those that are compared


@dataclass(frozen=True)
class Entry:
    """A figure or a table; `draw` gives the first of its files, None where the rows that it needs are missing."""

    title: str
    needs: str  # rows
    commands: tuple[str, ...]  # that make such rows
    draw: Callable[[Results, Path], Path | None]

    @property
    def missing(self) -> str:
        """One line that says what to run."""
        return f"there are no rows {self.needs}: run `{'` and `'.join(self.commands)}`"


def catalogue() -> dict[str, Entry]:
    """Every figure there is: those of CATALOGUE, and what installed packages add.

    Raises:
        UserError: a package's figure cannot be imported, is none, or has a name that is taken.
    """
    return CATALOGUE | {point.name: _load(point) for point in entry_points(group=GROUP)}


def _load(point: EntryPoint) -> Entry:
    try:
        entry = point.load()
    except Exception as error:  # whatever another package raises at import
        why = f"it cannot be imported ({type(error).__name__} {' '.join(str(error).split())})"
    else:
        if isinstance(entry, Entry) and point.name not in CATALOGUE:
            return entry
        why = "its name is taken" if isinstance(entry, Entry) else "it is no sttabt.report.catalogue.Entry"
    raise UserError(f"figure {point.name} ({point.value}): {why}: correct the entry point of the package that has it")


def _of_points(draw: Callable[[dict[str, list[Point]], Path], Path | None]) -> Callable[[Results, Path], Path | None]:
    return lambda results, folder: draw(results.datasets, folder)


CATALOGUE: dict[str, Entry] = {
    "pareto": Entry(
        "score against tokens kept, multiply-adds and time",
        "at all",
        (f"{RUN} experiment=quickstart",),
        _of_points(draw_pareto),
    ),
    "rivals": Entry(
        "table: methods under one budget, the best, paired tests, agreement with dense",
        "of two methods under one budget",
        tuple(f"{RUN} experiment=rivals_{name}" for name in ("digits", "fashion_mnist", "movie_reviews")),
        _of_points(write_rivals),
    ),
    "rivals_time": Entry(
        "score against measured time of methods under budgets",
        "of a method under a budget that was timed",
        tuple(f"{RUN} experiment=rivals_{name}" for name in ("digits", "fashion_mnist", "movie_reviews")),
        _of_points(draw_rivals_time),
    ),
    "tasks": Entry(
        "text tasks against tokens kept, counted in two ways, and multiply-adds",
        "of texts",
        (f"{RUN} experiment=movie_reviews",),
        _of_points(draw_tasks),
    ),
    "glue": Entry(
        "GLUE's nine panels against the paper's keep ratio, with the published curves",
        "of GLUE",
        tuple(f"{RUN} experiment={name}" for name in ("glue_topk", "glue_concrete", "glue_ltp")),
        _of_points(draw_glue),
    ),
    "imagenet_keep_ratio": Entry(
        "ImageNet accuracy against keep ratio, with the published curves",
        "of ImageNet (dataset.name=imagenet)",
        (
            CONCRETE,
            f"{RUN} experiment=deit_topk dataset.path=FOLDER",
        ),
        _of_points(draw_keep_ratio),
    ),
    "imagenet_macs": Entry(
        "ImageNet accuracy against multiply-adds, with the literature's points",
        "of ImageNet (dataset.name=imagenet)",
        (CONCRETE,),
        _of_points(draw_macs),
    ),
    "attention_quality": Entry(
        "distance of the approximate attention: random, interpolated, distilled",
        "with an approximate network",
        (f"{RUN} experiment=ablation_factor",),
        _of_points(draw_attention_quality),
    ),
    "overhead": Entry(
        "table: what the approximate network and planning take of multiply-adds and time",
        "of methods that plan",
        (f"{RUN} experiment=ablation_factor",),
        _of_points(write_overhead),
    ),
    "ablation_p": Entry(
        "what p decides, how much a row's own impact weighs",
        "that differ in sparsity.propagation alone",
        (f"{RUN} experiment=ablation_p",),
        _of_points(draw_ablation_p),
    ),
    "ablation_lambda": Entry(
        "heat maps of score and keep ratio by the loss weights of concrete masks",
        "that differ in sparsity.lambda_mask and sparsity.lambda_p alone",
        (f"{RUN} experiment=ablation_lambda",),
        _of_points(draw_ablation_lambda),
    ),
    "ablation_factor": Entry(
        "score, multiply-adds and attention against the approximate network's factor",
        "that differ in approx.factor alone",
        (f"{RUN} experiment=ablation_factor",),
        _of_points(draw_ablation_factor),
    ),
    "search": Entry(
        "settings tried, by validation score and multiply-adds, and the front among them",
        "of one method that differ in two settings or more",
        (f"{RUN} experiment=quickstart hparams_search=concrete",),
        _of_points(draw_search),
    ),
    "tokens": Entry(
        "the patches or words that each layer reads, methods beside each other",
        "with a gallery (tokens.npz) beside them",
        (f"{RUN} experiment=quickstart",),
        lambda results, folder: draw_tokens(results.tokens, folder) if results.tokens else None,
    ),
}
