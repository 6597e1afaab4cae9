"""The analyses of the demo: every method of this package, once, on the bundled toy before and after instruction tuning.

`toy:stage1` has a connector trained on captions. `toy:tuned` was then trained on perception questions about images, never
on abstraction questions. `analyse` compares how both models represent images and captions of the same scenes: which
questions they answer, what the logit lens reads from the patches, which states carry the answer, what a linear probe
decodes, and where the two modalities have the same neighbours. It returns a `Demo`; `interp.reports.demo_page` shows it,
and `interp.reports.findings` describes it in sentences.

The numbers do not depend on where a model runs: one loaded with ``remote="local"`` gives the same ones.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from interp.geometry import (
    AlignmentMatrix,
    BypassResult,
    Estimate,
    alignment_matrix,
    entry_controls,
    intrinsic_dimension,
    overlap_interval,
)
from interp.lens import LensResult, logit_lens
from interp.models.running.threads import few_threads
from interp.patching import PatchResult, logit_difference, patch_sweep
from interp.patching.metrics import Metric, bind_to_batches
from interp.probes import ProbeResult, wilson_interval
from interp.reports.hand_over import HandOver, hand_over
from interp.reports.scene_states import MODALITIES, POOLED, capture_states, distinct_scenes, probe, tower_states
from interp.toy import Pair, Question, SceneDataset, SceneObject, pairs, scenes
from interp.toy.evaluate import answer_questions, score_answers
from interp.toy.language import PLACES

if TYPE_CHECKING:
    from interp.models import VLM, Batch

STAGE1, TUNED = "toy:stage1", "toy:tuned"
GROUPS = ("image", "question", "last")
STEPS = ("questions", "logit lens", "patching", "states of scenes", "probes", "geometry")
NEIGHBOURS = 30
_BATCH = 64


@dataclass(frozen=True)
class Size:
    """How much data each analysis uses."""

    shown: int = 4
    evaluated: int = 120
    named: int = 60
    pairs: int = 10
    candidates: int = 160
    probed: int = 400
    scenes: int = 360
    neighbours: int = NEIGHBOURS


@dataclass(frozen=True)
class Answer:
    """A question about one of the demo's scenes, and what each model answered from the image."""

    scene: int
    question: Question
    by_model: Mapping[str, str]


@dataclass(frozen=True)
class Curve:
    """A number at each state or layer with its 95 % interval and, if there is one, its control."""

    values: Tensor
    low: Tensor
    high: Tensor
    control: Tensor | None = None

    def rows(self) -> Tensor:
        """Values, bounds and control as Float `[row, state]`."""
        return torch.stack([row for row in (self.values, self.low, self.high, self.control) if row is not None])


@dataclass(frozen=True)
class Patching:
    """Activation patching for one question, on pairs in which the changed object is at the same `place`.

    `sweep` patches each position alone, `groups` all positions of a group at once. `labels` names the columns of the sweep.
    `answered` counts the pairs, before selection, that the model answers correctly for both pictures. `hand_over` is the depth
    at which the answer moves from the image tokens to the last token.
    """

    pairs: tuple[Pair, ...]
    sweep: PatchResult
    groups: Mapping[str, Curve]
    labels: tuple[str, ...]
    place: str
    answered: int
    hand_over: HandOver


@dataclass(frozen=True)
class Geometry:
    """The geometry of one model: dimensions for each modality, and the alignment of the modalities.

    Dimensions are of means over all tokens, the alignment of means over `POOLED` tokens of both modalities. `placebo` compares
    the captions with states of the image tower, which the language model never touched.
    """

    dimensions: Mapping[str, list[Estimate]]
    alignment: AlignmentMatrix
    placebo: AlignmentMatrix

    @cached_property
    def bypass(self) -> BypassResult:
        """The bypass, with the placebo as its control."""
        return self.alignment.bypass(placebo=self.placebo)


