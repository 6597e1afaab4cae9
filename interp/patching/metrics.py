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

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import repeat
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from interp.displays import Display
from interp.errors import InputError, InputTypeError, shown
from interp.models import VLM, Batch
from interp.models.batches.targets import answers_of, target_ids_of
from interp.models.running.resume import MetricFunction
from interp.patching.answers import answered

Rule = Callable[..., Tensor]
# The name of `logprob`, by which results know that their values are logarithms.
LOG_PROBABILITY = "log-probability"
DIVERGENCE = "KL divergence"


@dataclass(frozen=True)
class RowMetric(Display):
    """A metric of one row: ``rule(logits, *references)`` of any number of versions of that row's logits `[version, vocab]`.

    With an `answer` of several tokens (Int `[token]`) the row is run with it, and the logits are `[version, token, vocab]`.
    It is plain torch, so a sweep can measure inside a trace and keep one number of each version.
    """

    rule: Rule
    references: tuple[Tensor, ...] = ()
    answer: Tensor | None = None

    def __call__(self, logits: Float[Tensor, "version *token vocab"]) -> Float[Tensor, " version"]:
        """Raises `InputError` if the rule does not give one number a version."""
        values = apply_rule(logits, self.rule, self.references)
        return check_per_row(values, logits, getattr(self.rule, "__name__", type(self.rule).__name__))

    def of_run(self, logits: Float[Tensor, "1 *token vocab"], name: str) -> Float[Tensor, " 1"]:
        """The metric of the row's own run. Raises `InputError` if two versions do not get a number each."""
        two = logits.expand(2, *logits.shape[1:])
        return check_per_row(apply_rule(two, self.rule, self.references), two, name)[:1]


@dataclass(frozen=True)
class Metric(Display):
    """A rule on logits `[batch, vocab]` and what it compares them with: targets, one for all rows or one a row, or a
    reference `[batch, vocab]`.

    With `several`, the targets are answers of any number of tokens. The value is ``rule(logits, answer)`` of the first, minus
    that of the second where there are two. The logits are those that judge the answer, `[batch, token, vocab]`: each answer
    of more than one token has a run of its own. `limits` are the smallest and the largest value that it can have.
    """

    name: str
    rule: Rule
    targets: tuple[Any, ...] = ()
    reference: Tensor | None = None
    several: bool = False
    limits: tuple[float, float] = (-math.inf, math.inf)

    def __post_init__(self) -> None:  # a metric is bound many times, and an iterator would be empty after the first
        targets = tuple(tuple(target) if isinstance(target, Iterator) else target for target in self.targets)
        object.__setattr__(self, "targets", targets)

    def references(self, vlm: VLM, batches: Sequence[Batch]) -> list[Tensor]:
        """What the rule compares the logits of all rows of these batches with: tensors with one entry a row, of answers
        `[row, token]` with -1 behind shorter ones.

        Raises `InputError` for targets or a reference that do not fit the rows.
        """
        if self.several:
            return [torch.cat(answers_of(vlm, batches, target)) for target in self.targets]
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

    def __call__(self, logits: Float[Tensor, "batch *token vocab"]) -> Float[Tensor, " batch"]:
        """The metric of a batch of logits. Its targets must be token ids, because words need a model to look them up."""
        if any(_has_words(target) for target in self.targets):
            raise InputError(f"targets {self.targets!r}: a metric that is called on its own needs token ids, not words")
        if self.several:
            answers = [_answer_ids(target, logits) for target in self.targets]
            return difference_of_terms([apply_rule(logits, self.rule, [each]) for each in answers])
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
    return Metric("probability", probability_of, (a,), limits=(0.0, 1.0))


def cross_entropy(a: Any) -> Metric:
    """``-log softmax(logits)[a]``, in nats.

    >>> import torch
    >>> cross_entropy(0)(torch.tensor([[0.0, 0.0]]))
    tensor([0.6931])
    """
    return Metric("cross-entropy", surprise_of, (a,), limits=(0.0, math.inf))


