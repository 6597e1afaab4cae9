"""Reading states in the vocabulary, inside the trace and a few positions at a time.

A reading is as wide as the vocabulary: 33 states of 600 positions over 128,000 words are 10 GB in float32. None of it
is kept. The states of the selected positions, which are narrow, are collected until the last one is there. Then, for a
chunk of positions, the model's own prediction is made from the last state, each state is read and compared with it, and
what remains of the chunk are its top words and a few numbers. The vocabulary sets the size of a chunk, so the memory does
not grow with it, nor with the number of positions. The head is called as the whole module, so a quantised, offloaded or
adapted head, or one with a bias, does what it does in the model.

All lenses give a `LensResult`, so that they can be compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.activations.sink_counts import count_sinks, notes_of_sinks, reads_of_norms
from interp.arguments import checked_int
from interp.errors import InputError, shown
from interp.models import VLM, Batch, Intervention
from interp.models.batches.standings import standings_at
from interp.models.batches.targets import target_ids, word_of
from interp.models.running.readout import Readout
from interp.models.running.steps import reads_of_states
from interp.models.running.trace import refuse_no_numbers, run_forward
from interp.provenance import provenance_of_run
from interp.results import Result

# How many logits are made at once: 67 MB in float32, of which some ten copies live at the same time.
_LOGITS_AT_ONCE = 2**24
# What a sink does to readings, for a note.
SINKS_READ = "whose readings are not of what stands there"

Translator = tuple[Tensor, Tensor]  # A [width, width] and b [width] of h + A h + b


@dataclass(frozen=True)
class LensResult(Result):
    """What each selected position is read as after each layer.

    `top_ids`, `top_probs` `[state, position, k]` are the most probable words. `entropy` `[state, position]` is that of the
    reading, and `kl` `[state, position]` is KL(final || reading), both in nats; final is the model's own prediction at that
    position in the same run. With targets, `target_probs` and `target_ranks` `[state, position]` (rank 0 = first), else
    None. Positions are in row order: `rows` and `columns` say where each one is, `tokens` what is there, `roles` whether it is
    "image", "last", "special" or "question", and `patches` the row and column of a patch (None where there is none; both are
    None in older files).

    Chance level: a uniform reading has probability ``1 / vocabulary`` and entropy ``log(vocabulary)``. A state without
    finite numbers (an intervention too large for the precision) is NaN in all of them, and the rank of its target is the
    size of the vocabulary, after all words.
    """

    top_ids: Int[Tensor, "state position k"]
    top_probs: Float[Tensor, "state position k"]
    entropy: Float[Tensor, "state position"]
    kl: Float[Tensor, "state position"]
    target_probs: Float[Tensor, "state position"] | None
    target_ranks: Int[Tensor, "state position"] | None
    rows: Int[Tensor, " position"]
    columns: Int[Tensor, " position"]
    tokens: list[str]
    vocabulary: dict[str, str]
    vocab_size: int
    name: str = "logit lens"
    roles: list[str] | None = None
    patches: list[tuple[int, int] | None] | None = None

    def __post_init__(self) -> None:
        if self.top_ids.shape != self.top_probs.shape or self.entropy.shape != self.top_ids.shape[:2]:
            raise InputError(
                f"top_ids of shape {tuple(self.top_ids.shape)} do not fit entropy {tuple(self.entropy.shape)}"
            )
        if self.kl.shape != self.entropy.shape:
            raise InputError(f"kl of shape {tuple(self.kl.shape)} does not fit entropy {tuple(self.entropy.shape)}")

    def words(self, state: int, position: int) -> list[str]:
        """The top words of one state of one selected position, best first. Raises `InputError` for one that is not there."""
        states, positions, _ = self.top_ids.shape
        state = checked_int(state, "state", -states, states - 1)
        position = checked_int(position, "position", -positions, positions - 1)
        return [self.vocabulary[str(int(token))] for token in self.top_ids[state, position]]

    def to_frame(self) -> pd.DataFrame:
        """One row a state and position: where it is, its top word with its probability, entropy, kl, and its target's."""
        states, positions = torch.cartesian_prod(*map(torch.arange, self.entropy.shape)).T
        unknown = [None] * len(self.tokens)
        patches = [patch or (None, None) for patch in self.patches or unknown]
        roles = self.roles or unknown
        columns = {
            "state": states.tolist(),
            "row": self.rows[positions].tolist(),
            "column": self.columns[positions].tolist(),
            "token": [self.tokens[position] for position in positions.tolist()],
            "role": [roles[position] for position in positions.tolist()],
            "patch_row": pd.array([patches[position][0] for position in positions.tolist()], dtype="Int64"),
            "patch_column": pd.array([patches[position][1] for position in positions.tolist()], dtype="Int64"),
            "top": [self.vocabulary[str(token)] for token in self.top_ids[..., 0].flatten().tolist()],
            "prob": self.top_probs[..., 0].flatten().tolist(),
            "entropy": self.entropy.flatten().tolist(),
            "kl": self.kl.flatten().tolist(),
        }
        if self.target_probs is not None and self.target_ranks is not None:
            columns["target_prob"] = self.target_probs.flatten().tolist()
            columns["target_rank"] = self.target_ranks.flatten().tolist()
        return pd.DataFrame(columns)


@dataclass(frozen=True)
class Request:
    """What a caller asks of a lens: the arguments that all lenses take."""

    positions: Any
    top_k: int
    targets: Any
    interventions: Sequence[Intervention]


@dataclass(frozen=True)
class Lens:
    """How a lens reads states: its name, its readout, the translators of the first states, and notes on it for the
    provenance. States without a translator are read as they are."""

    name: str
    readout: Readout
    translators: Sequence[Translator] = ()
    notes: tuple[str, ...] = ()


