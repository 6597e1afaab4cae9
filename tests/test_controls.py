"""The page of controls: every call of its table runs, after the lines at its top."""

import re
from pathlib import Path

import pytest

PAGE = Path(__file__).parent.parent / "docs" / "controls.md"
ROWS = [line for line in PAGE.read_text().splitlines() if line.startswith("|")][2:]
CALLS = [re.fullmatch(r"\|.*\|.*\|.*\| `(.*)` \|", row) for row in ROWS]


@pytest.fixture(scope="module")
def names():
    (example,) = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    names = {}
    exec(compile(example, "docs/controls.md", "exec"), names)
    return names


def test_every_row_has_a_question_a_doubt_a_control_and_a_call():
    assert len(ROWS) > 30
    assert all(CALLS), [row for row, call in zip(ROWS, CALLS, strict=True) if call is None]
    assert all(len(row.split(" | ")) == 4 for row in ROWS)


@pytest.mark.parametrize("number", range(len(ROWS)))
def test_the_call_of_each_row_runs(names, number):
    assert eval(CALLS[number].group(1), names) is not None, ROWS[number]
