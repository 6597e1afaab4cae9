"""Sparse decomposition: a state as a sum of few words.

A nearest word says one thing of a state. A state that carries several (a colour, a digit and a place) lies between
their words, and near none. *Orthogonal matching pursuit* writes it as a combination: take the word that points most
along the vector, fit, subtract, take the word that points most along what is left, fit all taken words anew, and so on
for k words. What the fit reaches of the squared length is the *explained* share.

Words are compared by direction: rows are brought to length 1 for the choice, since a long row would win by its length
alone, and weights are given back for the rows as they are, so that ``weights @ dictionary[ids]`` is the fit. A set of
vectors may be asked for one support (`joint=True`, *simultaneous* pursuit): in each step the word along which all
residuals together have most, in sum of absolute products.

k words out of many explain something of any vector. `chance` is what k rows explain out of random dictionaries of the
same size, Gaussian with the mean and the covariance of the words' directions: they lie in the same cone, span the same
space, prefer the same directions, and mean nothing.

Sources: Pati et al. 1993 (OMP), Tropp et al. 2006 (simultaneous OMP).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.arguments import as_int, checked_flag, checked_seed
from interp.errors import InputError, shown
from interp.models.batches.targets import word_of
from interp.models.running.structure import resolve
from interp.provenance import Provenance
from interp.results import Result

if TYPE_CHECKING:
    from interp.models import VLM

# A row this much shorter than the longest was never trained: its direction says nothing.
_UNTRAINED = 1e-6
# A residual of so many roundings is none.
ROUNDINGS = 64
# The products of residuals with all words are made for this many numbers at a time.
_AT_ONCE = 2**25


@dataclass(frozen=True)
class Dictionary:
    """Words as vectors: `rows` Float `[word, width]`, and what each one is called."""

    rows: Float[Tensor, "word width"]
    words: tuple[str, ...]

    def __post_init__(self) -> None:
        if len(self.words) != len(self.rows):
            raise InputError(f"{len(self.words)} words for {len(self.rows)} rows of a dictionary: expected one a row")


@dataclass(frozen=True)
class DecompositionResult(Result):
    """Each vector as a sum of k words.

    `ids` `[vector, k]` are rows of the dictionary in the order in which they were taken, -1 where nothing was left to
    explain; `weights` `[vector, k]` belong to the rows as they are (less the centre, where there was one); `explained`
    `[vector]` is the share of the squared length that the fit reaches, NaN of a vector of zeros. `chance` is the mean
    share with random dictionaries, NaN where none was drawn.
    """

    ids: Int[Tensor, "vector k"]
    weights: Float[Tensor, "vector k"]
    explained: Float[Tensor, " vector"]
    chance: float
    joint: bool
    vocabulary: dict[str, str]

    def words(self, vector: int) -> list[str]:
        """The words of one vector, in the order in which they were taken."""
        return [self.vocabulary[str(word)] for word in self.ids[vector].tolist() if word >= 0]

    def to_frame(self) -> pd.DataFrame:
        """One row a taken word: vector, step, id, word, weight, and what its vector's words explain together."""
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
                "chance": self.chance,
            }
        )


def dictionary_of(vlm: VLM, part: str) -> Dictionary:
    """A model's own words as vectors: what its input embedding gives for each token ("embed"), or the rows of its head
    ("head"), both Float `[vocabulary, width]`.

    The final norm's gain is no part of the head's rows.

    Raises `InputError` for another part, and for a model whose weights are not here.
    """
    if part not in ("embed", "head"):
        raise InputError(
            f"part={shown(part)}: expected 'embed' (what words enter as) or 'head' (what they are read by)"
        )
    module = resolve(vlm.model, getattr(vlm.structure, part))
    if any(weights.is_meta for weights in module.parameters()):
        raise InputError(f"{vlm.name!r} has no weights here: a dictionary needs a model loaded on this machine")
    tokens = torch.arange(vlm.structure.vocab_size, device=vlm.device)
    with torch.no_grad():
        # The embedding is called, since some models scale what they look up.
        rows = module(tokens) if part == "embed" else module.weight[: len(tokens)]
    words = tuple(word_of(vlm, token) for token in tokens.tolist())
    return Dictionary(rows.detach().to(torch.promote_types(rows.dtype, torch.float32)), words)