def kl_divergence(reference: Float[Tensor, "batch vocab"]) -> Metric:
    """``KL(changed || reference)`` in nats: how far the prediction has moved from these reference logits.

    >>> import torch
    >>> kl_divergence(torch.tensor([[0.0, 1.0]]))(torch.tensor([[5.0, 6.0]]))
    tensor([0.])
    """
    if not isinstance(reference, Tensor):
        raise InputTypeError(f"reference={shown(reference)}: expected a tensor of logits, as vlm.logits gives them")
    return Metric(DIVERGENCE, divergence_from, reference=reference, limits=(0.0, math.inf))


def logprob(answer: Any) -> Metric:
    """``sum over t of log p(answer[t] | prompt, answer[:t])``: the log-probability of an answer of any number of tokens, in nats.

    The answer is text (``"light blue"``), a token id or, one a row, lists of token ids. Its tokens are those with which each
    row's prompt goes on. The model reads them behind the prompt, whose keys and values they use, and an intervention acts on
    them as on generated tokens: the value is what greedy generation would give to these very tokens. The probability
    that the model says this and stops has the end in the answer too, as in ``"light blue</s>"``.

    It is a sum, so longer answers get less. Of one token it is the logarithm of `probability`.

    >>> import torch
    >>> logprob(0)(torch.tensor([[0.0, 0.0]]))
    tensor([-0.6931])
    >>> logprob([[0, 1]])(torch.tensor([[[0.0, 0.0], [0.0, 0.0]]]))
    tensor([-1.3863])
    """
    return Metric(LOG_PROBABILITY, logprob_of, (answer,), several=True, limits=(-math.inf, 0.0))


def logprob_difference(a: Any, b: Any) -> Metric:
    """``logprob(a) - logprob(b)``: how far the model prefers answer `a` to answer `b`, each of any number of tokens, in nats.

    It is above 0 where `a` is the likelier answer. Of two answers of one token it is their `logit_difference`.

    >>> import torch
    >>> logprob_difference(0, 2)(torch.tensor([[3.0, 0.0, 1.0]]))
    tensor([2.])
    """
    return Metric("log-probability difference", logprob_of, (a, b), several=True)


# Binding a metric to rows ------------------------------------------------------------------------------------------------


def name_of(metric: Metric | MetricFunction) -> str:
    """The name of a metric in results and figures."""
    return metric.name if isinstance(metric, Metric) else getattr(metric, "__name__", type(metric).__name__)


def limits_of(metric: Metric | MetricFunction) -> tuple[float, float]:
    """The smallest and the largest value that a metric can have; of a plain function nothing is known."""
    return metric.limits if isinstance(metric, Metric) else (-math.inf, math.inf)


def bind_to_rows(metric: Any, vlm: VLM, batch: Batch) -> list[RowMetric]:
    """The metric of each row of a batch, for a metric that is read from one run; a plain function is the metric of every row.

    Raises `InputTypeError` for what is not a metric, `InputError` for targets or a reference that do not fit the rows.
    """
    return [terms[0] for terms in _terms_of_rows(metric, vlm, batch)]


def bind_to_pairs(metric: Any, vlm: VLM, clean: Batch, corrupted: Batch) -> list[tuple[RowMetric, ...]]:
    """The metric of each pair of rows, which is measured in runs of both: what it is of one run, or of two runs with an answer
    each, the first minus the second.

    Raises what `bind_to_rows` raises, and `InputError` for a word that is one token behind the clean and another behind the
    corrupted row.
    """
    metrics = _terms_of_rows(metric, vlm, clean)
    has_targets = isinstance(metric, Metric) and metric.targets
    for row, sides in enumerate(zip(metrics, _terms_of_rows(metric, vlm, corrupted), strict=True)):
        own, other = (
            ([each for term in terms for each in term.references] for terms in sides) if has_targets else ([], [])
        )
        for in_clean, in_corrupted in zip(own, other, strict=True):
            if in_clean.tolist() != in_corrupted.tolist():
                raise InputError(
                    f"row {row}: a word of the metric is token {_ids(in_clean)} behind the clean prompt and "
                    f"{_ids(in_corrupted)} behind the corrupted one: expected prompts that end alike, or token ids"
                )
    return metrics


