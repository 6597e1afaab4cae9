"""Metrics of an answer: functions that map logits Float `[batch, vocab]` to one number a row, Float `[batch]`.

Each is made from targets and called by a sweep: ``logit_difference(a, b)`` is a metric. A target is a token id, or a
string that is the one token which continues the prompt (looked up when a sweep binds the metric to its model); one for
all rows, or one a row. Any function of the same kind can stand where a metric is expected.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from interp.errors import InputError
from interp.models import VLM
from interp.models.tokens import target_ids

Measure = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Metric:
    """A rule on logits `[batch, vocab]` and what it compares them with, each Tensor or target one for all rows or one a row."""

    name: str
    rule: Callable[..., Tensor]
    targets: tuple[Any, ...] = ()
    reference: Tensor | None = None

    def bind(self, vlm: VLM, rows: int, row: int) -> Measure:
        """The metric of row `row` of `rows`, as a function of any number of versions of that row's logits."""
        against = [target_ids(vlm, target, rows)[row] for target in self.targets]
        if self.reference is not None:
            if self.reference.shape[0] != rows:
                raise InputError(f"reference of shape {tuple(self.reference.shape)}: expected logits of {rows} rows")
            against.append(self.reference[row])
        return lambda logits: self.rule(logits.float(), *(each.to(logits.device) for each in against))

    def __call__(self, logits: Float[Tensor, "batch vocab"]) -> Float[Tensor, " batch"]:
        """The metric of a batch of logits; its targets must be token ids, words need a model to look them up."""
        if any(isinstance(target, str) or torch.tensor(target).ndim > 1 for target in self.targets):
            raise InputError(f"targets {self.targets!r}: a metric that is called on its own needs token ids, not words")
        against = [torch.as_tensor(target, device=logits.device) for target in self.targets]
        if self.reference is not None:
            against.append(self.reference.to(logits.device))
        return self.rule(logits.float(), *against)


def bind(metric: Metric | Measure, vlm: VLM, rows: int, row: int) -> Measure:
    """A metric as a function of versions of one row; a plain function is taken as it is."""
    return metric.bind(vlm, rows, row) if isinstance(metric, Metric) else metric


def name_of(metric: Metric | Measure) -> str:
    """What a metric is called in results and figures."""
    return metric.name if isinstance(metric, Metric) else getattr(metric, "__name__", type(metric).__name__)


def logit_difference(a: Any, b: Any) -> Metric:
    """``logit(a) - logit(b)``: how far the model prefers answer `a` to answer `b`.

    >>> import torch
    >>> logit_difference(0, 2)(torch.tensor([[3.0, 0.0, 1.0]]))
    tensor([2.])
    """
    return Metric("logit difference", lambda logits, a, b: _at(logits, a) - _at(logits, b), (a, b))


def probability(a: Any) -> Metric:
    """``softmax(logits)[a]``: the probability of answer `a`."""
    return Metric("probability", lambda logits, a: _at(logits.softmax(dim=-1), a), (a,))


def cross_entropy(a: Any) -> Metric:
    """``-log softmax(logits)[a]``, in nats."""
    return Metric("cross-entropy", lambda logits, a: -_at(logits.log_softmax(dim=-1), a), (a,))


def kl_divergence(reference: Float[Tensor, "batch vocab"]) -> Metric:
    """``KL(changed || reference)`` in nats, `reference` being logits: how far the prediction has moved."""

    def rule(logits: Tensor, base: Tensor) -> Tensor:
        changed, base = logits.log_softmax(dim=-1), base.float().log_softmax(dim=-1)
        return (changed.exp() * (changed - base)).sum(dim=-1)

    return Metric("KL divergence", rule, reference=reference)


def _at(values: Tensor, ids: Tensor) -> Tensor:
    return values.gather(-1, ids.expand(len(values))[:, None])[:, 0]
