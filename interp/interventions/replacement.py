"""Interventions that replace states: `Patch` writes a value, `Ablate` an uninformative state, `Skip` the layer's input.

All three change some positions of some layers and leave every other number as it was:

    state[layer, row, position] = value[layer, position]

At a site with heads (q, k, v, z), `Patch` and `Ablate` may change some heads alone. q, k and v are the outputs of the
projections, before rotary embeddings; k and v have the key-value heads.

A position that skips a layer is not updated by the layer, but the layer's attention still reads it: its keys and values
come from the state that enters the layer, as always. So `Skip` removes what a layer does *to* these positions and keeps what
it does *with* them. Additions to the stream between layers (DeepStack) stay:

    resid_post[layer, row, position] = resid_pre[layer, row, position]
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange, repeat
from torch import Tensor

from interp.activations import Activations
from interp.arguments import checked_seed
from interp.errors import InputError, InputTypeError, RowError, shown
from interp.interventions.mean_groups import groups_of_means
from interp.interventions.selection import AtSite, Reusable, Selection, select_layers, select_positions
from interp.interventions.writes import (
    broadcast_value,
    captured_examples,
    examples_by_position,
    is_same_everywhere,
    put_states,
    unchanged_states,
)
from interp.models import VLM, Batch, Edit

_WORDS = ("zero", "mean", "resample")


@dataclass(frozen=True, kw_only=True)
class Patch(AtSite):
    """Write `value` at these positions: activation patching.

    `site` is one of resid_pre, resid_mid, resid_post, attn_out, mlp_out, q, k, v and z. `heads` selects heads of the last
    four, as an int or ints, None for all. `value` is one of

    - a tensor that broadcasts to `[layers, selected positions, width]`, or with heads to `[layers, selected positions,
      heads, d_head]`, with positions in row order and heads in the order of `heads`;
    - a one-row `Batch`, whose own states at the same site, layers and positions are written into every row;
    - `Activations` with the same site and layers. Examples captured with ``reduce="none"`` are matched with the positions
      one by one, row by row. One example a row (pooled) is written to all positions of the row, a single one to all.

    In generation it changes the prompt alone, since its values belong to positions of the prompt.

    Raises `InputError` for an unknown site, layer or head, for no layer, head or position, and for a value that does not fit
    the positions; `LayoutError` for a layer in which the site could not be proved.

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
    value: Any
    heads: int | Iterable[int] | None = None

    def edits(self, vlm: VLM, batch: Batch, new: int = 0) -> list[Edit]:
        selection = self.select(vlm, batch)
        if isinstance(self.value, Tensor):
            values = broadcast_value(self.value, selection)
        elif isinstance(self.value, Batch):
            values = self._states_of_row(vlm, selection)
        elif isinstance(self.value, Activations):
            values = examples_by_position(self.value, selection)
        else:
            raise InputTypeError(
                f"value is a {type(self.value).__name__}: expected a tensor, Activations or a one-row Batch"
            )
        return selection.edits(put_states, values)

    def _states_of_row(self, vlm: VLM, selection: Selection) -> list[Tensor]:
        """The states of the one-row batch that is the value, repeated for every row."""
        if len(self.value) != 1:
            raise InputError(f"value is a batch of {len(self.value)} rows: expected one row, take row(i) of it")
        source = self.select(vlm, self.value)
        expected = source.counts[0]
        faults = {}
        for row, count in enumerate(selection.counts):
            if count != expected:
                before = f"positions={shown(self.positions)} selects {count} positions in "
                faults[row] = (before, f" and {expected} in the batch that is its value: expected as many")
        if faults:
            raise RowError(faults)
        return [
            repeat(states, "position ... -> (row position) ...", row=len(selection.mask))
            for states in unchanged_states(vlm, self.value, source)
        ]