def vocabulary_decomposition(
    vectors: Any,
    dictionary: Any,
    k: int,
    joint: bool = False,
    center: bool = False,
    draws: int = 3,
    seed: int = 0,
) -> DecompositionResult:
    """Write each of `vectors` `[vector, width]` as a sum of `k` rows of `dictionary`, a `Dictionary` or an array `[word,
    width]`; with `joint`, all with the same k.

    With `center` the mean of the dictionary's rows is taken off rows and vectors alike: what all words share would be
    taken first, by whichever word has most of it. Rows of zeros (tokens never trained) are never taken, and of equal rows
    the first. `chance` is the mean over `draws` random dictionaries, drawn with `seed`.

    Raises `InputError` where vectors or rows are not finite, not two-dimensional or of different width, where `k` is not
    between 1 and the number of words, for draws that are not 0 or more, for a seed that is no int from 0 on,
    and for a `joint` or `center` that is neither True nor False.

    >>> words = torch.eye(8)[:6]
    >>> found = vocabulary_decomposition(words[[1]] * 2 - words[[4]], words, k=2)
    >>> found.ids.tolist(), found.weights.tolist(), round(float(found.explained), 3)
    ([[1, 4]], [[2.0, -1.0]], 1.0)
    """
    checked_flag(joint, "joint")
    checked_flag(center, "center")
    rows, names = (dictionary.rows, dictionary.words) if isinstance(dictionary, Dictionary) else (dictionary, None)
    given, rows = as_rows(vectors, "vectors"), as_rows(rows, "dictionary")
    if given.shape[1] != rows.shape[1]:
        raise InputError(
            f"vectors of width {given.shape[1]} and a dictionary of width {rows.shape[1]}: expected the same"
        )
    working = torch.promote_types(torch.promote_types(given.dtype, rows.dtype), torch.float32)
    given, rows = given.to(working), rows.to(given.device, working)
    if center:
        given, rows = given - rows.mean(dim=0), rows - rows.mean(dim=0)
    # Near 1, so that squares of what is tiny or huge are neither lost nor infinite.
    (given, size), (rows, length) = near_one(given), near_one(rows)
    unit, usable = directions(rows)
    if not usable.any():
        raise InputError(f"all {len(rows)} rows of the dictionary are zero{' once centred' * center}: expected words")
    count = as_int(k)
    if count is None or not 1 <= count <= int(usable.sum()):
        raise InputError(
            f"k={shown(k)}: expected 1 to {int(usable.sum())}, the words of the dictionary that are not zero"
        )
    if as_int(draws) is None or draws < 0:
        raise InputError(f"draws={shown(draws)}: expected 0 random dictionaries or more")
    seed = checked_seed(seed)
    found = _pursue(given, unit, usable, count, joint)
    weights = found.weights / rows.norm(dim=1)[found.ids.clamp(min=0)] * (size / length)
    chosen = [word for word in found.ids.unique().tolist() if word >= 0]
    return DecompositionResult(
        ids=found.ids.cpu(),
        weights=weights.cpu(),
        explained=found.explained.cpu(),
        chance=_chance(given, unit[usable], count, joint, draws, seed),
        joint=joint,
        vocabulary={str(word): str(word) if names is None else names[word] for word in chosen},
        provenance=Provenance(seed=seed, notes=("centred on the mean of the dictionary",) if center else ()),
    )


# What is given -----------------------------------------------------------------------------------------------------------


def as_rows(given: Any, name: str) -> Tensor:
    """An array as Float `[row, width]`. Raises `InputError` where it is none, is empty or has what is not finite."""
    try:
        values = given if isinstance(given, Tensor) else torch.as_tensor(np.ascontiguousarray(given))
    except (TypeError, ValueError):
        raise InputError(
            f"{name} of type {type(given).__name__} is no array of numbers: expected real numbers [row, width]"
        ) from None
    if values.ndim != 2 or not values.numel() or values.is_complex():
        raise InputError(f"{name} of shape {tuple(values.shape)}: expected real numbers [row, width], one row or more")
    values = values.detach()
    values = values if values.is_floating_point() else values.float()
    if not values.isfinite().all():
        first = int((~values.isfinite()).any(dim=1).nonzero()[0])
        raise InputError(f"{name} has numbers that are not finite, the first in row {first}: leave such rows out")
    return values


def near_one(values: Tensor) -> tuple[Tensor, Tensor]:
    """Values by their largest, and that: 1 where all are zero."""
    largest = values.abs().max()
    largest = torch.where(largest > 0, largest, 1)
    return values / largest, largest


