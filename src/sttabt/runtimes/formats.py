"""The formats, by the names that users give them."""

from __future__ import annotations

from pathlib import Path

from sttabt.errors import UserError, nearest
from sttabt.runtimes.executorch_file import ExecuTorchFile
from sttabt.runtimes.onnx_file import OnnxFile
from sttabt.runtimes.openvino_file import OpenVinoFile
from sttabt.runtimes.runtime import Runtime
from sttabt.runtimes.torch_program import TorchProgram

KNOWN: tuple[Runtime, ...] = (ExecuTorchFile(), OnnxFile(), OpenVinoFile(), TorchProgram())
RUNTIMES = {each.format: each for each in KNOWN}


def find_runtime(name: str) -> Runtime:
    """Raises UserError for an unknown format."""
    if name not in RUNTIMES:
        raise UserError(f"format={name} is unknown: {nearest(str(name), RUNTIMES)}")
    return RUNTIMES[name]


def runtime_of(path: Path) -> Runtime:
    """By the file's name. Raises UserError where that is no format's."""
    found = next((each for each in RUNTIMES.values() if each.suffix == path.suffix), None)
    if found is None:
        raise UserError(f"{path} is no exported file: they end in {', '.join(e.suffix for e in RUNTIMES.values())}")
    return found
