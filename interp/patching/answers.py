"""Answers behind prompts: the batch in which a model judges answers of several tokens, once it is known to judge them rightly.

One pass of prompt and answer is what generation computes, if no token sees another behind it. That is tried when a model first
judges answers: its logits must be those of the growing text, one pass a token. A model that looks ahead in its prompt
(PaliGemma) is told by token types where the prompt ends. If neither agrees, the model is refused.
"""

from __future__ import annotations

import torch
from jaxtyping import Int
from torch import Tensor

from interp.errors import LayoutError, is_out_of_memory, reason_of
from interp.models import VLM, Batch
from interp.models.batches.answered import put_behind
from interp.models.running.trace import run_forward
from interp.patching.agreement import allowed_difference, largest_difference

# The token types of an answer that are tried: that of the prompt's last token, and that of what follows a prefix.
_KINDS = (None, 1)


def answered(vlm: VLM, prompt: Batch, answers: Int[Tensor, "row token"]) -> Batch:
    """The prompt with these answers behind it, -1 where one has ended; the prompt itself where each is one token.

    Raises `InputError` for a row that ends in padding, `LayoutError` for a model that does not judge answers rightly.
    """
    if put_behind(prompt, answers) is prompt:
        return prompt
    trial = "answered", prompt.has_images
    if trial not in vlm.tried:
        vlm.tried[trial] = _token_type(vlm, prompt, answers)
    return put_behind(prompt, answers, vlm.tried[trial])


def _token_type(vlm: VLM, prompt: Batch, answers: Tensor) -> int | None:
    """The token type of answers with which one pass of all comes closest to the logits of the growing text."""
    lengths = (answers >= 0).sum(dim=1, keepdim=True)
    filled = torch.where(answers >= 0, answers, answers.gather(1, lengths - 1))[:, : int(lengths.max())]
    kinds = _KINDS if "token_type_ids" in prompt.inputs else _KINDS[:1]
    try:
        found = [_disagreement(vlm, prompt, filled, kind) for kind in kinds]
    except Exception as error:  # any error of a model that takes no answer behind its prompt
        if is_out_of_memory(error):
            raise
        raise _refusal(vlm, reason_of(error)) from error
    difference, allowed = min(found)
    if difference > allowed:
        raise _refusal(vlm, f"logits of the prompt are off by {difference:.2g} when an answer stands behind it")
    return kinds[found.index((difference, allowed))]


def _refusal(vlm: VLM, reason: str) -> LayoutError:
    return LayoutError(f"{vlm.name!r} cannot judge answers of several tokens ({reason}): choose targets of one token")


def _disagreement(vlm: VLM, prompt: Batch, answers: Tensor, kind: int | None) -> tuple[float, float]:
    """How far the logits of one pass of all are from those of the growing text, and how far they may be."""
    logits, *shorter = [_logits(vlm, put_behind(prompt, answers[:, :size], kind)) for size in _sizes(answers)]
    pairs = zip(shorter, reversed(range(len(shorter))), strict=True)
    return max(largest_difference(own[:, -1], logits[:, step]) for own, step in pairs), allowed_difference(vlm, logits)


def _sizes(answers: Tensor) -> list[int]:
    """The numbers of tokens of the answers, from all to one."""
    return list(range(answers.shape[1], 0, -1))


def _logits(vlm: VLM, batch: Batch) -> Tensor:
    """The logits that judge answers, `[row, token, vocab]`."""
    logits = run_forward(vlm, batch)["logits"]
    return logits if logits.ndim == 3 else logits[:, None]
