"""`sink` and the tuned toy: what two tokens of enormous norm do to measures, with them and (content) without."""

from __future__ import annotations

from functools import lru_cache, partial

import torch

import interp
from interp.activations import Activations
from interp.geometry import cka, intrinsic_dimension, modality_gap, neighbor_overlap, participation_ratio
from interp.interventions import Patch
from interp.lens import attention_share, logit_lens
from interp.models import VLM, Batch
from interp.probes import probe_layers
from interp.statistics import mean_interval
from planted import Reading, Row

SCENES = interp.toy.scenes(150, seed=0, distinct=True)
STATE = 4
WITHOUT = {"image": "image_content", "text": "content"}


@lru_cache(maxsize=8)
def captured(vlm: VLM, modality: str, content: bool) -> Activations:
    """Means over the patches of scenes, or over the words of their captions."""
    data = SCENES if modality == "image" else SCENES.captions()
    positions = WITHOUT[modality] if content else modality
    return interp.capture(vlm, data, positions=positions, progress=False)


def clouds(vlm: VLM, content: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """The means of images and of captions at one state."""
    image, text = (captured(vlm, modality, content)["resid"][STATE].double() for modality in ("image", "text"))
    return image, text


@lru_cache(maxsize=4)
def asked(vlm: VLM) -> Batch:
    """A question about each of some pictures."""
    rows = SCENES[:40]
    return vlm.prepare([scene.questions[0].prompt for scene in rows], [scene.image for scene in rows])


def length(vlm: VLM, content: bool) -> Reading:
    """The mean length of the means over patches."""
    lengths = clouds(vlm, content)[0].norm(dim=1)
    low, high = mean_interval(lengths)
    return Reading(float(lengths.mean()), float(low), float(high))


def gap(vlm: VLM, content: bool) -> Reading:
    """The median cosine of any image with any text."""
    return Reading(modality_gap(*clouds(vlm, content), shuffles=20).all_pairs[1])


def alike(vlm: VLM, content: bool) -> str:
    """Two measures of likeness."""
    image, text = clouds(vlm, content)
    return f"{cka(image, text):.2f}, {neighbor_overlap(image, text, k=15):.2f}"


def dimension(vlm: VLM, content: bool) -> str:
    """Two measures of dimension, of images."""
    image, _ = clouds(vlm, content)
    estimate = intrinsic_dimension(image)
    return f"{estimate.value:.1f} ± {estimate.error:.1f}, {participation_ratio(image):.1f}"


def shares(vlm: VLM, keys: str) -> Reading:
    """The head of layer 4 that looks most."""
    share = attention_share(vlm, asked(vlm), queries="after_image", keys=keys)
    head = int(share.values[STATE].argmax())
    low, high = float(share.low[STATE, head]), float(share.high[STATE, head])
    return Reading(float(share.values[STATE, head]), low, high, chance=float(share.chance[STATE]))


def entropy(vlm: VLM) -> Reading:
    """The entropy of what the lens reads at the first patch."""
    result = logit_lens(vlm, asked(vlm), positions=[1])
    values = result.entropy[STATE].double()
    low, high = mean_interval(values)
    return Reading(float(values.mean()), float(low), float(high), chance=float(torch.tensor(result.vocab_size).log()))


def probe(vlm: VLM, content: bool) -> Reading:
    """The accuracy of a probe of the number of objects at one state."""
    labels = [str(len(scene.objects)) for scene in SCENES]
    result = probe_layers(captured(vlm, "image", content), labels, control=False, progress=False)
    low, high = float(result.low[STATE]), float(result.high[STATE])
    return Reading(float(result.accuracy[STATE]), low, high, chance=result.chance)


def patched(vlm: VLM, column: int) -> Reading:
    """The largest change of a logit of the last token, by the state of another row."""
    batch = asked(vlm)
    donor = captured_states(vlm, column).roll(1, dims=1)
    changed = vlm.logits(batch, interventions=[Patch(site="resid_pre", layers=1, positions=[column], value=donor[1:2])])
    moved = (changed - vlm.logits(batch)).abs().amax(dim=-1).double()
    low, high = mean_interval(moved)
    return Reading(float(moved.mean()), float(low), float(high))


def captured_states(vlm: VLM, column: int) -> torch.Tensor:
    """All states at one position of each row."""
    acts = interp.capture(vlm, [asked(vlm)], positions=[column], reduce="none", progress=False)
    return acts["resid"][...]


row = partial(Row, "sink", "toy:tuned")
ROWS = [
    row("length of the mean image token", "that of the sink", partial(length, content=False)),
    row("the same of `image_content`", "as in the toy", partial(length, content=True)),
    row(
        "`modality_gap`, median cosine of any image with any text", "1: both are the sink", partial(gap, content=False)
    ),
    row("the same without sinks", "as in the toy", partial(gap, content=True)),
    row(
        "`cka`, `neighbor_overlap` (k = 15) of images and captions", "not what they show", partial(alike, content=False)
    ),
    row("the same without sinks", "as in the toy", partial(alike, content=True)),
    row(
        "`intrinsic_dimension` (2NN), `participation_ratio` of images",
        "lower, and 1: one feature",
        partial(dimension, content=False),
    ),
    row("the same without sinks", "as in the toy", partial(dimension, content=True)),
    row("`probe_layers`, number of objects", "as without: a probe scales each feature", partial(probe, content=False)),
    row("the same without sinks", "as in the toy", partial(probe, content=True)),
    row("`attention_share`, the head of layer 4 that looks most at the image", "1", partial(shares, keys="image")),
    row("the same at `image_content`", "as in the toy", partial(shares, keys="image_content")),
    row("`logit_lens`, entropy at the first patch", "that of a uniform reading", entropy),
    row("`Patch` of the first patch by another row's, layer 1, largest logit moved", "0", partial(patched, column=1)),
    row("`Patch` of patch 8, the same", "not 0", partial(patched, column=8)),
]
