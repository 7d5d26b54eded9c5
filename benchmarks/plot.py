"""Draws p50, build and bytes of the index against the number of passages, as SVG for benchmarks/README.md."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

PANELS = (
    ("p50_ms", "one question, p50, ms"),
    ("build", "build, passages/s"),
    ("bytes_per_passage", "bytes a passage"),
)
# Okabe and Ito's colours, which most colour-blind people tell apart; marks differ too.
STYLES = {
    "jacolbert": ("#0072B2", "o"),
    "exact": ("#999999", "s"),
    "pylate-voyager": ("#D55E00", "^"),
    "fast-plaid": ("#009E73", "v"),
    "lancedb": ("#CC79A7", "D"),
}


def svg(sizes: Sequence[Mapping[str, Any]]) -> str:
    """Three panels on logarithmic axes; equal results give equal bytes."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    # Without these two every drawing has other ids and a date.
    with pyplot.rc_context({"svg.hashsalt": "jacolbert", "svg.fonttype": "none", "font.size": 9}):
        figure, axes = pyplot.subplots(1, len(PANELS), figsize=(10, 3.2), layout="constrained")
        for axis, (key, title) in zip(axes, PANELS, strict=True):
            for name, (color, mark) in STYLES.items():
                points = [
                    (each["n"], _value(each["systems"][name], key))
                    for each in sizes
                    if name in each["systems"]
                ]
                there = [(n, value) for n, value in points if value is not None]
                if there:
                    axis.plot(*zip(*there, strict=True), color=color, marker=mark, markersize=4, label=name)
            axis.set(xscale="log", yscale="log", title=title, xlabel="passages")
            axis.grid(True, which="major", color="#dddddd", linewidth=0.5)
        axes[0].legend(frameon=False, fontsize=8)
        drawn = io.StringIO()
        figure.savefig(drawn, format="svg", metadata={"Date": None, "Creator": None})
        pyplot.close(figure)
    return drawn.getvalue()


def _value(row: Mapping[str, Any], key: str) -> float | None:
    if "not_run" in row:
        return None
    return float(row["passages_per_s"] if key == "build" else row[key])
