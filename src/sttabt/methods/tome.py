"""ToMe: tokens that are alike become one."""

from __future__ import annotations

from sttabt.methods.base import Card, MergingMethod


class Tome(MergingMethod):
    card = Card(title="ToMe", source="Bolya et al., ICLR 2023; its last layer computes the output tokens alone")

    @property
    def merged(self) -> int:
        return self.settings.merged

    def decision_macs(self, tokens: float, head_width: int) -> float:
        compared = tokens - self.outputs
        return (compared // 2) * (compared - compared // 2) * head_width
