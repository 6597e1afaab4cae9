"""Metrics of an answer: functions that map logits Float `[batch, vocab]` to one number a row, Float `[batch]`.

Each is made from targets and called by a sweep: ``logit_difference(a, b)`` is a metric. A target is a token id, or a
string that is the one token which continues the prompt (looked up when a sweep binds the metric to its model); one for
all rows, or one a row. Any function of the same kind can stand where a metric is expected.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from interp.errors import InputError, InputTypeError, shown
from interp.models import VLM
from interp.models.batches.targets import target_ids

Rule = Callable[..., Tensor]
Measure = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Bound:
    """A metric of one row: ``rule(logits, *against)`` of any number of versions of that row's logits `[version, vocab]`.

    Plain torch, so that a sweep can measure inside a trace and keep one number of each version.
    """

    rule: Rule
    against: tuple[Tensor, ...] = ()

    def __call__(self, logits: Float[Tensor, "version vocab"]) -> Float[Tensor, " version"]:
        """Raises `InputError` where the rule does not give one number a version."""
        found = measured(logits, self.rule, self.against)
        return one_a_row(found, logits, getattr(self.rule, "__name__", type(self.rule).__name__))


@dataclass(frozen=True)
class Metric:
    """A rule on logits `[batch, vocab]` and what it compares them with, each Tensor or target one for all rows or one a row."""

    name: str
    rule: Rule
    targets: tuple[Any, ...] = ()
    reference: Tensor | None = None

    def __post_init__(self) -> None:  # a metric is bound many times, iterators would be empty after one
        kept = tuple(tuple(target) if isinstance(target, Iterator) else target for target in self.targets)
        object.__setattr__(self, "targets", kept)

    def against(self, vlm: VLM, rows: int) -> list[Tensor]:
        """What the rule compares `rows` rows with, each with an entry a row. Raises `InputError` where one does not fit."""
        against = [target_ids(vlm, target, rows) for target in self.targets]
        if self.reference is None:
            return against
        wanted = (rows, vlm.structure.vocab_size)
        if tuple(self.reference.shape) != wanted:
            raise InputError(
                f"reference of shape {tuple(self.reference.shape)}: expected logits of {rows} rows, {wanted} (batch, vocab)"
            )
        return [*against, self.reference]

    def bind(self, vlm: VLM, rows: int, row: int) -> Bound:
        """The metric of row `row` of `rows`."""
        return Bound(self.rule, tuple(each[row] for each in self.against(vlm, rows)))

    def __call__(self, logits: Float[Tensor, "batch vocab"]) -> Float[Tensor, " batch"]:
        """The metric of a batch of logits; its targets must be token ids, words need a model to look them up."""
        if any(_has_words(target) for target in self.targets):
            raise InputError(f"targets {self.targets!r}: a metric that is called on its own needs token ids, not words")
        against = [torch.as_tensor(target, device=logits.device) for target in self.targets]
        if self.reference is not None:
            against.append(self.reference.to(logits.device))
        return measured(logits, self.rule, against)


def _has_words(target: Any) -> bool:
    """Whether a target, one or one a row, is told in words."""
    each = target if isinstance(target, list | tuple) else [target]
    return any(isinstance(one, str) for one in each)


def bind(metric: Metric | Measure, vlm: VLM, rows: int, row: int) -> Bound:
    """A metric as a function of versions of one row; a plain function is taken as it is."""
    if isinstance(metric, Metric):
        return metric.bind(vlm, rows, row)
    if not callable(metric):
        raise InputTypeError(f"metric={metric!r}: expected logit_difference(a, b) or the like, or a function of logits")
    return Bound(metric)


def of_run(measure: Bound, logits: Float[Tensor, "1 vocab"], name: str) -> Float[Tensor, " 1"]:
    """The metric of one row's run. Raises `InputError` where it does not give each of several versions a number of its own."""
    two = logits.expand(2, -1)
    return one_a_row(measured(two, measure.rule, measure.against), two, name)[:1]


def name_of(metric: Metric | Measure) -> str:
    """What a metric is called in results and figures."""
    return metric.name if isinstance(metric, Metric) else getattr(metric, "__name__", type(metric).__name__)


def one_a_row(found: Any, logits: Tensor, name: str) -> Tensor:
    """What a metric gave, refused by its name where that is not one number a row of logits."""
    if not isinstance(found, Tensor) or found.shape != logits.shape[:1]:
        raise InputError(
            f"the metric {name!r} gives {shown(found)} for {len(logits)} rows of logits: expected a tensor of one number a row"
        )
    return found


def logit_difference(a: Any, b: Any) -> Metric:
    """``logit(a) - logit(b)``: how far the model prefers answer `a` to answer `b`.

    >>> import torch
    >>> logit_difference(0, 2)(torch.tensor([[3.0, 0.0, 1.0]]))
    tensor([2.])
    """
    return Metric("logit difference", difference_of, (a, b))


def probability(a: Any) -> Metric:
    """``softmax(logits)[a]``: the probability of answer `a`."""
    return Metric("probability", probability_of, (a,))


def cross_entropy(a: Any) -> Metric:
    """``-log softmax(logits)[a]``, in nats."""
    return Metric("cross-entropy", surprise_of, (a,))


def kl_divergence(reference: Float[Tensor, "batch vocab"]) -> Metric:
    """``KL(changed || reference)`` in nats, `reference` being logits: how far the prediction has moved."""
    if not isinstance(reference, Tensor):
        raise InputTypeError(f"reference={shown(reference)}: expected a tensor of logits, as vlm.logits gives them")
    return Metric("KL divergence", divergence_from, reference=reference)


# Plain torch, run inside the trace ---------------------------------------------------------------------------------------


def measured(logits, rule, against):
    """A rule on logits, in float32 and on their device. What is true or a count becomes a number."""
    found = rule(logits.float(), *[each.to(logits.device) for each in against])
    whole = isinstance(found, torch.Tensor) and not (found.is_floating_point() or found.is_complex())
    return found.float() if whole else found


def at(values, ids):
    """The entry of each row at its id."""
    return values.gather(-1, ids.expand(len(values))[:, None])[:, 0]


def difference_of(logits, a, b):
    """The rule of `logit_difference`."""
    return at(logits, a) - at(logits, b)


def probability_of(logits, a):
    """The rule of `probability`."""
    return at(logits.softmax(dim=-1), a)


def surprise_of(logits, a):
    """The rule of `cross_entropy`."""
    return -at(logits.log_softmax(dim=-1), a)


def divergence_from(logits, reference):
    """The rule of `kl_divergence`."""
    changed, base = logits.log_softmax(dim=-1), reference.float().log_softmax(dim=-1)
    return (changed.exp() * (changed - base)).sum(dim=-1)