def bind_to_batches(metric: Any, vlm: VLM, batches: Sequence[Batch]) -> list[BatchMetric]:
    """The metric of each batch.

    Targets are one for all rows, or one for each row of all batches in order. Raises what `bind_to_rows` raises; the
    functions raise `InputError` if the metric does not give one number a row.
    """
    if not isinstance(metric, Metric):
        function = _on_cpu(_checked_function(metric), name_of(metric))
        return [BatchMetric((batch,), (function,)) for batch in batches]
    sizes = [len(batch) for batch in batches]
    references = metric.references(vlm, batches)
    parts = zip(*(each.split(sizes) for each in references), strict=True) if references else repeat((), len(sizes))
    return [_of_batch(metric, vlm, batch, part) for batch, part in zip(batches, parts, strict=True)]


@dataclass(frozen=True)
class BatchMetric(Display):
    """The metric of a batch: the batches to run (the batch itself, or it with an answer behind it), and for each a function of
    its logits that gives Float `[batch]` on the CPU. Of two, the value is that of the first minus that of the second.

    `targets` are the tokens of the right answer, Int `[batch, token]` with -1 behind shorter ones; None without targets.
    """

    batches: tuple[Batch, ...]
    functions: tuple[MetricFunction, ...]
    targets: Tensor | None = None

    def __call__(self, *logits: Float[Tensor, "batch ... vocab"]) -> Float[Tensor, " batch"]:
        """The metric, from the logits of each of the `batches`."""
        return difference_of_terms([each(own) for each, own in zip(self.functions, logits, strict=True)])

    def right(self, logits: Float[Tensor, "batch *token vocab"]) -> Bool[Tensor, " batch"]:
        """In which rows the right answer is what the model would say: each of its tokens has the largest of these logits, those
        of the first of the `batches`. True in all rows without targets."""
        if self.targets is None:
            return torch.ones(len(logits), dtype=torch.bool)
        targets = _cut(self.targets)
        best = logits.argmax(dim=-1).cpu().reshape(len(logits), -1)[:, : targets.shape[1]]
        return ((best == targets) | (targets < 0)).all(dim=1)


def _of_batch(metric: Metric, vlm: VLM, batch: Batch, references: Sequence[Tensor]) -> BatchMetric:
    """The metric of a batch whose references are known."""
    readings = _readings(metric, references)
    batches = [batch if each.answers is None else answered(vlm, batch, each.answers) for each in readings]
    rules = [partial(apply_rule, rule=each.rule, references=each.references) for each in readings]
    targets = references[0].reshape(len(batch), -1) if metric.targets else None
    return BatchMetric(tuple(batches), tuple(_on_cpu(rule, metric.name) for rule in rules), targets)


def _terms_of_rows(metric: Any, vlm: VLM, batch: Batch) -> list[tuple[RowMetric, ...]]:
    """What the metric of each row is measured in: one run, or one with each answer."""
    if not isinstance(metric, Metric):
        return [(RowMetric(_checked_function(metric)),)] * len(batch)
    readings = _readings(metric, metric.references(vlm, [batch]))
    return [tuple(each.of_row(row) for each in readings) for row in range(len(batch))]


class _Reading(NamedTuple):
    """A rule on the logits of one run, its references (tensors with one entry a row), and the answers with which the prompts
    are run; None without."""

    rule: Rule
    references: Sequence[Tensor]
    answers: Tensor | None = None

    def of_row(self, row: int) -> RowMetric:
        if self.answers is None:
            return RowMetric(self.rule, tuple(each[row] for each in self.references))
        answer = self.answers[row]
        return RowMetric(self.rule, tuple(_cut(each[[row]]) for each in self.references), answer[answer >= 0])


