"""docs/MODELS.md says what is true: every cell is run again."""

from __future__ import annotations

from pathlib import Path

import pytest

from sttabt.testing import table


def test_the_page_of_models_is_current() -> None:
    written = (Path(__file__).parents[1] / table.FILE).read_text(encoding="utf-8")
    assert written == table.page(), "run `python -m sttabt.testing.table`"


def test_a_masked_form_that_differs_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    from sttabt.methods import find_method

    kind = find_method("random")
    honest = kind.run
    assert table.outcome("digits", "random") == table.WORKS
    monkeypatch.setattr(kind, "masked", lambda self, base, inputs, trace: honest(self, base, inputs + 1, trace))
    with pytest.raises(AssertionError):
        table.outcome("digits", "random")
