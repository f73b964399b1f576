"""From a model to a file that was compared with it."""

from __future__ import annotations

import json
import logging
import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sttabt.backbones import adapt
from sttabt.core.text import Text
from sttabt.errors import UserError
from sttabt.methods import find_method
from sttabt.methods.dense import Dense
from sttabt.models.pruned import PrunedModel
from sttabt.pretrained.description import class_names_of, preprocessing_of
from sttabt.runtimes.counting import counts_at_budget, counts_of, macs_share
from sttabt.runtimes.formats import RUNTIMES, find_runtime
from sttabt.runtimes.graph import Graph, check_model, check_tokens
from sttabt.runtimes.reading import ExportedModel
from sttabt.runtimes.runtime import Runtime, one_line
from sttabt.settings import BudgetSettings, Settings, check_of_batches, method_settings
from sttabt.system.files import write_atomically
from sttabt.version import __version__

BATCHES = (1, 2, 7)  # at which file and model are compared
TOLERANCE = 1e-4  # of float32 logits or vectors, relative to the largest number where that is above 1
LEAST_AGREEMENT = 0.5  # below it an int8 file is broken rather than coarse
LEAST_SIMILARITY = 0.8  # likewise, of vectors

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Export:
    """A file that was written.

    counts: tokens at every boundary (L+1).
    macs_share: multiply-adds, planner included, as a share of the dense model's.
    output: what the file calls its result, "logits" or, of an encoder without a classifier, "embeddings".
    difference: largest of its result from torch's.
    agreement: share of the calibration inputs of which an int8 file predicts the same class, of embeddings the mean
    cosine similarity to torch's; None for float32.
    """

    path: Path
    counts: list[int]
    macs_share: float
    output: str
    difference: float
    agreement: float | None


def export(
    model: nn.Module,
    path: str | Path,
    *,
    format: str = "onnx",
    counts: Sequence[int] | None = None,
    budget: float | BudgetSettings | None = None,
    calibration: Iterable[Any] | None = None,
    tokens: int | None = None,
    int8: bool = False,
    opset: int | None = None,
    class_names: Sequence[str] | None = None,
    preprocessing: Mapping[str, Any] | None = None,
) -> Export:
    """`model` as a file for another runtime: planner included, really fewer tokens, the same number for each input.

    model: a pruned model (back-tracking, concrete masks, dense), or a library's, which is exported dense; a classifier
    or an encoder that embeds.
    path: of the file; what stands there is replaced once the new file agrees.
    format: "onnx", "openvino", "torch" (torch.export) or "executorch".
    counts: tokens that each layer reads (L); None: those of the method, or the mean of what it keeps of `calibration`,
    of texts the mean share, times `tokens`.
    budget: instead of counts, the share of the dense file's multiply-adds that the file may cost, planner included;
    the method's dial is turned to it on `calibration`, as `sttabt.calibrate` does, and what is kept then is counted.
    calibration: an iterable of batches of inputs, alone or with labels, as `distil` takes them.
    tokens: the length that texts are padded to; None: as many as the model has positions.
    int8: quantise the products (onnx); its agreement with `model` on `calibration` is in the file and in the result.
    opset: of onnx, 18 or later.
    class_names, preprocessing: go into the file; None: as the library's model says.

    The file takes `images` (B, C, height, width) float32, or `input_ids`, `attention_mask` and, where the model reads
    them, `token_type_ids`, (B, tokens) int64, padding behind the text; it gives `logits` (B, classes), or `embeddings`
    (B, D), for any B (executorch: 1). `sttabt.runtimes.reading.open_exported` runs it. It is compared with torch at
    batches of 1, 2 and 7: float32 must give the same classes, and logits within 1e-4 (of the largest, where that is
    above 1), or vectors within as much, otherwise nothing is left of it. Inputs of which two tokens are all but equally
    important, so that either may stay as a runtime rounds, are left out of the comparison.
    Raises UserError for a model or method without such a graph, counts out of range, a package that is missing, an
    opset that cannot be written, or a file that does not agree.
    """
    runtime, path = find_runtime(format), _target(path, format)
    if int8 and not runtime.quantises:
        raise UserError(f"int8=true goes with format=onnx, not with format={format}")
    runtime.check()
    runtime.check_opset(opset)
    pruned = model if isinstance(model, PrunedModel) else _dense(model)
    check_model(pruned)
    batches = None if calibration is None else _batches(calibration)
    if int8 and not batches:
        raise UserError("int8=true is compared on calibration inputs: give calibration=[batches of inputs]")
    if budget is not None:
        counts = _counts_at_budget(pruned, batches, budget, counts, tokens)
    elif counts is None and pruned.method.takes_counts and pruned.method.counts is None:
        counts = counts_of(pruned, batches, check_tokens(pruned.base, tokens))
    if class_names is not None and pruned.base.embeds:
        raise UserError("class_names have no effect on a model without a classifier: leave them out")
    graph = Graph(pruned, counts, tokens)
    share = macs_share(pruned, graph.counts, graph.tokens)
    metadata = {
        "version": __version__,
        "format": format,
        "method": pruned.method.title,
        "counts": graph.counts,
        "macs_share": share,
        "inputs": [asdict(each) for each in graph.inputs],
        "preprocessing": dict(preprocessing_of(pruned.base, graph.tokens) if preprocessing is None else preprocessing),
        "output": graph.output,
        "classes": list(_class_names(pruned) if class_names is None else class_names),
        "int8": int8,
        "opset": opset or runtime.opset,
    }
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / path.name
        options = {"opset": metadata["opset"], "int8": int8, "metadata": json.dumps(metadata), "output": graph.output}
        _write(runtime, graph, file, options)
        difference = _compare(runtime, graph, file, metadata, exact=not int8)
        agreement = _agreement(runtime, graph, file, metadata, batches or []) if int8 else None
        runtime.note(file, json.dumps(metadata | {"difference": difference, "agreement": agreement}))
        for each in [*runtime.beside(file), file]:
            write_atomically(path.with_name(each.name), each.read_bytes())
    return Export(path, graph.counts, share, graph.output, difference, agreement)


