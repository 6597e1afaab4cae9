"""The demo's main numbers in toys of other seeds: does what one toy shows hold in the next?

`replicate` puts the same analyses to toys that `interp demo` has not looked at. All of them answer the same questions; for
patching, probes and alignment each has scenes of its own, so that errors are independent. Then each number has its mean over
toys, an interval, and the range in which the next toy is expected (`interp.statistics.random_effects`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pandas as pd

from interp.geometry import AlignmentMatrix, alignment_matrix
from interp.models.running.threads import few_threads
from interp.reports.demo import TUNED, Demo, Size, choose_pairs, patch_groups
from interp.reports.hand_over import HandOver
from interp.reports.scene_states import MODALITIES, POOLED, PROPERTIES, capture_states, distinct_scenes, probe
from interp.statistics import mean_over_models
from interp.toy import answer_questions, scenes, score_models

if TYPE_CHECKING:
    from interp.models import VLM
    from interp.probes import ProbeResult

_APART = 10  # seeds between the scenes of two toys; the demo uses six


@dataclass(frozen=True)
class Replication:
    """Numbers over the toys named in `models`, a frame each: `answers` by group of questions, the depth of the `hand_over`,
    accuracies of `probes` by property and state, and the `overlap` of image and caption at each state."""

    models: tuple[str, ...]
    answers: pd.DataFrame
    hand_over: pd.DataFrame
    probes: pd.DataFrame
    overlap: pd.DataFrame


def replicate(
    demo: Demo, others: Sequence[VLM], size: Size | None = None, step: Callable[[str], None] = lambda name: None
) -> Replication:
    """The numbers of `demo` about the tuned toy, and the same of `others`, over all of them; `step(name)` begins one toy."""
    size = size or Size()
    responses = [demo.responses[TUNED]]
    first = _depth(demo.patching.hand_over, demo.patching.answered)
    frames = {TUNED: (first, _accuracies(demo.probes[TUNED]), _diagonal(demo.geometry[TUNED].alignment))}
    for number, vlm in enumerate(others, start=1):
        step(vlm.name)
        seed = demo.seed + _APART * number
        with few_threads(vlm):
            responses.append(answer_questions(vlm, n=size.evaluated, seed=demo.seed + 1, progress=False))
            chosen, answered = choose_pairs(vlm, size, seed)
            depth = _depth(patch_groups(vlm, chosen)[1], answered)
            single, paired = scenes(size.probed, seed + 4, objects=1), distinct_scenes(size.scenes, seed)
            probes = probe(capture_states(vlm, single), single, seed)
            image, caption = capture_states(vlm, paired, f"mean:{POOLED}", seed).values()
            matrix = alignment_matrix(image, caption, k=size.neighbours, seed=seed, permutations=0, progress=False)
        frames[vlm.name] = (depth, _accuracies(probes), _diagonal(matrix))
    by_number = zip(*frames.values(), strict=True)
    tables = [
        mean_over_models(dict(zip(frames, each, strict=True)), value, rows="own")
        for each, value in zip(by_number, ("depth", "accuracy", "value"), strict=True)
    ]
    return Replication(tuple(frames), score_models(pd.concat(responses), by="group"), *tables)


def _depth(over: HandOver, answered: int) -> pd.DataFrame:
    """The depth of the hand-over, NaN where no pair was answered, so that there was nothing to hand over."""
    numbers = (over.depth, over.low, over.high) if answered else [math.nan] * 3
    return pd.DataFrame([["hand-over", *numbers]], columns=["number", "depth", "low", "high"])


def _accuracies(probes: Any) -> pd.DataFrame:
    """The probes of the image tokens."""
    of_images: dict[str, ProbeResult] = {what: probes[what, MODALITIES[0]] for what in PROPERTIES}
    return pd.concat([each.to_frame().assign(property=what) for what, each in of_images.items()], ignore_index=True)


def _diagonal(matrix: AlignmentMatrix) -> pd.DataFrame:
    return matrix.to_frame().query("visual == textual")
