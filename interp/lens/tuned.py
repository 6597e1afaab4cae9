"""The tuned lens: the logit lens after a learnt change of basis.

States drift through the layers: a direction in an early state does not mean quite what it means to the final norm and head.
So the logit lens may fail to read a state that is merely written in another basis. The tuned lens (Belrose et al. 2023,
arXiv 2303.08112) puts an affine translator before the readout, ``softmax(head(norm(h_l + A_l h_l + b_l)))``. It is fitted
for each state to the model's final prediction on your data. The last state needs none.

A translator is trained to predict what the model will say. So it may name what the state does not hold, if it goes with
the state in the data: a translator blind to the state would still learn the words' frequencies, in b. Read its gain over
the logit lens on held-out rows (`kl_tuned` and `kl_plain`), and test what it names against shuffled pictures.
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

from interp.activations.sink_counts import notes_of_sinks
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
    split_three_ways,
)
from interp.lens.reading import SINKS_READ, Lens, LensResult, Request, read_states
from interp.models import VLM, Batch, Intervention
from interp.models.running.offloading import weights_here
from interp.models.running.trace import refuse_no_numbers
from interp.progress import progress_bar
from interp.provenance import provenance_of_run
from interp.results import Result
from interp.statistics.intervals import few_rows


@dataclass(frozen=True, eq=False)
class TunedLens(Result):
    """The translators of a model's states, ``h + A h + b``, and how well they do on held-out rows.

    `matrices` (A) and `biases` (b) are those of all states but the last. `kl_plain` and `kl_tuned` are KL(final || reading)
    in nats of each state without and with its translator, means over the positions of `n_held_out` rows, with 95 % bounds
    over whole rows; the last state has 0 in both. `epochs` is the number after which each translator was best
    (0: it is the identity). `readout_hash` is a hash of the norm and head that it was fitted with, None where they were not
    in memory.
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
    @torch.inference_mode(False)  # the caller may be in it, and its tensors could not take part in a gradient
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
        progress: bool = True,
    ) -> TunedLens:
        """Fit a translator to each state but the last, to make KL(final || reading) small at `positions` of `data`.

        >>> import interp
        >>> vlm = interp.load("toy")
        >>> lens = TunedLens.fit(vlm, interp.toy.scenes(6, seed=0), positions="last", epochs=1)
        >>> tuple(lens.matrices.shape), lens.n_train
        ((8, 128, 128), 4)

        `data` is an `interp.Data` or anything that it takes: batches, a list of `(image, text)`, scenes, a data set, a
        folder. All but batches is prepared `batch_size` rows at a time, and images and texts may be mixed where the model
        takes that in one batch. States are collected in one forward pass a batch and kept on the CPU in the model's
        precision: ``(n_layers + 1) x positions x width`` numbers. One step of the training is made of `positions_at_once`
        positions (256, or fewer with a very large vocabulary). A share `held_out` of the rows is for measuring alone, half
        as many say when to stop; see `interp.lens.fitting`. Two rows with one picture may fall on both sides, and then the
        held-out numbers flatter. A long run shows its progress on a terminal or in a notebook; ``progress=False`` hides it.

        Raises what `interp.data.batches.batches_of` raises for data, and `InputError` for fewer than 3 rows, positions that
        select nothing, states and readings that are not finite, a setting of the training that is out of range, and a model
        without weights on this machine.
        """
        at_once = default_at_once(vlm.structure.vocab_size) if positions_at_once is None else positions_at_once
        training = Training(epochs, learning_rate, at_once, patience, seed)
        if vlm.device.type == "meta":
            raise InputError(
                f"{vlm.name!r} has no weights here: expected a model in memory, fit the lens where it is loaded"
            )
        batches = batches_of(vlm, data, batch_size)
        with progress_bar("collecting states", len(batches), "batches", progress) as bar:
            examples = collect(vlm, batches, positions, bar)
        sides = split_three_ways(int(examples.rows.max()) + 1, held_out, seed)
        train, stop, test = (examples.of(side) for side in sides)
        read, finals = reader_of(vlm), examples.states[-1]
        refuse_no_numbers(vlm, batches[0], kl_to_final(finals, finals, read, at_once), "readings of the last state")
        fits = []
        with progress_bar("tuned lens", len(examples.states) - 1, "states", progress) as bar:
            for states in examples.states[:-1]:
                fits.append(fit_translator(states, finals, train, stop, read, training))
                bar.advance()
        translators, epoch_of = zip(*fits, strict=True)

        def measured(each: Sequence[Any]) -> tuple[Tensor, Tensor, Tensor]:
            """The mean KL of each state after its translator, on held-out rows, with its bounds."""
            kls = [
                kl_to_final(states[test], finals[test], read, training.at_once, translator)
                for states, translator in zip(examples.states, each, strict=True)
            ]
            return mean_over_rows(torch.stack(kls), examples.rows[test], seed)

        plain, plain_low, plain_high = measured([None] * len(examples.states))
        tuned, tuned_low, tuned_high = measured([*translators, None])
        return cls(
            matrices=torch.stack([matrix for matrix, _ in translators]),
            biases=torch.stack([bias for _, bias in translators]),
            kl_plain=plain,
            kl_plain_low=plain_low,
            kl_plain_high=plain_high,
            kl_tuned=tuned,
            kl_tuned_low=tuned_low,
            kl_tuned_high=tuned_high,
            epochs=torch.tensor(epoch_of),
            n_train=len(examples.rows[train].unique()),
            n_held_out=len(examples.rows[test].unique()),
            readout_hash=readout_hash(vlm),
            provenance=provenance_of_run(
                vlm,
                batches,
                seed=seed,
                notes=(
                    f"positions={shown(positions)}, {len(examples.rows)} of them",
                    repr(training),
                    *few_rows(len(examples.rows[test].unique())),
                    *notes_of_sinks(examples.sinks, int(examples.rows.max()) + 1, SINKS_READ),
                ),
            ),
        )

    def to_frame(self) -> pd.DataFrame:
        """One row a state: both divergences with their bounds, and the epoch of its translator (0 for the last)."""
        names = ("kl_plain", "kl_plain_low", "kl_plain_high", "kl_tuned", "kl_tuned_low", "kl_tuned_high")
        columns = {name: getattr(self, name).numpy() for name in names}
        return pd.DataFrame({"state": range(len(self.kl_plain)), **columns, "epoch": [*self.epochs.tolist(), 0]})


