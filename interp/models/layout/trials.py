"""Trials: the batches on which a layout is proved, made here where a caller passes none.

Most proofs need no more than a few token ids, so that they run without processor and picture. Those about images need a
picture: noise, if there is a processor. A model that does not run on text alone waits for the first batch with an image.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from interp.errors import InputError, reason_of
from interp.models.batches.batch import Batch
from interp.models.running.core import Core
from interp.models.running.readiness import ready_inputs
from interp.models.running.threads import few_threads
from interp.models.running.trace import run_forward


@dataclass(frozen=True)
class Trials:
    """The batch for most proofs, and the one for those about images; None if it could not be made; `reason` says why."""

    batch: Batch | None
    pictured: Batch | None
    reason: str


def trials_for(core: Core, batch: Batch | None = None) -> Trials:
    """A caller's batch; without one, a few token ids, and a small picture where there is a processor."""
    if not core.takes_images:
        text, reason = (batch, "") if batch is not None else _text_batch(core)
        return Trials(text, None, reason or "the model takes no image")
    if batch is not None:
        reason = "no image was in the batch: check(batch) with one tries it"
        return Trials(batch, batch if batch.has_images else None, reason)
    text, no_text = _text_batch(core)
    pictured, no_picture = _small_picture(core)
    return Trials(text or pictured, pictured, no_picture if text else f"{no_text}; {no_picture}")


def _text_batch(core: Core) -> tuple[Batch | None, str]:
    """Two rows of ordinary token ids, one of them padded; or None, and why the model does not run on text alone."""
    ids = torch.arange(core.structure.vocab_size)
    special = [*getattr(core.tokenizer, "all_special_ids", []), core.structure.image_token_id]
    special = [token for token in special if token is not None]
    ordinary = ids[~torch.isin(ids, torch.tensor(special, dtype=ids.dtype))]
    # Special ids are at the ends of a vocabulary, and without a tokenizer nothing else tells them apart.
    chosen = ordinary[
        torch.linspace(len(ordinary) // 10, len(ordinary) * 3 // 4, 16, dtype=torch.float32).long()
    ].reshape(2, 8)
    mask = torch.ones_like(chosen)
    mask[1, :3] = 0
    batch = core.maker.from_encoding({"input_ids": chosen, "attention_mask": mask})
    if core.device.type == "meta":
        return batch, ""
    inputs = ready_inputs(core, batch.inputs)
    try:
        with few_threads(core), torch.no_grad():
            core.model(**inputs)
    except Exception as error:  # each model that needs an image says so in its own way
        return None, f"the model does not run on text alone ({reason_of(error)})"
    return batch, ""


def _small_picture(core: Core) -> tuple[Batch | None, str]:
    """Noise of 64 x 48 pixels and a few words, where there is a processor; or None, and the reason.

    A processor of another model is an error here. One that needs another kind of prompt is not: the proof waits for the
    first batch with an image.
    """
    if getattr(core.processor, "image_processor", None) is None:
        return None, "there is no image processor: check(batch) with an image tries it"
    noise = torch.randint(0, 256, (48, 64, 3), generator=torch.Generator().manual_seed(0))
    picture = Image.fromarray(noise.byte().numpy())
    try:
        batch = core.maker.prepare(["<image> a b", "<image> a"], [picture, picture], chat=False)
        run_forward(core, batch)
    except InputError:
        raise
    except Exception as error:  # a prompt that this processor or model cannot take
        return None, f"a small picture could not be run ({reason_of(error)}): check(batch) with an image tries it"
    return batch, ""


def padded_on_the_other_side(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same rows with their padding at the other end; every input with one value for each token turns with them."""
    mask = inputs.get("attention_mask")
    if mask is None or bool(mask.all()):
        return dict(inputs)
    padding = (mask == 0).sum(dim=1)
    shifts = torch.where(mask[:, 0] == 0, -padding, padding).tolist()
    return {
        name: torch.stack([row.roll(n) for row, n in zip(tensor, shifts, strict=True)])
        if tensor.shape == mask.shape
        else tensor
        for name, tensor in inputs.items()
        if name != "position_ids"  # a new batch counts them again
    }
