"""The rows of a data set that comes in batches, and the metric of each of them.

A sweep runs whole batches, and a data set is a list of them: its rows are counted through, from the first row of the
first batch to the last of the last. A metric's targets are one for all rows, or one for each row in that order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import repeat
from typing import Any

import torch
from torch import Tensor

from interp.errors import InputError, InputTypeError, shown
from interp.models import VLM, Batch
from interp.models.batches.targets import target_ids
from interp.models.running.steps import Edit
from interp.models.running.trace import run_forward
from interp.patching.metrics import Measure, Metric, name_of, one_a_row


def batches_of(given: Any) -> list[Batch]:
    """A batch or a list of them as a list. Raises `InputTypeError` for anything else, `InputError` for an empty list."""
    batches = [given] if isinstance(given, Batch) else given
    if not isinstance(batches, list | tuple) or not all(isinstance(batch, Batch) for batch in batches):
        raise InputTypeError(f"batch={shown(given)}: expected a batch, as vlm.prepare makes it, or a list of them")
    if not batches:
        raise InputError("batch is an empty list: expected at least one batch")
    return list(batches)


def measures_of(metric: Any, vlm: VLM, batches: Sequence[Batch]) -> list[Measure]:
    """The metric of each batch: a function of its logits `[batch, vocab]` that gives Float `[batch]` on the CPU.

    Raises `InputTypeError` for what is no metric, `InputError` for targets or a reference that do not fit the rows; and
    the functions raise `InputError` where a metric does not give one number a row.
    """
    if not isinstance(metric, Metric):
        if not callable(metric):
            raise InputTypeError(f"metric={shown(metric)}: expected a metric such as probability('red'), or a function")
        return [_one_a_row(metric, name_of(metric))] * len(batches)
    sizes = [len(batch) for batch in batches]
    against = metric.against(vlm, sum(sizes))
    parts = zip(*(each.split(sizes) for each in against), strict=True) if against else repeat((), len(sizes))
    return [_one_a_row(_bound(metric.rule, part), metric.name) for part in parts]


def answers_of(metric: Metric | Measure, vlm: VLM, batches: Sequence[Batch]) -> Sequence[Tensor | None]:
    """The right answer of each row, Int `[batch]` for each batch: the first target of the metric. None without targets."""
    if not isinstance(metric, Metric) or not metric.targets:
        return [None] * len(batches)
    sizes = [len(batch) for batch in batches]
    return target_ids(vlm, metric.targets[0], sum(sizes)).split(sizes)


def logits_of(vlm: VLM, batch: Batch, held: Sequence[Edit], interventions: Sequence[Any] = ()) -> Tensor:
    """The logits at each row's last token, with edits that are held and these interventions behind them."""
    return run_forward(vlm, batch, [*held, *vlm.edits_of(batch, interventions)])["logits"]


def _bound(rule: Callable[..., Tensor], against: tuple[Tensor, ...]) -> Measure:
    return lambda logits: rule(logits.float(), *(each.to(logits.device) for each in against))


def _one_a_row(measure: Measure, name: str) -> Measure:
    """The same metric, refused by name where it does not give one number a row."""

    def checked(logits: Tensor) -> Tensor:
        found = one_a_row(measure(logits), logits, name)
        return found.detach().to("cpu", torch.promote_types(found.dtype, torch.float32))

    return checked
