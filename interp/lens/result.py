"""What a lens gives: for each state and position the words it is read as, and how far that is from what the model says.

All lenses of this package give one kind of result, so that they can be laid side by side. Its numbers are about one
distribution over the vocabulary, the reading of a state, of which only the largest probabilities are kept.
"""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd
from jaxtyping import Float, Int
from torch import Tensor

from interp.errors import InputError
from interp.results import Result


@dataclass(frozen=True)
class LensResult(Result):
    """What each selected position is read as after each layer.

    `top_ids`, `top_probs` `[state, position, k]`; `entropy` `[state, position]` in nats; `kl` `[state, position]`, the
    divergence KL(final || reading) in nats, where final is what the model itself predicts at that position in this run; with
    targets, `target_probs` and `target_ranks` `[state, position]` (rank 0 = first), else None. Positions are in row
    order; `rows` and `columns` say where each one stands, `tokens` what stands there. Chance level: a uniform reading
    has probability ``1 / vocabulary`` and entropy ``log(vocabulary)``. A state that holds no numbers (an intervention too
    large for the precision) is NaN in all of them, and the rank of its target is the size of the vocabulary, behind all.
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

    def __post_init__(self) -> None:
        if self.top_ids.shape != self.top_probs.shape or self.entropy.shape != self.top_ids.shape[:2]:
            raise InputError(
                f"top_ids of shape {tuple(self.top_ids.shape)} do not fit entropy {tuple(self.entropy.shape)}"
            )
        if self.kl.shape != self.entropy.shape:
            raise InputError(f"kl of shape {tuple(self.kl.shape)} does not fit entropy {tuple(self.entropy.shape)}")

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
                    "kl": float(self.kl[state, position]),
                }
                if self.target_probs is not None and self.target_ranks is not None:
                    row["target_prob"] = float(self.target_probs[state, position])
                    row["target_rank"] = int(self.target_ranks[state, position])
                rows.append(row)
        return pd.DataFrame(rows)
