"""Sparse decomposition: a state as a sum of few words.

The nearest word says one thing of a state. A state that holds several (a colour, a digit and a place) lies between
their words and near none of them. *Orthogonal matching pursuit* writes it as a sum: take the word that points most
along the vector, fit, subtract, take the word that points most along the rest, fit all words again, and so on
for k words. The share of the squared length that the fit reaches is *explained*.

Words are chosen by direction: rows are scaled to length 1, since a long row would win by its length alone. Weights
belong to the rows as they are, so that ``weights @ dictionary[ids]`` is the fit. A set of vectors can have one support
(`joint=True`, *simultaneous* pursuit): each step takes the word with the largest sum of absolute products with all
residuals.

k words out of many explain something of any vector. So each vector is compared with itself, turned at random: within the
spaces of principal axes of the words' directions whose strengths are within a factor of two, and in no other way. A turned
vector is as long, and as much of it lies along the strong and along the weak axes of the dictionary, in the cone of its words and
outside of their span; and the words that are searched are the same. Only its relation to single words is lost. `p` is the
share of turned vectors (the vector itself included) of which k words explain as much, `chance` the mean of what they explain,
and a vector that has nothing to do with the words exceeds its `chance_high` in 5 % of cases, its chance in about half. What all
words together span is no part of the question: of a vector of their span, with no more words than dimensions, k words explain
much by chance.

Sources: Pati et al. 1993 (OMP), Tropp et al. 2006 (simultaneous OMP).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.arguments import checked_flag, checked_int, checked_seed
from interp.displays import Display
from interp.errors import InputError, shown
from interp.models import VLM
from interp.models.batches.targets import word_of
from interp.models.running.offloading import weights_here
from interp.models.running.structure import resolve
from interp.provenance import Provenance
from interp.results import Result
from interp.statistics.permutation import permutation_p

# A row this much shorter than the longest one was never trained: its direction says nothing.
_UNTRAINED = 1e-6
# A residual of fewer roundings than this counts as zero.
ROUNDINGS = 64
# How many products of residuals with words are computed at a time.
_AT_ONCE = 2**25


@dataclass(frozen=True)
class Dictionary(Display):
    """Words as vectors: `rows` Float `[word, width]`, and the name of each."""

    rows: Float[Tensor, "word width"]
    words: tuple[str, ...]

    def __post_init__(self) -> None:
        if len(self.words) != len(self.rows):
            raise InputError(f"{len(self.words)} words for {len(self.rows)} rows of a dictionary: expected one a row")


@dataclass(frozen=True)
class DecompositionResult(Result):
    """Each vector as a sum of k words.

    `ids` `[vector, k]` are rows of the dictionary in the order in which the pursuit took them, -1 where nothing was left to
    explain. `weights` `[vector, k]` belong to the rows as they are (less the centre, where there was one). `explained`
    `[vector]` is the share of the squared length that the fit reaches, NaN for a vector of zeros. `chances` and
    `chance_high` `[vector]` are the mean and the 95 % quantile of the shares of each vector turned at random, and `p` `[vector]`
    is how often one reaches that of the vector itself. `chance` is the mean of `chances`. Without draws all are NaN, and with
    fewer than 19 the quantile is. With `joint` all vectors are turned together.
    """

    ids: Int[Tensor, "vector k"]
    weights: Float[Tensor, "vector k"]
    explained: Float[Tensor, " vector"]
    chance: float
    joint: bool
    vocabulary: dict[str, str]
    chances: Float[Tensor, " vector"] | None = None
    chance_high: Float[Tensor, " vector"] | None = None
    p: Float[Tensor, " vector"] | None = None

    def words(self, vector: int) -> list[str]:
        """The words of one vector, in the order in which the pursuit took them. Raises `InputError` for one that is not there."""
        vector = checked_int(vector, "vector", -len(self.ids), len(self.ids) - 1)
        return [self.vocabulary[str(word)] for word in self.ids[vector].tolist() if word >= 0]

    def to_frame(self) -> pd.DataFrame:
        """One row a word: vector, step, id, word, weight, what its vector's words explain together, and that share's chance,
        chance_high and p."""
        vectors, steps = (self.ids >= 0).nonzero(as_tuple=True)
        ids = self.ids[vectors, steps].tolist()
        return pd.DataFrame(
            {
                "vector": vectors.tolist(),
                "step": steps.tolist(),
                "id": ids,
                "word": [self.vocabulary[str(word)] for word in ids],
                "weight": self.weights[vectors, steps].tolist(),
                "explained": self.explained[vectors].tolist(),
                "chance": self.chance if self.chances is None else self.chances[vectors].tolist(),
                "chance_high": float("nan") if self.chance_high is None else self.chance_high[vectors].tolist(),
                "p": float("nan") if self.p is None else self.p[vectors].tolist(),
            }
        )


def dictionary_of(vlm: VLM, part: str) -> Dictionary:
    """A model's own words as vectors, Float `[vocabulary, width]`: the output of its input embedding for each token
    ("embed"), or the rows of its head ("head"), without the gain of the final norm.

    >>> import interp
    >>> dictionary_of(interp.load("toy"), "head").rows.shape
    torch.Size([75, 128])

    Raises `InputError` for another part, and for a model without weights on this machine.
    """
    if part not in ("embed", "head"):
        raise InputError(f"part={shown(part)}: expected 'embed' (words as inputs) or 'head' (words as outputs)")
    module = resolve(vlm.model, getattr(vlm.structure, part))
    if vlm.device.type == "meta":
        raise InputError(f"{vlm.name!r} has no weights here: expected a model loaded on this machine")
    tokens = torch.arange(vlm.structure.vocab_size, device=vlm.device)
    with torch.no_grad(), weights_here(module):
        # The embedding is called as a module, since some models scale its rows.
        rows = module(tokens) if part == "embed" else module.weight[: len(tokens)].clone()
    words = tuple(word_of(vlm, token) for token in tokens.tolist())
    return Dictionary(rows.detach().to(torch.promote_types(rows.dtype, torch.float32)), words)


def vocabulary_decomposition(
    vectors: Any,
    dictionary: Any,
    k: int,
    joint: bool = False,
    center: bool = False,
    draws: int = 19,
    seed: int = 0,
) -> DecompositionResult:
    """Write each of `vectors` `[vector, width]` as a sum of `k` rows of `dictionary`, a `Dictionary` or an array `[word,
    width]`; with `joint`, all vectors with the same k rows.

    >>> words = torch.eye(8)[:6]
    >>> result = vocabulary_decomposition(words[[1]] * 2 - words[[4]], words, k=2)
    >>> result.ids.tolist(), result.weights.tolist(), round(float(result.explained), 3)
    ([[1, 4]], [[2.0, -1.0]], 1.0)

    With `center` the mean of the dictionary's rows is subtracted from rows and vectors. Otherwise the first word may say
    only what all words share. Rows of zeros (untrained tokens) are never taken, and of equal rows only the first.
    Each vector is turned at random `draws` times, with `seed`, for its chance level and p.

    Raises `InputError` where vectors or rows are not finite, not two-dimensional or of different width; where `k` is not
    between 1 and the number of words; for `draws` below 0; for a seed that is not an int from 0; and for a `joint` or
    `center` that is not True or False.
    """
    checked_flag(joint, "joint")
    checked_flag(center, "center")
    rows, names = (dictionary.rows, dictionary.words) if isinstance(dictionary, Dictionary) else (dictionary, None)
    states, rows = as_rows(vectors, "vectors"), as_rows(rows, "dictionary")
    if states.shape[1] != rows.shape[1]:
        raise InputError(
            f"vectors of width {states.shape[1]} and a dictionary of width {rows.shape[1]}: expected the same"
        )
    working = torch.promote_types(torch.promote_types(states.dtype, rows.dtype), torch.float32)
    states, rows = states.to(working), rows.to(states.device, working)
    if center:
        states, rows = states - rows.mean(dim=0), rows - rows.mean(dim=0)
    # Squares of tiny or huge numbers would vanish or overflow.
    (states, size), (rows, length) = near_one(states), near_one(rows)
    words = directions(rows)
    if not words.usable.any():
        raise InputError(f"all {len(rows)} rows of the dictionary are zero{' once centred' * center}: expected words")
    k = checked_int(k, "k", 1, int(words.usable.sum()), "a number of words that are not zero")
    draws, seed = checked_int(draws, "draws"), checked_seed(seed)
    pursue = pursue_jointly if joint else pursue_each
    fit = pursue(states, words, k)
    weights = fit.weights / rows.norm(dim=1)[fit.ids.clamp(min=0)] * (size / length)
    ids = [word for word in fit.ids.unique().tolist() if word >= 0]
    turned = turned_at_random(states, words.unit[words.usable], draws, seed)
    null = _Null(fit.explained, [pursue(each, words, k).explained for each in turned])
    return DecompositionResult(
        ids=fit.ids.cpu(),
        weights=weights.cpu(),
        explained=fit.explained.cpu(),
        chance=float(null.mean.nanmean()),
        joint=joint,
        vocabulary={str(word): str(word) if names is None else names[word] for word in ids},
        chances=null.mean.cpu(),
        chance_high=null.high.cpu(),
        p=null.p.cpu(),
        provenance=Provenance(seed=seed, notes=("centred on the mean of the dictionary",) if center else ()),
    )


# Arrays ------------------------------------------------------------------------------------------------------------------


def as_rows(values: Any, name: str) -> Tensor:
    """An array as Float `[row, width]`. Raises `InputError` for anything else, and where it is empty or not finite."""
    try:
        array = values if isinstance(values, Tensor) else torch.as_tensor(np.ascontiguousarray(values))
    except (TypeError, ValueError):
        raise InputError(
            f"{name} of type {type(values).__name__} is not an array of numbers: expected real numbers [row, width]"
        ) from None
    if array.ndim != 2 or not array.numel() or array.is_complex():
        raise InputError(f"{name} of shape {tuple(array.shape)}: expected real numbers [row, width], one row or more")
    array = array.detach() if array.is_floating_point() else array.float()
    if not array.isfinite().all():
        first = int((~array.isfinite()).any(dim=1).nonzero()[0])
        raise InputError(f"{name} has numbers that are not finite, the first in row {first}: leave such rows out")
    return array


def near_one(values: Tensor) -> tuple[Tensor, Tensor]:
    """Values divided by the largest of them, and that one: 1 where all are zero."""
    largest = values.abs().max()
    largest = torch.where(largest > 0, largest, 1)
    return values / largest, largest


class Directions(NamedTuple):
    """Words as directions: `unit` Float `[word, width]` of length 1, and `usable` Bool `[word]`, False where a row has no
    direction."""

    unit: Tensor
    usable: Tensor


def directions(rows: Tensor) -> Directions:
    """Rows scaled to length 1, and which of them have a direction."""
    norms = rows.norm(dim=1)
    usable = norms > _UNTRAINED * norms.max()
    return Directions(rows / norms.clamp(min=torch.finfo(rows.dtype).tiny)[:, None] * usable[:, None], usable)


def turned_at_random(vectors: Tensor, unit: Tensor, draws: int, seed: int) -> Iterator[Tensor]:
    """The vectors in `draws` random rotations, all alike in each, which mix only axes of about equal strength.

    The axes are the principal ones of the directions `unit`, about the origin, so the first is about their mean. Axes
    whose strengths (mean squares) lie between the same powers of two may be mixed. Outside of the span of `unit` a rotation would
    change nothing that its words explain, and there is none.
    """
    if not draws:
        return
    strengths, axes = torch.linalg.eigh(unit.T @ unit / len(unit))
    known = strengths > len(strengths) * torch.finfo(unit.dtype).eps * strengths[-1]
    octaves = (strengths[-1] / strengths.clamp(min=torch.finfo(unit.dtype).tiny)).log2().floor()
    spaces = [axes[:, known & (octaves == octave)] for octave in octaves[known].unique()]
    parts = [torch.linalg.qr((vectors @ space).T) for space in spaces]  # frames of the vectors in each space
    outside = vectors - sum(vectors @ space @ space.T for space in spaces)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(draws):
        frames = (
            space @ _random_frame(space.shape[1], part.R.shape[0], generator).to(vectors)
            for space, part in zip(spaces, parts, strict=True)
        )
        yield outside + sum((frame @ part.R).T for frame, part in zip(frames, parts, strict=True))


def _random_frame(width: int, count: int, generator: torch.Generator) -> Tensor:
    """`count` orthonormal columns, uniformly distributed."""
    frame, triangle = torch.linalg.qr(torch.randn(width, count, generator=generator, dtype=torch.float64))
    return frame * triangle.diagonal().sign()


class _Null:
    """The mean, the 95 % quantile and p of what is explained of each vector, from what is explained of it in each draw."""

    def __init__(self, explained: Tensor, shares: list[Tensor]) -> None:
        draws = len(shares)
        drawn = torch.stack(shares) if shares else explained.new_full((1, *explained.shape), torch.nan)
        unknown = torch.full_like(explained, torch.nan)
        # Of 19 draws and a value that is like them, the value is the largest in 5 % of cases.
        rank = math.ceil(0.95 * (draws + 1))
        rounding = ROUNDINGS * torch.finfo(explained.dtype).eps
        reached = (drawn >= explained - rounding).sum(dim=0).to(explained)
        self.mean = drawn.mean(dim=0)
        self.high = drawn.sort(dim=0).values[rank - 1] if draws and rank <= draws else unknown
        self.p = permutation_p(reached, draws).where(drawn.isfinite().all(dim=0), torch.nan)


# The pursuit -------------------------------------------------------------------------------------------------------------


class Fit(NamedTuple):
    """The outcome of a pursuit over rows of length 1: `ids` and `weights` `[vector, k]`, `explained` `[vector]`, and the
    orthonormal `basis` `[vector or 1, k, width]` of the words taken."""

    ids: Tensor
    weights: Tensor
    explained: Tensor
    basis: Tensor


def pursue_jointly(vectors: Tensor, words: Directions, k: int) -> Fit:
    """A pursuit with one support for all vectors."""

    def score(residuals: Tensor) -> Tensor:
        at_once = max(1, _AT_ONCE // len(words.unit))
        parts = [(part @ words.unit.T).abs().sum(dim=0) for part in residuals.split(at_once)]
        return torch.stack(parts).sum(dim=0)[None]

    return _steps(vectors, words, k, 1, score)


def pursue_each(vectors: Tensor, words: Directions, k: int) -> Fit:
    """A pursuit with a support for each vector, as many vectors at once as memory allows."""
    at_once = max(1, _AT_ONCE // len(words.unit))
    fits = [
        _steps(part, words, k, len(part), lambda residuals: (residuals @ words.unit.T).abs())
        for part in vectors.split(at_once)
    ]
    return Fit(*map(torch.cat, zip(*fits, strict=True)))


def _steps(vectors: Tensor, words: Directions, k: int, groups: int, score: Callable[[Tensor], Tensor]) -> Fit:
    """k steps for `groups` supports: as many as vectors, or one for all.

    The words taken are kept as an orthonormal basis and a triangle, the words in that basis. A new word enters the basis
    by its part outside of it (subtracted twice, against rounding). Then the least-squares fit of all steps is one
    triangular solution at the end.
    """
    rounding = ROUNDINGS * torch.finfo(vectors.dtype).eps
    residuals, lengths = vectors.clone(), vectors.norm(dim=1)
    basis = vectors.new_zeros(groups, k, vectors.shape[1])
    triangle = torch.eye(k, dtype=vectors.dtype, device=vectors.device).repeat(groups, 1, 1)
    parts = vectors.new_zeros(len(vectors), k)
    ids = torch.full((groups, k), -1, device=vectors.device)
    for step in range(k):
        scores = score(residuals).masked_fill(~words.usable, -1.0)
        best = _first_of_the_best(scores.scatter(1, ids[:, :step].clamp(min=0), -1.0), rounding)
        rows = words.unit[best]
        inside = torch.einsum("gkd,gd->gk", basis, rows)
        outside = rows - torch.einsum("gk,gkd->gd", inside, basis)
        again = torch.einsum("gkd,gd->gk", basis, outside)
        outside, inside = outside - torch.einsum("gk,gkd->gd", again, basis), inside + again
        size = outside.norm(dim=1)
        left = residuals.norm(dim=1) > rounding * lengths
        open_ = (left if groups > 1 or len(left) == 1 else left.any(dim=0, keepdim=True)) & (size > rounding)
        basis[:, step] = outside / size.clamp(min=rounding)[:, None] * open_[:, None]
        triangle[:, :, step] = torch.where(open_[:, None], inside, triangle[:, :, step])
        triangle[:, step, step] = torch.where(open_, size, 1.0)
        ids[:, step] = torch.where(open_, best, -1)
        parts[:, step] = (residuals * basis[:, step]).sum(dim=1)
        residuals = residuals - parts[:, step, None] * basis[:, step]
    weights = torch.linalg.solve_triangular(triangle, parts[..., None], upper=True)[..., 0]
    explained = parts.square().sum(dim=1) / lengths.square()
    return Fit(ids.expand(len(vectors), k), weights, explained.clamp(max=1.0), basis)


def _first_of_the_best(scores: Tensor, rounding: float) -> Tensor:
    """The first word with the best score up to rounding: Int `[group]`. Equal rows need not give equal products."""
    best = scores.max(dim=1, keepdim=True).values
    return (scores >= best - rounding * best.abs()).to(torch.uint8).argmax(dim=1)


def explained_by(vectors: Tensor, basis: Tensor) -> float:
    """The share of the squared Frobenius norm of vectors `[vector, width]` in an orthonormal `basis` `[k, width]`."""
    return float((vectors @ basis.T).square().sum() / vectors.square().sum())