def _readings(metric: Metric, references: Sequence[Tensor]) -> list[_Reading]:
    """What a metric reads from one run; of two, its value is the first minus the second.

    Answers of one token need no run of their own. Of two answers that differ in their last tokens alone, as "dark red" and
    "dark blue", or of which one is a single token, the same run judges both.
    """
    if not metric.several:
        return [_Reading(metric.rule, references)]
    if not any(bool((ids[:, 1:] >= 0).any()) for ids in references):
        rule = metric.rule if len(references) == 1 else difference_of
        return [_Reading(rule, [ids[:, 0] for ids in references])]
    answers = [_cut(ids) for ids in references]
    if len(answers) == 1:
        return [_Reading(metric.rule, answers, answers[0])]
    both = pad_sequence([each.T for each in answers], padding_value=-1)  # [token, answer, row]
    used = both[1:] >= 0  # the tokens that the model reads are those with another behind them
    if bool(((both[:-1, 0] == both[:-1, 1]) | ~used.all(dim=1)).all()):
        a, b = both.unbind(dim=1)
        longer = torch.where(used[:, 0].sum(dim=0) >= used[:, 1].sum(dim=0), a, b)
        return [_Reading(logprob_difference_of, answers, longer.T)]
    return [_Reading(metric.rule, [ids], ids) for ids in answers]


def _cut(answers: Tensor) -> Tensor:
    """Answers `[row, token]` without columns that none of them reaches."""
    return answers[:, : int((answers >= 0).sum(dim=1).max())]


def _ids(answer: Tensor) -> str:
    """A token, or the tokens of an answer."""
    return ", ".join(map(str, answer.flatten().tolist()))


def answer_ids(metric: Metric | MetricFunction, vlm: VLM, batches: Sequence[Batch]) -> Sequence[Tensor | None]:
    """The right answer of each row for each batch, the first target of the metric: Int `[batch]`, and of a metric of several
    tokens `[batch, token]` with -1 behind shorter ones. None without targets."""
    if not isinstance(metric, Metric) or not metric.targets:
        return [None] * len(batches)
    return (answers_of if metric.several else target_ids_of)(vlm, batches, metric.targets[0])


def rows_to_run(vlm: VLM, batch: Batch, metrics: Sequence[RowMetric]) -> Batch:
    """The rows of a batch in which these metrics of each are measured: those with an answer have it behind them."""
    answers = [metric.answer for metric in metrics if metric.answer is not None]
    return answered(vlm, batch, pad_sequence(answers, batch_first=True, padding_value=-1)) if answers else batch


def difference_of_terms(values: Sequence[Tensor]) -> Tensor:
    """The value of a metric from its values in one run, or in two: the first minus the second."""
    return values[0] if len(values) == 1 else values[0] - values[1]


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


def _answer_ids(target: Any, logits: Tensor) -> Tensor:
    """Answers as ids, Int `[row or 1, token]`, for logits that judge as many tokens."""
    rows = target.tolist() if hasattr(target, "tolist") else target
    rows = [
        each if isinstance(each, list | tuple) else [each]
        for each in (rows if isinstance(rows, list | tuple) else [rows])
    ]
    longest, judged = max(map(len, rows)), 1 if logits.ndim == 2 else logits.shape[1]
    if longest != judged:
        raise InputError(f"answers of {longest} tokens and logits that judge {judged}: expected [batch, token, vocab]")
    return torch.tensor([[*each, *[-1] * (longest - len(each))] for each in rows])


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


def logprob_of(logits, answer):
    """The rule of `logprob`, of logits `[row, vocab]` or `[row, token, vocab]`; an answer is ids, `[row, token]` or one id."""
    steps = logits if logits.ndim == 3 else logits[:, None]
    answer = answer if answer.ndim == 2 else answer.reshape(-1, 1)
    answer = answer.expand(len(steps), -1)
    each = steps[:, : answer.shape[1]].log_softmax(dim=-1).gather(-1, answer.clamp(min=0)[..., None])[..., 0]
    return each.masked_fill(answer < 0, 0).sum(dim=-1)


def logprob_difference_of(logits, a, b):
    """The rule of `logprob_difference` of answers that one run judges."""
    return logprob_of(logits, a) - logprob_of(logits, b)


def divergence_from(logits, reference):
    """The rule of `kl_divergence`."""
    changed, base = logits.log_softmax(dim=-1), reference.float().log_softmax(dim=-1)
    return (changed.exp() * (changed - base)).sum(dim=-1)
