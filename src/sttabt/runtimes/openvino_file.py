"""OpenVINO's .xml with its weights in .bin beside it, by way of ONNX."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from torch.export import ExportedProgram

from sttabt.errors import UserError
from sttabt.runtimes.onnx_file import OnnxFile, translate
from sttabt.runtimes.runtime import METADATA, Runtime, Session, one_line


class OpenVinoFile(Runtime):
    format, suffix = "openvino", ".xml"
    packages: ClassVar[Mapping[str, str]] = {"onnx": "onnx", "onnxscript": "onnxscript", "openvino": "openvino"}

    def beside(self, path: Path) -> list[Path]:
        return [path.with_suffix(".bin")]

    def write(self, program: ExportedProgram, path: Path, names: Sequence[str], options: Mapping[str, Any]) -> None:
        openvino = _library()
        graph = path.with_suffix(OnnxFile.suffix)
        translate(program, graph, names, options["output"], OnnxFile.opset)
        openvino.save_model(openvino.convert_model(graph), path, compress_to_fp16=False)

    def note(self, path: Path, metadata: str) -> None:
        openvino = _library()
        model = openvino.Core().read_model(path)
        model.set_rt_info(metadata, [METADATA])
        again = path.with_name("again.xml")  # not over the weights that are being read
        openvino.save_model(model, again, compress_to_fp16=False)
        del model
        for suffix in (".bin", ".xml"):
            again.with_suffix(suffix).replace(path.with_suffix(suffix))

    def open(self, path: Path, threads: int | None) -> tuple[str | None, Session]:
        openvino = _library()
        core = openvino.Core()
        settings: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
        if threads is not None:
            settings["INFERENCE_NUM_THREADS"] = threads
        try:
            model = core.read_model(path)
            compiled = core.compile_model(model, "CPU", settings)
        except RuntimeError as error:
            raise UserError(f"{path} cannot be read by OpenVINO: {one_line(error)}") from error
        metadata = model.get_rt_info([METADATA]).value if model.has_rt_info([METADATA]) else None

        def run(given: Sequence[np.ndarray]) -> np.ndarray:
            return compiled(list(given))[0]

        return metadata, run


def _library() -> Any:
    """The package. It brings absl's handler of logs, which closes its stream with itself, unless that is the process's
    own: a stream that somebody else put in the place of stderr meanwhile (pytest, a notebook) would be lost.
    """
    import openvino

    if "absl.logging" in sys.modules:
        sys.modules["absl.logging"].get_absl_handler().python_handler.stream = sys.__stderr__
    return openvino