def _target(path: str | Path, format: str) -> Path:
    path, suffix = Path(path), find_runtime(format).suffix
    if path.suffix != suffix:
        others = {find_runtime(name).suffix: name for name in RUNTIMES}
        hint = f"; format={others[path.suffix]} writes {path.suffix}" if path.suffix in others else ""
        raise UserError(f"path={path}: a file of format={format} ends in {suffix}{hint}")
    if path.is_dir():
        raise UserError(f"path={path} is a folder: give a file in it")
    # Looked at before the minutes that an export may take; what is missing below it is made.
    folder = next(each for each in path.absolute().parents if each.exists())
    if not folder.is_dir():
        raise UserError(f"path={path}: {folder} is a file where a folder is wanted: give another name, or move it away")
    if not os.access(folder, os.W_OK):
        raise UserError(f"path={path}: {folder} takes no files: change its permissions, or give another folder")
    return path


def _dense(model: nn.Module) -> PrunedModel:
    base = adapt(model)
    return PrunedModel(base, find_method("dense")(method_settings("dense")(method="dense"), base.layers, base.outputs))


def _class_names(pruned: PrunedModel) -> list[str]:
    return [] if pruned.base.embeds else class_names_of(pruned.base)


def _batches(calibration: Iterable[Any]) -> list[Tensor | Text]:
    """Images or Texts, without labels."""
    from sttabt.api import check_batches, inputs_of  # which imports this file

    check_batches("calibration is", calibration)
    return [inputs_of(batch) for batch in calibration]


