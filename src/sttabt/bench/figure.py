"""The figure of the speed benchmark: measured time against multiply-adds, both as shares of the dense model's."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from sttabt.bench.table import SpeedRow
from sttabt.report.figures import figure_style, save

STYLES = {  # colour (Okabe and Ito) and marker by group
    "dropped": ("#0072B2", "o"),
    "end to end": ("#D55E00", "s"),
    "ToMe": ("#009E73", "^"),
}
COLUMNS = 4


def draw_speed(rows: Sequence[SpeedRow], folder: Path) -> Path:
    """Writes speed.png, speed.pdf and speed.svg, a panel an image size and batch; returns the path of the first."""
    panels = list(dict.fromkeys((row.image_size, row.batch) for row in rows if row.group in STYLES))
    columns = min(len(panels), COLUMNS)
    lines = -(-len(panels) // columns)
    with figure_style():
        figure = Figure(figsize=(0.8 + 2.9 * columns, 0.9 + 2.8 * lines), layout="constrained")
        axes = figure.subplots(lines, columns, squeeze=False, sharex=True, sharey=True).flat
        for panel, (size, batch) in zip(axes, panels, strict=False):
            panel.plot([0, 1], [0, 1], color="#7F7F7F", linewidth=1, linestyle="--", label="arithmetic limit")
            panel.axhline(1.0, color="#000000", linewidth=1, linestyle=":", label="dense")
            for group, (colour, marker) in STYLES.items():
                own = [row for row in rows if (row.group, row.image_size, row.batch) == (group, size, batch)]
                below = [max(row.ratio - row.ratio_low, 0) for row in own]
                above = [max(row.ratio_high - row.ratio, 0) for row in own]
                panel.errorbar(
                    [row.macs_ratio for row in own], [row.ratio for row in own], yerr=[below, above],
                    color=colour, marker=marker, linestyle="none", markersize=5, capsize=2, label=group,
                )  # fmt: skip
            panel.set_xlabel("multiply-adds (share of dense)")
            panel.set_title(f"{size} pixels, batch {batch}", fontsize=9)
        for panel in list(axes)[len(panels) :]:
            panel.set_visible(False)
        figure.supylabel("measured time (share of dense)", fontsize=9)
        figure.suptitle(f"{rows[0].model} on {rows[0].machine}, {rows[0].precision}", fontsize=10)
        handles, labels = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=3 if columns < 2 else 5, frameon=False)
        return save(figure, folder, "speed")
