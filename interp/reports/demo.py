"""The demo's analyses: every method of this package, once, on the bundled toy before and after instruction tuning.

`toy:stage1` has seen captions through its connector alone; `toy:tuned` was then trained on perception questions about
images, never on abstraction. `analyse` asks both what images and captions of the same scenes become on their way up:
what is answered, what the logit lens reads off the patches, which states carry the answer, what a linear probe finds,
and where the two modalities have the same neighbours. It returns a `Demo`; `interp.reports.demo_page` shows it and
`interp.reports.findings` says what it amounts to.

Nothing here depends on where the model runs: a model loaded with ``remote="local"`` gives the same numbers.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from interp.activations import capture
from interp.geometry import AlignmentMatrix, Estimate, alignment_matrix, intrinsic_dimension, overlap_interval
from interp.lens import LensResult, logit_lens
from interp.models.batches.targets import target_ids
from interp.patching import PatchResult, logit_difference, patch_sweep
from interp.patching.metrics import Metric
from interp.probes import ProbeResult, probe_layers, wilson_interval
from interp.toy import Pair, Question, Scene, SceneDataset, evaluate, pairs, scenes
from interp.toy.language import PLACES

if TYPE_CHECKING:
    from interp.models import VLM, Batch

STAGE1, TUNED = "toy:stage1", "toy:tuned"
MODALITIES = ("image", "caption")
PROPERTIES = ("digit", "colour")
GROUPS = ("image", "question", "last")
STEPS = ("questions", "logit lens", "patching", "states of scenes", "probes", "geometry")
NEIGHBOURS = 30
_BATCH = 64
_SMALL_MODEL = 20_000_000


@dataclass(frozen=True)
class Size:
    """How much data each analysis takes."""

    shown: int = 4
    evaluated: int = 120
    named: int = 60
    pairs: int = 10
    candidates: int = 160
    probed: int = 400
    scenes: int = 360
    neighbours: int = NEIGHBOURS


@dataclass(frozen=True)
class Asked:
    """A question about a shown scene, and what each model answered, from the image."""

    scene: int
    question: Question
    answers: Mapping[str, str]


@dataclass(frozen=True)
class Naming:
    """How often a patch of an object is read as its digit or its colour, state by state.

    `share[state]` with its 95 % interval; `control` is the same count with the words of another scene's object.
    """

    share: Tensor
    low: Tensor
    high: Tensor
    control: Tensor
    patches: int


@dataclass(frozen=True)
class GroupEffect:
    """What comes back of the clean answer when all positions of one group are patched at a layer: `[layer]` each."""

    effect: Tensor
    low: Tensor
    high: Tensor


@dataclass(frozen=True)
class Patching:
    """One question, clean and corrupted scenes with the changed object in one place, and what restores the answer."""

    pairs: tuple[Pair, ...]
    sweep: PatchResult
    groups: Mapping[str, GroupEffect]
    labels: tuple[str, ...]
    place: str
    answered: int


@dataclass(frozen=True)
class Geometry:
    """One model's geometry over `n` scenes: dimensions by modality, and the alignment of its modalities."""

    dimensions: Mapping[str, list[Estimate]]
    alignment: AlignmentMatrix


@dataclass(frozen=True)
class Demo:
    """Everything the demo measured; dicts are keyed by model, then by modality or property."""

    scenes: SceneDataset
    asked: tuple[Asked, ...]
    accuracy: pd.DataFrame
    lens: LensResult
    lens_grid: tuple[int, int]
    lens_scene: int
    naming: Mapping[str, Naming]
    patching: Patching
    probes: Mapping[str, Mapping[tuple[str, str], ProbeResult]]
    geometry: Mapping[str, Geometry]
    retained: Mapping[str, Tensor]
    n: int
    seed: int

    def numbers(self) -> dict[str, np.ndarray]:
        """Every number of the report under a name of its own, to compare one run with another."""
        found: dict[str, Any] = {
            "accuracy": self.accuracy[["accuracy", "low", "high", "chance"]].to_numpy(float),
            "lens/entropy": self.lens.entropy,
            "lens/top_probs": self.lens.top_probs,
            "patching/values": self.patching.sweep.values,
            "patching/effect": self.patching.sweep.effect,
        }
        for model, naming in self.naming.items():
            found[f"naming/{model}"] = torch.stack([naming.share, naming.low, naming.high, naming.control])
        for name, group in self.patching.groups.items():
            found[f"patching/{name}"] = torch.stack([group.effect, group.low, group.high])
        for model, probes in self.probes.items():
            for (what, modality), probe in probes.items():
                assert probe.control is not None
                parts = [probe.accuracy, probe.low, probe.high, probe.control]
                found[f"probes/{model}/{what} from {modality}"] = torch.stack([part.double() for part in parts])
        for model, geometry in self.geometry.items():
            matrix = geometry.alignment
            bypass = matrix.bypass()
            found[f"alignment/{model}"] = torch.stack([matrix.values, matrix.low, matrix.high])
            found[f"bypass/{model}"] = torch.stack([bypass.gain, bypass.gain_low, bypass.gain_high, bypass.p])
            for modality, line in geometry.dimensions.items():
                found[f"dimension/{model}/{modality}"] = [[item.value, item.error] for item in line]
        for modality, overlaps in self.retained.items():
            found[f"retained/{modality}"] = overlaps
        return {name: np.asarray(value, dtype=float) for name, value in found.items()}