def directions(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Rows at length 1, and which of them have a direction: Bool `[word]`."""
    norms = rows.norm(dim=1)
    usable = norms > _UNTRAINED * norms.max()
    return rows / norms.clamp(min=torch.finfo(rows.dtype).tiny)[:, None] * usable[:, None], usable


# The pursuit -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Fit:
    """A pursuit's outcome over rows of length 1: Int and Float `[vector, k]`, Float `[vector]`, and the orthonormal
    `basis` `[vector or 1, k, width]` of what was taken."""

    ids: Tensor
    weights: Tensor
    explained: Tensor
    basis: Tensor


def pursue_jointly(vectors: Tensor, unit: Tensor, usable: Tensor, k: int) -> Fit:
    """One support for all vectors."""

    def score(residuals: Tensor) -> Tensor:
        at_once = max(1, _AT_ONCE // len(unit))
        return torch.stack([(part @ unit.T).abs().sum(dim=0) for part in residuals.split(at_once)]).sum(dim=0)[None]

    return _steps(vectors, unit, usable, k, 1, score)


def pursue_each(vectors: Tensor, unit: Tensor, usable: Tensor, k: int) -> Fit:
    """A support for each vector, all vectors at once as far as memory goes."""
    at_once = max(1, _AT_ONCE // len(unit))
    parts = [
        _steps(part, unit, usable, k, len(part), lambda residuals: (residuals @ unit.T).abs())
        for part in vectors.split(at_once)
    ]
    return Fit(
        *(torch.cat([getattr(part, name) for part in parts]) for name in ("ids", "weights", "explained", "basis"))
    )


def _pursue(vectors: Tensor, unit: Tensor, usable: Tensor, k: int, joint: bool) -> Fit:
    return (pursue_jointly if joint else pursue_each)(vectors, unit, usable, k)


def _steps(
    vectors: Tensor, unit: Tensor, usable: Tensor, k: int, groups: int, score: Callable[[Tensor], Tensor]
) -> Fit:
    """k steps for `groups` supports: as many as vectors, or one for all.

    What was taken is kept as an orthonormal basis, into which each new word enters by its part outside (taken off twice,
    against rounding), and the words in that basis as a triangle: the least-squares fit of all steps is one triangular
    solution at the end.
    """
    rounding = ROUNDINGS * torch.finfo(vectors.dtype).eps
    residuals, lengths = vectors.clone(), vectors.norm(dim=1)
    basis = vectors.new_zeros(groups, k, vectors.shape[1])
    triangle = torch.eye(k, dtype=vectors.dtype, device=vectors.device).repeat(groups, 1, 1)
    parts = vectors.new_zeros(len(vectors), k)
    ids = torch.full((groups, k), -1, device=vectors.device)
    for step in range(k):
        scores = score(residuals).masked_fill(~usable, -1.0)
        taken = _first_of_the_best(scores.scatter(1, ids[:, :step].clamp(min=0), -1.0), rounding)
        words = unit[taken]
        inside = torch.einsum("gkd,gd->gk", basis, words)
        outside = words - torch.einsum("gk,gkd->gd", inside, basis)
        again = torch.einsum("gkd,gd->gk", basis, outside)
        outside, inside = outside - torch.einsum("gk,gkd->gd", again, basis), inside + again
        size = outside.norm(dim=1)
        left = residuals.norm(dim=1) > rounding * lengths
        open_ = (left if groups > 1 or len(left) == 1 else left.any(dim=0, keepdim=True)) & (size > rounding)
        basis[:, step] = outside / size.clamp(min=rounding)[:, None] * open_[:, None]
        triangle[:, :, step] = torch.where(open_[:, None], inside, triangle[:, :, step])
        triangle[:, step, step] = torch.where(open_, size, 1.0)
        ids[:, step] = torch.where(open_, taken, -1)
        parts[:, step] = (residuals * basis[:, step]).sum(dim=1)
        residuals = residuals - parts[:, step, None] * basis[:, step]
    weights = torch.linalg.solve_triangular(triangle, parts[..., None], upper=True)[..., 0]
    explained = parts.square().sum(dim=1) / lengths.square()
    return Fit(ids.expand(len(vectors), k), weights, explained.clamp(max=1.0), basis)


def _first_of_the_best(scores: Tensor, rounding: float) -> Tensor:
    """The first word whose score is the best but for rounding: Int `[group]`. Equal rows need not give equal products."""
    best = scores.max(dim=1, keepdim=True).values
    return (scores >= best - rounding * best.abs()).to(torch.uint8).argmax(dim=1)


def _chance(vectors: Tensor, unit: Tensor, k: int, joint: bool, draws: int, seed: int) -> float:
    """The mean explained share with random dictionaries that have the mean and the covariance of these rows."""
    mean = unit.mean(dim=0)
    values, axes = torch.linalg.eigh((unit - mean).T @ (unit - mean) / len(unit))
    root = (axes * values.clamp(min=0).sqrt()) @ axes.T
    generator = torch.Generator().manual_seed(seed)
    shares: list[Tensor] = []
    for _ in range(draws):
        drawn = torch.randn(unit.shape, generator=generator, dtype=unit.dtype).to(unit.device) @ root + mean
        shares.append(_pursue(vectors, *directions(drawn), k, joint).explained)
    return float(torch.cat(shares).nanmean()) if shares else float("nan")


def explained_by(vectors: Tensor, basis: Tensor) -> float:
    """The share of the squared length of a set of vectors `[vector, width]` that lies in an orthonormal `basis`
    `[k, width]`: of their Frobenius norm."""
    return float((vectors @ basis.T).square().sum() / vectors.square().sum())
