"""The section of the demo's report on toys of other seeds, and its rows for the terminal."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from interp.plots import series_figure
from interp.plots.series import Series
from interp.reports.page import FigureBlock, Section, TableBlock, TextBlock
from interp.reports.scene_states import PROPERTIES

if TYPE_CHECKING:
    import pandas as pd

    from interp.reports.replication import Replication


def replication_section(found: Replication) -> Section:
    """Accuracies, the hand-over, probes and alignment over toys."""
    count = len(found.models)
    lines = {f"the {what}": _series(found.probes.query("property == @what")) for what in PROPERTIES}
    probes = series_figure(lines, f"Probes of the image tokens, mean of {count} toys", "accuracy", y_range=(0, 1.03))
    chance = float(found.overlap["chance"].iloc[0])
    overlap = {"image and caption": _series(found.overlap)}
    return Section(
        f"The same in {count} toys",
        [
            TextBlock(
                f"{', '.join(found.models)} are made by the same recipe from other seeds. What holds of one of them alone is a "
                "fact about its seed. Intervals of a mean are over toys: other seeds would give other values. The next toy is "
                "expected between the bounds of the last column, which is wide with few toys. p is that all toys have one "
                "true value: where it is large, a difference was not shown, which is not to say that there is none."
            ),
            TableBlock(
                ["number", "mean over toys (95 %)", "smallest to largest", "toys differ, p", "next toy (95 %)"],
                [
                    [name, _mean(row), f"{row.smallest:.0%} to {row.largest:.0%}", _p(row.p), _next(row)]
                    for name, row in _rows(found)
                ],
                "All toys answer the same questions. For the rest each has scenes of its own.",
            ),
            FigureBlock(
                probes, caption="Bands are 95 % intervals over toys, of the mean; dashed is the mean of the controls."
            ),
            FigureBlock(
                series_figure(
                    overlap, f"Alignment at the same state, mean of {count} toys", "neighbour overlap", chance=chance
                ),
                caption="Bands are 95 % intervals over toys, of the mean.",
            ),
        ],
    )


def summarise_replication(found: Replication) -> list[tuple[str, ...]]:
    """The main numbers over toys as rows of (quantity, mean with its interval, next toy), for the terminal."""
    return [(name, _mean(row), _next(row)) for name, row in _rows(found)]


def _rows(found: Replication) -> list[tuple[str, Any]]:
    """Each number with its row of a frame."""
    rows = [
        (f"{row.group} questions from {row.modality}, chance {row.chance:.0%}", row)
        for row in _named(found.answers, "accuracy")
    ]
    return rows + [
        ("depth at which the answer leaves the image tokens", row) for row in _named(found.hand_over, "mean")
    ]


def _named(frame: pd.DataFrame, mean: str) -> Any:
    return frame.rename(columns={mean: "mean"}).itertuples()


def _mean(row: Any) -> str:
    return "not measured in all" if math.isnan(row.mean) else f"{row.mean:.0%} ({_span(row.low, row.high)})"


def _next(row: Any) -> str:
    return _span(row.next_low, row.next_high)


def _span(low: float, high: float) -> str:
    """Bounds as percentages, of which none is below 0 or above 100."""
    if math.isnan(low + high):
        return "no interval"
    return f"{max(low, 0):.0%} to {min(high, 1):.0%}"


def _p(p: float) -> str:
    return "" if math.isnan(p) else f"{p:.2g}"


def _series(frame: pd.DataFrame) -> Series:
    control = frame["control"].to_numpy() if "control" in frame else None
    low, high = (frame[name].clip(0, 1).to_numpy() for name in ("low", "high"))
    return Series(frame["mean"].to_numpy(), low, high, control)
