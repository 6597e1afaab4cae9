"""Verdicts on an entry past the early layers, on the change of a phase, and on the depth of a hand-over."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from calibrations import Row
from interp.geometry import AlignmentMatrix, BypassResult, PhaseChange, alignment_matrix, entry_controls, phase_change
from interp.reports.hand_over import HandOver, hand_over

WIDE = "errors from half-samples are 1.2 to 2 times the true ones"
MANY = "bounds hold for all intermediate layers at once, and errors from half-samples are 1.2 to 2 times the true ones"
WIDTH, LAYERS = 32, 7
PHASE = (3, 3, 3, 0.6, 0.5, 0.6, 3, 3, 3)


def turned(cloud: np.ndarray, rng: np.random.Generator, noise: float) -> Tensor:
    """A cloud in a turned space of WIDTH features, with noise."""
    turn = np.linalg.qr(rng.normal(size=(WIDTH, WIDTH)))[0][: cloud.shape[1]] * math.sqrt(WIDTH / cloud.shape[1])
    return torch.tensor(cloud @ turn + noise * rng.normal(size=(len(cloud), WIDTH)))


def bypass(entry: Tensor, text: Tensor, placebo: Tensor) -> BypassResult:
    """The bypass of state 0 with its placebo."""
    matrix = alignment_matrix(entry[None], text, permutations=0)
    return matrix.bypass(placebo=alignment_matrix(entry_controls(entry, placebo), text, permutations=0))


def sharing(seed: int, n: int = 300, other: bool = False) -> BypassResult:
    """State 0, text and placebo all have one content; textual layer 0 with more noise, or half of other content."""
    rng = np.random.default_rng(seed)
    content = rng.normal(size=(n, 6))
    of_first = np.concatenate([content[:, :3], rng.normal(size=(n, 3))], axis=1) if other else content
    text = [turned(of_first, rng, 0.5 if other else 1.5), *(turned(content, rng, 0.5) for _ in range(LAYERS - 1))]
    return bypass(turned(content, rng, 0.5), torch.stack(text), turned(content, rng, 0.7))


def entering(seed: int, n: int = 300, own: float = 0.5) -> BypassResult:
    """State 0 has the own code of textual layer 3, and the placebo what all layers share: an effect of about 0.1, twice s."""
    rng = np.random.default_rng(seed)
    content, codes = rng.normal(size=(n, 6)), rng.normal(size=(LAYERS, n, 6))
    text = torch.stack([turned(content, rng, 0.3) + own * turned(code, rng, 0) for code in codes])
    entry = text[3] + 0.5 * torch.tensor(rng.normal(size=(n, WIDTH)))
    return bypass(entry, text, turned(content, rng, 0.7))


def unrelated(seed: int, n: int = 120) -> float:
    """The share of visual layers with a p of the gain under .05, where nothing is shared."""
    rng = np.random.default_rng(seed)
    visual, textual = (torch.tensor(rng.normal(size=(5, n, 16))) for _ in range(2))
    p = alignment_matrix(visual, textual, k=10, subsamples=0, permutations=0).bypass().p
    return float((p <= 0.05).double().mean())


def gain_covers(seed: int, n: int = 200) -> bool:
    """Whether the interval of the gain holds 0: textual layers 0 and 1 (of three) are alike."""
    rng = np.random.default_rng(seed)
    content = rng.normal(size=(n, 6))
    text = torch.stack([turned(content, rng, 0.7) for _ in range(3)])
    result = alignment_matrix(turned(content, rng, 0.7)[None], text, permutations=0).bypass()
    return bool(result.gain_low[0] <= 0 <= result.gain_high[0])


def models(seed: int, after: Sequence[float] = PHASE, n: int = 200) -> PhaseChange:
    """Two models whose pictures are captions with noise, by layer, half of it common to both."""
    rng = np.random.default_rng(seed)
    text, common, *own = rng.normal(size=(4, len(PHASE), n, 12))
    matrices: list[AlignmentMatrix] = []
    for noise, each in zip((PHASE, after), own, strict=True):
        visual = text + np.array(noise)[:, None, None] * (common + each) / math.sqrt(2)
        matrices.append(alignment_matrix(torch.tensor(visual), torch.tensor(text), k=20, permutations=0))
    return phase_change(*matrices)


def handing(depth: float, rows: int, seed: int) -> HandOver:
    """Rows that hand the answer over at normal depths about `depth`."""
    depths = np.random.default_rng(seed).normal(depth, 0.1, size=rows).clip(0.02, 0.98)
    image = torch.tensor((8 * depths[:, None] + 0.5 - np.arange(8)).clip(0, 1))
    return hand_over(image, 1 - image)


def hand_over_covers(seed: int, rows: int) -> bool:
    """Whether the interval holds the mean depth."""
    found = handing(0.5, rows, seed)
    return found.low <= 0.5 <= found.high


WIDER = (3, 3, 0.55, 0.5, 0.5, 0.5, 0.55, 3, 3)
HIGHER = (3, 3, 3, 0.48, 0.4, 0.48, 3, 3, 3)
ROWS = [
    Row("bypass p", "120 unrelated rows, 5 x 5 layers", "false positives", unrelated, WIDE),
    Row("bypass gain_low, gain_high", "200 rows, two equal layers", "coverage", gain_covers, WIDE),
    Row(
        "bypass entry_p",
        "300 rows, textual layer 0 noisier",
        "false positives",
        lambda seed: sharing(seed).entry_p <= 0.05,
        MANY,
    ),
    Row(
        "bypass entry_p",
        "300 rows, textual layer 0 of other content",
        "false positives",
        lambda seed: sharing(seed, other=True).entry_p <= 0.05,
        MANY,
    ),
    Row(
        "bypass verdict",
        "the same: contradicted",
        "power",
        lambda seed: sharing(seed, other=True).verdict.value == "contradicted",
    ),
    Row(
        "bypass verdict",
        "300 rows, entry at layer 3, effect 2 s: supported",
        "power",
        lambda seed: entering(seed).verdict.value == "supported",
        band=(0.9, 1.0),
    ),
    Row(
        "phase_change strengthens_p",
        "200 rows, no change",
        "false positives",
        lambda seed: models(seed).strengthens_p <= 0.05,
        WIDE,
    ),
    Row(
        "phase_change extends_p",
        "200 rows, no change",
        "false positives",
        lambda seed: models(seed).extends_p <= 0.05,
        WIDE,
    ),
    Row(
        "phase_change strengthens",
        "200 rows, no change: interval",
        "coverage",
        lambda seed: (change := models(seed).strengthens).low <= 0 <= change.high,
        WIDE,
    ),
    Row(
        "phase_change verdicts",
        "200 rows, no change: both contradicted",
        "power",
        lambda seed: (change := models(seed)).extends.value == change.strengthens.value == "contradicted",
    ),
    Row(
        "phase_change extends",
        "200 rows, 2 more layers (2 s): supported",
        "power",
        lambda seed: models(seed, WIDER).extends.value == "supported",
        band=(0.9, 1.0),
    ),
    Row(
        "phase_change strengthens",
        "200 rows, overlap + 0.1 (2 s): supported",
        "power",
        lambda seed: models(seed, HIGHER).strengthens.value == "supported",
        band=(0.9, 1.0),
    ),
    *(
        Row("hand_over low, high", f"{rows} normal depths", "coverage", partial(hand_over_covers, rows=rows))
        for rows in (10, 20, 50, 200)
    ),
    Row(
        "hand_over verdict",
        "20 rows at the edge of the band: supported",
        "false positives",
        lambda seed: handing(1 / 3, 20, seed).verdict.value == "supported",
        "a 95 % interval leaves 2.5 % on this side",
    ),
    Row(
        "hand_over verdict",
        "20 rows in the middle: supported",
        "power",
        lambda seed: handing(0.5, 20, seed).verdict.value == "supported",
    ),
]
