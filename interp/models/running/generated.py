"""Edits as generation makes them: on the prompt, and then on each new token alone.

In generation the function of an edit gets the prompt's values first, and then those of one new token at a time, together with
the number of positions before it. One pass of a prompt and what stands behind it has all these values at once. `as_generated`
divides them, so that an edit does there what it does in generation, and to the prompt what it does without an answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch

from interp.models.running.places import BEFORE_LAYERS
from interp.models.running.steps import Edit


def as_generated(edits: Sequence[Edit], length: int) -> list[Edit]:
    """These edits for one pass of a prompt of so many positions and new tokens behind it."""
    return [
        edit
        if edit.site in BEFORE_LAYERS
        else replace(
            edit, function=partial(token_by_token, function=edit.function, at=(edit.site, edit.context, length))
        )
        for edit in edits
    ]


# Plain torch, run inside the trace ---------------------------------------------------------------------------------------


def token_by_token(value, *others, function, at):
    """`function` of the prompt's values, and then of those of each token behind it, put together again.

    `at` has the site, the names of its context and the length of the prompt; `others` are the context and the arguments.
    """
    site, names, length = at
    context, arguments = others[: len(names)], others[len(names) :]
    total = value.shape[2 if site == "mask" else 1]
    steps = [(0, length), *((each, each + 1) for each in range(length, total))]
    parts = []
    for step in steps:
        own = [part_of(name, each, *step, True) for name, each in zip(names, context, strict=True)]
        parts.append(function(part_of(site, value, *step), *own, *arguments))
    if site not in ("mask", "pattern"):
        return torch.cat(parts, dim=1)
    # A mask may be one for all rows and heads before it is changed.
    new = value.expand(*parts[0].shape[:2], *value.shape[2:]).clone() if site == "mask" else value.clone()
    for step, part in zip(steps, parts, strict=True):
        part_of(site, new, *step)[...] = part
    return new


def part_of(site, value, start, stop, as_context=False):
    """What a site has when the positions from `start` to `stop` are computed: of keys those up to there."""
    if site == "past":
        return start
    if site == "mask":
        return value[:, :, start:stop, :stop]
    if site == "pattern":
        return value[:, start:stop, :, :stop]
    return value[:, 0 if site == "v" and as_context else start : stop]
