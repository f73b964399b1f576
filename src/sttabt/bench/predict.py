"""How long an encoder should take on a device, before it is measured: by its operations, or by the bytes they move."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from sttabt.core.cost import Architecture


@dataclass(frozen=True)
class Device:
    """macs, bytes: a second, as reached by large products and copies; launch: seconds an operator takes at least."""

    macs: float
    bytes: float
    launch: float


# NVIDIA's data sheet of the H100 SXM: 989 TFLOP/s in bf16, dense, and 3.35 TB/s. Two thirds of the first and four
# fifths of the second are assumed to be reached, and 2 microseconds an operator in a CUDA graph. None was measured.
H100 = Device(macs=989e12 / 2 * 2 / 3, bytes=3.35e12 * 0.8, launch=2e-6)
WIDTH = 2  # bytes of a number in half precision


def predicted_seconds(
    architecture: Architecture, counts: Sequence[Sequence[int]], device: Device, fused: bool = False
) -> float:
    """Seconds of an encoder's layers on a batch; counts[b][l]: tokens of sample b at boundary l.

    Each operator takes the longest of its products, its bytes and its launch, and none runs beside another. fused:
    norms, activations and residuals are part of the product before them, as where a model is compiled. Embedding and
    head are left out: less than a twentieth.
    """
    width, wide, found = architecture.width, architecture.feed_forward, 0.0

    def operator(macs: float, numbers: float) -> float:
        return max(macs / device.macs, numbers * WIDTH / device.bytes, device.launch)

    for read, write in pairwise(zip(*counts, strict=True)):
        rows, kept = sum(read), sum(write)
        pairs = sum(own * other for own, other in zip(read, write, strict=True))
        products = [
            (2 * rows * width**2, 3 * rows * width + 2 * width**2),  # keys and values
            (kept * width**2, 2 * kept * width + width**2),  # queries
            (2 * pairs * width, 2 * (rows + kept) * width),  # attention
            (kept * width**2, 2 * kept * width + width**2),  # its projection
            (kept * width * wide, kept * (width + wide) + width * wide),
            (kept * width * wide, kept * (width + wide) + width * wide),
        ]
        # Norms read and write, activations too, residuals read two and write one.
        passes = [2 * rows * width, 3 * kept * width, 2 * kept * width, 2 * kept * wide, 3 * kept * width]
        found += sum(operator(*product) for product in products)
        found += 0.0 if fused else sum(operator(0, numbers) for numbers in passes)
    return found
