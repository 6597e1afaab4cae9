"""Position limits: how long a row may be, by the way in which the decoder knows where a token stands.

=====================  ===========================  ===============================================================
the decoder has        a row that is too long       its limit
=====================  ===========================  ===============================================================
a table of positions   cannot be run: an error      the rows of the table, less those before the first position
rotary angles          runs: a warning, once        ``max_position_embeddings``, up to where the model was trained
neither                is like any other            none (recurrences, ALiBi, sinusoids that are made when needed)
=====================  ===========================  ===============================================================

Without the first, a row that is too long ends in an IndexError from inside torch, on a GPU in a device-side assert after which
the process cannot use it any more.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor, nn

from interp.errors import InputError, RowError
from interp.models.running.places import find_argument
from interp.models.running.structure import resolve

if TYPE_CHECKING:
    from interp.models.running.core import Core

_TABLE = re.compile(r"pos|wpe")
_ANGLES = "inv_freq"


class Limit(NamedTuple):
    """The number of positions. `table` says that there are no others, `padded` that padding takes some of them."""

    positions: int
    table: bool
    padded: bool


def refuse_too_long(core: Core, inputs: Mapping[str, Tensor], new: int = 0) -> None:
    """Refuse rows that do not fit into the model's table of positions, and warn once where they go beyond what a model with
    rotary angles was trained on. `new` tokens follow each row.

    Raises `RowError` for the rows that are too long, and `InputError` where they are so only with their padding.
    """
    ids = inputs["input_ids"]
    if ids.shape[1] + new <= core.fitting_columns:
        return
    limit = position_limit(core)
    core.fitting_columns = sys.maxsize if limit is None else limit.positions
    if limit is None or ids.shape[1] + new <= limit.positions:
        return
    mask = inputs.get("attention_mask")
    tokens = [ids.shape[1]] * len(ids) if mask is None else mask.sum(dim=1).tolist()
    padded = limit.padded and "position_ids" not in inputs
    longer = [row for row, count in enumerate(tokens) if count + new > limit.positions]
    if not longer and not padded:
        return
    more = f" and {new} new ones" if new else ""
    ends = f"this model's positions end at {limit.positions}: shorten its text or the images in it"
    if limit.table and longer:
        raise RowError({row: ("", f" has {tokens[row]} tokens{more}, {ends}") for row in longer})
    row = longer[0] if longer else tokens.index(max(tokens))
    length = f"row {row} has {tokens[row]} tokens{more}"
    if limit.table:
        raise InputError(f"{length} and {ids.shape[1] - tokens[row]} of padding, {ends}")
    core.note_once(
        "positions", f"{length}, and {core.name!r} was trained on {limit.positions} positions: its answers may be poor"
    )


def position_limit(core: Core) -> Limit | None:
    """The limit of the decoder, None where it has none.

    >>> import interp
    >>> position_limit(interp.load("toy"))
    Limit(positions=512, table=False, padded=False)
    """
    angles = False
    for name, module in _around_layers(core):
        if isinstance(module, nn.Embedding) and _TABLE.search(name):
            # The first position of OPT and BART is 2, that of RoBERTa comes after the padding.
            padding = -1 if module.padding_idx is None else module.padding_idx
            first = getattr(module, "offset", padding + 1)
            rows = module.num_embeddings - (first if isinstance(first, int) else padding + 1)
            return Limit(rows, True, find_argument(module, "attention_mask") is None)
        angles = angles or any(_ANGLES in buffer for buffer in module._buffers)
    if not angles:  # older code keeps them in each layer
        angles = any(_ANGLES in name for name, _ in resolve(core.model, f"{core.structure.layers}.0").named_buffers())
    positions = getattr(core.model.config.get_text_config(decoder=True), "max_position_embeddings", None)
    return Limit(positions, False, False) if angles and isinstance(positions, int) else None


def _around_layers(core: Core) -> Iterator[tuple[str, Any]]:
    """The modules of the language model outside its layers, with their names: what holds both its layers and its embedding."""
    parts = core.structure
    paths = [path.split(".") for path in (parts.layers, parts.embed)]
    shared = [a for a, b in zip(*paths, strict=False) if a == b] if paths[0][0] == paths[1][0] else []
    inside = {resolve(core.model, path) for path in (parts.layers, parts.vision, parts.projector, parts.embed) if path}
    waiting = [("", resolve(core.model, ".".join(shared)) if shared else core.model)]
    for name, module in waiting:  # grows on the way
        yield name, module
        waiting += [(n, child) for n, child in module._modules.items() if child is not None and child not in inside]
