"""When visual positions mean something: on `late` from state 4 on, on `toy:tuned`, which it grew from, as they enter."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor

import interp
from interp.geometry import alignment_matrix, label_overlap
from interp.lens import logit_lens
from interp.models import VLM
from interp.patching import flow, logit_difference, patch_sweep, probability
from interp.probes import probe_layers
from planted import Reading, Row

N, DECODED = 300, 4
PAIR = "late", "toy:tuned"


@lru_cache(maxsize=1)
def scenes() -> interp.toy.SceneDataset:
    """Scenes of one object."""
    return interp.toy.scenes(N, seed=1, split="train", objects=1)


@lru_cache(maxsize=2)
def states(vlm: VLM) -> Tensor:
    """One state of each object, the first of its four patches, `[state, scene, feature]`."""
    masks = [torch.from_numpy(scene.patch_labels.reshape(-1) == 0) for scene in scenes()]
    every = interp.capture(vlm, scenes(), reduce="none", progress=False)["resid"][...]
    first = torch.stack([mask.nonzero()[0, 0] for mask in masks])
    return every.unflatten(1, (N, 36))[:, torch.arange(N), first]


def probed(state: int, label: str) -> Callable[[VLM], Reading]:
    """The accuracy of a linear probe on one patch of each object."""

    def measure(vlm: VLM) -> Reading:
        result = probe_layers(states(vlm)[state : state + 1], scenes().labels[label], progress=False)
        value, low, high, p = (float(each[0]) for each in (result.accuracy, result.low, result.high, result.p))
        return Reading(value, low, high, p, result.chance)

    return measure


def neighbours(state: int) -> Callable[[VLM], str]:
    """The share of the 10 nearest neighbours with the colour of the object."""

    def measure(vlm: VLM) -> str:
        own = label_overlap(states(vlm)[state], scenes().labels["colour"], k=10)
        order = torch.randperm(N, generator=torch.Generator().manual_seed(0))
        shuffled = label_overlap(states(vlm)[state][order], scenes().labels["colour"], k=10)
        return f"{own:.3f}, of shuffled rows {shuffled:.3f}"

    return measure


def aligned(state: int) -> Callable[[VLM], str]:
    """The best alignment of a visual state with textual states, means over the image and over the caption."""

    def measure(vlm: VLM) -> str:
        rows = interp.toy.scenes(150, seed=1, distinct=True, objects=2)
        image = interp.capture(vlm, rows, progress=False)["resid"][...][state : state + 1]
        text = interp.capture(vlm, rows.captions(), positions="text", progress=False)["resid"][...][-9:]
        matrix = alignment_matrix(image, text, k=10, subsamples=10)
        best = int(matrix.values[0].argmax())
        low, high = float(matrix.low[0, best]), float(matrix.high[0, best])
        p = float(matrix.p_family[0, best])
        return f"{float(matrix.values[0, best]):.3f} ({low:.3f} to {high:.3f}), p {p:.2g}, chance {matrix.chance:.3f}"

    return measure


def cut(vlm: VLM) -> str:
    """The largest change of an answer's probability, in percent, where one of layers 0 to 3 does not see the image."""
    asked = [(scene, scene.questions[0]) for scene in interp.toy.scenes(30, seed=0)]
    batch = vlm.prepare([each.prompt for _, each in asked], [scene.image for scene, _ in asked])
    metric = probability([each.answer for _, each in asked])
    edges = {"image": ("image", "after_image")}
    result = flow(vlm, batch, edges, window=1, metric=metric, control=False, progress=False)
    most = int(result.values[0].abs().argmax())
    return f"{float(result.values[0, :DECODED].abs().max()):.3g} %; most, {float(result.values[0, most]):.0f} %, in layer {most}"


def patched(vlm: VLM) -> Reading:
    """The effect of an object's own visual state 0 in the run of another picture."""
    rows = interp.toy.pairs(30, seed=0, change="colour")
    prompts, spans = [pair.prompt for pair in rows], [pair.spans for pair in rows]
    clean = vlm.prepare(prompts, [pair.clean.image for pair in rows], spans=spans)
    corrupted = vlm.prepare(prompts, [pair.corrupted.image for pair in rows], spans=spans)
    metric = logit_difference([pair.answer for pair in rows], [pair.other for pair in rows])
    result = patch_sweep(vlm, clean, corrupted, layers=[0], positions=["object"], metric=metric, progress=False)
    return Reading(float(result.effect[0, 0]))


def lens(vlm: VLM) -> str:
    """The mean entropy of the logit lens at the image's tokens, at visual states 0 and 4."""
    batch = vlm.prepare(["<image>"] * 50, [scene.image for scene in scenes()[:50]])
    entropy = logit_lens(vlm, batch).entropy.mean(dim=1)
    return f"{float(entropy[0]):.3f}, {float(entropy[DECODED]):.3f}"


ROWS = [
    Row(*PAIR, "`probe_layers`, colour, one patch of an object, visual state 0", "chance; above", probed(0, "colour")),
    Row(*PAIR, "the same, visual state 4", "right; right", probed(DECODED, "colour")),
    Row(*PAIR, "`probe_layers`, place, visual state 0", "chance; above", probed(0, "place")),
    Row(*PAIR, "`label_overlap`, colour, visual state 0", "chance; above", neighbours(0)),
    Row(*PAIR, "`alignment_matrix`, best textual state of visual state 0", "chance; above", aligned(0)),
    Row(*PAIR, "the same, visual state 4", "above; above", aligned(DECODED)),
    Row(*PAIR, "`logit_lens`, entropy at the image, states 0 and 4", "all words alike (4.317) at 0; less", lens),
    Row(*PAIR, "`flow`, image cut from all after it, layers 0 to 3, and the most of all", "exactly 0; not 0", cut),
    Row(
        *PAIR,
        "`patch_sweep`, effect of the object's visual state 0",
        "1; 1: patching finds what no probe reads",
        patched,
    ),
]
