"""States of scenes, as pictures and as captions: what the demo's probes and geometry are made of.

A picture has 36 tokens and a caption about nine. Where the two are compared, a point is the mean of `POOLED` tokens of either.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor

from interp.activations import capture
from interp.probes import ProbeResult, probe_layers
from interp.toy import Scene, SceneDataset, scenes

if TYPE_CHECKING:
    from interp.models import VLM

MODALITIES = ("image", "caption")
PROPERTIES = ("digit", "colour")
POOLED = 4
_BATCH = 64


def distinct_scenes(n: int, seed: int) -> SceneDataset:
    """Up to `n` scenes whose captions differ in more than the order of their words.

    "a red 3 and a blue 7" and "a blue 3 and a red 7" have the same mean embedding, and equal points have no intrinsic
    dimension.
    """
    by_words: dict[tuple[str, ...], Scene] = {}
    for scene in scenes(n, seed + 5, distinct=True):
        by_words.setdefault(tuple(sorted(scene.caption.split())), scene)
    return SceneDataset(tuple(by_words.values()))


def capture_states(vlm: VLM, data: SceneDataset, reduce: str = "mean", seed: int = 0) -> dict[str, Tensor]:
    """The mean state of each picture's image tokens and of each caption's words: `[state, scene, feature]` by modality."""
    how: dict[str, Any] = {"reduce": reduce, "seed": seed, "batch_size": _BATCH, "progress": False}
    sources = {"image": (data, "image"), "caption": (data.captions(), "text")}
    return {
        modality: capture(vlm, source, positions=where, **how)["resid"] for modality, (source, where) in sources.items()
    }


def probe(states: Mapping[str, Tensor], data: SceneDataset, seed: int) -> dict[tuple[str, str], ProbeResult]:
    """Probe digit and colour in scenes of one object; no combination of digit, colour and place is in both splits."""
    captions = [scene.caption for scene in data]
    return {
        (what, modality): probe_layers(states[modality], data.labels[what], groups=captions, seed=seed)
        for what in PROPERTIES
        for modality in MODALITIES
    }


def tower_states(vlm: VLM, data: SceneDataset, seed: int) -> Tensor:
    """Mean states of `POOLED` patches as they enter and as they leave the image tower: vision before the language model."""
    how: dict[str, Any] = {"reduce": f"mean:{POOLED}", "seed": seed, "batch_size": _BATCH, "progress": False}
    return capture(vlm, data, sites=("vision",), positions="image", **how)["vision"][[0, -1]]
