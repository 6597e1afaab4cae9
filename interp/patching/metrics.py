"""Metrics of an answer: functions that map logits Float `[batch, vocab]` to one number a row, Float `[batch]`.

``logit_difference(a, b)`` is a metric of the targets a and b. A target is a token id, or a string that is the one token which
continues the prompt; there is one for all rows, or one a row. A sweep looks words up when it *binds* the metric to its
model and its rows, since the same word may be another token behind another prompt (`interp.models.batches.continuations`). A
plain function of logits can take the place of a metric:

>>> import torch
>>> logit_difference(0, 2)(torch.tensor([[3.0, 0.0, 1.0]]))
tensor([2.])
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import repeat
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from interp.displays import Display
from interp.errors import InputError, InputTypeError, shown
from interp.models import VLM, Batch
from interp.models.batches.targets import target_ids_of
from interp.models.running.resume import MetricFunction

Rule = Callable[..., Tensor]


@dataclass(frozen=True)
class RowMetric(Display):
    """A metric of one row: ``rule(logits, *references)`` of any number of versions of that row's logits `[version, vocab]`.

    It is plain torch, so a sweep can measure inside a trace and keep one number of each version.
    """

    rule: Rule
    references: tuple[Tensor, ...] = ()

    def __call__(self, logits: Float[Tensor, "version vocab"]) -> Float[Tensor, " version"]:
        """Raises `InputError` if the rule does not give one number a version."""
        values = apply_rule(logits, self.rule, self.references)
        return check_per_row(values, logits, getattr(self.rule, "__name__", type(self.rule).__name__))

    def of_run(self, logits: Float[Tensor, "1 vocab"], name: str) -> Float[Tensor, " 1"]:
        """The metric of the row's own run. Raises `InputError` if two versions do not get a number each."""
        two = logits.expand(2, -1)
        return check_per_row(apply_rule(two, self.rule, self.references), two, name)[:1]


@dataclass(frozen=True)
class Metric(Display):
    """A rule on logits `[batch, vocab]` and what it compares them with: targets, one for all rows or one a row, or a
    reference `[batch, vocab]`."""

    name: str
    rule: Rule
    targets: tuple[Any, ...] = ()
    reference: Tensor | None = None

    def __post_init__(self) -> None:  # a metric is bound many times, and an iterator would be empty after the first
        targets = tuple(tuple(target) if isinstance(target, Iterator) else target for target in self.targets)
        object.__setattr__(self, "targets", targets)

    def references(self, vlm: VLM, batches: Sequence[Batch]) -> list[Tensor]:
        """What the rule compares the logits of all rows of these batches with: tensors with one entry a row.

        Raises `InputError` for targets or a reference that do not fit the rows.
        """
        references = [torch.cat(target_ids_of(vlm, batches, target)) for target in self.targets]
        if self.reference is None:
            return references
        rows = sum(map(len, batches))
        shape = (rows, vlm.structure.vocab_size)
        if tuple(self.reference.shape) != shape:
            raise InputError(
                f"reference of shape {tuple(self.reference.shape)}: expected logits of {rows} rows, {shape} (batch, vocab)"
            )
        return [*references, self.reference]

    def __call__(self, logits: Float[Tensor, "batch vocab"]) -> Float[Tensor, " batch"]:
        """The metric of a batch of logits. Its targets must be token ids, because words need a model to look them up."""
        if any(_has_words(target) for target in self.targets):
            raise InputError(f"targets {self.targets!r}: a metric that is called on its own needs token ids, not words")
        references = [torch.as_tensor(target, device=logits.device) for target in self.targets]
        if self.reference is not None:
            references.append(self.reference)
        return apply_rule(logits, self.rule, references)


def logit_difference(a: Any, b: Any) -> Metric:
    """``logit(a) - logit(b)``: how far the model prefers answer `a` to answer `b`.

    >>> import torch
    >>> logit_difference(0, 2)(torch.tensor([[3.0, 0.0, 1.0]]))
    tensor([2.])
    """
    return Metric("logit difference", difference_of, (a, b))


def probability(a: Any) -> Metric:
    """``softmax(logits)[a]``: the probability of answer `a`.

    >>> import torch
    >>> probability(0)(torch.tensor([[0.0, 0.0]]))
    tensor([0.5000])
    """
    return Metric("probability", probability_of, (a,))


def cross_entropy(a: Any) -> Metric:
    """``-log softmax(logits)[a]``, in nats.

    >>> import torch
    >>> cross_entropy(0)(torch.tensor([[0.0, 0.0]]))
    tensor([0.6931])
    """
    return Metric("cross-entropy", surprise_of, (a,))


def kl_divergence(reference: Float[Tensor, "batch vocab"]) -> Metric:
    """``KL(changed || reference)`` in nats: how far the prediction has moved from these reference logits.

    >>> import torch
    >>> kl_divergence(torch.tensor([[0.0, 1.0]]))(torch.tensor([[5.0, 6.0]]))
    tensor([0.])
    """
    if not isinstance(reference, Tensor):
        raise InputTypeError(f"reference={shown(reference)}: expected a tensor of logits, as vlm.logits gives them")
    return Metric("KL divergence", divergence_from, reference=reference)


# Binding a metric to rows ------------------------------------------------------------------------------------------------


