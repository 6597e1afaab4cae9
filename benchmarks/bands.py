"""What bands of the toy's layers are worth: the table of docs/tuning.md.

    python benchmarks/bands.py --out bands            # 3 seeds of 7 bands; the same call goes on after it was stopped
    python benchmarks/bands.py --out five --seeds 5

From ``toy:stage1`` every band is tuned on the same conversations about pictures, perception alone, as the toy itself was. Then
it answers questions about held-out scenes: perception, which was trained; abstraction, which was not; and both behind captions
in the place of pictures, the text retention. It prints tables in markdown. 21 runs take about 20 minutes on a quiet machine.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import pandas as pd
import torch

import interp
from interp.toy.language import ABSTRACTION, PERCEPTION
from interp.tuning import BandComparison, compare_bands

BATCH, RATE = 32, 5e-4


def compare(out: Path | None, seeds: int, steps: int, scenes: int, rounds: int) -> BandComparison:
    """The comparison of all bands of half the toy's layers, with the connector frozen."""
    arguments = {
        "per_device_train_batch_size": BATCH,
        "per_device_eval_batch_size": BATCH,
        "num_train_epochs": 1,
        "learning_rate": RATE,
        "warmup_steps": 0.1,
        "save_steps": 20,
    }
    return compare_bands(
        interp.load("toy:stage1", device="cpu"),
        interp.toy.conversations(BATCH * steps, seed=0),
        seeds=seeds,
        test=interp.toy.questions(scenes, seed=1),
        text=interp.toy.questions(scenes, seed=1, modality="text"),
        arguments=arguments,
        out=out,
        resume=out is not None and (out / "comparison.json").is_file(),
        timing_rounds=rounds,
    )


def interval(row: pd.Series, name: str, digits: int = 1) -> str:
    """A share with its bounds, in percent."""
    value, low, high = (100 * row.get(f"{name}{side}", math.nan) for side in ("", "_low", "_high"))
    if math.isnan(value):
        return ""
    return (
        f"{value:.{digits}f}"
        if math.isnan(low) or low == high
        else f"{value:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"
    )


def p_of(value: float) -> str:
    """A p in few letters."""
    return "" if math.isnan(value) else f"{value:.2g}" if value >= 0.001 else "< .001"


def markdown(rows: list[dict[str, str]]) -> str:
    """Rows as a table."""
    lines = [list(rows[0]), ["---"] * len(rows[0]), *(list(row.values()) for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def scores(comparison: BandComparison, kinds: list[str]) -> str:
    """The score of each band on questions of these kinds, and its share of full tuning."""
    rows = []
    for _, row in comparison.table(kinds).iterrows():
        rows.append(
            {
                "band": row["band"],
                "layers": row["layers"],
                "score, %": interval(row, "score"),
                "% of full": interval(row, "of_full"),
                "against 95 % of full": row["verdict"],
                "p of a difference": p_of(row["p_holm"]),
            }
        )
    return markdown(rows)


def by_kind(comparison: BandComparison) -> str:
    """The share of full tuning for each kind of question."""
    tables = {kind: comparison.table(kind).set_index("band") for kind in comparison.test.kinds}
    names = [name for name in comparison.table()["band"] if name not in ("full", "chance")]
    return markdown(
        [
            {"band": name} | {kind: interval(table.loc[name], "of_full", 0) for kind, table in tables.items()}
            for name in names
        ]
    )


def texts(comparison: BandComparison) -> str:
    """What is left of the untuned model's score on text."""
    rows = []
    for _, row in comparison.table().iterrows():
        rows.append(
            {
                "band": row["band"],
                "score on text, %": interval(row, "text"),
                "change, points": interval(row, "text_change"),
                "% of untuned": interval(row, "text_kept"),
                "against 95 % of untuned": row["text_verdict"],
                "p of a change": p_of(row["text_p_holm"]),
            }
        )
    return markdown(rows)


def costs(comparison: BandComparison) -> str:
    """Time, operations and bytes of a step."""
    rows = []
    for _, row in comparison.table().iloc[:-2].iterrows():
        megabytes = {
            name: f"{row[column] / 1e6:.2f}"
            for name, column in (
                ("gradients, MB", "gradient_bytes"),
                ("optimizer, MB", "optimizer_bytes"),
                ("activations, MB", "activation_bytes"),
            )
        }
        rows.append(
            {
                "band": row["band"],
                "time of a step, % of full": interval(row, "time", 0),
                "operations, % of full": f"{100 * row['flops']:.1f}",
                "trained parameters": f"{row['trained_parameters']:,.0f}",
                **megabytes,
            }
        )
    return markdown(rows)


def pairs(comparison: BandComparison, name: str, kinds: list[str]) -> str:
    """The differences of one band from all others, with a p that counts all pairs of bands."""
    rows = []
    tests = comparison.tests(kinds)
    for _, row in tests[(tests["band"] == name) | (tests["other"] == name)].iterrows():
        difference = ", ".join(f"{100 * row[side]:+.1f}" for side in ("low", "high"))
        rows.append(
            {
                "band": row["band"],
                "other": row["other"],
                "difference, points": f"{100 * row['difference']:+.1f} [{difference}]",
                "p": p_of(row["p"]),
                "p of all": p_of(row["p_holm"]),
            }
        )
    return markdown(rows)


def main() -> None:
    """Run or go on, and print the tables."""
    parser = argparse.ArgumentParser(description="The table of bands of the toy's layers.")
    parser.add_argument("--out", type=Path, default=None, help="a folder that keeps what is done, to go on with it")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=60, help=f"of {BATCH} conversations each")
    parser.add_argument("--scenes", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=15, help="in which all bands take timed steps in turns")
    options = parser.parse_args()
    torch.set_num_threads(1)
    comparison = compare(options.out, options.seeds, options.steps, options.scenes, options.rounds)
    questions = comparison.test.questions["kind"]
    groups = {"Perception, which was trained": [*PERCEPTION], "Abstraction, which was not": [*ABSTRACTION]}
    print(f"{options.steps} steps of {BATCH} conversations, {options.seeds} seeds, {options.scenes} held-out scenes.\n")
    for name, kinds in groups.items():
        print(f"{name} ({questions.isin(kinds).sum()} questions):\n\n{scores(comparison, kinds)}\n")
    print(f"Share of full tuning by kind of question, %:\n\n{by_kind(comparison)}\n")
    print(f"Text retention ({len(comparison.text.questions)} questions behind captions):\n\n{texts(comparison)}\n")
    print(f"Cost of a step ({comparison.seconds.shape[1]} rounds):\n\n{costs(comparison)}\n")
    print(f"The middle band and each other one, on perception:\n\n{pairs(comparison, 'middle', [*PERCEPTION])}\n")
    print("\n".join(f"- {note}" for note in comparison.provenance.notes))
    print("- versions: " + ", ".join(f"{name} {version}" for name, version in comparison.provenance.versions.items()))


if __name__ == "__main__":
    main()
