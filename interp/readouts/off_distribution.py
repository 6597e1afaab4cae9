"""How far does an intervention take a model from what it is used to?

An ablated or steered state may be one that no input produces. What the model then does says little about what it does with
inputs. For each state, this readout compares the changed states h with states r captured from ordinary inputs:

    norm      |h| / median |r|
    distance  min_r |L^-1 (h - r)| / u,   C = L L^T the covariance of the captured states (Ledoit and Wolf 2004), so that each
              direction counts in units of its spread; u the mean over captured states of the same distance to the nearest
              one of another row
    outside   the share of positions with a distance that at most 5 % of the captured states exceed
    entropy   of the output at the last token, in nats

The control is the unchanged run of the same rows: where the reference is of their kind and has many rows, its distance is
about 1 and its `outside` about 0.05, and both are larger with few. Read the difference, which is paired row by row. No
measure sees everything: the mean of two kinds of states lies between them, and a state of zeros may be as near as any, but
has no norm.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from interp.activations import Activations
from interp.activations.sink_counts import SinkCount, count_sinks, notes_of_sinks, reads_of_norms
from interp.errors import InputError, InputTypeError
from interp.interventions.selection import nothing_selected
from interp.models import VLM, Batch, Intervention
from interp.models.running.steps import reads_of_states, whole
from interp.models.running.trace import run_forward
from interp.provenance import provenance_of_run
from interp.results import Result
from interp.statistics.intervals import difference_interval, few_rows

MEASURES = ("norm", "distance", "outside", "entropy")
_FEWEST = 100
_AT_ONCE = 512
_TAIL = 0.95  # a distance is outside where it exceeds this share of those of the captured states


@dataclass(frozen=True, eq=False)
class OffDistribution(Result):
    """How far states are from captured ones, with interventions and without, row by row.

    `norm`, `distance` and `outside` are Float `[row, state]`, means over the positions of a row (NaN for a row without any);
    `entropy` is Float `[row]`. Those of the unchanged run end in `_unchanged`. `n_reference` is the number of captured states.
    """

    norm: Float[Tensor, "row state"]
    distance: Float[Tensor, "row state"]
    outside: Float[Tensor, "row state"]
    entropy: Float[Tensor, " row"]
    norm_unchanged: Float[Tensor, "row state"]
    distance_unchanged: Float[Tensor, "row state"]
    outside_unchanged: Float[Tensor, "row state"]
    entropy_unchanged: Float[Tensor, " row"]
    states: list[int]
    n_reference: int

    def to_frame(self) -> pd.DataFrame:
        """One row a measure and state: measure, state (None for the entropy), value, unchanged, difference, low, high: means
        over rows, and the 95 % interval of the paired difference."""
        rows = []
        for measure in MEASURES:
            changed, unchanged = getattr(self, measure), getattr(self, f"{measure}_unchanged")
            present = ~changed.flatten(1).isnan().any(dim=1) if changed.ndim == 2 else ~changed.isnan()
            value, before = changed[present], unchanged[present]
            low, high = difference_interval(value - before)
            means = (value.mean(dim=0), before.mean(dim=0), (value - before).mean(dim=0), low, high)
            columns = zip(*(part.reshape(-1).tolist() for part in means), strict=True)
            states = self.states if changed.ndim == 2 else [None]
            rows += [(measure, state, *numbers) for state, numbers in zip(states, columns, strict=True)]
        names = ["measure", "state", "value", "unchanged", "difference", "low", "high"]
        return pd.DataFrame(rows, columns=names).astype({"state": "Int64"})


def off_distribution(
    vlm: VLM,
    batch: Batch,
    interventions: Sequence[Intervention],
    reference: Any,
    positions: Any = "content",
) -> OffDistribution:
    """How far the states at `positions` are from those of `reference`, with `interventions` and without.

    >>> import interp
    >>> from interp.interventions import Ablate
    >>> vlm = interp.load("toy")
    >>> scenes = interp.toy.scenes(12, seed=0, distinct=True)
    >>> usual = interp.capture(vlm, scenes[2:], positions="image", reduce="none", progress=False)
    >>> batch = vlm.prepare(texts=["<image>"] * 2, images=[scene.image for scene in scenes[:2]])
    >>> zero = Ablate(site="resid_pre", layers=3, positions="image")
    >>> report = off_distribution(vlm, batch, [zero], usual, positions="image")
    >>> bool(report.norm[0, 3] == 0), bool(report.norm_unchanged[0, 3] > 0.5)
    (True, True)

    `reference` is a capture of the site `resid` with ``reduce="none"``, of other inputs of the same kind and of the same
    `positions`; some thousands of states are enough. It takes two forward passes, and a comparison of each state with all
    captured ones. The set of measures is this package's own.

    Raises `InputTypeError` for a reference that is no capture; `InputError` for one without `resid`, of pooled states, of
    another width or of fewer than 100 states or 2 rows, for one in which most states repeat those of other rows, for
    positions that select nothing, and what the interventions raise.
    """
    vlm.refuse_unfit(batch, interventions)
    clouds, rows = _checked(vlm, reference)
    mask = batch.positions.select(positions)
    if not mask.any():
        raise nothing_selected("positions", positions)
    states = list(reference.layers["resid"])
    runs = [_run(vlm, batch, given, states, mask) for given in (interventions, ())]
    of_rows = mask.nonzero()[:, 0]
    changed: list[Tensor] = []
    unchanged: list[Tensor] = []
    for number, (state, cloud) in enumerate(zip(states, clouds, strict=True)):
        both = _measures([seen[number] for seen, *_ in runs], cloud, rows, state)
        for parts, measures in zip((changed, unchanged), both, strict=True):
            parts.append(_by_row(measures, of_rows, len(mask)))
    fields: dict[str, Any] = {}
    for ending, parts, (_, entropy, _) in zip(("", "_unchanged"), (changed, unchanged), runs, strict=True):
        together = torch.stack(parts, dim=2)
        fields |= {f"{name}{ending}": together[index] for index, name in enumerate(MEASURES[:3])}
        fields[f"entropy{ending}"] = entropy
    notes = (
        *few_rows(len(of_rows.unique())),
        *notes_of_sinks(runs[1][2], len(batch)),
        *(f"reference: {note}" for note in reference.provenance.notes),
    )
    provenance = provenance_of_run(vlm, [batch], interventions, notes=notes)
    return OffDistribution(**fields, states=states, n_reference=clouds.shape[1], provenance=provenance)


def _checked(vlm: VLM, reference: Any) -> tuple[Float[Tensor, "state n d"], Tensor]:
    """The captured states in float32, and the row of each."""
    if not isinstance(reference, Activations):
        raise InputTypeError(f"reference is a {type(reference).__name__}: expected what interp.capture returns")
    if "resid" not in reference:
        raise InputError(f"the reference has {', '.join(reference)}: expected a capture of resid")
    places = reference.places("resid")
    if (places.columns < 0).any():
        raise InputError("the reference has pooled states: expected a capture with reduce='none'")
    clouds = torch.as_tensor(reference["resid"][...]).float()
    if clouds.shape[2] != vlm.structure.d_model or max(reference.layers["resid"]) > vlm.structure.n_layers:
        raise InputError(f"the reference has states of width {clouds.shape[2]}: expected a capture of this model")
    if clouds.shape[1] < _FEWEST:
        raise InputError(
            f"the reference has {clouds.shape[1]} states: expected {_FEWEST} or more, capture further rows"
        )
    if len(places.rows.unique()) < 2:
        raise InputError("the reference has one row: expected more, its states are compared with those of other rows")
    return clouds, places.rows


def _run(
    vlm: VLM, batch: Batch, interventions: Sequence[Intervention], states: Sequence[int], mask: Tensor
) -> tuple[list[Tensor], Tensor, SinkCount | None]:
    """The selected states `[position, width]` of each of these states, the entropy of each row's output, and the sinks among
    the selected positions."""
    edits = vlm.edits_of(batch, interventions)
    reads = [read for read in reads_of_states(vlm, whole, (), edits) if read.key in states]
    norms = reads_of_norms(vlm, edits)
    seen = run_forward(vlm, batch, edits, [*reads, *norms])
    sinks = count_sinks(vlm, batch, edits, norms, seen, mask)
    logs = seen["logits"].float().log_softmax(dim=-1).cpu()
    entropy = -(logs.exp() * logs).nan_to_num().sum(dim=-1)
    return [seen[state][mask.to(seen[state].device)].float().cpu() for state in states], entropy, sinks


def _measures(runs: list[Tensor], cloud: Tensor, rows: Tensor, state: int) -> list[Float[Tensor, "3 position"]]:
    """Norm, distance and outside of the states `[position, width]` of each run, for a cloud with the row of each state."""
    from sklearn.covariance import LedoitWolf

    repeated = InputError(
        f"most states {state} of the reference repeat those of other rows: capture positions that differ from row to row"
    )
    covariance = torch.from_numpy(LedoitWolf().fit(cloud.double().numpy()).covariance_)
    if not covariance.trace() > 0:
        raise repeated
    root = torch.linalg.cholesky(covariance)
    scaled, *others = (
        torch.linalg.solve_triangular(root, each.double().T, upper=False).T.contiguous() for each in (cloud, *runs)
    )
    among = _nearest(scaled, scaled, rows)
    if not among.median() > 0:
        raise repeated
    unit, tail, length = among.mean(), among.quantile(_TAIL), cloud.norm(dim=1).median()
    near = [_nearest(each, scaled) for each in others]
    return [
        torch.stack([states.norm(dim=1) / length, (distance / unit).float(), (distance > tail).float()])
        for states, distance in zip(runs, near, strict=True)
    ]


def _nearest(states: Tensor, cloud: Tensor, rows: Tensor | None = None) -> Tensor:
    """The distance of each state to the nearest of a cloud; with `rows`, of the cloud's own states to those of other rows."""
    nearest = []
    for start in range(0, len(states), _AT_ONCE):
        some = slice(start, start + _AT_ONCE)
        distances = torch.cdist(states[some], cloud, compute_mode="donot_use_mm_for_euclid_dist")
        if rows is not None:
            distances = distances.masked_fill(rows[some, None] == rows, torch.inf)
        nearest.append(distances.amin(dim=1))
    return torch.cat(nearest)


def _by_row(measures: Float[Tensor, "3 position"], rows: Tensor, n: int) -> Float[Tensor, "3 row"]:
    """The means over the positions of each row, NaN for a row without any."""
    sums = torch.zeros(len(measures), n, dtype=measures.dtype).index_add(1, rows, measures)
    return sums / torch.bincount(rows, minlength=n)
