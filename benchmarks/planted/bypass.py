"""Where image tokens enter: on `bypass`, like the captions' words at state 3, on `no_bypass`, like words at state 0."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

import interp
from interp.geometry import AlignmentMatrix, BypassResult, alignment_matrix, entry_controls
from interp.interventions import Skip
from interp.lens import logit_lens
from interp.models import VLM
from interp.probes import probe_layers
from interp.words import projector_report
from planted import Reading, Row

N, ENTRY = 300, 3
PAIR = "bypass", "no_bypass"


@lru_cache(maxsize=1)
def scenes() -> interp.toy.SceneDataset:
    """Scenes of two objects, so that no caption is longer than another."""
    return interp.toy.scenes(N, seed=1, distinct=True, objects=2)


@lru_cache(maxsize=2)
def states(vlm: VLM) -> tuple[Tensor, Tensor]:
    """The mean states of the image's tokens and of the caption's, `[state, scene, feature]`."""
    image = interp.capture(vlm, scenes(), progress=False)["resid"][...]
    return image, interp.capture(vlm, scenes().captions(), positions="text", progress=False)["resid"][...]


@lru_cache(maxsize=2)
def entry(vlm: VLM) -> tuple[AlignmentMatrix, BypassResult]:
    """The matrix of all layers, and the bypass with the last states of the tower as placebo."""
    image, text = states(vlm)
    tower = interp.capture(vlm, scenes(), sites=("vision",), progress=False)["vision"][...][-1:]
    matrix = alignment_matrix(image, text)
    placebo = alignment_matrix(entry_controls(image[0], tower), text, permutations=0)
    return matrix, matrix.bypass(placebo=placebo)


def best(vlm: VLM) -> str:
    """The textual state most like visual state 0, and both similarities."""
    matrix, bypass = entry(vlm)
    value, low, high = bypass.values[0], bypass.low[0], bypass.high[0]
    return f"{int(bypass.best[0])}: {value:.2f} ({low:.2f} to {high:.2f}), chance {matrix.chance:.2f}"


def gain(vlm: VLM) -> Reading:
    """The gain of the best intermediate state over state 0."""
    _, bypass = entry(vlm)
    return Reading(*(float(each[0]) for each in (bypass.gain, bypass.gain_low, bypass.gain_high, bypass.p)))


def verdict(vlm: VLM) -> str:
    """The verdict beyond the placebo."""
    _, bypass = entry(vlm)
    found = bypass.verdict
    return f"{found.value}: {found.estimate:.2f} ({found.low:.2f} to {found.high:.2f}), p {bypass.entry_p:.2g}"


def skipped(vlm: VLM) -> str:
    """By how much any word's probability as the answer changes, at most, where image tokens skip the early layers."""
    questions = [(scene, question) for scene in scenes()[:20] for question in scene.questions[:3]]
    batch = vlm.prepare([question.prompt for _, question in questions], [scene.image for scene, _ in questions])
    skip = Skip(layers=range(ENTRY), positions="image")
    base, changed = (vlm.logits(batch, interventions).softmax(dim=-1) for interventions in ([], [skip]))
    return f"{float((changed - base).abs().max()):.3g}"


def transfer(state: int) -> Any:
    """How often a probe of the caption's colour at this textual state is right on visual state 0, both centred, in one size."""

    def measure(vlm: VLM) -> Reading:
        one = interp.toy.scenes(N, seed=1, split="train", objects=1)
        image = interp.capture(vlm, one, progress=False)["resid"][...][0]
        text = interp.capture(vlm, one.captions(), positions="text", progress=False)["resid"][...][state]
        text, image = (((each - each.mean(dim=0)) / each.std())[None] for each in (text, image))
        result = probe_layers(text, one.labels["colour"], transfer=image, progress=False)
        numbers = result.transfer, result.transfer_low, result.transfer_high
        return Reading(*(float(each[0]) for each in numbers), chance=result.chance)

    return measure


def word_cosine(vlm: VLM) -> Reading:
    """The cosine of an object's patches with its words' embeddings, and with those of another object."""
    objects = [
        [
            (torch.from_numpy(scene.patch_labels == index), [item.colour, str(item.digit), item.place])
            for index, item in enumerate(scene.objects)
        ]
        for scene in scenes()[:100]
    ]
    report = projector_report(vlm, scenes()[:100], objects)
    return Reading(report.alignment, p=report.alignment_p, chance=report.alignment_null)


def lens(vlm: VLM) -> str:
    """The mean entropy of the logit lens at the image's tokens, at visual states 0 and 3."""
    batch = vlm.prepare(["<image>"] * 50, [scene.image for scene in scenes()[:50]])
    entropy = logit_lens(vlm, batch).entropy.mean(dim=1)
    return f"{float(entropy[0]):.3f}, {float(entropy[ENTRY]):.3f}"


ROWS = [
    Row(*PAIR, "`AlignmentMatrix.bypass().best[0]`, the textual state most like visual state 0", "3; 0", best),
    Row(*PAIR, "`.gain[0]`, an intermediate state over state 0", "above 0; not above 0", gain),
    Row(*PAIR, "`.verdict` with the tower as placebo", "supported; contradicted", verdict),
    Row(
        *PAIR,
        "`Skip` of layers 0 to 2 at the image, largest change of a word's probability as answer",
        "exactly 0; not 0",
        skipped,
    ),
    Row(*PAIR, "`probe_layers`, colour, from textual state 0 to visual state 0", "chance; above chance", transfer(0)),
    Row(
        *PAIR,
        "`probe_layers`, colour, from textual state 3 to visual state 0",
        "above chance; not above",
        transfer(ENTRY),
    ),
    Row(
        *PAIR,
        "`projector_report().alignment`, cosine with the words' embeddings",
        "exactly 0; above chance",
        word_cosine,
    ),
    Row(*PAIR, "`logit_lens`, entropy at the image, states 0 and 3", "the same; all words alike (4.317) at 0", lens),
]
