"""Proving a layout by effect: what `structure` claims is tried on the model itself.

Three proofs on one small batch. *readout*: the final norm and the head on the last state give the model's own logits.
*identity*: writing each state back as it was changes the logits by exactly 0. *effect*: writing another state does
change them, at every layer. A model that fails one is refused when it is loaded, by the name of the proof.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from interp.models.forward import Edit, Read, read_out, run_forward, whole
from interp.results import Result

if TYPE_CHECKING:
    import pandas as pd

    from interp.models.batch import Batch
    from interp.models.vlm import VLM

READOUT_TOLERANCE = 1e-5


@dataclass(frozen=True)
class Check:
    """One proof: its outcome, the error that was measured, the bound it was held against, and what it says."""

    name: str
    outcome: Literal["passed", "failed", "pending"]
    error: float
    bound: str
    detail: str

    def get_state(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Check:
        return cls(**state)


@dataclass(frozen=True)
class CheckReport(Result):
    """All proofs of one model."""

    checks: tuple[Check, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether no proof failed; one that is pending (nothing to try it on) is no failure."""
        return all(check.outcome != "failed" for check in self.checks)

    def to_frame(self) -> pd.DataFrame:
        import pandas as pd

        columns = ["name", "outcome", "error", "bound", "detail"]
        return pd.DataFrame([[getattr(check, column) for column in columns] for check in self.checks], columns=columns)


def run_checks(vlm: VLM, batch: Batch | None = None) -> CheckReport:
    """Try every proof on `batch`, or on a row of a few token ids; without a batch that holds an image, what needs
    image tokens is pending.
    """
    tried = _plain_batch(vlm) if batch is None else batch
    depth = vlm.structure.n_layers
    reads = [Read(("state", layer), "resid_pre", layer, whole) for layer in range(depth)]
    reads.append(Read("readout", "resid_post", depth - 1, read_out, (vlm.norm, vlm.head)))
    seen = run_forward(vlm, tried, reads=reads, logits="all")
    logits = seen["logits"].float()
    real = tried.positions["all"].to(logits.device)
    checks = (
        _readout(vlm, seen["readout"], logits, real),
        _identity(vlm, tried, seen, logits, real),
        _effect(vlm, tried, seen, logits, real),
        _image(tried),
    )
    return CheckReport(checks)


def _plain_batch(vlm: VLM) -> Batch:
    """A row of ordinary token ids, so that the check needs neither processor nor picture."""
    ids = torch.arange(vlm.structure.vocab_size)
    special = getattr(vlm.tokenizer, "all_special_ids", [])
    ordinary = ids[~torch.isin(ids, torch.tensor([*special, vlm.structure.image_token_id or -1]))]
    chosen = ordinary[torch.linspace(0, len(ordinary) - 1, 8).long()][None]
    return vlm.prepare(encoding={"input_ids": chosen, "attention_mask": torch.ones_like(chosen)})


def _difference(a: Tensor, b: Tensor, real: Tensor) -> float:
    return (a.float() - b.float())[real].abs().max().item()


def _readout(vlm: VLM, read: Tensor, logits: Tensor, real: Tensor) -> Check:
    scale = logits[real].abs().max().item()
    precision = torch.finfo(vlm.dtype).eps / torch.finfo(torch.float32).eps
    bound = READOUT_TOLERANCE * max(1.0, scale) * precision
    error = _difference(read, logits, real) if read.shape == logits.shape else float("inf")
    detail = "norm and head on the last state give the model's own logits"
    return Check("readout", "passed" if error <= bound else "failed", error, f"<= {bound:.1e}", detail)


def _rewrite(vlm: VLM, batch: Batch, states: dict[int, Tensor]) -> Tensor:
    edits = [Edit("resid_pre", layer, _replace, (state,)) for layer, state in states.items()]
    return run_forward(vlm, batch, edits, logits="all")["logits"]


def _replace(value, new):
    return new.to(value.device, value.dtype)


def _identity(vlm: VLM, batch: Batch, seen: dict, logits: Tensor, real: Tensor) -> Check:
    states = {layer: seen["state", layer] for layer in range(vlm.structure.n_layers)}
    error = _difference(_rewrite(vlm, batch, states), logits, real)
    detail = "writing every state back as it was changes nothing"
    return Check("identity", "passed" if error == 0 else "failed", error, "== 0", detail)


def _effect(vlm: VLM, batch: Batch, seen: dict, logits: Tensor, real: Tensor) -> Check:
    smallest = float("inf")
    for layer in range(vlm.structure.n_layers):
        rolled = seen["state", layer].roll(1, dims=-1)
        smallest = min(smallest, _difference(_rewrite(vlm, batch, {layer: rolled}), logits, real))
    detail = "writing another state changes the logits, at every layer"
    return Check("effect", "passed" if smallest > 0 else "failed", smallest, "> 0", detail)


def _image(batch: Batch) -> Check:
    count = int(batch.positions["image"].sum())
    if count:
        return Check("image", "passed", float(count), "> 0", "image tokens stand in the decoder's stream")
    return Check("image", "pending", float("nan"), "> 0", "no image was in the batch: check(batch) with one tries it")
