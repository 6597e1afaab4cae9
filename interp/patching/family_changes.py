"""Paired changes of many cells at once, each with a p that counts all of them.

A sweep asks of every cell whether it changes the answer, on the same rows. Without a change, before and after could change
places in each row. So signs are flipped, row by row and the same for all cells, and the p of a cell is how often the largest
of all cells reaches it (`interp.statistics.family_p`). All signs are tried for up to 10 rows, and 999 random ones beyond. With
fewer than 6 rows no p could be under .05, so it is NaN.

The p answers whether anything changes: a change is as likely to either side if nothing does. It is no test of a mean that a
few rows far out carry. If changes are exponential about a mean of 0, some cell of 20 has a p under .05 in 36 % of draws of 8
rows, in 27 % of 20 rows. So read it with the bounds, which cover there.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from interp.errors import InputError
from interp.provenance import Provenance
from interp.statistics import Change
from interp.statistics.corrections import family_p_of_parts
from interp.statistics.paired import paired_interval

FEWEST = 6
_ALL_SIGNS, _FLIPS = 10, 999
# A smaller change, relative to the largest value of its row, is rounding.
_ROUNDING = 1e-5
_AT_ONCE = 2**23  # numbers of flipped sums held at a time


def family_change(before: Float[Tensor, "row ..."], after: Float[Tensor, "row ..."], seed: int = 0) -> Change:
    """The change of the mean from `before` to `after`, paired by row, with its 95 % bounds and the p among all cells.

    A row with NaN in it, which has no value in one of the two, is left out. A cell without a value in any row has NaN. Raises
    `InputError` if no row is left.

    >>> draw = torch.Generator().manual_seed(0)
    >>> before, noise = torch.randn(2, 12, 5, generator=draw).unbind(0)
    >>> shift = torch.tensor([0.0, 0.0, 0.0, 0.0, 3.0])
    >>> (family_change(before, before + noise + shift).p < 0.05).tolist()
    [False, False, False, False, True]
    """
    unknown = (before.isnan() | after.isnan()).flatten(1)
    known = ~unknown[:, ~unknown.all(dim=0)].any(dim=1)
    if not known.any():
        raise InputError(
            f"none of {len(known)} rows has a value in all cells, so none can be compared: expected one, such as a row in which "
            "each edge has a control"
        )
    before, after = before[known].double(), after[known].double()
    difference = after - before
    low, high = paired_interval(before, after, seed=seed)
    p = sign_flip_p(rounded(difference, torch.maximum(before.abs(), after.abs())), seed)
    return Change(before.mean(dim=0), after.mean(dim=0), difference.mean(dim=0), low, high, p, len(difference))


def rounded(difference: Float[Tensor, "row ..."], size: Float[Tensor, "row ..."]) -> Float[Tensor, "row ..."]:
    """The differences, 0 where they are rounding errors of numbers as large as the largest of their row."""
    largest = size.nan_to_num().flatten(1).amax(dim=1).reshape(-1, *[1] * (difference.ndim - 1))
    return difference.masked_fill(difference.abs() <= _ROUNDING * largest, 0.0)


def sign_flip_p(difference: Float[Tensor, "row ..."], seed: int = 0) -> Float[Tensor, ...]:
    """The p of each cell's mean difference among all cells, by the rule above; 1 where no row differs."""
    n = len(difference)
    if n < FEWEST:
        return torch.full(difference.shape[1:], torch.nan, dtype=torch.float64)
    if n <= _ALL_SIGNS:
        bits = torch.arange(1, 2**n)[:, None] >> torch.arange(n) & 1  # the first signs are those of the data
    else:
        bits = torch.randint(2, (_FLIPS, n), generator=torch.Generator().manual_seed(seed))
    signs = (1 - 2 * bits).double()
    cells = difference.flatten(1).double().split(max(1, _AT_ONCE // len(signs)), dim=1)
    p = family_p_of_parts((some.sum(dim=0).abs(), (signs @ some).abs()) for some in cells)
    return p.reshape(difference.shape[1:])


def change_from(rows: Float[Tensor, " row"], per_row: Float[Tensor, "row ..."]) -> Float[Tensor, "row ..."]:
    """The change of each row in every cell from its metric in another run."""
    return per_row - rows.reshape(-1, *[1] * (per_row.ndim - 1))


def few_notes(n: int) -> tuple[str, ...]:
    """The note of a result whose rows are too few for a p."""
    return () if n >= FEWEST else (f"no p: with under {FEWEST} rows none could be under .05, pass more",)


def common_rows(
    one: tuple[Provenance, Bool[Tensor, " given"]], other: tuple[Provenance, Bool[Tensor, " also"]]
) -> tuple[Bool[Tensor, " kept"], Bool[Tensor, " also_kept"]]:
    """Which of the kept rows of two results are kept in both, from their provenance and the given rows that each keeps.

    Raises `InputError` for results of other data, or if no row is kept in both.
    """
    (data, kept), (other_data, also_kept) = one, other
    if data.data != other_data.data or kept.shape != also_kept.shape:
        raise InputError(
            f"the results come from other rows ({len(kept)} and {len(also_kept)}, or other inputs): expected two results of the "
            "same batches, which are compared row by row"
        )
    both = kept & also_kept
    if not both.any():
        raise InputError(
            f"no row of {len(both)} is kept in both results: expected rows that both models answer rightly"
        )
    return both[kept], both[also_kept]
