"""How often is each number wrong? The table of every p, interval and chance level that the package returns.

    python benchmarks/calibration.py                        # all rows, two processes; writes docs/calibration.md
    python benchmarks/calibration.py --only probes --share 0.05     # the rows of one file, with a twentieth of the simulations
    python benchmarks/calibration.py --log calibration.jsonl        # keeps what is done, and goes on with it

A row of `benchmarks/calibrations` is simulated 2,000 times where a call takes under 50 ms and 400 times otherwise. It passes
when the 95 % interval of its rate meets its band: false positives at .05 within [.02, .075], coverage of a nominal 95 % within
[.93, .98], a difference from the chance level within .01. A rate on the safe side of its band is marked so, with the reason.

With `--only` or a share of the simulations the table is printed and the page left as it is. It exits with 1 where a row fails.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

import torch
from calibrations import QUICK, SIMULATIONS, SLOW_SIMULATIONS, Outcome, Row, judged, outcome_of

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "calibration.md"
INTRODUCTION = """# Calibration

How often is a number wrong? Each row is a public call and a design: data are drawn in which the truth is known, the call is
made, and the share of draws in which the number is right is counted. `python benchmarks/calibration.py` wrote this page.

- **false positives**: the share of tests that reject at .05 where nothing is there. Band: .02 to .075.
- **coverage**: the share of 95 % intervals that hold the truth. Band: .93 to .98.
- **power**: the share of tests that find an effect of the stated size.
- **chance**: the mean value where nothing is there, less the chance level that is printed beside it. Band: -.01 to .01.

The interval behind a rate is that of the simulations, whose number stands beside it: 2,000 for quick calls and 400 for slow
ones in a full run, fewer in a run with `--share`. A row passes when the interval meets the band. *Safe side* marks fewer false
positives, or wider intervals, than the name says, with the reason.
"""


def rooms(only: str | None) -> dict[str, list[Row]]:
    """The rows of each file of `calibrations`."""
    names = sorted(path.stem for path in (HERE / "calibrations").glob("*.py") if path.stem != "__init__")
    return {name: importlib.import_module(f"calibrations.{name}").ROWS for name in names if only in (None, name)}


def simulate(room: str, number: int, share: float) -> Outcome:
    """The outcome of one row. A process finds the row again by its file and number."""
    torch.set_num_threads(1)
    row = importlib.import_module(f"calibrations.{room}").ROWS[number]
    row.draw(0)  # what is loaded and built once is not in the time
    start = time.perf_counter()
    values = [float(row.draw(seed)) for seed in (0, 1)]
    count = SIMULATIONS if (time.perf_counter() - start) / 2 < QUICK else SLOW_SIMULATIONS
    values += [float(row.draw(seed)) for seed in range(2, max(4, round(count * share)))]
    return outcome_of(values, row.kind)


def run(tables: dict[str, list[Row]], share: float, log: Path | None, jobs: int) -> dict[tuple[str, int], Outcome]:
    """The outcome of every row, by room and number; those in the log are taken from there."""
    done: dict[tuple[str, int], Outcome] = {}
    known = [json.loads(line) for line in log.read_text().splitlines()] if log and log.exists() else []
    by_name = {tuple(each["row"]): Outcome(**each["outcome"]) for each in known}
    todo = []
    for room, rows in tables.items():
        for number, row in enumerate(rows):
            name = (room, row.number, row.design, row.kind)
            if name in by_name:
                done[room, number] = by_name[name]
            else:
                todo.append((room, number, name))
    with ProcessPoolExecutor(jobs) as pool:
        futures = {pool.submit(simulate, room, number, share): (room, number, name) for room, number, name in todo}
        for future in as_completed(futures):
            room, number, name = futures[future]
            outcome = done[room, number] = future.result()
            verdict = judged(tables[room][number], outcome)
            print(f"{verdict:9} {outcome.rate:6.3f}  {' | '.join(name)}", flush=True)
            if log:
                with log.open("a") as file:
                    file.write(json.dumps({"row": name, "outcome": vars(outcome)}) + "\n")
    return done


def page(tables: dict[str, list[Row]], outcomes: dict[tuple[str, int], Outcome]) -> str:
    """The page of docs: one table a room."""
    parts = [INTRODUCTION]
    for room, rows in tables.items():
        parts.append(f"## {room.replace('_', ' ').capitalize()}\n")
        parts.append("| number | design | what | rate | interval | simulations | |")
        parts.append("|---|---|---|---|---|---|---|")
        for number, row in enumerate(rows):
            found = outcomes[room, number]
            verdict = judged(row, found)
            remark = f"{verdict}: {row.reason}" if verdict == "safe side" else verdict
            cells = (row.number, row.design, row.kind, f"{found.rate:.3f}", f"{found.low:.3f} to {found.high:.3f}")
            parts.append(f"| {' | '.join(cells)} | {found.simulations} | {remark} |")
        parts.append("")
    return "\n".join(parts)


def main() -> int:
    """Simulate, print, and write the page where everything was simulated in full."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help="the rows of one file of benchmarks/calibrations")
    parser.add_argument("--share", type=float, default=1.0, help="of the simulations")
    parser.add_argument("--log", type=Path, help="a file that keeps the outcomes; what is in it is not simulated again")
    parser.add_argument("--jobs", type=int, default=2, help="processes, of one thread each")
    options = parser.parse_args()
    tables = rooms(options.only)
    outcomes = run(tables, options.share, options.log, options.jobs)
    if options.only is None and options.share == 1:
        PAGE.write_text(page(tables, outcomes) + "\n")
    fails = [place for place, outcome in outcomes.items() if judged(tables[place[0]][place[1]], outcome) == "fails"]
    print(f"{len(outcomes) - len(fails)} of {len(outcomes)} rows pass")
    return 1 if fails else 0


if __name__ == "__main__":
    sys.exit(main())
