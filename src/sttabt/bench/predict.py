"""How long a model should take on a device, before it is measured: by operations, by bytes, and by its kernels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from sttabt.core.cost import Architecture


@dataclass(frozen=True)
class Device:
    """macs, bytes: a second, as reached by large products and copies; launch: seconds of each kernel besides."""

    macs: float
    bytes: float
    launch: float


# NVIDIA's data sheet of the H100 SXM: 989 TFLOP/s in bf16, dense, and 3.35 TB/s. Three fifths of the first and five
# sixths of the second are assumed to be reached, and 2 microseconds a kernel of a CUDA graph. None was measured.
H100 = Device(macs=300e12, bytes=2.8e12, launch=2e-6)
WIDTH = 2  # bytes of a number in half precision
KERNELS_A_LAYER = 8  # of what is compiled: those that predicted_seconds adds up


def predicted_seconds(
    architecture: Architecture,
    counts: Sequence[Sequence[int]],
    device: Device,
    kernels: int | None = None,
    padded: Sequence[int] = (),
    copied: int = 0,
) -> float:
    """Seconds of an encoder's layers on a batch; counts[b][l]: tokens of sample b at boundary l.

    The work of each kernel takes the longer of its products and its bytes, every kernel its launch besides, and none
    runs beside another. kernels: how many run, None: KERNELS_A_LAYER. padded: rows of the batch at each boundary where
    these are more than its tokens. copied: how often each row that goes on is read or written besides. Embedding and
    head are left out: less than a twentieth.
    """
    width, wide, found = architecture.width, architecture.feed_forward, 0.0
    boundaries = list(zip(*counts, strict=True))
    rows = padded or [sum(boundary) for boundary in boundaries]

    def work(macs: float, numbers: float) -> float:
        return max(macs / device.macs, numbers * WIDTH / device.bytes)

    for (read, write), (own, others) in zip(pairwise(rows), pairwise(boundaries), strict=True):
        pairs = sum(one * other for one, other in zip(own, others, strict=True))
        products = [
            ((2 * read + write) * width**2, (3 * read + write) * width + 3 * width**2),  # queries, keys and values
            (2 * pairs * width, 2 * (read + write) * width),  # attention
            (write * width**2, 2 * write * width + width**2),  # its projection
            (write * width * wide, write * (width + wide) + width * wide),
            (write * width * wide, write * (width + wide) + width * wide),
        ]
        # Twice a sum and its norm, which read two and write two; the activation; copies.
        passes = [4 * write * width, 4 * write * width, 2 * write * wide, copied * write * width]
        found += sum(work(*product) for product in products) + sum(work(0, numbers) for numbers in passes)
    kernels = KERNELS_A_LAYER * architecture.layers if kernels is None else kernels
    return found + kernels * device.launch
