"""The logit lens: what a state would be read as, if the model stopped there.

Each state of the residual stream is taken through the model's own final norm and unembedding,
``softmax(head(norm(h_l)))``, with whatever the model does to its logits after that. State 0 enters layer 0, state l
leaves layer l-1; none of them is final-normed before, so the last state gives the model's own prediction. On image
positions this is the patch lens of Neo et al. 2024 (arXiv 2410.07149).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.errors import InputError
from interp.models import VLM, Batch, Intervention
from interp.models.batch import fingerprint
from interp.models.forward import read_out, reads_of_states, run_forward
from interp.models.tokens import target_ids, word_of
from interp.results import Provenance, Result

# The readout is a matrix product with the whole vocabulary: states are read this many positions at a time.
_POSITIONS_AT_ONCE = 512


@dataclass(frozen=True)
class LensResult(Result):
    """What each selected position is read as after each layer.

    `top_ids`, `top_probs` `[state, position, k]`; `entropy` `[state, position]` in nats; with targets, `target_probs`
    and `target_ranks` `[state, position]` (rank 0 = first), else None. Positions are in row order; `rows` and `columns`
    say where each one stands, `tokens` what stands there. Chance level: a uniform reading has probability
    ``1 / vocabulary`` and entropy ``log(vocabulary)``.
    """

    top_ids: Int[Tensor, "state position k"]
    top_probs: Float[Tensor, "state position k"]
    entropy: Float[Tensor, "state position"]
    target_probs: Float[Tensor, "state position"] | None
    target_ranks: Int[Tensor, "state position"] | None
    rows: Int[Tensor, " position"]
    columns: Int[Tensor, " position"]
    tokens: list[str]
    vocabulary: dict[str, str]
    vocab_size: int

    def __post_init__(self) -> None:
        if self.top_ids.shape != self.top_probs.shape or self.entropy.shape != self.top_ids.shape[:2]:
            raise InputError(
                f"top_ids of shape {tuple(self.top_ids.shape)} do not fit entropy {tuple(self.entropy.shape)}"
            )

    def words(self, state: int, position: int) -> list[str]:
        """The top words of one state of one selected position, best first."""
        return [self.vocabulary[str(int(token))] for token in self.top_ids[state, position]]

    def to_frame(self) -> pd.DataFrame:
        rows = []
        for state in range(self.top_ids.shape[0]):
            for position in range(self.top_ids.shape[1]):
                row = {
                    "state": state,
                    "row": int(self.rows[position]),
                    "column": int(self.columns[position]),
                    "token": self.tokens[position],
                    "top": self.words(state, position)[0],
                    "prob": float(self.top_probs[state, position, 0]),
                    "entropy": float(self.entropy[state, position]),
                }
                if self.target_probs is not None and self.target_ranks is not None:
                    row["target_prob"] = float(self.target_probs[state, position])
                    row["target_rank"] = int(self.target_ranks[state, position])
                rows.append(row)
        return pd.DataFrame(rows)


def logit_lens(
    vlm: VLM,
    batch: Batch,
    positions: Any = "image",
    top_k: int = 5,
    targets: Any = None,
    interventions: Sequence[Intervention] = (),
) -> LensResult:
    """Read every state at the selected positions: ``softmax(head(norm(h_l)))`` with the model's own norm and head, and
    what the model does to its logits behind them (a softcap, a scale).

    `targets` is one token id or word for all rows or one a row; its probability and rank are reported beside the top
    `top_k`.

    Raises `InputError` where no position is selected, `top_k` is not between 1 and the vocabulary, or a target is not
    one token.

    >>> import interp
    >>> vlm = interp.load("toy")
    >>> batch = vlm.prepare(texts=["a red 3 at top . what colour is the 3 ?"])
    >>> interp.lens.logit_lens(vlm, batch, positions="last", targets="red").words(-1, 0)[0]
    'red'
    """
    mask = batch.positions.select(positions)
    if not mask.any():
        raise InputError(f"positions={positions!r} selects no position of this batch: expected at least one")
    if not 1 <= top_k <= vlm.structure.vocab_size:
        raise InputError(f"top_k={top_k!r}: expected 1 to {vlm.structure.vocab_size}, the size of the vocabulary")
    rows, columns = mask.nonzero(as_tuple=True)
    aims = target_ids(vlm, 0 if targets is None else targets, len(batch))[rows]
    arguments = (rows, columns, aims, vlm.readout, top_k, _POSITIONS_AT_ONCE)
    edits = vlm.edits_of(batch, interventions)
    reads = reads_of_states(vlm, read_vocabulary, arguments, edits)
    seen = run_forward(vlm, batch, edits, reads, logits=None)
    readings = zip(*(seen[state] for state in range(len(reads))), strict=True)
    ids, probs, entropy, target_probs, ranks = (torch.stack(parts).cpu() for parts in readings)
    return LensResult(
        top_ids=ids,
        top_probs=probs,
        entropy=entropy,
        target_probs=None if targets is None else target_probs,
        target_ranks=None if targets is None else ranks,
        rows=rows,
        columns=columns,
        tokens=[batch.tokens[row][column] for row, column in zip(rows.tolist(), columns.tolist(), strict=True)],
        vocabulary={str(token): word_of(vlm, token) for token in ids.unique().tolist()},
        vocab_size=vlm.structure.vocab_size,
        provenance=Provenance(
            model=vlm.name,
            revision=vlm.revision,
            data=fingerprint(batch),
            interventions=tuple(map(repr, interventions)),
        ),
    )


def read_vocabulary(value, rows, columns, aims, readout, top_k, at_once):
    """Run inside the trace, so that no vocabulary-wide tensor leaves it: what the selected states are read as.

    Top ids and their probabilities, the entropy, and the probability and rank of what is aimed at, each `[position, ...]`.
    """
    states = value[rows.to(value.device), columns.to(value.device)]
    parts = []
    for start in range(0, len(states), at_once):
        logs = read_out(states[start : start + at_once], *readout).float().log_softmax(dim=-1)
        probs = logs.exp()
        top = probs.topk(top_k, dim=-1)
        aimed = logs.gather(-1, aims[start : start + at_once, None].to(logs.device))
        entropy = torch.special.entr(probs).sum(dim=-1)
        parts.append((top.indices, top.values, entropy, aimed[:, 0].exp(), (logs > aimed).sum(dim=-1)))
    return tuple(torch.cat(each) for each in zip(*parts, strict=True))
