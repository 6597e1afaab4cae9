"""Interventions that replace states: `Patch` writes given ones, `Ablate` writes uninformative ones.

Both act at a site of some layers, at some positions of each row, and leave every other number as it was:

    state[layer, row, position] = value[layer, position]

At a site with heads (q, k, v, z) they may act on some heads alone; q, k and v are what the projections give, before rotary
embeddings, and k and v have the key-value heads.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from interp.arguments import checked_seed
from interp.errors import InputError, InputTypeError, shown
from interp.interventions.selection import keep_iterators
from interp.interventions.writes import (
    Where,
    examples_of,
    is_activations,
    is_one_for_all,
    landed,
    put_states,
    spread,
    states_of,
    where,
)
from interp.models.batches.batch import Batch
from interp.models.running.steps import Edit

if TYPE_CHECKING:
    from interp.models import VLM

_WORDS = ("zero", "mean", "resample")


@dataclass(frozen=True, kw_only=True)
class Patch:
    """Write `value` at these positions: activation patching.

    `site` is one of resid_pre, resid_mid, resid_post, attn_out, mlp_out, q, k, v and z, `heads` the heads of the last
    four, as an int or ints, None for all. `value` is one of

    - a tensor that broadcasts to `[layers, selected positions, width]`, or with heads to `[layers, selected positions,
      heads, d_head]`, the positions in row order and the heads as named;
    - a one-row `Batch`, whose own states at the same site, layers and positions are written into every row;
    - `Activations` with the same site and layers: captured with ``reduce="none"`` their examples land one by one, row by
      row; with one example a row (pooled) it lands on all of the row's positions, a single one on all.

    In generation it acts on the prompt alone, since its values belong to the prompt's positions.

    Raises `InputError` for an unknown site, layer or head, where no layer, head or position is chosen, and where the value
    does not fit the positions; `LayoutError` for a layer in which the site could not be proved.

    Source: activation patching as in Vig et al. 2020 and Meng et al. 2022.

    >>> import torch, interp
    >>> vlm = interp.load("toy")
    >>> batch = vlm.prepare(texts=["a red 3 at top . where is the 3 ?"])
    >>> zero = interp.interventions.Patch(site="resid_pre", layers=0, positions=[2], value=torch.zeros(128))
    >>> bool((vlm.logits(batch) == vlm.logits(batch, interventions=[zero])).all())
    False
    """

    site: str
    layers: Any
    positions: Any
    value: Any = field(repr=False)
    heads: int | Iterable[int] | None = None

    def __post_init__(self) -> None:
        keep_iterators(self)

    def edits(self, vlm: VLM, batch: Batch, new: int = 0) -> list[Edit]:
        places = where(vlm, batch, self.site, self.layers, self.positions, self.heads)
        if isinstance(self.value, Tensor):
            values = spread(self.value, places)
        elif isinstance(self.value, Batch):
            values = self._states_of_row(vlm, places)
        elif is_activations(self.value):
            values = landed(self.value, places)
        else:
            raise InputTypeError(
                f"value is a {type(self.value).__name__}: expected a tensor, Activations or a one-row Batch"
            )
        return places.edits(put_states, values)

    def _states_of_row(self, vlm: VLM, places: Where) -> list[Tensor]:
        """The states of the batch that is the value, for every row; refused where they would not land row by row."""
        if len(self.value) != 1:
            raise InputError(f"value is a batch of {len(self.value)} rows: expected one row, take row(i) of it")
        own = where(vlm, self.value, self.site, self.layers, self.positions, self.heads)
        given = own.per_row()[0]
        for row, count in enumerate(places.per_row()):
            if count != given:
                raise InputError(
                    f"positions={shown(self.positions)} selects {count} positions in row {row} and {given} in the batch that "
                    "is its value: expected as many"
                )
        rows = len(places.mask)
        return [states.repeat(rows, *[1] * (states.ndim - 1)) for states in states_of(vlm, self.value, own)]


@dataclass(frozen=True, kw_only=True)
class Ablate:
    """Take the information out of these positions: write a state that says nothing of them.

    `site` and `heads` are as in `Patch`. `value` is one of

    - "zero";
    - "mean": in each layer the average of the selected states, of all rows of this batch, in the unchanged run;
    - "resample": the states of another row, the first of its selected positions on the first of this row's and so on,
      from the unchanged run; which row takes which is drawn with `seed`, and none takes its own;
    - a tensor, written as it is (it broadcasts as in `Patch`);
    - `Activations`: their mean in each layer over all examples, as the mean of a data set.

    In generation new tokens that `positions` name are ablated too, but for "resample" and a tensor with a value for
    each position: these belong to the prompt.

    Raises what `Patch` raises, and `InputError` for an unknown value, for a seed that is no int from 0 on, and for "resample"
    of one row or of rows that do not select as many positions.

    Source: mean and resample ablation as in Wang et al. 2022 and Chan et al. 2022 (causal scrubbing).
    """

    site: str
    layers: Any
    positions: Any
    value: Any = "zero"
    heads: int | Iterable[int] | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        keep_iterators(self)

    def edits(self, vlm: VLM, batch: Batch, new: int = 0) -> list[Edit]:
        if isinstance(self.value, str) and self.value not in _WORDS:
            raise InputError(f"value={self.value!r}: expected 'zero', 'mean', 'resample', a tensor or Activations")
        seed = checked_seed(self.seed)
        prompt = where(vlm, batch, self.site, self.layers, self.positions, self.heads)
        if isinstance(self.value, str) and self.value == "resample":
            return prompt.edits(put_states, self._of_other_rows(vlm, batch, prompt, seed))
        if isinstance(self.value, Tensor) and not is_one_for_all(self.value, prompt):
            return prompt.edits(put_states, spread(self.value, prompt))
        grown = where(vlm, batch, self.site, self.layers, self.positions, self.heads, new)
        if isinstance(self.value, Tensor):
            return grown.edits(put_states, spread(self.value, grown))
        if isinstance(self.value, str) and self.value == "zero":
            return grown.edits(put_states, spread(torch.zeros(1), grown))
        if isinstance(self.value, str):
            states = states_of(vlm, batch, prompt)
        elif is_activations(self.value):
            states = examples_of(self.value, prompt)
        else:
            raise InputTypeError(f"value is a {type(self.value).__name__}: expected a word, a tensor or Activations")
        count = int(grown.mask.sum())
        return grown.edits(put_states, [_mean(each).expand(count, *each.shape[1:]) for each in states])

    def _of_other_rows(self, vlm: VLM, batch: Batch, prompt: Where, seed: int) -> list[Tensor]:
        counts = prompt.per_row()
        if len(counts) == 1:
            raise InputError(
                "value='resample' takes the states of another row: expected a batch of two rows or more, got 1"
            )
        if len(set(counts)) > 1:
            raise InputError(
                f"positions={shown(self.positions)} selects {counts} positions in the rows: expected as many in each, so that "
                "a row can take another's"
            )
        donors = derangement(len(counts), seed)
        index = torch.arange(sum(counts)).reshape(len(counts), -1)[donors].flatten()
        return [states[index.to(states.device)] for states in states_of(vlm, batch, prompt)]


def _mean(states: Tensor) -> Tensor:
    """The mean over the first axis, accumulated in float32 at least."""
    return states.to(torch.promote_types(states.dtype, torch.float32)).mean(dim=0, keepdim=True)


def derangement(rows: int, seed: int) -> Tensor:
    """For each row another, drawn from all ways to pass on once around: Int `[row]` without a fixed point."""
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(seed))
    donors = torch.empty_like(order)
    donors[order] = order.roll(1)
    return donors
