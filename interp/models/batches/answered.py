"""Answered batches: prompts with an answer behind them, for what a model makes of answers that are given to it.

An answer of k tokens is judged in one pass of the prompt and its first k - 1 tokens: the logits at the prompt's last token
judge the first token of the answer, those at the first judge the second, and so on.

    where is the 3 ?  left of the          logits at  ?     left  of   the
                                           judge      left  of    the  red

The tokens stand where generation would put them, as text, and an intervention acts on them as on new tokens, which come one by
one (`interp.models.running.generated`). Rows may have answers of different lengths: shorter ones repeat their last token, which
nothing before it sees.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Int
from torch import Tensor

from interp.errors import InputError
from interp.models.batches.batch import Batch
from interp.models.batches.positions import Positions

# The kinds of position that the tokens of an answer belong to, beside the last of the row.
_KINDS_OF_NEW = ("text", "all", "after_image")


@dataclass(frozen=True)
class AnsweredBatch(Batch):
    """Rows of a `prompt` with `answers` behind them, Int `[row, token]`, -1 where a shorter one has ended.

    All but the last token of an answer are among the inputs, of the token type `kind`, None for that of the prompt's last one.
    """

    answers: Tensor = field(default_factory=lambda: torch.empty(0, 0, dtype=torch.int64), repr=False)
    prompt: Batch | None = field(default=None, repr=False)
    kind: int | None = None

    @property
    def tail(self) -> int:
        return self.answers.shape[1]

    def part(self, rows: Sequence[int]) -> Batch:
        assert self.prompt is not None
        return put_behind(self.prompt.part(rows), self.answers[list(rows)], self.kind)

    def repeat(self, times: int) -> Batch:
        assert self.prompt is not None
        return put_behind(self.prompt.repeat(times), self.answers.repeat(times, 1), self.kind)


def put_behind(prompt: Batch, answers: Int[Tensor, "row token"], kind: int | None = None) -> Batch:
    """The prompt with these answers behind it, -1 where one has ended; the prompt itself where each is one token.

    The token type of an answer is `kind`, by default that of the prompt's last token. Raises `InputError` for a row that ends
    in padding.
    """
    lengths = (answers >= 0).sum(dim=1)
    answers = answers[:, : int(lengths.max())]
    new = answers.shape[1] - 1
    if not new:
        return prompt
    real = prompt.positions["all"]
    padded = (~real[:, -1]).nonzero().flatten().tolist()
    if padded:
        raise InputError(
            f"row {padded[0]} ends in padding, behind which no answer of several tokens can stand: expected padding on the "
            "left, pass padding_side='left' to the processor, or texts= to prepare"
        )
    tokens = torch.where(answers >= 0, answers, answers.gather(1, lengths[:, None] - 1))[:, :new]
    inputs = {name: _longer(name, value, tokens, real.shape) for name, value in prompt.inputs.items()}
    names = [[*row, *([""] * new)] for row in prompt.tokens]
    if kind is not None and "token_type_ids" in inputs:
        inputs["token_type_ids"][:, -new:] = kind
    positions = _longer_positions(prompt.positions, new)
    return AnsweredBatch(inputs, names, positions, answers=answers, prompt=prompt, kind=kind)


def _longer(name: str, value: Tensor, tokens: Tensor, shape: torch.Size) -> Tensor:
    """An input with values for these tokens too, where it has one for each token of the prompt: those of the last one."""
    new = tokens.shape[1]
    if name == "input_ids":
        return torch.cat([value, tokens.to(value)], dim=1)
    if value.is_floating_point() and name != "attention_mask":  # pixels
        return value
    if value.shape[-2:] == shape:
        steps = torch.arange(1, new + 1) if name == "position_ids" else 0
        return torch.cat([value, value[..., -1:] + steps + torch.zeros(new, dtype=value.dtype)], dim=-1)
    return value


def _longer_positions(positions: Positions, new: int) -> Positions:
    masks = {
        name: torch.nn.functional.pad(mask, (0, new), value=name in _KINDS_OF_NEW)
        for name, mask in positions.masks.items()
    }
    masks["last"] = torch.zeros_like(masks["all"])
    masks["last"][:, -1] = True
    return Positions(masks, positions.grids)