class Chunking(NamedTuple):
    """How states are read within the trace: the target of each position, the lens's readout and the model's own, the number
    of top words, and the number of positions at once."""

    targets: Any
    readout: Any
    own: Any
    top_k: int
    at_once: int


def positions_at_once(vocab_size: int) -> int:
    """How many positions are read over this vocabulary at the same time."""
    return max(1, _LOGITS_AT_ONCE // vocab_size)


def read_states(vlm: VLM, batch: Batch, lens: Lens, request: Request) -> LensResult:
    """Read every state at the selected positions.

    Raises `InputError` where no position is selected, `top_k` is not between 1 and the vocabulary, or a target is not
    one token, and where states or their readings are not finite; and what `VLM.refuse_unfit` raises.
    """
    vlm.refuse_unfit(batch, request.interventions)
    vlm.refuse_image_positions(request.positions)
    mask = batch.positions.select(request.positions)
    if not mask.any():
        raise InputError(
            f"positions={shown(request.positions)} selects no position of this batch: expected at least one"
        )
    size = vlm.structure.vocab_size
    top_k = checked_int(request.top_k, "top_k", 1, size, "a number of words")
    rows, columns = mask.nonzero(as_tuple=True)
    targets = target_ids(vlm, batch, 0 if request.targets is None else request.targets)[rows]
    edits = vlm.edits_of(batch, request.interventions)
    chunking = Chunking(targets, lens.readout, vlm.readout, top_k, positions_at_once(size))
    states: dict[int, Tensor] = {}
    *first, last = reads_of_states(vlm, collect_state, (rows, columns, states), edits)
    translators = dict(enumerate(lens.translators))
    reads = [replace(read, arguments=(*read.arguments, read.key, translators.get(read.key))) for read in first]
    reads.append(replace(last, function=read_vocabulary, arguments=(*last.arguments, last.key, chunking)))
    norms = reads_of_norms(vlm, edits)
    outputs = run_forward(vlm, batch, edits, [*reads, *norms], logits=None)
    sinks = count_sinks(vlm, batch, edits, norms, outputs, mask)
    notes = (*lens.notes, *notes_of_sinks(sinks, len(batch), SINKS_READ))
    standings = standings_at(batch, mask)
    ids, probs, entropy, kl, target_probs, ranks = (part.cpu() for part in outputs[last.key])
    refuse_no_numbers(vlm, batch, probs, "readings")
    return LensResult(
        top_ids=ids,
        top_probs=probs,
        entropy=entropy,
        kl=kl,
        target_probs=None if request.targets is None else target_probs,
        target_ranks=None if request.targets is None else ranks,
        rows=rows,
        columns=columns,
        tokens=[each.token for each in standings],
        roles=[each.role for each in standings],
        patches=[each.patch for each in standings],
        vocabulary={str(token): word_of(vlm, token) for token in ids.unique().tolist()},
        vocab_size=size,
        name=lens.name,
        provenance=provenance_of_run(vlm, [batch], request.interventions, notes=notes),
    )


# Plain torch, run inside the trace ---------------------------------------------------------------------------------------


def collect_state(value, rows, columns, states, number, translator=None):
    """Keep the selected positions of a state, after its translator, until the last one is there; nothing leaves the trace."""
    state = value[rows.to(value.device), columns.to(value.device)]
    states[number] = state if translator is None else translate(state, *translator)


def translate(value, matrix, bias):
    """``h + A h + b`` in float32, in the precision of `value` at the end."""
    wide = value.float()
    return (wide + wide @ matrix.to(value.device).T + bias.to(value.device)).to(value.dtype)


def log_probs(value, readout):
    """The readings of states: the logarithm of a distribution over the vocabulary, in float32."""
    return readout.logits(value).float().log_softmax(dim=-1)


def divergence(final, reading):
    """KL(final || reading) of log-probabilities `[..., vocab]`, in nats; a word with final probability 0 adds nothing.

    Only minus infinity is probability 0: where the model gives NaN, the divergence is NaN.
    """
    return (final.exp() * (final - reading)).where(~final.isneginf(), 0.0).sum(dim=-1)


def read_vocabulary(value, rows, columns, states, number, chunking):
    """Read all collected states when the last one is there, so that no tensor as wide as the vocabulary leaves the trace.

    Gives the top ids and their probabilities, the entropy, the divergence of the model's own prediction from the reading,
    and the probability and rank of the target, each `[state, position, ...]`.
    """
    collect_state(value, rows, columns, states, number)
    outputs: list = []
    for start in range(0, len(rows), chunking.at_once):
        chunk = slice(start, start + chunking.at_once)
        final = log_probs(states[number][chunk], chunking.own)
        targets = chunking.targets[chunk, None].to(final.device)
        for index, state in enumerate(sorted(states)):
            parts = summary(log_probs(states[state][chunk], chunking.readout), final, targets, chunking.top_k)
            # Allocated once: small tensors among large ones that are freed would leave memory in pieces too small for these.
            outputs = outputs or [part.new_empty(len(states), len(rows), *part.shape[1:]) for part in parts]
            for whole, part in zip(outputs, parts, strict=True):
                whole[index, chunk] = part
    return tuple(outputs)


def summary(logs, final, targets, top_k):
    """What remains of some positions' log-probabilities `[position, vocab]`."""
    top = logs.topk(top_k, dim=-1)
    at_target = logs.gather(-1, targets)
    ranks = (~(logs <= at_target)).sum(dim=-1)  # NaN ranks after all words
    kl = divergence(final, logs)
    return top.indices, top.values.exp(), torch.special.entr(logs.exp()).sum(dim=-1), kl, at_target[:, 0].exp(), ranks