@dataclass(frozen=True, kw_only=True)
class Ablate(AtSite):
    """Remove the information at these positions: write a state that says nothing about them.

    `site` and `heads` are as in `Patch`. `value` is one of

    - "zero";
    - "mean": in each layer the mean of the selected states over all rows of this batch, in the unchanged run; `by` says
      which of them share a mean;
    - "resample": the states of another row in the unchanged run, position by position. `seed` draws which row takes which;
      no row takes its own;
    - a tensor, written as it is (it broadcasts as in `Patch`);
    - `Activations`: in each layer their mean over all examples, such as the mean of a reference set.

    `by` keeps in the mean what is not to be removed. None is one mean for all selected states. "position" is one for the
    first selected position of all rows, one for the second, and so on. Labels, one for each row of a batch, which they fit
    alone, are one mean for each group of rows. ``("position", labels)`` is both: the mean at this position over the rows of
    this group. With `Activations`, the labels of the reference rows have a name: ``by={"kind": labels}`` takes the reference
    rows of the same "kind".

    In generation it also changes the new tokens that `positions` names, except with "resample", with a tensor that has a
    value for each position, and with means by position: these belong to the prompt.

    Raises what `Patch` raises; `InputError` for an unknown value, for a seed below 0 or of another type, for "resample" of
    one row, for "resample" or means by position of rows that select different numbers of positions, for `by` with another
    value, and for groups that are not one a row or that the reference lacks.

    Source: Wang et al. 2022 ablate with the mean over a reference set of prompts of one template, position by position: a
    reference captured with ``reduce="none"``, ``by="position"`` and, with several templates, their labels. Chan et al. 2022
    (causal scrubbing) resample. The mean over all positions is a coarser state, further from what the model is used to.

    >>> import interp
    >>> vlm = interp.load("toy")
    >>> batch = vlm.prepare(texts=["a red 3 at top . where is the 3 ?"])
    >>> mean = interp.interventions.Ablate(site="mlp_out", layers=[0, 1], positions="text", value="mean")
    >>> bool((vlm.logits(batch) == vlm.logits(batch, interventions=[mean])).all())
    False
    """

    site: str
    layers: Any
    positions: Any
    value: Any = "zero"
    heads: int | Iterable[int] | None = None
    seed: int = 0
    by: Any = None

    def edits(self, vlm: VLM, batch: Batch, new: int = 0) -> list[Edit]:
        seed, prompt = checked_seed(self.seed), self.select(vlm, batch)
        if self.by is not None and not (
            isinstance(self.value, Activations) or (isinstance(self.value, str) and self.value == "mean")
        ):
            raise InputError(
                f"by={shown(self.by)} with value={shown(self.value)}: only a mean has groups, leave by out"
            )
        if isinstance(self.value, Tensor):
            selection = self.select(vlm, batch, new) if is_same_everywhere(self.value, prompt) else prompt
            return selection.edits(put_states, broadcast_value(self.value, selection))
        if isinstance(self.value, Activations):
            return self._mean_edits(captured_examples(self.value, prompt), prompt, self.select(vlm, batch, new))
        if not isinstance(self.value, str):
            raise InputTypeError(f"value is a {type(self.value).__name__}: expected a word, a tensor or Activations")
        if self.value not in _WORDS:
            raise InputError(f"value={self.value!r}: expected 'zero', 'mean', 'resample', a tensor or Activations")
        if self.value == "resample":
            return prompt.edits(put_states, self._states_of_other_rows(vlm, batch, prompt, seed))
        selection = self.select(vlm, batch, new)
        if self.value == "zero":
            return selection.edits(put_states, broadcast_value(torch.zeros(1, dtype=torch.float32), selection))
        return self._mean_edits(unchanged_states(vlm, batch, prompt), prompt, selection)

    def _mean_edits(self, states: list[Tensor], prompt: Selection, selection: Selection) -> list[Edit]:
        """Write the mean of the states that share one; `selection` has the new tokens of a generation too."""
        reference = self.value if isinstance(self.value, Activations) else None
        groups = groups_of_means(self.by, prompt, selection, reference)
        values = [_means(each, groups.of_states)[groups.of_positions] for each in states]
        return groups.selection.edits(put_states, values)

    def _states_of_other_rows(self, vlm: VLM, batch: Batch, prompt: Selection, seed: int) -> list[Tensor]:
        counts = prompt.counts
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
        index = rearrange(torch.arange(sum(counts)), "(row position) -> row position", row=len(counts))[
            donors
        ].flatten()
        return [states[index.to(states.device)] for states in unchanged_states(vlm, batch, prompt)]


@dataclass(frozen=True, kw_only=True)
class Skip(Reusable):
    """These positions leave each of these layers as they entered it; their keys and values stay readable.

    In generation the new tokens that `positions` names skip the layers too.

    Raises `InputError` for an unknown layer or position, and for no layer or position.

    Source: freezing visual tokens in some layers, as in ShortV (Yuan et al. 2025).

    >>> import interp
    >>> vlm = interp.load("toy")
    >>> batch = vlm.prepare(texts=["a red 3 at top . where is the 3 ?"])
    >>> skip = interp.interventions.Skip(layers=[3, 4])
    >>> bool((vlm.logits(batch) == vlm.logits(batch, interventions=[skip])).all())
    False
    """

    layers: Any
    positions: Any = "all"

    def edits(self, vlm: VLM, batch: Batch, new: int = 0) -> list[Edit]:
        mask = select_positions(batch, self.positions, new)
        layers = select_layers(vlm, self.layers)
        return [Edit("resid_post", layer, go_around, (mask,), ("resid_pre", "past")) for layer in layers]


# Plain torch, run inside the trace ---------------------------------------------------------------------------------------


def go_around(value, entered, past, mask):
    """The input of a layer at the positions of the mask, its output elsewhere."""
    here = mask[:, past : past + value.shape[1]].to(value.device)
    return torch.where(here[..., None], entered.to(value.device), value)


# Values ------------------------------------------------------------------------------------------------------------------


def _means(states: Tensor, groups: Tensor) -> Tensor:
    """The mean of the states of each group, accumulated in float32 at least; groups are numbered from 0."""
    states = states.to(torch.promote_types(states.dtype, torch.float32))
    return torch.stack(
        [states[(groups == group).to(states.device)].mean(dim=0) for group in range(int(groups.max()) + 1)]
    )


def derangement(rows: int, seed: int) -> Tensor:
    """A random cycle through all rows: for each row another one, Int `[row]` without a fixed point."""
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(seed))
    donors = torch.empty_like(order)
    donors[order] = order.roll(1)
    return donors
