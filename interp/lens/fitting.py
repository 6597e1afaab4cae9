"""Fitting translators: for each state the affine map after which the model's own readout comes closest to its prediction.

A translator is ``h + A h + b``. A and b start at zero, where it changes nothing. Adam trains it to make
KL(final || reading) small over positions of the user's data, each state on its own, through the model's norm and head,
which do not change. Whole rows are split three ways: the translator is trained on most of them, stopped where it is best on
a few others, and measured on the rest, which play no part in either. The identity is the first candidate, so a translator
that does not help stays the identity.

The size of a step does not depend on the model: A moves by ``learning_rate / width``, and b by ``learning_rate`` times the
root mean square of the state's features. So one step changes a feature by at most twice ``learning_rate`` times that.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import ceil, inf
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp.activations.sink_counts import SinkCount, add_counts, count_sinks, reads_of_norms
from interp.arguments import as_number, checked_int, checked_seed, checked_share
from interp.errors import InputError, shown
from interp.lens.reading import Translator, divergence, log_probs, positions_at_once, translate
from interp.models import VLM, Batch
from interp.models.running.readout import Readout
from interp.models.running.steps import reads_of_states, take_each
from interp.models.running.trace import refuse_no_numbers, run_forward
from interp.progress import Bar
from interp.statistics.intervals import mean_interval


@dataclass(frozen=True)
class Examples:
    """States at the selected positions of some data, on the CPU in the model's precision, the row of each, and how many of them
    are attention sinks."""

    states: Float[Tensor, "state example width"]
    rows: Int[Tensor, " example"]
    sinks: SinkCount | None = None

    def of(self, side: Bool[Tensor, " row"]) -> Bool[Tensor, " example"]:
        """Which examples belong to the rows of a side of the split."""
        return side[self.rows]


@dataclass(frozen=True)
class Training:
    """How translators are trained: at most `epochs` times over the data, `at_once` positions a step, until `patience`
    epochs in a row bring no gain."""

    epochs: int
    learning_rate: float
    at_once: int
    patience: int
    seed: int

    def __post_init__(self) -> None:
        counts = {"epochs": self.epochs, "positions_at_once": self.at_once, "patience": self.patience}
        for name, count in counts.items():
            checked_int(count, name, least=1)
        checked_seed(self.seed)
        if not 0 < (as_number(self.learning_rate) or 0) < inf:
            raise InputError(f"learning_rate={shown(self.learning_rate)}: expected a number above 0")


@dataclass(frozen=True)
class Reader:
    """States `[example, width]` to log-probabilities, by the model's own modules on their device."""

    readout: Readout
    device: torch.device

    def __call__(self, states: Tensor) -> Tensor:
        return log_probs(states.to(self.device), self.readout)


def reader_of(vlm: VLM) -> Reader:
    """The model's own readout, for use outside a trace."""
    norm, head = (vlm.model.get_submodule(path) for path in (vlm.structure.norm, vlm.structure.head))
    return Reader(replace(vlm.readout, norm=norm, head=head), vlm.device)


def collect(vlm: VLM, batches: Sequence[Batch], positions: Any, bar: Bar) -> Examples:
    """Every state at these positions, one forward pass a batch; rows are numbered through all batches.

    Raises `InputError` where no position is selected and where a state is not finite.
    """
    vlm.refuse_image_positions(positions)
    states, numbers, counts, before = [], [], [], 0
    for batch in batches:
        mask = batch.positions.select(positions)
        rows, columns = mask.nonzero(as_tuple=True)
        if len(rows):
            reads, norms = reads_of_states(vlm, take_each, (rows, columns, None)), reads_of_norms(vlm, ())
            outputs = run_forward(vlm, batch, (), [*reads, *norms], logits=None)
            counts.append(count_sinks(vlm, batch, (), norms, outputs, mask))
            states.append(torch.stack([outputs[read.key].cpu() for read in reads]))
            refuse_no_numbers(vlm, batch, states[-1].abs(), "states")
            numbers.append(rows + before)
        before += len(batch)
        bar.advance()
    if not states:
        raise InputError(f"positions={shown(positions)} selects no position of this data: expected at least one")
    rows = torch.cat(numbers).unique(return_inverse=True)[1]  # rows without a position do not count
    return Examples(torch.cat(states, dim=1), rows, add_counts(counts))


