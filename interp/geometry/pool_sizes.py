"""Pool sizes: does where two modalities meet depend on how many tokens an example is the mean of?

An image is 36 or 576 tokens, its caption about ten words. A mean of many tokens is less noisy than one of few, and it holds what
all of the picture shares. So the layers at which images and captions are most alike can move with the number of tokens that are
averaged, and a phase that is there for one number alone says little. `pool_sizes` takes activations of all tokens, draws as
many of each row's for both modalities, and compares the layers again for each number.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.arguments import as_ints, checked_flag, checked_seed
from interp.errors import InputError, shown
from interp.geometry.alignment import alignment_matrix
from interp.geometry.clouds import States, as_states, check_same_order
from interp.geometry.outlying import notes_of_captures, notes_of_outlying
from interp.progress import progress_bar, quiet
from interp.provenance import Provenance
from interp.results import Result

SIZES = (1, 2, 4, 8, 16, 32)
ALL = 0


@dataclass(frozen=True, eq=False)
class PoolSizes(Result):
    """The likeness of two modalities at equal depth, for means of so many tokens of each row.

    `sizes` are the numbers of tokens, 0 for all of a row's. `values[size, state]` with `low` and `high` are the diagonals of the
    alignment matrices of `metric`, `chance[size]` their chance level. `start[size]` and `stop[size]` are the phase, -1 where
    there is none, and `peak[size]` is the state with the largest value. `pooled` are the mean numbers of tokens of a visual and
    of a textual row, which 0 averages.
    """

    sizes: tuple[int, ...]
    values: Float[Tensor, "size state"]
    low: Float[Tensor, "size state"]
    high: Float[Tensor, "size state"]
    chance: Float[Tensor, " size"]
    start: Int[Tensor, " size"]
    stop: Int[Tensor, " size"]
    peak: Int[Tensor, " size"]
    pooled: tuple[float, float]
    metric: str

    def phase(self, size: int) -> range | None:
        """The phase for means of so many tokens (0 for all). Raises `InputError` for a number that was not taken."""
        if size not in self.sizes:
            raise InputError(f"size={shown(size)}: expected one of {self.sizes}")
        at = self.sizes.index(size)
        return None if self.start[at] < 0 else range(int(self.start[at]), int(self.stop[at]))

    def to_frame(self) -> pd.DataFrame:
        """One row for each size and state: size (0 for all), state, value, low, high, chance, in_phase."""
        sizes, states = self.values.shape
        numbers = {name: getattr(self, name).flatten().tolist() for name in ("values", "low", "high")}
        frame = pd.DataFrame(
            {"size": np.repeat(self.sizes, states), "state": np.tile(np.arange(states), sizes), **numbers}
        )
        frame = frame.rename(columns={"values": "value"}).assign(chance=np.repeat(self.chance.numpy(), states))
        inside = [(self.start <= state) & (state < self.stop) for state in range(states)]
        return frame.assign(in_phase=torch.stack(inside, dim=1).flatten().tolist())


def pool_sizes(
    visual: States,
    textual: States,
    sizes: Sequence[int] = SIZES,
    metric: str = "neighbor_overlap",
    k: int | None = None,
    seed: int = 0,
    *,
    rows: tuple[Any, Any] | None = None,
    progress: bool = True,
) -> PoolSizes:
    """The likeness of both modalities at each state, for means of so many tokens of each row, and of all.

    >>> states = torch.randn(3, 200, 4, generator=torch.Generator().manual_seed(0))
    >>> of_row = torch.arange(200) // 4  # 50 rows of 4 tokens
    >>> found = pool_sizes(states, states, sizes=[1, 2], k=5, rows=(of_row, of_row))
    >>> found.sizes, found.values[-1].tolist()
    ((1, 2, 0), [1.0, 1.0, 1.0])

    Both are activations of one site, captured with ``reduce="none"``, of the same rows; or arrays `[state, token, feature]`
    with `rows`, the row of each token of both. Of each row as many tokens are drawn for both modalities, without replacement
    and independently, with `seed`; their mean is the row's example, and `alignment_matrix` compares the layers by `metric` and
    `k`. Sizes that some row does not have are left out, and a note says so. All of a row's tokens (0) always come last: of these
    the two modalities have unequal numbers, as the means of two captures have.

    Raises `InputError` where the rows of tokens are unknown or not the same for both, there are unequal numbers of states,
    or no size is an int of 1 or more, and the errors of `alignment_matrix`.
    """
    wanted = as_ints(sizes)
    seed = checked_seed(seed)
    if not wanted or min(wanted) < 1:
        raise InputError(f"sizes={shown(sizes)}: expected numbers of tokens from 1")
    of_rows = rows if rows is not None else (_rows_of(visual, "visual"), _rows_of(textual, "textual"))
    if not isinstance(of_rows, tuple | list) or len(of_rows) != 2:
        raise InputError(f"rows={shown(rows)}: expected two, the row of each visual and of each textual token")
    numbers, groups = zip(*map(_tokens_of, of_rows, ("visual", "textual")), strict=True)
    stacks = as_states(visual, "visual"), as_states(textual, "textual")
    for stack, tokens, name in zip(stacks, groups, ("visual", "textual"), strict=True):
        if stack.shape[1] != sum(map(len, tokens)):
            raise InputError(
                f"{name} has {stack.shape[1]} tokens and rows for {sum(map(len, tokens))}: expected one row a token"
            )
    if numbers[0] != numbers[1] or len(stacks[0]) != len(stacks[1]):
        raise InputError(
            f"visual has {len(stacks[0])} states of {len(groups[0])} rows, {shown(numbers[0])}, and textual {len(stacks[1])} of"
            f" {len(groups[1])}, {shown(numbers[1])}: expected the same"
        )
    check_same_order(visual, textual, ("visual", "textual"))
    most = min(len(tokens) for side in groups for tokens in side)
    kept = (*[size for size in dict.fromkeys(wanted) if size <= most], ALL)
    with quiet(not checked_flag(progress, "progress")), progress_bar("pool sizes", len(kept), "sizes") as bar:
        matrices = []
        for size in bar.each(kept):
            image, text = (
                _means(stack, side, size, [seed, at])
                for at, (stack, side) in enumerate(zip(stacks, groups, strict=True))
            )
            matrices.append(alignment_matrix(image, text, metric, k, seed=seed))
    phases = [matrix.phase() for matrix in matrices]
    left_out = [size for size in wanted if size > most]
    notes = (
        *((f"sizes {left_out} are left out: some row has {most} tokens",) if left_out else ()),
        *notes_of_outlying(visual=stacks[0], textual=stacks[1]),
        *notes_of_captures(visual=visual, textual=textual),
    )
    values, low, high = (
        torch.stack([getattr(matrix, name).diagonal() for matrix in matrices]) for name in ("values", "low", "high")
    )
    return PoolSizes(
        kept,
        values,
        low,
        high,
        chance=torch.tensor([matrix.chance for matrix in matrices], dtype=torch.float64),
        start=torch.tensor([-1 if phase is None else phase.start for phase in phases]),
        stop=torch.tensor([-1 if phase is None else phase.stop for phase in phases]),
        peak=torch.stack([matrix.values.diagonal().argmax() for matrix in matrices]),
        pooled=(stacks[0].shape[1] / len(groups[0]), stacks[1].shape[1] / len(groups[1])),
        metric=metric,
        provenance=Provenance(seed=seed, notes=notes),
    )


def _rows_of(acts: Any, name: str) -> Any:
    if not isinstance(acts, Mapping) or not callable(getattr(acts, "places", None)):
        raise InputError(
            f"{name} is a {type(acts).__name__} and rows=None: pass activations, or rows= with the row of each token"
        )
    return acts.places(next(iter(acts))).rows  # type: ignore[attr-defined]


def _tokens_of(rows: Any, name: str) -> tuple[list[int], list[Int[Tensor, " token"]]]:
    """The numbers of the rows, and the tokens of each."""
    numbers = np.asarray(rows.cpu() if isinstance(rows, Tensor) else rows)
    if numbers.ndim != 1 or numbers.dtype.kind not in "iu" or not len(numbers):
        raise InputError(f"rows of {name} of shape {numbers.shape} and type {numbers.dtype}: expected one int a token")
    distinct, inverse, counts = torch.from_numpy(numbers.astype(np.int64)).unique(
        return_inverse=True, return_counts=True
    )
    return distinct.tolist(), list(inverse.argsort(stable=True).split(counts.tolist()))


def _means(stack: Tensor, tokens: Sequence[Tensor], size: int, seed: Sequence[int]) -> Float[Tensor, "state row d"]:
    """The mean of so many tokens of each row, of all where the size is 0."""
    rng = np.random.default_rng([size, *seed])
    chosen = [own if size == ALL else own[torch.from_numpy(rng.permutation(len(own))[:size])] for own in tokens]
    return torch.stack([stack[:, own.to(stack.device)].mean(dim=1) for own in chosen], dim=1)
