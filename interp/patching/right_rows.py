"""Which rows the model answers rightly: a patch explains a difference of answers only where there is one.

A metric of two answers, as ``logit_difference(a, b)``, compares them, so a clean row is right where the model prefers a to b,
and a corrupted row where it prefers b to a. A metric of one answer, as ``probability(a)``, has none for the corrupted row: a
clean row is right where each token of a is the most likely of all, and a corrupted row where one is not. Other metrics have no
answer to judge a row by.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from interp.patching.metrics import (
    MetricFunction,
    RowMetric,
    apply_rule,
    difference_of,
    logprob_difference_of,
    logprob_of,
    probability_of,
    surprise_of,
)

_OF_ONE_ANSWER = (probability_of, surprise_of, logprob_of)
_OF_TWO_ANSWERS = (difference_of, logprob_difference_of)


def row_answers(terms: Sequence[RowMetric]) -> list[Tensor]:
    """The answers that the metric of a row is about, the right one of the clean row first: two, one or none."""
    if len(terms) == 2:
        return [term.references[0] for term in terms]
    (term,) = terms
    return list(term.references[: 2 if term.rule in _OF_TWO_ANSWERS else term.rule in _OF_ONE_ANSWER])


def row_measure(metric: RowMetric) -> MetricFunction:
    """`measured` for the logits of this row."""
    answer = metric.references[0] if metric.rule in _OF_ONE_ANSWER else None
    return partial(measured, rule=metric.rule, references=metric.references, answer=answer)


def right_rows(
    metrics: Sequence[Sequence[RowMetric]], clean: Float[Tensor, "row 2"], corrupted: Float[Tensor, "row 2"]
) -> tuple[Bool[Tensor, " row"], Bool[Tensor, " row"]] | None:
    """Whether the model answers each row rightly, in the clean and in the corrupted run; None for metrics without answers.

    `clean` and `corrupted` are what `measured` gives of these runs, of two runs the first minus the second.
    """
    answers = len(row_answers(metrics[0]))
    if answers == 2:
        return clean[:, 0] > 0, corrupted[:, 0] < 0
    return (clean[:, 1] > 0, corrupted[:, 1] == 0) if answers else None


def right_note(right: tuple[Tensor, Tensor] | None) -> str:
    """How many rows are answered rightly, in words."""
    if right is None:
        return "the metric has no answer by which a row could be judged right"
    clean, corrupted = right
    sides = f"clean {int(clean.sum())}, corrupted {int(corrupted.sum())}"
    return f"rows answered rightly on both sides: {int((clean & corrupted).sum())} of {len(clean)} ({sides})"


# Plain torch, run inside the trace ---------------------------------------------------------------------------------------


def measured(logits, rule, references, answer):
    """The metric of each version, and 1 where each token of the answer is the most likely one, else 0: `[version, 2]`."""
    values = apply_rule(logits, rule, references)
    if answer is None:
        return torch.stack([values, torch.zeros_like(values)], dim=-1)
    answer = answer.flatten().to(logits.device)
    best = logits.argmax(dim=-1).reshape(len(logits), -1)[:, : len(answer)]
    return torch.stack([values, (best == answer).all(dim=-1).to(values)], dim=-1)


def measure_rows(logits, measures):
    """The measure of each row, every one by its own function, `[row, 2]`."""
    return torch.cat([measure(logits[row : row + 1]) for row, measure in enumerate(measures)])
