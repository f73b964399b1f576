"""ONNX, run by ONNX Runtime; float32, or int8 weights and products."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch.export import ExportedProgram

from sttabt.errors import UserError
from sttabt.runtimes.runtime import METADATA, Runtime, Session, one_line

OLDEST = 18  # the opset that torch translates to; an older one has no layer norm or another ReduceMean
REFUSED = frozenset({"Sort", "NonZero", "If", "Loop"})  # what runtimes on a device cannot run, or run slowly
LARGE = 1 << 31  # bytes of a constant that is computed beforehand: slices and transposes of weights


class OnnxFile(Runtime):
    format, suffix, opset, quantises = "onnx", ".onnx", 18, True
    packages: ClassVar[Mapping[str, str]] = {"onnx": "onnx", "onnxscript": "onnxscript", "onnxruntime": "onnxruntime"}

    def check_opset(self, opset: int | None) -> None:
        import onnx

        newest = onnx.defs.onnx_opset_version()
        if opset is None:
            return
        if not isinstance(opset, int) or isinstance(opset, bool):
            raise UserError(f"opset={opset!r} is no whole number: choose {OLDEST} to {newest}")
        if opset < OLDEST:
            raise UserError(f"opset={opset} is too old: the graph needs {OLDEST} at least")
        if opset > newest:
            raise UserError(f"opset={opset} is newer than the package onnx knows: choose {OLDEST} to {newest}")

    def write(self, program: ExportedProgram, path: Path, names: Sequence[str], options: Mapping[str, Any]) -> None:
        translate(program, path, names, options["output"], options["opset"])
        if options["int8"]:
            _quantise(path)

    def note(self, path: Path, metadata: str) -> None:
        import onnx

        model = onnx.load(path)
        onnx.helper.set_model_props(model, {METADATA: metadata})
        onnx.save(model, path)

    def open(self, path: Path, threads: int | None) -> tuple[str | None, Session]:
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.log_severity_level = 3
        if threads is not None:
            options.intra_op_num_threads = threads
        try:
            session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime's errors share no class of their own
            raise UserError(f"{path} cannot be read by ONNX Runtime: {one_line(error)}") from error
        names = [each.name for each in session.get_inputs()]

        def run(given: Sequence[np.ndarray]) -> np.ndarray:
            return session.run(None, dict(zip(names, given, strict=True)))[0]

        return session.get_modelmeta().custom_metadata_map.get(METADATA), run


def translate(program: ExportedProgram, path: Path, names: Sequence[str], output: str, opset: int) -> None:
    """The program as ONNX with a dynamic batch dimension. names, output: of the tensors that it takes and gives.

    Raises UserError for operators that a device does not run.
    """
    import onnx
    from onnxscript import optimizer

    with _quiet():
        found: Any = torch.onnx.export(
            program,
            opset_version=opset,
            input_names=list(names),
            output_names=[output],
            dynamo=True,
            verbose=False,
            optimize=False,  # with smaller limits it loses constants that the next line needs
        )
        optimizer.optimize_ir(found.model, input_size_limit=LARGE, output_size_limit=LARGE)
        found.save(path)
    used = {node.op_type for node in onnx.load(path).graph.node} & REFUSED
    if used:
        raise UserError(f"the graph holds {', '.join(sorted(used))}, which runtimes on a device do not run")


def _quantise(path: Path) -> None:
    """Weights of products as int8, one scale a column; activations when it runs, one scale a tensor."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with _quiet():
        quantize_dynamic(path, path, weight_type=QuantType.QInt8, per_channel=True, op_types_to_quantize=["MatMul"])


class _quiet(warnings.catch_warnings):  # noqa: N801, used as a function
    """Without what exporters say of themselves to nobody in particular."""

    def __enter__(self) -> Any:
        self.level = logging.root.manager.disable
        logging.disable(logging.WARNING)
        entered = super().__enter__()
        warnings.simplefilter("ignore")
        return entered

    def __exit__(self, *raised: Any) -> None:
        super().__exit__(*raised)
        logging.disable(self.level)
