"""`unmixed` and the tuned toy: what says that text reads the image, and what says no more than that patches hold something."""

from __future__ import annotations

from functools import lru_cache, partial

from jaxtyping import Float
from torch import Tensor

import interp
from interp.activations import Activations
from interp.geometry import alignment_matrix
from interp.interventions import Ablate, Patch
from interp.lens import attention_share, logit_lens
from interp.models import VLM, Batch
from interp.patching import flow, logit_difference
from interp.patching.metrics import Metric
from interp.probes import probe_layers
from interp.statistics import mean_interval
from planted import Reading, Row

SCENES = interp.toy.scenes(150, seed=0, distinct=True)
SINGLE = interp.toy.scenes(240, seed=1, objects=1)
PAIRS = interp.toy.pairs(40, seed=0, change="colour")


@lru_cache(maxsize=8)
def captured(vlm: VLM, modality: str) -> Activations:
    """Means over the patches of scenes, or over the words of their captions."""
    data, positions = (SCENES, "image") if modality == "image" else (SCENES.captions(), "text")
    return interp.capture(vlm, data, positions=positions, progress=False)


@lru_cache(maxsize=4)
def pair_batches(vlm: VLM) -> tuple[Batch, Batch]:
    """Pictures that differ in one colour, with the question about it."""
    prompts, spans = [pair.prompt for pair in PAIRS], [pair.spans for pair in PAIRS]
    clean, corrupted = (
        vlm.prepare(prompts, [getattr(pair, side).image for pair in PAIRS], spans=spans)
        for side in ("clean", "corrupted")
    )
    return clean, corrupted


def metric() -> Metric:
    """The logit of the right colour less that of the other."""
    return logit_difference([pair.answer for pair in PAIRS], [pair.other for pair in PAIRS])


def alignment(vlm: VLM) -> Reading:
    """The highest overlap of an image with its caption at one layer."""
    matrix = alignment_matrix(captured(vlm, "image"), captured(vlm, "text"), progress=False)
    at = int(matrix.values.diagonal().argmax())
    bounds = float(matrix.low[at, at]), float(matrix.high[at, at])
    return Reading(float(matrix.values[at, at]), *bounds, float(matrix.p_diagonal[at]), matrix.chance)


def probe(vlm: VLM, positions: str) -> Reading:
    """The colour of the only object, read at the best state; the question is the same for all, or its words would tell."""
    pairs = [(scene.image, "<image> what colour is the digit ?") for scene in SINGLE]
    reduce = "mean" if positions == "image" else "last"
    acts = interp.capture(vlm, pairs, positions=positions, reduce=reduce, progress=False)
    result = probe_layers(acts, [scene.objects[0].colour for scene in SINGLE], control=False, progress=False)
    best = result.best_state()
    return Reading(best.accuracy, best.low, best.high, best.p, result.chance)


def words(vlm: VLM) -> Reading:
    """The share of an object's patches that the lens reads as its colour, at the best state."""
    clean, _ = pair_batches(vlm)
    result = logit_lens(vlm, clean, positions="object", targets=[pair.answer for pair in PAIRS])
    assert result.target_ranks is not None
    hits = (result.target_ranks == 0).double()
    state = int(hits.mean(dim=1).argmax())
    low, high = mean_interval(hits[state], result.rows)
    return Reading(float(hits[state].mean()), float(low), float(high), chance=1 / result.vocab_size)


def cut(vlm: VLM, target: str) -> Reading:
    """The change of the logit difference where it is largest, over the windows of layers."""
    clean, _ = pair_batches(vlm)
    result = flow(vlm, clean, edges=[("image", target)], window=3, metric=metric(), control=False, progress=False)
    return largest((result.per_row[:, 0] - result.baseline_rows[:, None]).double())


def patched(vlm: VLM) -> Reading:
    """The change of the logit difference by the other picture's states at the patches of the object."""
    clean, corrupted = pair_batches(vlm)
    acts = interp.capture(vlm, [clean], ("resid_pre",), positions="object", reduce="none", progress=False)
    patch = Patch(site="resid_pre", layers=0, positions="object", value=acts["resid_pre"][:1])
    ids = [vlm.tokenizer.convert_tokens_to_ids([getattr(pair, side) for pair in PAIRS]) for side in ("answer", "other")]
    before, after = (logit_difference(*ids)(vlm.logits(corrupted, interventions=changes)) for changes in ((), [patch]))
    return largest((after - before)[:, None].double())


def largest(changes: Float[Tensor, "row cell"]) -> Reading:
    """The mean over rows of the cell that changes most."""
    at = int(changes.mean(dim=0).abs().argmax())
    low, high = mean_interval(changes[:, at])
    return Reading(float(changes[:, at].mean()), float(low), float(high))


def shares(vlm: VLM) -> str:
    """The share of attention to the image, over heads."""
    share = attention_share(vlm, pair_batches(vlm)[0], queries="after_image", keys="image")
    return f"largest {share.values.max():.3g}, smallest {share.values.min():.3g}, chance {share.chance.mean():.3g}"


def ablated(vlm: VLM, value: str) -> Reading:
    """The largest change of any logit."""
    clean, _ = pair_batches(vlm)
    change = Ablate(site="resid_pre", layers=2, positions="image", value=value)
    moved = (vlm.logits(clean, interventions=[change]) - vlm.logits(clean)).abs().amax(dim=-1)
    low, high = mean_interval(moved.double())
    return Reading(float(moved.mean()), float(low), float(high))


row = partial(Row, "unmixed", "toy:tuned")
ROWS = [
    row(
        "`alignment_matrix`, image and caption, the highest of the diagonal",
        "above chance: patches mean something",
        alignment,
    ),
    row(
        "`probe_layers`, colour at patches, best state",
        "above chance: patches mean something",
        partial(probe, positions="image"),
    ),
    row("`logit_lens`, patches of an object whose top word is its colour, best state", "above chance", words),
    row("`probe_layers`, colour at the last token, best state", "chance", partial(probe, positions="last")),
    row("`flow`, image to last, largest change of the logit difference", "0", partial(cut, target="last")),
    row("`flow`, image to question, largest change", "0", partial(cut, target="question")),
    row("`Patch` the object by that of the other picture, state 0, change of the logit difference", "0", patched),
    row("`attention_share` of text to the image, by head", "0 in 4 heads, 1 in the head that looks", shares),
    row("`Ablate` patches by another row's, layer 2, largest logit moved", "0", partial(ablated, value="resample")),
    row(
        "`Ablate` patches by zeros, layer 2, largest logit moved",
        "not 0: no flag, so text attends to it",
        partial(ablated, value="zero"),
    ),
]
