"""ToMe: tokens that are alike become one."""

from __future__ import annotations

from sttabt.methods.base import MergingMethod


class Tome(MergingMethod):
    @property
    def merged(self) -> float:
        return self.settings.merged

    def decision_macs(self, tokens: float, head_width: int) -> float:
        compared = tokens - self.outputs
        return (compared // 2) * (compared - compared // 2) * head_width
