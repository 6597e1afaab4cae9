"""The table over seeds of docs/toy.md: ``python benchmarks/toys.py`` asks every tuned toy that is here the same questions.

Prints one line for each modality and kind of question: the mean over toys with its 95 % interval over other seeds and other
scenes, the smallest and the largest, the p that all are equally good (Holm over all lines), and where one more toy is expected.
"""

from __future__ import annotations

import argparse

from interp.toy import answer_questions, score_models, tuned_toys


def main() -> None:
    """Ask, and print the table as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("toys", nargs="*", default=tuned_toys(), help="names; by default all tuned toys that are here")
    parser.add_argument("--scenes", type=int, default=600)
    options = parser.parse_args()
    table = score_models(answer_questions(options.toys, n=options.scenes))
    print(f"{', '.join(options.toys)}; {options.scenes} scenes\n")
    print("| from | group | kind | chance | mean over toys | smallest to largest | p that all are alike | next toy |")
    print("|---|---|---|---|---|---|---|---|")
    for row in table.itertuples():
        cells = (
            row.modality,
            row.group,
            row.kind,
            f"{row.chance:.2f}",
            f"{row.accuracy:.3f} ({row.low:.2f} to {row.high:.2f})",
            f"{row.smallest:.3f} to {row.largest:.3f}",
            f"{row.p_holm:.2g}",
            f"{row.next_low:.2f} to {row.next_high:.2f}",
        )
        print(f"| {' | '.join(map(str, cells))} |")


if __name__ == "__main__":
    main()
