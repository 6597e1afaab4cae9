"""What do detectors show where the truth is known? The tables of docs/organisms.md.

    python benchmarks/organisms.py                  # all rows; writes the tables into docs/organisms.md
    python benchmarks/organisms.py --only bypass    # the rows of one file of benchmarks/planted, the other tables stay

Each row of `benchmarks/planted` is measured on an organism and on its opposite. A table stands on the page between the marks
``<!-- table NAME -->`` and ``<!-- end NAME -->``, where NAME is the file of its rows.
"""

from __future__ import annotations

import argparse
import importlib
import re
import time
from functools import lru_cache
from pathlib import Path

import torch
from planted import Row

import interp

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "organisms.md"


def rooms() -> list[str]:
    """The files of rows."""
    return sorted(path.stem for path in (HERE / "planted").glob("*.py") if path.stem != "__init__")


def rows_of(room: str) -> list[Row]:
    """The rows of one file."""
    return importlib.import_module(f"planted.{room}").ROWS


@lru_cache(maxsize=2)
def model(name: str) -> interp.VLM:
    """A planted organism with seed 0, or what `interp.load` takes."""
    return interp.load(name, device="cpu") if ":" in name else interp.toy.planted(name).vlm


def table(rows: list[Row]) -> str:
    """The rows as a table in markdown, one for each pair of an organism and its opposite."""
    lines, pair = [], None
    for row in rows:
        if pair != (row.organism, row.opposite):
            pair = row.organism, row.opposite
            titles = ["detector", "the truth says", *(f"`{name}`" for name in pair)]
            lines += ["", f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
        start = time.monotonic()
        cells = [row.detector, row.truth, *(str(row.measure(model(name))) for name in pair)]
        lines.append(f"| {' | '.join(cells)} |")
        print(f"{lines[-1]}  <!-- {time.monotonic() - start:.0f} s -->", flush=True)
    return "\n".join(lines).strip()


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Detectors on organisms with a planted truth.")
    parser.add_argument("--only", choices=rooms(), help="one file of benchmarks/planted")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for room in rooms() if options.only is None else [options.only]:
        text, page = table(rows_of(room)), PAGE.read_text()
        marks = f"<!-- table {room} -->", f"<!-- end {room} -->"
        written, count = re.subn(
            f"{marks[0]}.*{marks[1]}", f"{marks[0]}\n{text}\n{marks[1]}".replace("\\", r"\\"), page, flags=re.S
        )
        if count != 1:
            parser.error(
                f"{PAGE.name} has {count} places for the table {room!r}: expected {marks[0]} and {marks[1]} once"
            )
        PAGE.write_text(written)


if __name__ == "__main__":
    main()
