"""Preprocessing: what is done to every cloud before clouds are compared, one table for all calls.

Distances and products add features up, so the largest features decide. In language models those are often *massive
activations* (Sun et al. 2024): one to three features, hundreds of times larger than all others, which follow the position, the
length of the prompt or a punctuation mark. Two unrelated clouds whose massive feature follows the length of the prompt share
99 % of their neighbours. So `alignment_matrix`, `compare`, `intrinsic_dimension` and `probe_layers` note such features, and take
`preprocess=`, with x a cloud `[example, feature]`:

- ``"none"``: x.
- ``"standardise"``: (x - mean)/sd of each feature; constant features become 0. All count the same, those of noise too.
- ``"clamp"``: median + max(-20 t, min(20 t, x - median)), t the median over all features of their median absolute deviation.
  A feature with values beyond that in more than 1 of 20 examples is massive as a whole, and becomes its median: at the
  limits it would still dwarf all others, and say who is on which side.
- ``"cosine"``: (x - m)/|x - m| with m the mean row: the direction from the centre. Without centring all states of a model
  point nearly the same way. It does not remove a massive feature.
- ``"whiten"``: the first r = min(d, n // 10) principal components, each at mean 0 and sd 1. With as many components as
  examples all distances would be equal; ten examples a component keep them apart.

What is fitted, the mean, median, t or components, comes from one cloud alone, or from its training rows in a probe. Half-samples
and shuffles use the cloud that was preprocessed as a whole, as they do without. Two modalities are fitted apart. That would
remove a gap between them, so for measures of kind "gap" preprocess both as one cloud first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.arguments import checked_choice
from interp.errors import InputError
from interp.geometry.clouds import Cloud, States, as_cloud, as_states, precision
from interp.geometry.copies import first_equal
from interp.geometry.outlying import notes_of_outlying, outlying_rows
from interp.geometry.scaling import TIMES, as_given, deviations, massive_as_a_whole

Change = Callable[[Tensor], Tensor]  # a cloud [example, feature], or some of its rows, to the preprocessed ones
EACH = 10  # examples for each component that whitening keeps
_RANK = 1e-6  # a component whose spread is below this part of the largest is rounding
_DECISIVE = 0.1  # the part of a cloud's squared distances from which massive features are noted
_FEW = 8  # massive features are no more than one in so many; where more are large, they are the cloud and the rest is noise
_NORMAL = 0.6745  # the median absolute deviation of a normal feature with a standard deviation of 1


def preprocess(states: States, how: str) -> Cloud:
    """`states`, a cloud `[example, feature]` or a stack of them, each cloud after "none", "standardise", "clamp", "cosine" or
    "whiten"; the module has the formulas.

    >>> preprocess(torch.tensor([[0.0, 1.0], [4.0, 1.0], [2.0, 7.0], [2.0, -5.0]]), "cosine").tolist()
    [[-1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, -1.0]]

    Returns an array for an array, else a tensor on the device of `states`, in its precision (float32 for less).
    "whiten" changes the number of features to min(d, n // 10), at least 1. Two modalities in one space stay in one space where
    they are one cloud: ``preprocess(np.concatenate([images, captions]), "standardise")``.

    Raises `InputError` for any other `how`, the errors of `as_states`, and for "clamp" those of `massive_features`.
    """
    fit = PREPROCESS[checked_choice(how, "how", tuple(PREPROCESS))]
    return _each_cloud(states, lambda cloud: fit(cloud)(cloud))


def standardise(x: States) -> Cloud:
    """`x` `[example, feature]`, or a stack of such clouds, with each feature's mean 0 and standard deviation 1 (ddof=1).

    Constant features become 0. Returns an array for an array, else a tensor on the device of `x`; computed in float64 and
    returned in the precision of `x` (float32 for less).

    A few outlying rows make up the spread of their features: see `outlying_rows`, and drop those first.

    Raises the errors of `as_cloud`.

    >>> standardise(torch.tensor([[1.0, 7.0], [3.0, 7.0], [5.0, 7.0]])).tolist()
    [[-1.0, 0.0], [0.0, 0.0], [1.0, 0.0]]
    """
    return preprocess(x, "standardise")


def clamp(x: States, times: float = TIMES) -> Cloud:
    """`x` `[example, feature]`, or a stack of such clouds, with each value at most `times` typical deviations from the median
    of its feature, and without features most of whose spread is beyond that.

    The typical deviation is the median over all features of their median absolute deviation, one number for the cloud, so
    that features keep their proportions. A feature with values beyond the limits in more than 1 of 20 examples becomes its
    median (in one example alone it is always cut). Returns an array for an array, else a tensor on the device of `x`, in the
    precision of `x` (float32 for less).

    Raises the errors of `massive_features`.

    >>> x = torch.tensor([[0.0, 1.0], [1.0, 2.0], [2.0, 3.0], [3.0, 900.0]])
    >>> clamp(x, times=10).max()
    tensor(7.5000)
    """
    return _each_cloud(x, lambda cloud: _clamped(cloud, times)(cloud))


def _each_cloud(states: States, change: Change) -> Cloud:
    if getattr(states, "ndim", 3) == 3:
        values = torch.stack([change(cloud) for cloud in as_states(states)])
    else:
        values = change(as_cloud(states))
    kind = precision(states) if isinstance(states, Tensor | np.ndarray) else values.dtype
    return as_given(values.to(kind), states)


# One function for each name: it takes the cloud to fit and returns what changes a cloud --------------------------------


def _nothing(cloud: Float[Tensor, "n d"]) -> Change:
    return lambda x: x


def _standardised(cloud: Float[Tensor, "n d"]) -> Change:
    varies = (cloud != cloud[0]).any(dim=0)
    mean, spread = cloud.double().mean(dim=0), torch.where(varies, cloud.double().std(dim=0), 1.0)
    return lambda x: torch.where(varies, (x.double() - mean) / spread, 0.0).to(x.dtype)


def _clamped(cloud: Float[Tensor, "n d"], times: float = TIMES) -> Change:
    if bool((cloud == cloud[0]).all()):
        return _nothing(cloud)  # one point, as the last position of equal prompts is: nothing is massive
    middle, typical = deviations(cloud, times)
    limit = times * typical
    reach = limit * (~massive_as_a_whole((cloud - middle).abs(), limit)).to(cloud.dtype)
    low, high = middle - reach, middle + reach
    return lambda x: torch.minimum(torch.maximum(x, low), high)


def _directed(cloud: Float[Tensor, "n d"]) -> Change:
    mean = cloud.double().mean(dim=0)

    def change(x: Tensor) -> Tensor:
        rest = x.double() - mean
        lengths = rest.norm(dim=1, keepdim=True)
        return (rest / torch.where(lengths > 0, lengths, 1.0)).to(x.dtype)

    return change


def _whitened(cloud: Float[Tensor, "n d"]) -> Change:
    n, d = cloud.shape
    keep = max(1, min(d, n // EACH))
    mean = cloud.double().mean(dim=0)
    rest = cloud.double() - mean
    product = rest.T @ rest if d <= n else rest @ rest.T
    squares, vectors = torch.linalg.eigh(product / (n - 1))
    squares, vectors = squares.flip(0)[:keep], vectors.flip(1)[:, :keep]
    spread = squares.clamp(min=0).sqrt()
    known = spread > max(_RANK * float(spread[0]), torch.finfo(torch.float64).tiny)
    inverse = torch.where(known, 1 / torch.where(known, spread, 1.0), 0.0)  # components of rounding become 0
    axes = vectors * inverse if d <= n else rest.T @ vectors * inverse.square() / (n - 1) ** 0.5
    return lambda x: ((x.double() - mean) @ axes).to(x.dtype)


PREPROCESS: dict[str, Callable[[Tensor], Change]] = {
    "none": _nothing,
    "standardise": _standardised,
    "clamp": _clamped,
    "cosine": _directed,
    "whiten": _whitened,
}


def prepared_states(
    stacks: tuple[Tensor, Tensor], how: str, kinds: Sequence[str], names: tuple[str, str] = ("visual", "textual")
) -> tuple[Tensor, Tensor, tuple[str, ...]]:
    """Two stacks of states with paired examples after `how`, and notes of what in them would mislead.

    Raises `InputError` for an unknown `how`, and where it would remove a gap: `kinds` are those of the measures.
    """
    checked_choice(how, "preprocess", tuple(PREPROCESS))
    if how != "none" and "gap" in kinds:
        raise InputError(
            f"preprocess={how!r} fits {names[0]} and {names[1]} apart, which removes a gap between them: expected 'none' for"
            " measures of kind 'gap', of states that interp.geometry.preprocess changed as one cloud"
        )
    copies = notes_of_copies(*stacks)
    first, second = stacks if how == "none" else (torch.as_tensor(preprocess(stack, how)) for stack in stacks)
    named = dict(zip(names, (first, second), strict=True))
    return first, second, (*notes_of_outlying(**named), *notes_of_massive(**named), *copies)


def preprocess_for_probes(stacks: Sequence[Any], rows: np.ndarray, how: str) -> tuple[list[Any], tuple[str, ...]]:
    """Stacks of states after what is fitted on these rows of the first, and notes of outlying rows and massive features.

    A probe standardises what it gets on the same rows, so "standardise" is what it does without.
    """
    fit = PREPROCESS[checked_choice(how, "preprocess", tuple(PREPROCESS))]
    first, changed = stacks[0], list(stacks)
    if how not in ("none", "standardise"):
        changes = [fit(torch.as_tensor(state[rows])) for state in first]
        changed = [
            torch.stack([change(torch.as_tensor(state)) for change, state in zip(changes, stack, strict=True)])
            for stack in stacks
        ]
        changed = [as_given(new, old) for new, old in zip(changed, stacks, strict=True)]
    named = {name: torch.as_tensor(stack) for name, stack in zip(("acts", "transfer"), changed, strict=False)}
    return changed, (*notes_of_outlying(**named), *notes_of_massive(acts=changed[0]))


# Notes ----------------------------------------------------------------------------------------------------------------


def notes_of_massive(**stacks: Any) -> tuple[str, ...]:
    """A line for each cloud or stack in which a few massive features make up a tenth or more of the squared distances."""
    notes = []
    for name, stack in stacks.items():
        clouds = stack if stack.ndim == 3 else stack[None]
        features = [_massive_in(torch.as_tensor(cloud)) for cloud in clouds]
        states = [state for state, (which, _) in enumerate(features) if len(which)]
        if states:
            which = torch.cat([each for each, _ in features]).unique().tolist()
            where = f" at states {_listed(states)}" if stack.ndim == 3 else ""
            share = max(share for _, share in features)
            notes.append(
                f"{name}: {'feature' if len(which) == 1 else 'features'} {_listed(which)} of {stack.shape[-1]} "
                f"{'makes' if len(which) == 1 else 'make'} up to {min(99.9, 100 * share):.3g} % of squared distances{where}, as"
                " massive activations do: pass preprocess='clamp' to measure without them"
            )
    return tuple(notes)


def _massive_in(cloud: Float[Tensor, "n d"]) -> tuple[Int[Tensor, " feature"], float]:
    """The massive features if they are few and decide distances, and their part of the squared distances of all pairs.

    The rule is that of `massive_features`, without outlying rows, which have a note of their own; a typical deviation is that
    of a normal feature with the median standard deviation, which needs no order of the values.
    """
    rows = outlying_rows(cloud)
    if len(rows):
        keep = torch.ones(len(cloud), dtype=torch.bool, device=cloud.device)
        keep[rows.to(cloud.device)] = False
        cloud = cloud[keep]
    none = torch.zeros(0, dtype=torch.int64)
    if len(cloud) < 2:
        return none, 0.0
    spread, mean = torch.std_mean(cloud, dim=0)
    least, most = torch.aminmax(cloud, dim=0)
    limit = TIMES * _NORMAL * spread.median()
    massive = (torch.maximum(most - mean, mean - least) > limit) & (limit > 0)
    if int(massive.sum()) > max(1, cloud.shape[1] // _FEW):
        return none, 0.0
    squares = spread.double().square()
    share = float(squares[massive].sum() / squares.sum()) if massive.any() else 0.0
    return (massive.nonzero().flatten().cpu(), share) if share >= _DECISIVE else (none, 0.0)


def notes_of_copies(first: Float[Tensor, "a n d"], second: Float[Tensor, "b n e"]) -> tuple[str, ...]:
    """A line where examples repeat another one in both stacks, by their last states: equal pictures with equal captions."""
    pairs = torch.stack([first_equal(stack[-1]).cpu() for stack in (first, second)], dim=1)
    n, distinct = len(pairs), len(pairs.unique(dim=0))
    if distinct == n:
        return ()
    return (
        f"{n - distinct} of {n} examples repeat others in both stacks, and so are neighbours in both: drop them with"
        " distinct_rows",
    )


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers[:6])) + (", ..." if len(numbers) > 6 else "")
