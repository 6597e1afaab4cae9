"""The tuned lens: the logit lens behind a learnt change of basis.

States drift through the layers: what a direction means early is not quite what it means to the final norm and head, so the
logit lens can call a state unreadable that is only written differently. The tuned lens (Belrose et al. 2023, arXiv
2303.08112) puts an affine translator in front of the readout, ``softmax(head(norm(h_l + A_l h_l + b_l)))``, fitted for each
state to the model's final prediction on data of yours. The last state needs none.

It is fitted to predict what the model will say, so it may name what is not in the state but goes with it in the data: a
translator that had no state at all would still learn the words' frequencies, in b. Read its gain over the logit lens on
rows it has not seen (`kl_tuned` beside `kl_plain`), and test what it names against shuffled pictures.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.data.batches import batches_of
from interp.errors import InputError, InputTypeError, shown
from interp.lens.fitting import (
    Training,
    collect,
    default_at_once,
    fit_translator,
    kl_to_final,
    mean_over_rows,
    reader_of,
    split_rows,
)
from interp.lens.reading import provenance_of, read_states
from interp.lens.result import LensResult
from interp.models import VLM, Batch, Intervention
from interp.provenance import Provenance, fingerprint
from interp.results import Result


@dataclass(frozen=True, eq=False)
class TunedLens(Result):
    """The translators of a model's states, ``h + A h + b``, and how well they do on rows that were held out.

    `matrices` (A) and `biases` (b) are those of all states but the last. `kl_plain` and `kl_tuned` are KL(final || reading)
    in nats of each state without and with its translator, means over the positions of `n_held_out` rows, with 95 % bounds
    by drawing the rows anew; the last state has 0 in both. `epochs` says after how many each translator was best (0: it is
    the identity). `readout_hash` is that of the norm and head it belongs to, None where they were not in memory.
    """

    matrices: Float[Tensor, "layer width width"]
    biases: Float[Tensor, "layer width"]
    kl_plain: Float[Tensor, " state"]
    kl_plain_low: Float[Tensor, " state"]
    kl_plain_high: Float[Tensor, " state"]
    kl_tuned: Float[Tensor, " state"]
    kl_tuned_low: Float[Tensor, " state"]
    kl_tuned_high: Float[Tensor, " state"]
    epochs: Int[Tensor, " layer"]
    n_train: int
    n_held_out: int
    readout_hash: str | None

    def __post_init__(self) -> None:
        layers, width = self.biases.shape
        if self.matrices.shape != (layers, width, width) or len(self.kl_tuned) != layers + 1:
            raise InputError(
                f"matrices {tuple(self.matrices.shape)}, biases {(layers, width)} and {len(self.kl_tuned)} states do not fit"
            )

    @classmethod
    @torch.inference_mode(False)  # a caller may be in it, and nothing that is made there can take part in a gradient
    def fit(
        cls,
        vlm: VLM,
        data: Any,
        positions: Any = "all",
        held_out: float = 0.2,
        epochs: int = 20,
        learning_rate: float = 0.1,
        positions_at_once: int | None = None,
        patience: int = 3,
        batch_size: int = 8,
        seed: int = 0,
    ) -> TunedLens:
        """Fit a translator to each state but the last, to make KL(final || reading) small at `positions` of `data`.

        `data` is any data: batches, a list of `(image, text)`, scenes, a data set or a folder, of which all but batches is
        prepared `batch_size` rows at a time; images and texts may be mixed where the model takes that in one batch. States
        are collected in one forward pass a batch and kept on the CPU in the model's precision: ``(n_layers + 1) x positions
        x width`` numbers. `positions_at_once` (256, fewer with a very large vocabulary) is what one step is made of. A share
        `held_out` of the rows is measured alone, half as many say when to stop; see `interp.lens.fitting`. Two
        rows with one picture may fall on both sides, and then the held-out numbers flatter.

        Raises what `interp.data.batches.batches_of` raises for data, and `InputError` for fewer than 3 rows, positions that
        select nothing, a setting of the training that is out of range, and a model whose weights are not here.
        """
        at_once = default_at_once(vlm.structure.vocab_size) if positions_at_once is None else positions_at_once
        how = Training(epochs, learning_rate, at_once, patience, seed)
        if vlm.device.type == "meta":
            raise InputError(f"{vlm.name!r} has no weights here: expected a model in memory, fit it where it is loaded")
        batches = batches_of(vlm, data, batch_size)
        examples = collect(vlm, batches, positions)
        train, stop, test = (examples.of(side) for side in split_rows(int(examples.rows.max()) + 1, held_out, seed))
        read, finals = reader_of(vlm), examples.states[-1]
        fitted = [fit_translator(states, finals, train, stop, read, how) for states in examples.states[:-1]]
        translators = [translator for translator, _ in fitted]
        kls = [
            torch.stack(
                [
                    kl_to_final(states[test], finals[test], read, how.at_once, translator)
                    for states, translator in zip(examples.states, each, strict=True)
                ]
            )
            for each in ([None] * len(examples.states), [*translators, None])
        ]
        (plain, plain_low, plain_high), (tuned, tuned_low, tuned_high) = (
            mean_over_rows(kl, examples.rows[test], seed) for kl in kls
        )
        return cls(
            matrices=torch.stack([matrix for matrix, _ in translators]),
            biases=torch.stack([bias for _, bias in translators]),
            kl_plain=plain,
            kl_plain_low=plain_low,
            kl_plain_high=plain_high,
            kl_tuned=tuned,
            kl_tuned_low=tuned_low,
            kl_tuned_high=tuned_high,
            epochs=torch.tensor([epoch for _, epoch in fitted]),
            n_train=len(examples.rows[train].unique()),
            n_held_out=len(examples.rows[test].unique()),
            readout_hash=readout_hash(vlm),
            provenance=Provenance(
                model=vlm.name,
                revision=vlm.revision,
                data=fingerprint(*batches),
                seed=seed,
                notes=(f"positions={shown(positions)}, {len(examples.rows)} of them", repr(how)),
            ),
        )

    def to_frame(self) -> pd.DataFrame:
        """One row a state: both divergences with their bounds, and the epoch its translator is of (0 for the last)."""
        names = ("kl_plain", "kl_plain_low", "kl_plain_high", "kl_tuned", "kl_tuned_low", "kl_tuned_high")
        frame = pd.DataFrame({name: getattr(self, name).numpy() for name in names})
        frame.insert(0, "state", range(len(frame)))
        return frame.assign(epoch=[*self.epochs.tolist(), 0])


def tuned_lens(
    vlm: VLM,
    batch: Batch,
    lens: Any,
    positions: Any = "image",
    top_k: int = 5,
    targets: Any = None,
    interventions: Sequence[Intervention] = (),
) -> LensResult:
    """Read every state at the selected positions behind its translator; all else is as in `logit_lens`.

    Raises `InputError` for a lens that was fitted on another norm and head, and where `logit_lens` does.
    """
    if not isinstance(lens, TunedLens):
        raise InputTypeError(
            f"lens={shown(lens)} is a {type(lens).__name__}: expected what TunedLens.fit or .load gives"
        )
    check_belongs(vlm, lens)
    made = provenance_of(vlm, batch, interventions, (f"tuned lens fitted on data {lens.provenance.data}",))
    translators = list(zip(lens.matrices, lens.biases, strict=True))
    return read_states(
        vlm, batch, positions, top_k, targets, interventions, vlm.readout, translators, made, name="tuned lens"
    )


def check_belongs(vlm: VLM, lens: TunedLens) -> None:
    """Refuse a lens of another model: by the hash of norm and head, by name and revision where weights are not here."""
    layers, width = lens.biases.shape
    if (layers, width) != (vlm.structure.n_layers, vlm.structure.d_model):
        raise InputError(
            f"this lens is for {layers} layers of width {width}, {vlm.name!r} has {vlm.structure.n_layers} of width "
            f"{vlm.structure.d_model}: expected a lens fitted on it, use TunedLens.fit"
        )
    here, there = readout_hash(vlm), lens.readout_hash
    if here is None or there is None:
        here, there = f"{vlm.name}@{vlm.revision}", f"{lens.provenance.model}@{lens.provenance.revision}"
    if here != there:
        raise InputError(
            f"this lens was fitted on {lens.provenance.model!r} with norm and head {there!r}, those of {vlm.name!r} "
            f"are {here!r}: expected the same, fit one with TunedLens.fit"
        )


def readout_hash(vlm: VLM) -> str | None:
    """A hash of everything that the final norm and the head hold; None where some of it is not in memory."""
    digest = hashlib.sha256()
    for path in (vlm.structure.norm, vlm.structure.head):
        for name, tensor in vlm.model.get_submodule(path).state_dict().items():
            if not isinstance(tensor, Tensor):
                continue
            if tensor.is_meta:
                return None
            digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
