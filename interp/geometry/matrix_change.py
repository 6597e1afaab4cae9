"""What changed from one alignment matrix to another of the same examples, such as of a checkpoint before and after tuning."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from interp.errors import InputError
from interp.geometry.paired_samples import changes_by_halves, changes_by_influence
from interp.geometry.phase import LayerValues
from interp.results import Result

_SETTINGS = ("metric", "k", "n", "preprocess", "examples")


@dataclass(frozen=True, eq=False)
class MatrixChange(Result):
    """The change of the similarity of each visual layer with each textual one: `difference[visual, textual]`, `after` less
    `before`, with its paired 95 % interval `low` and `high`.

    `p` is that of each pair of layers alone, two-sided, and `p_family` that of it among all pairs. `p_diagonal[layer]` is the
    p of layers at equal depth among those alone, empty where there are more of one modality. `metric`, `k` and `n` (examples)
    are those of both matrices. `interp.geometry.paired_samples` says how they are computed.

    In simulations of two checkpoints that do not differ, p is at most 0.05 in 2 to 5 % of cases, p_family of nine layers in 1 to
    4 %.
    """

    before: Float[Tensor, "visual textual"]
    after: Float[Tensor, "visual textual"]
    difference: Float[Tensor, "visual textual"]
    low: Float[Tensor, "visual textual"]
    high: Float[Tensor, "visual textual"]
    p: Float[Tensor, "visual textual"]
    p_family: Float[Tensor, "visual textual"]
    p_diagonal: Float[Tensor, " layer"]
    metric: str
    k: int | None
    n: int

    def to_frame(self) -> pd.DataFrame:
        """One row for each pair of layers: visual, textual, before, after, difference, low, high, p, p_family."""
        names = ("before", "after", "difference", "low", "high", "p", "p_family")
        index = pd.MultiIndex.from_product([range(size) for size in self.difference.shape], names=["visual", "textual"])
        columns = {name: getattr(self, name).flatten().numpy() for name in names}
        return pd.DataFrame(columns, index=index).reset_index()


def change_of(before: LayerValues, after: LayerValues) -> MatrixChange:
    """The paired change from one matrix to another; both have to be of the same examples, measure and halves."""
    _check_same(before, after)
    shape, n = before.values.shape, before.n
    seed = before.provenance.seed or 0
    difference = (after.values - before.values).double().flatten()
    if before.influence is not None and after.influence is not None:
        one, other = (each.flatten(end_dim=1) for each in (before.influence, after.influence))
        changes = changes_by_influence(difference, one, other, seed)
    else:
        assert before.parts is not None  # `_check_same` refuses matrices without
        assert after.parts is not None
        one, other = (each.flatten(start_dim=1) for each in (before.parts, after.parts))
        changes = changes_by_halves(difference, one, other, n)
    every = torch.arange(len(difference))
    diagonal = every.view(shape).diagonal() if shape[0] == shape[1] else every[:0]
    low, high, p, family = (each.view(shape) for each in (changes.low, changes.high, changes.p, changes.family(every)))
    return MatrixChange(
        before.values,
        after.values,
        difference.view(shape),
        low,
        high,
        p,
        family,
        changes.family(diagonal),
        before.metric,
        before.k,
        n,
        provenance=after.provenance,
    )


def _check_same(before: LayerValues, after: LayerValues) -> None:
    """Refuse matrices that cannot be compared in pairs."""
    if before.values.shape != after.values.shape:
        raise InputError(
            f"the matrices have shapes {tuple(before.values.shape)} and {tuple(after.values.shape)}: expected the same layers"
        )
    for name in _SETTINGS:
        one, other = getattr(before, name), getattr(after, name)
        if one != other and (name != "examples" or (one and other)):
            raise InputError(
                f"the matrices have {name}={one!r} and {name}={other!r}: compute both with the same examples, metric and settings"
            )
    if before.influence is not None and after.influence is not None:
        return
    seeds = [each.provenance.seed for each in (before, after)]
    sizes = [0 if each.parts is None else len(each.parts) for each in (before, after)]
    if sizes[0] != sizes[1] or sizes[0] < 2 or seeds[0] != seeds[1]:
        raise InputError(
            f"the matrices have {sizes[0]} and {sizes[1]} halves of seeds {seeds[0]!r} and {seeds[1]!r}: compute both with"
            " the same seed and subsamples, two or more"
        )