def tuned_lens(
    vlm: VLM,
    batch: Batch,
    lens: Any,
    positions: Any = "image",
    top_k: int = 5,
    targets: Any = None,
    interventions: Sequence[Intervention] = (),
) -> LensResult:
    """Read every state at the selected positions after its translator; all else is as in `logit_lens`.

    >>> import interp
    >>> vlm = interp.load("toy")
    >>> lens = TunedLens.fit(vlm, interp.toy.scenes(6, seed=0), positions="last", epochs=1)
    >>> batch = vlm.prepare(texts=["a red 3 at top . what colour is the 3 ?"])
    >>> tuned_lens(vlm, batch, lens, positions="last").words(-1, 0)[0]
    'red'

    Raises `InputError` for a lens that was fitted with another norm and head, and where `logit_lens` does.
    """
    if not isinstance(lens, TunedLens):
        raise InputTypeError(
            f"lens={shown(lens)} is a {type(lens).__name__}: expected a TunedLens, from TunedLens.fit or .load"
        )
    check_belongs(vlm, lens)
    translators = list(zip(lens.matrices, lens.biases, strict=True))
    notes = (f"tuned lens fitted on data {lens.provenance.data}",)
    request = Request(positions, top_k, targets, interventions)
    return read_states(vlm, batch, Lens("tuned lens", vlm.readout, translators, notes), request)


def check_belongs(vlm: VLM, lens: TunedLens) -> None:
    """Refuse a lens of another model: by the hash of norm and head, or, without weights, by name and revision."""
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
            f"are {here!r}: expected the same, fit a lens with TunedLens.fit"
        )


def readout_hash(vlm: VLM) -> str | None:
    """A hash of all that the final norm and the head hold; None where some of it is not in memory."""
    digest = hashlib.sha256()
    for path in (vlm.structure.norm, vlm.structure.head):
        module = vlm.model.get_submodule(path)
        with weights_here(module):
            for name, tensor in module.state_dict().items():
                if not isinstance(tensor, Tensor):
                    continue
                if tensor.is_meta:
                    return None
                digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
                digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
