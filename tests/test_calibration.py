"""The calibration table: every row can be simulated, and the page holds every row and no row that fails."""

import importlib
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
PAGE = BENCHMARKS.parent / "docs" / "calibration.md"
sys.path.insert(0, str(BENCHMARKS))
calibrations = importlib.import_module("calibrations")
ROOMS = sorted(path.stem for path in (BENCHMARKS / "calibrations").glob("*.py") if path.stem != "__init__")


def rows(room):
    return importlib.import_module(f"calibrations.{room}").ROWS


@pytest.mark.parametrize("room", ROOMS)
def test_every_row_can_be_drawn(room, monkeypatch):
    # The mean that an interval has to hold is that of some hundred draws, for each row; here two do.
    monkeypatch.setattr(importlib.import_module(f"calibrations.{room}"), "OTHERS", 2, raising=False)
    for row in rows(room):
        assert row.kind in calibrations.BANDS, row
        assert float(row.draw(0)) == float(row.draw(0)), f"{row.number}, {row.design}: two draws of one seed differ"


@pytest.mark.parametrize("room", ROOMS)
def test_the_page_has_every_row(room):
    page = PAGE.read_text()
    assert all(f"| {row.number} | {row.design} | {row.kind} |" in page for row in rows(room))
    assert "| fails |" not in page


@pytest.mark.parametrize(
    ("kind", "rate", "reason", "expected"),
    [
        ("coverage", 0.95, "", "passes"),
        ("coverage", 0.85, "the reason does not help", "fails"),
        ("coverage", 1.0, "", "fails"),
        ("coverage", 1.0, "wide on purpose", "safe side"),
        ("false positives", 0.05, "", "passes"),
        ("false positives", 0.2, "the reason does not help", "fails"),
        ("false positives", 0.0, "", "fails"),
        ("false positives", 0.0, "discrete", "safe side"),
        ("power", 0.5, "no reason helps", "fails"),
    ],
)
def test_a_row_is_judged_by_its_band(kind, rate, reason, expected):
    row = calibrations.Row("call", "design", kind, lambda seed: True, reason)
    hits = [1.0] * round(2000 * rate) + [0.0] * round(2000 * (1 - rate))
    assert calibrations.judged(row, calibrations.outcome_of(hits, kind)) == expected


def test_a_difference_from_chance_is_judged_by_its_mean():
    row = calibrations.Row("call", "design", "chance", lambda seed: 0.0)
    assert calibrations.judged(row, calibrations.outcome_of([0.1, -0.1] * 100, "chance")) == "passes"
    assert calibrations.judged(row, calibrations.outcome_of([0.1, 0.09] * 100, "chance")) == "fails"
