"""Vectors and heads in words: vectors that have nothing to do with the words, and concepts that no head was made for."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

import interp
from calibrations import Row
from interp.words import dictionary_of, head_pursuit, vocabulary_decomposition


def draw_rows(seed: int, kind: str) -> Tensor:
    """A dictionary of 200 words in 32 dimensions."""
    rng = torch.Generator().manual_seed(seed)
    rows = torch.randn(200, 32, generator=rng)
    if kind == "in a cone":
        return rows + 2 * torch.randn(32, generator=rng)
    centres = torch.randn(20, 32, generator=rng).repeat_interleave(10, dim=0)
    return centres + 0.4 * rows


def vectors_rejected(kind: str, like_words: bool, joint: bool = False) -> Callable[[int], float]:
    """The share of vectors without any relation to the words that exceed their 95 % level."""

    def draw(seed: int) -> float:
        rows = draw_rows(seed, kind)
        vectors = torch.randn(10, 32, generator=torch.Generator().manual_seed(seed + 10**6))
        if like_words:
            unit = rows / rows.norm(dim=1, keepdim=True)
            vectors = vectors @ torch.linalg.cholesky(torch.cov(unit.T)).T + unit.mean(dim=0)
        found = vocabulary_decomposition(vectors, rows, 3, joint=joint, seed=seed)
        return float((found.explained > found.chance_high).float().mean())

    return draw


def sums_found(seed: int) -> float:
    """The share of noisy sums of three words that are found."""
    rng, rows = torch.Generator().manual_seed(seed), draw_rows(seed, "in clusters")
    unit = rows / rows.norm(dim=1, keepdim=True)
    clean = unit[torch.randint(200, (10, 3), generator=rng)].sum(dim=1)
    noise = torch.randn(10, 32, generator=rng) * 0.3 * clean.norm(dim=1, keepdim=True) / 32**0.5
    return float((vocabulary_decomposition(clean + noise, rows, 3, seed=seed).p <= 0.05).float().mean())


@cache
def toy() -> tuple[Any, Any, Tensor]:
    """The toy, what its heads hold on 60 questions for a colour, and the directions of the words it can write."""
    vlm = interp.load("toy")
    scenes = interp.toy.scenes(60, seed=0)
    data = [(scene.image, f"<image> what colour is the {scene.objects[0].digit} ?") for scene in scenes]
    acts = interp.capture(vlm, data, sites=("z",), positions="last", progress=False).select(layers=[2, 4, 6])
    rows = dictionary_of(vlm, "head").rows
    return vlm, acts, rows / rows.norm(dim=1, keepdim=True)


def concept_of(seed: int) -> list[int]:
    """A coherent concept: a word, and four that are drawn by their cosine with it."""
    rng, unit = torch.Generator().manual_seed(seed), toy()[2]
    first = int(torch.randint(5, len(unit), (1,), generator=rng))
    weights = (unit @ unit[first] / 0.15).softmax(dim=0)
    weights[:5] = 0.0  # special tokens
    weights[first] = 0.0
    return [first, *torch.multinomial(weights, 4, generator=rng).tolist()]


def concepts_rejected(family: bool) -> Callable[[int], float]:
    """The share of heads in which a random concept has a small p, or whether any head has a small one of the family."""

    def draw(seed: int) -> float:
        vlm, acts, _ = toy()
        found = head_pursuit(
            vlm, acts, concept_of(seed), k=3, lists=19, center=bool(seed % 2), seed=seed, progress=False
        )
        return float((found.p_family <= 0.05).any()) if family else float((found.p <= 0.05).float().mean())

    return draw


ROWS = [
    *(
        Row(
            "vocabulary_decomposition chance_high",
            f"200 words {kind}, vectors {'like them' if like else 'isotropic'}",
            "false positives",
            vectors_rejected(kind, like),
        )
        for kind in ("in a cone", "in clusters")
        for like in (False, True)
    ),
    Row(
        "vocabulary_decomposition chance_high",
        "one support for 10 isotropic vectors, 200 words in clusters",
        "false positives",
        vectors_rejected("in clusters", False, joint=True),
    ),
    Row(
        "vocabulary_decomposition p",
        "sums of three of 200 words in clusters, with noise of .3 of their length",
        "power",
        sums_found,
    ),
    Row(
        "head_pursuit p",
        "12 heads of the toy, random coherent concepts of 5 words",
        "false positives",
        concepts_rejected(False),
    ),
    Row(
        "head_pursuit p_family",
        "any of 12 heads of the toy, random coherent concepts of 5 words",
        "false positives",
        concepts_rejected(True),
    ),
]