def split_three_ways(count: int, held_out: float, seed: int) -> tuple[Bool[Tensor, " row"], ...]:
    """Which of `count` rows translators are trained on, stopped by, and measured on: a share `held_out` of them for
    measuring, half as many for stopping.

    Raises `InputError` where a side would be empty.
    """
    held_out = checked_share(held_out, "held_out", below=0.6)
    measured, stopping = max(1, round(held_out * count)), max(1, round(held_out * count / 2))
    if measured + stopping >= count:
        raise InputError(
            f"{count} rows with a selected position: expected 3 or more, to train on, to stop by and to hold out"
        )
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    sides = torch.zeros(3, count, dtype=torch.bool)
    sides[2, order[:measured]] = True
    sides[1, order[measured : measured + stopping]] = True
    sides[0, order[measured + stopping :]] = True
    return sides[0], sides[1], sides[2]


def fit_translator(
    states: Float[Tensor, "example width"],
    finals: Float[Tensor, "example width"],
    train: Bool[Tensor, " example"],
    stop: Bool[Tensor, " example"],
    read: Callable[[Tensor], Tensor],
    training: Training,
) -> tuple[Translator, int]:
    """The translator of one state, and the epoch after which it was best (0: it is the identity)."""
    width, device = states.shape[-1], getattr(read, "device", states.device)
    scale = states[train].float().square().mean().sqrt().item()
    matrix = torch.zeros(width, width, dtype=torch.float32, device=device, requires_grad=True)
    bias = torch.zeros(width, dtype=torch.float32, device=device, requires_grad=True)
    rates = [training.learning_rate / width, training.learning_rate * scale]
    adam = torch.optim.Adam([{"params": [matrix], "lr": rates[0]}, {"params": [bias], "lr": rates[1]}])
    examples = train.nonzero()[:, 0]
    steps = training.epochs * ceil(len(examples) / training.at_once)
    schedule = torch.optim.lr_scheduler.LinearLR(adam, 1.0, 0.02, steps)
    generator = torch.Generator().manual_seed(training.seed)

    def loss_of(part: Tensor) -> Tensor:
        with torch.no_grad():
            final = read(finals[part])
        return divergence(final, read(translate(states[part].to(device), matrix, bias))).mean()

    def candidate() -> tuple[float, Translator]:
        kl = kl_to_final(states[stop], finals[stop], read, training.at_once, (matrix, bias)).mean().item()
        return kl, (matrix.detach().cpu().clone(), bias.detach().cpu().clone())

    (best_kl, best), best_epoch = candidate(), 0
    for epoch in range(1, training.epochs + 1):
        order = examples[torch.randperm(len(examples), generator=generator)]
        for part in order.split(training.at_once):
            with torch.enable_grad():
                slopes = torch.autograd.grad(loss_of(part), (matrix, bias))
            matrix.grad, bias.grad = slopes
            adam.step()
            schedule.step()
        kl, translator = candidate()
        if kl < best_kl:
            best_kl, best, best_epoch = kl, translator, epoch
        if epoch - best_epoch >= training.patience:
            break
    return best, best_epoch


def kl_to_final(
    states: Float[Tensor, "example width"],
    finals: Float[Tensor, "example width"],
    read: Callable[[Tensor], Tensor],
    at_once: int,
    translator: Translator | None = None,
) -> Float[Tensor, " example"]:
    """KL(final || reading) of each example, `at_once` at a time; without a translator, that of the plain lens."""
    parts = []
    with torch.no_grad():
        for some, last in zip(states.split(at_once), finals.split(at_once), strict=True):
            final = read(last)
            some = some.to(final.device)
            parts.append(divergence(final, read(some if translator is None else translate(some, *translator))).cpu())
    return torch.cat(parts)


def mean_over_rows(
    values: Float[Tensor, "state example"], rows: Int[Tensor, " example"], seed: int
) -> tuple[Float[Tensor, " state"], Float[Tensor, " state"], Float[Tensor, " state"]]:
    """The mean divergence of the examples, and its 95 % bounds, for which rows are groups; NaN for a single row."""
    values = values.double()
    low, high = mean_interval(values.T, rows, seed)
    return values.mean(dim=1), low.clamp(min=0), high  # no divergence is below 0


def default_at_once(vocab_size: int) -> int:
    """Positions a step: 256, or fewer where the vocabulary is so large that 256 would not fit."""
    return min(256, positions_at_once(vocab_size))
