"""Reading states in the vocabulary, inside the trace and a few positions at a time.

A reading is as wide as the vocabulary: 33 states of 600 positions over 128,000 words are 10 GB in float32. None of it
is kept. The states of the selected positions, which are narrow, are held until the last one is there; then, for a chunk of
positions, the model's own prediction is made of the last state, each state is read and set beside it, and what remains
of the chunk are its top words and a few numbers. The chunks are sized by the vocabulary, so that the memory needed does
not depend on it, nor on the number of positions. The head is always called as the module it is, whole, so whatever
it is (quantised, offloaded, with a bias or an adapter) it does what it does in the model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from interp.arguments import as_int
from interp.errors import InputError, shown
from interp.lens.result import LensResult
from interp.models import VLM, Batch, Intervention
from interp.models.batches.targets import target_ids, word_of
from interp.models.running.readout import Readout
from interp.models.running.steps import Edit, Read, reads_of_states
from interp.models.running.trace import run_forward
from interp.provenance import Provenance, fingerprint

# How many logits are made at once: 67 MB in float32, of which some ten copies live at the same time.
_LOGITS_AT_ONCE = 2**24

Translator = tuple[Tensor, Tensor]  # A [width, width] and b [width] of h + A h + b


def positions_at_once(vocab_size: int) -> int:
    """How many positions are read over this vocabulary at the same time."""
    return max(1, _LOGITS_AT_ONCE // vocab_size)


def read_states(
    vlm: VLM,
    batch: Batch,
    positions: Any,
    top_k: int,
    targets: Any,
    interventions: Sequence[Intervention],
    readout: Readout,
    translators: Sequence[Translator],
    provenance: Provenance,
    name: str,
) -> LensResult:
    """Read every state at the selected positions through `readout`, the first of them behind the
    `translators`, one a state; the others, with no translators all, as they are.

    Raises `InputError` where no position is selected, `top_k` is not between 1 and the vocabulary, or a target is not
    one token.
    """
    mask = batch.positions.select(positions)
    if not mask.any():
        raise InputError(f"positions={shown(positions)} selects no position of this batch: expected at least one")
    size = vlm.structure.vocab_size
    k = as_int(top_k)
    if k is None or not 1 <= k <= size:
        raise InputError(f"top_k={shown(top_k)}: expected a whole number, 1 to {size}, the size of the vocabulary")
    rows, columns = mask.nonzero(as_tuple=True)
    aims = target_ids(vlm, 0 if targets is None else targets, len(batch))[rows]
    edits = vlm.edits_of(batch, interventions)
    *keeps, last = _reads(vlm, rows, columns, edits, translators)
    reading = (*last.arguments, aims, readout, vlm.readout, k, positions_at_once(size))
    reads = [*keeps, replace(last, function=read_vocabulary, arguments=reading)]
    seen = run_forward(vlm, batch, edits, reads, logits=None)
    ids, probs, entropy, kl, target_probs, ranks = (part.cpu() for part in seen[last.key])
    return LensResult(
        top_ids=ids,
        top_probs=probs,
        entropy=entropy,
        kl=kl,
        target_probs=None if targets is None else target_probs,
        target_ranks=None if targets is None else ranks,
        rows=rows,
        columns=columns,
        tokens=[batch.tokens[row][column] for row, column in zip(rows.tolist(), columns.tolist(), strict=True)],
        vocabulary={str(token): word_of(vlm, token) for token in ids.unique().tolist()},
        vocab_size=size,
        name=name,
        provenance=provenance,
    )


def provenance_of(
    vlm: VLM, batch: Batch, interventions: Sequence[Intervention], notes: tuple[str, ...] = ()
) -> Provenance:
    """Where a reading comes from. Raises what `VLM.refuse_unfit` raises."""
    vlm.refuse_unfit(batch, interventions)
    return Provenance(
        model=vlm.name,
        revision=vlm.revision,
        data=fingerprint(batch),
        interventions=tuple(map(repr, interventions)),
        notes=notes,
    )


def _reads(
    vlm: VLM, rows: Tensor, columns: Tensor, edits: Sequence[Edit], translators: Sequence[Translator]
) -> list[Read]:
    """The reads that hold each state at these positions in one dict, by its number."""
    held: dict[int, Tensor] = {}
    reads = reads_of_states(vlm, hold, (rows, columns, held), edits)
    return [
        replace(read, function=hold_translated, arguments=(*read.arguments, read.key, *translators[read.key]))
        if read.key < len(translators)
        else replace(read, arguments=(*read.arguments, read.key))
        for read in reads
    ]


# Plain torch, run inside the trace ---------------------------------------------------------------------------------------


def hold(value, rows, columns, held, state):
    """Keep the selected positions of a state until the last one is there; nothing leaves the trace."""
    held[state] = value[rows.to(value.device), columns.to(value.device)]


def hold_translated(value, rows, columns, held, state, matrix, bias):
    """The same behind the state's translator."""
    held[state] = translate(value[rows.to(value.device), columns.to(value.device)], matrix, bias)


def translate(value, matrix, bias):
    """``h + A h + b`` in float32, as wide and as precise as what was given."""
    wide = value.float()
    return (wide + wide @ matrix.to(value.device).T + bias.to(value.device)).to(value.dtype)


def log_probs(value, readout):
    """What states are read as: the logarithm of a distribution over the vocabulary, in float32."""
    return readout.logits(value).float().log_softmax(dim=-1)


def divergence(final, read):
    """KL(final || read) of log-probabilities `[..., vocab]`, in nats; a word that final leaves out adds nothing.

    Only minus infinity is such a word: where the model gives no numbers there is no divergence, and NaN says so.
    """
    return (final.exp() * (final - read)).where(~final.isneginf(), 0.0).sum(dim=-1)


def read_vocabulary(value, rows, columns, held, state, aims, readout, own, top_k, at_once):
    """When the last state is there: what all held states are read as, so that no vocabulary-wide tensor leaves the trace.

    Top ids and their probabilities, the entropy, the divergence of the model's `own` prediction from the reading, and
    the probability and rank of what is aimed at, each `[state, position, ...]`.
    """
    hold(value, rows, columns, held, state)
    kept: list = []
    for start in range(0, len(rows), at_once):
        chunk = slice(start, start + at_once)
        final = log_probs(held[state][chunk], own)
        aimed = aims[chunk, None].to(final.device)
        for number, each in enumerate(sorted(held)):
            found = summary(log_probs(held[each][chunk], readout), final, aimed, top_k)
            # Kept in one place: small tensors that stay among large ones that go leave memory in pieces too small for these.
            kept = kept or [part.new_empty(len(held), len(rows), *part.shape[1:]) for part in found]
            for whole, part in zip(kept, found, strict=True):
                whole[number, chunk] = part
    return tuple(kept)


def summary(logs, final, aimed, top_k):
    """What is kept of some positions' log-probabilities `[position, vocab]`."""
    top = logs.topk(top_k, dim=-1)
    at_aim = logs.gather(-1, aimed)
    ranks = (~(logs <= at_aim)).sum(dim=-1)  # where all is NaN no word is first
    kl = divergence(final, logs)
    return top.indices, top.values.exp(), torch.special.entr(logs.exp()).sum(dim=-1), kl, at_aim[:, 0].exp(), ranks
