"""ExecuTorch's .pte for phones and boards, lowered to XNNPACK; one sample at a time."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
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

        aten = torch.ops.aten
        program = program.run_decompositions(
            {aten.scaled_dot_product_attention.default: _attention, aten.gelu.default: _gelu}
        )
        said = torch.frombuffer(bytearray(options["metadata"].encode()), dtype=torch.uint8)
        lowered = to_edge_transform_and_lower(
            program, partitioner=[XnnpackPartitioner()], constant_methods={METADATA: said}
        )
        path.write_bytes(lowered.to_executorch().buffer)

    def note(self, path: Path, metadata: str) -> None:
        """Nothing: what the comparison gave is not in the file."""

    def open(self, path: Path, threads: int | None) -> tuple[str | None, Session]:
        from executorch.extension.pybindings.portable_lib import _unsafe_reset_threadpool
        from executorch.runtime import Runtime as Interpreter

        if threads is not None:  # of all files in the process; there is no public way
            _unsafe_reset_threadpool(threads)
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


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor | None = None,
    dropout: float = 0.0,
    causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """As torch's of the same arguments, of those that our models use; every row has a key.

    torch's own decomposition looks for rows without one, by operators that XNNPACK does not take, and that took a third
    of the time and more.
    """
    assert not (dropout or causal or enable_gqa), "no model that is exported asks for that"
    root = (scale or query.shape[-1] ** -0.5) ** 0.5  # on both sides, as torch does it
    scores = (query * root) @ (key * root).transpose(-1, -2)
    if bias is not None:
        scores = scores.masked_fill(~bias, -math.inf) if bias.dtype == torch.bool else scores + bias
    return torch.softmax(scores, dim=-1) @ value


def _gelu(x: Tensor, *, approximate: str = "none") -> Tensor:
    """As torch's; XNNPACK (of ExecuTorch 1.5) computes the exact one in place of that by a tanh."""
    if approximate == "none":
        return NotImplemented  # as it is
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
