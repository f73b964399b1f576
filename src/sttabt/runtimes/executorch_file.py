"""ExecuTorch's .pte for phones and boards, lowered to XNNPACK; one sample at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch.export import ExportedProgram

from sttabt.errors import UserError
from sttabt.runtimes.runtime import METADATA, Runtime, Session, one_line


class ExecuTorchFile(Runtime):
    """Metadata are bytes that the file's method `sttabt` gives, made together with the graph."""

    format, suffix, any_batch, in_extra = "executorch", ".pte", False, False
    packages: ClassVar[Mapping[str, str]] = {"executorch": "executorch", "torchao": "torchao"}

    def write(self, program: ExportedProgram, path: Path, names: Sequence[str], options: Mapping[str, Any]) -> None:
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
        from executorch.exir import to_edge_transform_and_lower

        said = torch.frombuffer(bytearray(options["metadata"].encode()), dtype=torch.uint8)
        lowered = to_edge_transform_and_lower(
            program, partitioner=[XnnpackPartitioner()], constant_methods={METADATA: said}
        )
        path.write_bytes(lowered.to_executorch().buffer)

    def note(self, path: Path, metadata: str) -> None:
        """Nothing: what the comparison gave is not in the file."""

    def open(self, path: Path, threads: int | None) -> tuple[str | None, Session]:
        from executorch.runtime import Runtime as Interpreter

        try:
            program = Interpreter.get().load_program(path)
            names, method = program.method_names, program.load_method("forward")
            said = program.load_method(METADATA).execute([])[0] if METADATA in names else None
        except Exception as error:  # whatever loading it meets
            raise UserError(f"{path} cannot be read by ExecuTorch: {one_line(error)}") from error

        def run(given: Sequence[np.ndarray]) -> np.ndarray:
            samples = zip(*(torch.from_numpy(each).split(1) for each in given), strict=True)
            return torch.cat([method.execute(list(sample))[0].clone() for sample in samples]).numpy()

        return None if said is None else bytes(said.tolist()).decode(), run