def analyse(
    stage1: VLM, tuned: VLM, size: Size | None = None, seed: int = 0, step: Callable[[str], None] = lambda name: None
) -> Demo:
    """Run the demo's analyses; `step` is told the name of each of `STEPS` as it begins."""
    size = size or Size()
    models = {STAGE1: stage1, TUNED: tuned}
    with few_threads(tuned):
        step("questions")
        shown = _shown_scenes(size, seed)
        asked = _ask(models, shown)
        accuracy = pd.concat(
            [evaluate(vlm, n=size.evaluated, seed=seed + 1).assign(model=name) for name, vlm in models.items()],
            ignore_index=True,
        )
        step("logit lens")
        chosen = max(range(len(shown)), key=lambda index: len(shown[index].objects) == 2)
        batch = tuned.prepare(["<image>"], [shown[chosen].image])
        lens = logit_lens(tuned, batch, positions="image", top_k=5)
        grid = batch.positions.grid(0)[0]
        assert grid is not None, "a scene is square, so its patches are a rectangle"
        naming = {name: name_patches(vlm, scenes(size.named, seed + 2)) for name, vlm in models.items()}

        step("patching")
        patching = patch(tuned, size, seed)

        step("states of scenes")
        paired = distinct_scenes(size.scenes, seed)
        states = {name: _states(vlm, paired) for name, vlm in models.items()}
        single = scenes(size.probed, seed + 4, objects=1)
        probed = {name: _states(vlm, single) for name, vlm in models.items()}

        step("probes")
        probes = {name: probe(each, single, seed) for name, each in probed.items()}

        step("geometry")
        geometry = {name: _geometry(each, size.neighbours, seed) for name, each in states.items()}
        retained = {
            modality: _overlaps(states[STAGE1][modality], states[TUNED][modality], size.neighbours, seed)
            for modality in MODALITIES
        }
    return Demo(
        scenes=shown,
        asked=asked,
        accuracy=accuracy,
        lens=lens,
        lens_grid=grid,
        lens_scene=chosen,
        naming=naming,
        patching=patching,
        probes=probes,
        geometry=geometry,
        retained=retained,
        n=len(paired),
        seed=seed,
    )