@dataclass(frozen=True)
class Demo:
    """All results of the demo. The keys of dicts are models, then modalities or properties.

    `responses` has each model's answer to each question, and `accuracy` their accuracies by kind of question.
    `naming` is the share of object patches that the lens reads as their digit or colour, over `patches` of them. `retained`
    is the neighbour overlap of the two models at the same state. `n` is the number of scenes behind the geometry.
    """

    scenes: SceneDataset
    answers: tuple[Answer, ...]
    responses: Mapping[str, pd.DataFrame]
    accuracy: pd.DataFrame
    lens: LensResult
    lens_grid: tuple[int, int]
    lens_scene: int
    naming: Mapping[str, Curve]
    patches: int
    patching: Patching
    probes: Mapping[str, Mapping[tuple[str, str], ProbeResult]]
    geometry: Mapping[str, Geometry]
    retained: Mapping[str, Curve]
    n: int
    seed: int

    def numbers(self) -> dict[str, np.ndarray]:
        """Every number of the report by name, to compare one run with another."""
        numbers: dict[str, Any] = {
            "accuracy": self.accuracy[["accuracy", "low", "high", "chance"]].to_numpy(float),
            "lens/entropy": self.lens.entropy,
            "lens/top_probs": self.lens.top_probs,
            "patching/values": self.patching.sweep.values,
            "patching/effect": self.patching.sweep.effect,
        }
        over = self.patching.hand_over
        numbers["patching/hand-over"] = [over.depth, over.low, over.high]
        for analysis, curves in {
            "naming": self.naming,
            "patching": self.patching.groups,
            "retained": self.retained,
        }.items():
            numbers |= {f"{analysis}/{name}": curve.rows() for name, curve in curves.items()}
        for model, probes in self.probes.items():
            for (what, modality), of_states in probes.items():
                assert of_states.control is not None
                rows = [of_states.accuracy, of_states.low, of_states.high, of_states.control]
                numbers[f"probes/{model}/{what} from {modality}"] = torch.stack([row.double() for row in rows])
        for model, geometry in self.geometry.items():
            matrix = geometry.alignment
            bypass = geometry.bypass
            assert bypass.contrasts is not None
            numbers[f"alignment/{model}"] = torch.stack([matrix.values, matrix.low, matrix.high])
            numbers[f"bypass/{model}"] = torch.stack([bypass.gain, bypass.gain_low, bypass.gain_high, bypass.p])
            numbers[f"entry/{model}"] = bypass.contrasts["estimate"]
            for modality, line in geometry.dimensions.items():
                numbers[f"dimension/{model}/{modality}"] = [[item.value, item.error] for item in line]
        return {name: np.asarray(value, dtype=float) for name, value in numbers.items()}


def analyse(
    stage1: VLM, tuned: VLM, size: Size | None = None, seed: int = 0, step: Callable[[str], None] = lambda name: None
) -> Demo:
    """Run the analyses of the demo on both models; `step(name)` is called when each of `STEPS` begins."""
    size = size or Size()
    models = {STAGE1: stage1, TUNED: tuned}
    with few_threads(tuned):
        step("questions")
        examples = _example_scenes(size, seed)
        answers = _answer_questions(models, examples)
        responses = {
            name: answer_questions(vlm, n=size.evaluated, seed=seed + 1).assign(model=name)
            for name, vlm in models.items()
        }

        step("logit lens")
        lens_scene = max(range(len(examples)), key=lambda index: len(examples[index].objects) == 2)
        batch = tuned.prepare(["<image>"], [examples[lens_scene].image])
        lens = logit_lens(tuned, batch, positions="image", top_k=5)
        grid = batch.positions.grid(0)[0]
        assert grid is not None, "a scene is square, so its patches form a rectangle"
        named = scenes(size.named, seed + 2)
        naming = {name: name_patches(vlm, named) for name, vlm in models.items()}

        step("patching")
        patching = patch(tuned, size, seed)

        step("states of scenes")
        paired = distinct_scenes(size.scenes, seed)
        states = {name: capture_states(vlm, paired) for name, vlm in models.items()}
        matched = {name: capture_states(vlm, paired, f"mean:{POOLED}", seed) for name, vlm in models.items()}
        tower = tower_states(tuned, paired, seed)
        single = scenes(size.probed, seed + 4, objects=1)
        single_states = {name: capture_states(vlm, single) for name, vlm in models.items()}

        step("probes")
        probes = {name: probe(of_model, single, seed) for name, of_model in single_states.items()}

        step("geometry")
        geometry = {
            name: _geometry(of_model, matched[name], tower, size.neighbours, seed) for name, of_model in states.items()
        }
        retained = {
            modality: _overlaps(states[STAGE1][modality], states[TUNED][modality], size.neighbours, seed)
            for modality in MODALITIES
        }
    return Demo(
        scenes=examples,
        answers=answers,
        responses=responses,
        accuracy=pd.concat([score_answers(each) for each in responses.values()], ignore_index=True),
        lens=lens,
        lens_grid=grid,
        lens_scene=lens_scene,
        naming=naming,
        patches=sum(int((scene.patch_labels >= 0).sum()) for scene in named),
        patching=patching,
        probes=probes,
        geometry=geometry,
        retained=retained,
        n=len(paired),
        seed=seed,
    )