def name_of(metric: Metric | MetricFunction) -> str:
    """The name of a metric in results and figures."""
    return metric.name if isinstance(metric, Metric) else getattr(metric, "__name__", type(metric).__name__)


def bind_to_rows(metric: Any, vlm: VLM, batch: Batch) -> list[RowMetric]:
    """The metric of each row of a batch; a plain function is the metric of every row.

    Raises `InputTypeError` for what is not a metric, `InputError` for targets or a reference that do not fit the rows.
    """
    if not isinstance(metric, Metric):
        return [RowMetric(_checked_function(metric))] * len(batch)
    references = metric.references(vlm, [batch])
    return [RowMetric(metric.rule, tuple(each[row] for each in references)) for row in range(len(batch))]


def bind_to_pairs(metric: Any, vlm: VLM, clean: Batch, corrupted: Batch) -> list[RowMetric]:
    """The metric of each pair of rows, which is measured in runs of both.

    Raises what `bind_to_rows` raises, and `InputError` for a word that is one token behind the clean and another behind the
    corrupted row.
    """
    metrics = bind_to_rows(metric, vlm, clean)
    for row, (own, other) in enumerate(zip(metrics, bind_to_rows(metric, vlm, corrupted), strict=True)):
        tokens = [] if not isinstance(metric, Metric) or not metric.targets else [own.references, other.references]
        for in_clean, in_corrupted in zip(*tokens, strict=True):
            if in_clean != in_corrupted:
                raise InputError(
                    f"row {row}: a word of the metric is token {int(in_clean)} behind the clean prompt and {int(in_corrupted)} "
                    "behind the corrupted one: expected prompts that end alike, or token ids"
                )
    return metrics


def bind_to_batches(metric: Any, vlm: VLM, batches: Sequence[Batch]) -> list[MetricFunction]:
    """The metric of each batch: a function of its logits `[batch, vocab]` that gives Float `[batch]` on the CPU.

    Targets are one for all rows, or one for each row of all batches in order. Raises what `bind_to_rows` raises; the
    functions raise `InputError` if the metric does not give one number a row.
    """
    if not isinstance(metric, Metric):
        return [_on_cpu(_checked_function(metric), name_of(metric))] * len(batches)
    sizes = [len(batch) for batch in batches]
    references = metric.references(vlm, batches)
    parts = zip(*(each.split(sizes) for each in references), strict=True) if references else repeat((), len(sizes))
    return [_on_cpu(partial(apply_rule, rule=metric.rule, references=part), metric.name) for part in parts]


def answer_ids(metric: Metric | MetricFunction, vlm: VLM, batches: Sequence[Batch]) -> Sequence[Tensor | None]:
    """The right answer of each row, Int `[batch]` for each batch: the first target of the metric. None without targets."""
    if not isinstance(metric, Metric) or not metric.targets:
        return [None] * len(batches)
    return target_ids_of(vlm, batches, metric.targets[0])


def check_per_row(values: Any, logits: Tensor, name: str) -> Tensor:
    """The values of a metric. Raises `InputError`, with its name, if they are not one number for each row of logits."""
    if not isinstance(values, Tensor) or values.shape != logits.shape[:1]:
        raise InputError(
            f"the metric {name!r} gives {shown(values)} for {len(logits)} rows of logits: expected a tensor of one number a row"
        )
    return values


def _checked_function(metric: Any) -> MetricFunction:
    if not callable(metric):
        raise InputTypeError(f"metric={shown(metric)}: expected a metric such as probability('red'), or a function")
    return metric


def _on_cpu(metric: MetricFunction, name: str) -> MetricFunction:
    """The same metric with its values on the CPU, in float32 at least."""

    def values_of(logits: Tensor) -> Tensor:
        values = check_per_row(metric(logits), logits, name)
        return values.detach().to("cpu", torch.promote_types(values.dtype, torch.float32))

    return values_of


def _has_words(target: Any) -> bool:
    """Whether a target, one for all rows or one a row, is a word."""
    return any(isinstance(one, str) for one in (target if isinstance(target, list | tuple) else [target]))


# Plain torch, run inside the trace ---------------------------------------------------------------------------------------


def apply_rule(logits, rule, references):
    """A rule on logits, in float32 and on their device. A bool or an int becomes a float."""
    values = rule(logits.float(), *[each.to(logits.device) for each in references])
    whole = isinstance(values, torch.Tensor) and not (values.is_floating_point() or values.is_complex())
    return values.float() if whole else values


def entries_at(values, ids):
    """The entry of each row at its id."""
    return values.gather(-1, ids.expand(len(values))[:, None])[:, 0]


def difference_of(logits, a, b):
    """The rule of `logit_difference`."""
    return entries_at(logits, a) - entries_at(logits, b)


def probability_of(logits, a):
    """The rule of `probability`."""
    return entries_at(logits.softmax(dim=-1), a)


def surprise_of(logits, a):
    """The rule of `cross_entropy`."""
    return -entries_at(logits.log_softmax(dim=-1), a)


def divergence_from(logits, reference):
    """The rule of `kl_divergence`."""
    changed, base = logits.log_softmax(dim=-1), reference.float().log_softmax(dim=-1)
    return (changed.exp() * (changed - base)).sum(dim=-1)