@contextlib.contextmanager
def few_threads(vlm: VLM) -> Iterator[None]:
    """One thread while a tiny model runs on the CPU: its matrices are too small to be worth sharing out."""
    before = torch.get_num_threads()
    tiny = vlm.device.type in ("cpu", "meta") and sum(p.numel() for p in vlm.model.parameters()) < _SMALL_MODEL
    torch.set_num_threads(1 if tiny else before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


# Questions ---------------------------------------------------------------------------------------------------------------


def _shown_scenes(size: Size, seed: int) -> SceneDataset:
    """A few scenes with two digits first, about which every kind of question can be asked, then others."""
    drawn = scenes(8 * size.shown, seed)
    two = [scene for scene in drawn if len(scene.objects) == 2]
    other = [scene for scene in drawn if len(scene.objects) != 2]
    return SceneDataset(tuple([*two[: max(1, size.shown - 2)], *other][: size.shown]))


def _ask(models: Mapping[str, VLM], shown: SceneDataset) -> tuple[Asked, ...]:
    """Every question of the shown scenes, put to each model with the image."""
    rows = [(index, question) for index, scene in enumerate(shown) for question in scene.questions]
    answers: dict[str, list[str]] = {}
    for name, vlm in models.items():
        batch = vlm.prepare([question.prompt for _, question in rows], [shown[index].image for index, _ in rows])
        answers[name] = vlm.generate(batch, max_new_tokens=4)
    return tuple(
        Asked(index, question, {name: answers[name][row] for name in models})
        for row, (index, question) in enumerate(rows)
    )


def grouped_accuracy(accuracy: pd.DataFrame) -> pd.DataFrame:
    """The accuracy over all questions of a group (perception, abstraction), for each model and modality.

    Columns: model, modality, group, accuracy, low, high (Wilson's 95 % interval), chance (the share one gets by giving
    each kind's most common answer), n.
    """
    rows = []
    for (model, modality, group), part in accuracy.groupby(["model", "modality", "group"], sort=False):
        n = int(part["n"].sum())
        share, chance = (float((part[column] * part["n"]).sum() / n) for column in ("accuracy", "chance"))
        rows.append([model, modality, group, share, *wilson_interval(min(1.0, share), n), chance, n])
    return pd.DataFrame(rows, columns=["model", "modality", "group", "accuracy", "low", "high", "chance", "n"])


def group_of(grouped: pd.DataFrame, model: str, modality: str, group: str) -> Any:
    """The row of `grouped_accuracy` for this model, modality and group."""
    wanted = (model, modality, group)
    return next(row for row in grouped.itertuples() if (row.model, row.modality, row.group) == wanted)


# Logit lens --------------------------------------------------------------------------------------------------------------


def name_patches(vlm: VLM, data: SceneDataset) -> Naming:
    """How often the top word on an object's patch is the object's digit or colour, at each state, over all scenes.

    The place is left out: a patch's position alone tells it. The control counts the words of an object of the next
    scene instead, which are as frequent but not there.
    """
    hits: list[Tensor] = []
    controls: list[Tensor] = []
    for start in range(0, len(data), _BATCH):
        part = data[start : start + _BATCH]
        batch = vlm.prepare(["<image>"] * len(part), [scene.image for scene in part])
        read = logit_lens(vlm, batch, positions="image", top_k=1)
        rows, states = read.rows.tolist(), range(read.top_ids.shape[0])
        words = [[read.words(state, position)[0].strip() for state in states] for position in range(len(rows))]
        for row, scene in enumerate(part):
            patches = [words[position] for position, at in enumerate(rows) if at == row]
            other = data[(start + row + 1) % len(data)]
            for patch_words, owner in zip(patches, scene.patch_labels.flatten().tolist(), strict=True):
                if owner >= 0:
                    hits.append(_named(patch_words, scene, owner))
                    controls.append(_named(patch_words, other, owner % len(other.objects)))
    found, control = torch.stack(hits).double(), torch.stack(controls).double()
    share = found.mean(dim=0)
    # four patches of one object are read alike, so an object counts as one observation
    bounds = [wilson_interval(float(value), max(1.0, len(hits) / 4)) for value in share]
    low, high = torch.tensor(bounds, dtype=torch.float64).T
    return Naming(share, low, high, control.mean(dim=0), len(hits))


def _named(words: Sequence[str], scene: Scene, owner: int) -> Tensor:
    item = scene.objects[owner]
    return torch.tensor([word in (str(item.digit), item.colour) for word in words])


# Patching ----------------------------------------------------------------------------------------------------------------


def patch(vlm: VLM, size: Size, seed: int) -> Patching:
    """Patch clean states into the run on a scene with another colour: each position alone, then whole groups at once.

    Pairs are taken from those that the model answers rightly on both sides, all with the changed object in the same
    place, so that a column of the heatmap is the same patch of the picture in each of them.
    """
    candidates = pairs(size.candidates, seed + 3)
    right = _answered(vlm, candidates)
    usable = [pair for pair, good in zip(candidates, right, strict=True) if good] or candidates
    place = Counter(_place(pair) for pair in usable).most_common(1)[0][0]
    chosen = [pair for pair in usable if _place(pair) == place][: size.pairs]
    clean = _batch(vlm, [(pair.prompt, pair.clean) for pair in chosen])
    corrupted = _batch(vlm, [(pair.prompt, pair.corrupted) for pair in chosen])
    metric = _preference(vlm, chosen)
    sweep = patch_sweep(vlm, clean, corrupted, metric=metric)
    together = patch_sweep(vlm, clean, corrupted, positions=list(GROUPS), metric=metric)
    effects = torch.stack([together.effect, together.low, together.high])
    groups = {name: GroupEffect(*effects[:, :, index]) for index, name in enumerate(GROUPS)}
    labels = _position_labels(clean, [column for (column,) in sweep.columns], chosen[0])
    return Patching(tuple(chosen), sweep, groups, labels, PLACES[place], sum(right))


def _place(pair: Pair) -> int:
    return pair.clean.objects[pair.changed].place_index


def _preference(vlm: VLM, chosen: Sequence[Pair]) -> Metric:
    """How far each pair's clean answer is preferred to its corrupted one."""
    answers, others = [pair.answer for pair in chosen], [pair.other for pair in chosen]
    return logit_difference(*(target_ids(vlm, words, len(chosen)).tolist() for words in (answers, others)))


def _answered(vlm: VLM, candidates: Sequence[Pair]) -> list[bool]:
    """Whether the model prefers the right answer of the two, on both sides of each pair."""
    measure = _preference(vlm, candidates)
    clean = measure(vlm.logits(_batch(vlm, [(pair.prompt, pair.clean) for pair in candidates])).cpu())
    corrupted = measure(vlm.logits(_batch(vlm, [(pair.prompt, pair.corrupted) for pair in candidates])).cpu())
    return ((clean > 0) & (corrupted < 0)).tolist()


def _batch(vlm: VLM, rows: Sequence[tuple[str, Scene]]) -> Batch:
    return vlm.prepare([prompt for prompt, _ in rows], [scene.image for _, scene in rows])


def _position_labels(batch: Batch, columns: Sequence[int], pair: Pair) -> tuple[str, ...]:
    """Patches by row and column, a dot on those of the changed object; everything else by its token."""
    owners = pair.clean.patch_labels
    image = batch.positions["image"][0]
    patches = {int(column): number for number, column in enumerate(image.nonzero().flatten())}
    labels = []
    for column in columns:
        if column in patches:
            row, across = divmod(patches[column], owners.shape[1])
            labels.append(f"patch {row},{across}{' ●' if owners[row, across] == pair.changed else ''}")
        else:
            token = batch.tokens[0][column]
            labels.append("DIGIT" if token.isdigit() else token)
    return tuple(labels)


# States, probes and geometry -----------------------------------------------------------------------------------------------


def distinct_scenes(n: int, seed: int) -> SceneDataset:
    """Scenes no two of which have captions of the same words in any order.

    "a red 3 and a blue 7" and "a blue 3 and a red 7" have the same mean embedding: as equal points they would have no
    intrinsic dimension.
    """
    drawn = scenes(n, seed + 5, distinct=True)
    kept = {tuple(sorted(scene.caption.split())): scene for scene in reversed(drawn.scenes)}
    return SceneDataset(tuple(scene for scene in drawn if kept[tuple(sorted(scene.caption.split()))] is scene))


def _states(vlm: VLM, data: SceneDataset) -> dict[str, Tensor]:
    """The mean image token of each picture alone, and the mean word of each caption alone: `[state, scene, feature]`."""
    sources = {"image": (data, "image"), "caption": (data.captions(), "text")}
    return {
        modality: capture(vlm, source, positions=where, batch_size=_BATCH, progress=False)["resid"]
        for modality, (source, where) in sources.items()
    }


def probe(states: Mapping[str, Tensor], data: SceneDataset, seed: int) -> dict[tuple[str, str], ProbeResult]:
    """Probes of digit and colour on scenes of one object; no combination is both trained and tested on."""
    captions = [scene.caption for scene in data]
    return {
        (what, modality): probe_layers(states[modality], data.labels[what], groups=captions, seed=seed)
        for what in PROPERTIES
        for modality in MODALITIES
    }


def _geometry(states: Mapping[str, Tensor], neighbours: int, seed: int) -> Geometry:
    dimensions = {modality: [intrinsic_dimension(state) for state in states[modality]] for modality in MODALITIES}
    return Geometry(dimensions, alignment_matrix(states["image"], states["caption"], k=neighbours, seed=seed))


def _overlaps(first: Tensor, second: Tensor, neighbours: int, seed: int) -> Tensor:
    """The neighbour overlap of two models at the same state, with its interval: `[value/low/high, state]`."""
    rows = [overlap_interval(a, b, k=neighbours, seed=seed) for a, b in zip(first, second, strict=True)]
    return torch.tensor(rows, dtype=torch.float64).T