# Questions ---------------------------------------------------------------------------------------------------------------


def _example_scenes(size: Size, seed: int) -> SceneDataset:
    """A few scenes: first some with two digits, for which every kind of question makes sense, then others."""
    pool = scenes(8 * size.shown, seed)
    two = [scene for scene in pool if len(scene.objects) == 2]
    other = [scene for scene in pool if len(scene.objects) != 2]
    return SceneDataset(tuple([*two[: max(1, size.shown - 2)], *other][: size.shown]))


def _answer_questions(models: Mapping[str, VLM], examples: SceneDataset) -> tuple[Answer, ...]:
    """What each model answers to every question about these scenes, from the image."""
    rows = [(index, question) for index, scene in enumerate(examples) for question in scene.questions]
    prompts, images = [question.prompt for _, question in rows], [examples[index].image for index, _ in rows]
    answers = {name: vlm.generate(vlm.prepare(prompts, images), max_new_tokens=4) for name, vlm in models.items()}
    return tuple(
        Answer(index, question, {name: answers[name][row] for name in models})
        for row, (index, question) in enumerate(rows)
    )


def grouped_accuracy(responses: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """The accuracy over all questions of a group (perception, abstraction), for each model and modality.

    Columns: model, modality, group, accuracy, low and high (95 %, with scenes kept whole), chance (the accuracy of always giving
    the most common answer of each kind), n.
    """
    return pd.concat([score_answers(each, by="group") for each in responses.values()], ignore_index=True)


def group_of(grouped: pd.DataFrame, model: str, modality: str, group: str) -> Any:
    """The row of `grouped_accuracy` for this model, modality and group."""
    key = (model, modality, group)
    return next(row for row in grouped.itertuples() if (row.model, row.modality, row.group) == key)


# Logit lens --------------------------------------------------------------------------------------------------------------


def name_patches(vlm: VLM, data: SceneDataset) -> Curve:
    """At each state, how often the top word on a patch of an object is the object's digit or colour, over all scenes.

    Place words do not count, because the position of a patch alone determines them. The control counts the words of an
    object of the next scene, which are as frequent but describe another picture.
    """
    hits: list[Tensor] = []
    controls: list[Tensor] = []
    for start in range(0, len(data), _BATCH):
        part = data[start : start + _BATCH]
        batch = vlm.prepare(["<image>"] * len(part), [scene.image for scene in part])
        lens = logit_lens(vlm, batch, positions="image", top_k=1)
        rows, states = lens.rows.tolist(), range(lens.top_ids.shape[0])
        words = [[lens.words(state, position)[0].strip() for state in states] for position in range(len(rows))]
        for row, scene in enumerate(part):
            patches = [words[position] for position, of_row in enumerate(rows) if of_row == row]
            other = data[(start + row + 1) % len(data)]
            for patch_words, owner in zip(patches, scene.patch_labels.flatten().tolist(), strict=True):
                if owner >= 0:
                    hits.append(_names(patch_words, scene.objects[owner]))
                    controls.append(_names(patch_words, other.objects[owner % len(other.objects)]))
    share, control = (torch.stack(rows).double().mean(dim=0) for rows in (hits, controls))
    # The four patches of an object get similar words, so an object counts as one observation.
    bounds = [wilson_interval(float(value), max(1.0, len(hits) / 4)) for value in share]
    low, high = torch.tensor(bounds, dtype=torch.float64).T
    return Curve(share, low, high, control)


def _names(words: Sequence[str], item: SceneObject) -> Tensor:
    """Whether each word is the digit or the colour of this object."""
    return torch.tensor([word in (str(item.digit), item.colour) for word in words])


# Patching ----------------------------------------------------------------------------------------------------------------


def patch(vlm: VLM, size: Size, seed: int) -> Patching:
    """Patch clean states into the run on a scene with another colour: each position alone, then all positions of a group.

    The pairs are chosen from those that the model answers correctly for both pictures. In all of them the changed object is
    at the same place, so that a column of the heatmap is the same patch of the picture in each pair.
    """
    chosen, answered = choose_pairs(vlm, size, seed)
    sweep = patch_sweep(vlm, *_batches(vlm, chosen), metric=_preference(chosen))
    groups, over = patch_groups(vlm, chosen)
    place = PLACES[_place(chosen[0])]
    return Patching(chosen, sweep, groups, _position_labels(sweep, chosen), place, answered, over)


def choose_pairs(vlm: VLM, size: Size, seed: int) -> tuple[tuple[Pair, ...], int]:
    """The pairs that `patch` takes, and how many of the candidates are answered correctly for both pictures."""
    candidates = pairs(size.candidates, seed + 3)
    right = _answers_both(vlm, candidates)
    usable = [pair for pair, both in zip(candidates, right, strict=True) if both] or candidates
    place = Counter(map(_place, usable)).most_common(1)[0][0]
    return tuple([pair for pair in usable if _place(pair) == place][: size.pairs]), sum(right)


def patch_groups(vlm: VLM, chosen: Sequence[Pair]) -> tuple[dict[str, Curve], HandOver]:
    """The effect of all positions of a group at each layer, and the depth at which the answer moves to the last token."""
    sweep = patch_sweep(vlm, *_batches(vlm, chosen), positions=list(GROUPS), metric=_preference(chosen))
    effects = torch.stack([sweep.effect, sweep.low, sweep.high])
    image, last = (sweep.per_row[:, :, GROUPS.index(name)] for name in ("image", "last"))
    return {name: Curve(*effects[:, :, index]) for index, name in enumerate(GROUPS)}, hand_over(image, last)


def _place(pair: Pair) -> int:
    return pair.clean.objects[pair.changed].place_index


def _preference(rows: Sequence[Pair]) -> Metric:
    """The metric that compares each pair's clean answer with its corrupted one."""
    return logit_difference([pair.answer for pair in rows], [pair.other for pair in rows])


def _measured(metric: Metric, vlm: VLM, batch: Batch) -> Tensor:
    (of_batch,) = bind_to_batches(metric, vlm, [batch])
    return of_batch(vlm.logits(batch))


def _answers_both(vlm: VLM, rows: Sequence[Pair]) -> list[bool]:
    """Whether the model prefers the right one of the two answers for both pictures of each pair."""
    clean, corrupted = (_measured(_preference(rows), vlm, batch) for batch in _batches(vlm, rows))
    return ((clean > 0) & (corrupted < 0)).tolist()


def _batches(vlm: VLM, rows: Sequence[Pair]) -> tuple[Batch, Batch]:
    """The clean and the corrupted batch of these pairs."""
    prompts = [pair.prompt for pair in rows]
    clean, corrupted = [pair.clean.image for pair in rows], [pair.corrupted.image for pair in rows]
    return vlm.prepare(prompts, clean), vlm.prepare(prompts, corrupted)


def _position_labels(sweep: PatchResult, chosen: Sequence[Pair]) -> tuple[str, ...]:
    """The names of the positions, with a dot for patches of the object that changes in all pairs."""
    changes = np.all([pair.clean.patch_labels == pair.changed for pair in chosen], axis=0)
    patches = sweep.patches or [None] * len(sweep.tokens)
    return tuple(
        f"{name} ●" if patch is not None and changes[tuple(patch)] else name
        for name, patch in zip(sweep.tokens, patches, strict=True)
    )


# Geometry ----------------------------------------------------------------------------------------------------------------


def _geometry(
    states: Mapping[str, Tensor], matched: Mapping[str, Tensor], tower: Tensor, neighbours: int, seed: int
) -> Geometry:
    image, caption = (matched[modality] for modality in MODALITIES)
    return Geometry(
        {modality: [intrinsic_dimension(state) for state in states[modality]] for modality in MODALITIES},
        alignment_matrix(image, caption, k=neighbours, seed=seed),
        alignment_matrix(entry_controls(image[0], tower, seed=seed), caption, k=neighbours, seed=seed, permutations=0),
    )


def _overlaps(first: Tensor, second: Tensor, neighbours: int, seed: int) -> Curve:
    """The neighbour overlap of two models at the same state."""
    rows = [overlap_interval(a, b, k=neighbours, seed=seed) for a, b in zip(first, second, strict=True)]
    return Curve(*torch.tensor(rows, dtype=torch.float64).T)
