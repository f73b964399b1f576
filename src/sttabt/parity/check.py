"""One quantity compared with the official implementation, and how near it has to be."""

from __future__ import annotations

from dataclasses import dataclass

ABSOLUTE = 1e-4  # logits, probabilities, soft masks, impacts
RELATIVE = 1e-3  # losses and gradients, against the largest entry
EXACT = 0.0  # hard and top-k masks, interpolated weights


@dataclass(frozen=True)
class Check:
    """One quantity of one case. error None: not there; skipped: why it is not compared."""

    case: str
    quantity: str
    error: float | None = None
    tolerance: float = ABSOLUTE
    skipped: str = ""

    @property
    def failed(self) -> bool:
        """A missing quantity fails, and so does NaN."""
        return not self.skipped and (self.error is None or not self.error <= self.tolerance)

    def __str__(self) -> str:
        if self.skipped:
            return f"{self.case:<16} {self.quantity:<44} {'-':>10} {'-':>10}  {self.skipped}"
        error = "missing" if self.error is None else f"{self.error:.2e}"
        result = "FAIL" if self.failed else "ok"
        return f"{self.case:<16} {self.quantity:<44} {error:>10} {self.tolerance:>10.0e}  {result}"
