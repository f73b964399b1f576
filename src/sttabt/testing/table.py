"""`python -m sttabt.testing.table` writes docs/MODELS.md: which models work under which method, and why others do not.

Every cell is a run: of an adapter's example under a method, checked against its masked form where it has one.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from sttabt.backbones.refusals import REASONS
from sttabt.backbones.registry import adapters
from sttabt.errors import UserError
from sttabt.settings import method_names, method_settings
from sttabt.testing.models import make_example, make_pruned

FILE = "docs/MODELS.md"
WORKS = "yes"
HEAD = """# Models

Written by `python -m sttabt.testing.table`, which runs every example of every adapter under every method; a test fails
where this page is old. `sttabt.prune(model, method)` takes live models of these classes and of subclasses that compute
the same. They are called as their library calls them, and answer as it does; an encoder without a classifier answers
with one vector a sample, `pooler_output`: the pooler's; where there is none of an image the class token behind the last
norm, of a text, and of SigLIP, the mean of the real tokens that are left (CLIP's with a projection: `image_embeds`). It
has no `last_hidden_state`, as dropped tokens have no row: reading it is an error. No method trains on such encoders but
the approximate network, which learns the attention alone.
"""
LEGEND = """
`yes`: the model runs, and where the method has a masked form, masking gives the logits of dropping. A number says why
not:
"""
OTHERS = """
## What is refused, and what serves

By the module of the class, or of one that it extends. Variants of the classes above that compute something else are
refused by the name of the module or setting in question.

| class of | what to do |
| --- | --- |
"""


def page() -> str:
    """The page, in Markdown."""
    reasons: list[str] = []
    methods = sorted(method_names())
    lines = [f"| example | {' | '.join(methods)} |", f"| --- |{' --- |' * len(methods)}"]
    for adapter in adapters():
        for name in adapter.examples():
            cells = [outcome(name, method) for method in methods]
            reasons += [cell for cell in dict.fromkeys(cells) if cell != WORKS and cell not in reasons]
            shown = [cell if cell == WORKS else str(reasons.index(cell) + 1) for cell in cells]
            lines.append(f"| {name} | {' | '.join(shown)} |")
    numbered = "\n".join(f"{place}. The method {reason}" for place, reason in enumerate(reasons, 1))
    refused = "\n".join(f"| `{start.rstrip('.')}` | {reason} |" for start, reason in REASONS.items())
    table = "\n".join(lines)
    return f"{HEAD}\n{_classes()}\n\n## Methods\n\n{table}\n{LEGEND}\n{numbered}\n{OTHERS}{refused}\n"


@torch.inference_mode()
def outcome(name: str, method: str) -> str:
    """What comes of an example under a method: WORKS, or why it is refused.

    Raises AssertionError where it runs and its masked form gives other logits.
    """
    example = make_example(name)
    try:
        model = make_pruned(example, method)
    except UserError as error:
        return str(error).removeprefix(f"{method_settings(method).title} ")
    logits = model.run(example.inputs).logits
    assert logits.isfinite().all(), f"{name} under {method} gives numbers that are not finite"
    if masked := model.forms().get("masked"):
        torch.testing.assert_close(masked(example.inputs).logits, logits, atol=1e-4, rtol=1e-4)
    return WORKS


def _classes() -> str:
    lines = ["| class | its examples below |", "| --- | --- |"]
    for adapter in adapters():
        names = ", ".join(adapter.examples()) or "as the class that its adapter extends"
        lines += [f"| `{served}` | {names} |" for served in adapter.serves]
    return "\n".join(lines)


def main() -> None:
    """Writes the page into the working folder's docs/."""
    Path(FILE).write_text(page(), encoding="utf-8")
    sys.stdout.write(f"{FILE}\n")


if __name__ == "__main__":
    main()