def _counts_at_budget(
    pruned: PrunedModel,
    batches: Sequence[Tensor | Text] | None,
    budget: float | BudgetSettings,
    counts: Sequence[int] | None,
    tokens: int | None,
) -> list[int]:
    if counts is not None:
        raise UserError(f"budget={budget} and counts={list(counts)} say the same: give one of them")
    if isinstance(pruned.method, Dense):
        raise UserError(f"budget={budget} has no effect on a dense model, which keeps every token: prune it")
    if isinstance(budget, BudgetSettings):
        if budget.time:
            raise UserError(
                f"budget asks for time={budget.time}, which a file's device alone can tell: give a share of the dense"
                " file's multiply-adds, e.g. 0.5"
            )
        check_of_batches(Settings(sparsity=pruned.method.settings, budget=budget))
        budget = budget.macs
    if isinstance(budget, bool) or not isinstance(budget, int | float) or not 0 < budget <= 1:
        raise UserError(f"budget={budget!r} is no share of the dense file's multiply-adds: give one, e.g. 0.5")
    return counts_at_budget(pruned, batches, budget, check_tokens(pruned.base, tokens))


def _write(runtime: Runtime, graph: Graph, file: Path, options: Mapping[str, Any]) -> None:
    example = graph.examples(3 if runtime.any_batch else 1)
    batch = {0: torch.export.Dim("batch", min=1)} if runtime.any_batch else None
    try:
        with torch.no_grad():
            program = torch.export.export(graph, example, dynamic_shapes=(tuple(batch for _ in example),))
        runtime.write(program, file, [each.name for each in graph.inputs], options)
    except UserError:
        raise
    except Exception as error:  # exporters have no error in common
        raise UserError(f"format={runtime.format} cannot hold this model: {one_line(error)}") from error


def _compare(runtime: Runtime, graph: Graph, file: Path, metadata: dict[str, Any], exact: bool) -> float:
    """The largest difference of the file's result from torch's.

    Raises UserError when they are no numbers, and where they should be `exact` and are not.
    """
    opened, largest, classifies = _opened(runtime, file, metadata), 0.0, not graph.base.embeds
    for batch in BATCHES:
        given = graph.examples(batch)
        expected, found = graph.expected(given), opened(*given)
        difference = float((found - expected).abs().max())
        allowed = TOLERANCE * max(1.0, float(expected.abs().max()))
        same = not classifies or torch.equal(found.argmax(-1), expected.argmax(-1))
        if not found.isfinite().all() or (exact and not (difference <= allowed and same)):
            other = ", or predict another class" if classifies else ""
            raise UserError(
                f"format={runtime.format} does not compute what torch computes: at batch {batch} {graph.output} differ"
                f" by {difference:.3g}, more than {allowed:.1g}{other}: nothing is kept of it"
            )
        largest = max(largest, difference)
    return largest


def _agreement(
    runtime: Runtime, graph: Graph, file: Path, metadata: dict[str, Any], batches: Sequence[Tensor | Text]
) -> float:
    """The share of inputs of which file and model predict the same class; of vectors the mean cosine similarity."""
    opened, agreed = _opened(runtime, file, metadata), []
    for batch in batches:
        given = graph.tensors(batch)
        found, expected = opened(*given), graph.expected(given)
        if graph.base.embeds:
            agreed.append(nn.functional.cosine_similarity(found, expected))
        else:
            agreed.append(found.argmax(-1) == expected.argmax(-1))
    each = torch.cat(agreed)
    share = float(each.double().mean())
    if graph.base.embeds:
        log.info("int8: mean cosine similarity %.4f of %d calibration inputs", share, len(each))
        said, least = f"int8 has a mean cosine similarity of {share:.3f} only", LEAST_SIMILARITY
    else:
        log.info("int8 predicts the same class for %d of %d calibration inputs", int(each.sum()), len(each))
        said, least = f"int8 predicts the same class for {share:.0%} of the inputs only", LEAST_AGREEMENT
    if share < least:
        raise UserError(f"{said}: nothing is kept of it")
    return share


def _opened(runtime: Runtime, file: Path, metadata: dict[str, Any]) -> ExportedModel:
    return ExportedModel(file, metadata, runtime.open(file, threads=None)[1])
