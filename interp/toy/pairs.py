"""Pairs of scenes that differ in one thing and have one layout: what patching compares.

The two scenes of a pair show the same number of digits in the same places; one of them has another colour, another
digit or (for `change="place"`) stands elsewhere. The question asks for just that, so its answer is one word in the
clean scene and another in the corrupted one, and the prompts are equal, token by token.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from interp.errors import InputError
from interp.toy.language import COLOURS, IMAGE_TOKEN, SceneObject
from interp.toy.scenes import SPLITS, Scene, combinations, draw_glyphs, scenes

_CHANGES = ("colour", "digit", "place")


@dataclass(frozen=True)
class Pair:
    """Two scenes and the question that tells them apart. Unpacks as (clean, corrupted, answer, other answer).

    `changed` is the index of the object that differs in `clean`; `prompt` has the image placeholder, `text_prompts`
    have the captions in its stead.
    """

    clean: Scene
    corrupted: Scene
    answer: str
    other: str
    question: str
    changed: int

    @property
    def prompt(self) -> str:
        return f"{IMAGE_TOKEN} {self.question}"

    @property
    def text_prompts(self) -> tuple[str, str]:
        return f"{self.clean.caption} {self.question}", f"{self.corrupted.caption} {self.question}"

    def __iter__(self):
        return iter((self.clean, self.corrupted, self.answer, self.other))


def pairs(n: int, seed: int, change: str = "colour", split: str = "test", objects: int = 2) -> list[Pair]:
    """`n` pairs of scenes of `objects` digits that differ in one thing: the colour, the digit or the place of one.

    Only that one object is drawn anew; all else, glyphs and noise included, is the same on both pictures (a changed
    digit needs another glyph). Objects of both scenes belong to `split`.

    Raises `InputError` for an unknown change or split, and where `change="place"` is asked of more than one object
    (objects are named in reading order, so moving one among several could change the layout of the caption).

    >>> clean, corrupted, answer, other = pairs(1, seed=0)[0]
    >>> answer in clean.caption and other in corrupted.caption
    True
    """
    if change not in _CHANGES:
        raise InputError(f"change={change!r} is unknown: use one of {', '.join(_CHANGES)}")
    if split not in SPLITS:
        raise InputError(f"split={split!r} is unknown: use one of {', '.join(SPLITS)}")
    if change == "place" and objects != 1:
        raise InputError(f"objects={objects!r}: pairs that differ in place have one object")
    rng = np.random.default_rng([seed, _CHANGES.index(change), 2])
    found: list[Pair] = []
    while len(found) < n:
        scene = scenes(1, seed=int(rng.integers(2**31)), split=split, objects=objects)[0]
        pair = _vary(scene, change, split, rng)
        if pair is not None:
            found.append(_renamed(pair, f"pair-{split}-{seed}-{len(found)}"))
    return found


def _renamed(pair: Pair, name: str) -> Pair:
    return replace(
        pair, clean=replace(pair.clean, id=f"{name}-clean"), corrupted=replace(pair.corrupted, id=f"{name}-corrupted")
    )


def _vary(scene: Scene, change: str, split: str, rng: np.random.Generator) -> Pair | None:
    """The scene with one of its objects changed, None where the split has no such object."""
    index = int(rng.integers(len(scene.objects)))
    item = scene.objects[index]
    others = [other for other in _variants(item, change, split) if not _clashes(other, scene.objects, index)]
    if not others:
        return None
    other = others[rng.integers(len(others))]
    objects = (*scene.objects[:index], other, *scene.objects[index + 1 :])
    glyph = draw_glyphs(rng, split, [other])[0] if change == "digit" else scene.glyphs[index]
    glyphs = (*scene.glyphs[:index], glyph, *scene.glyphs[index + 1 :])
    question, answer, other_answer = {
        "colour": (f"what colour is the {item.digit} ?", item.colour, other.colour),
        "digit": (f"which digit is at {item.place} ?", str(item.digit), str(other.digit)),
        "place": (f"where is the {item.digit} ?", item.place, other.place),
    }[change]
    return Pair(scene, replace(scene, objects=objects, glyphs=glyphs), answer, other_answer, question, index)


def _variants(item: SceneObject, change: str, split: str) -> list[SceneObject]:
    """The objects of this split that differ from `item` in `change` and in nothing else."""
    found = []
    for colour, digit, place in combinations(split):
        other = SceneObject(place, digit, COLOURS[colour])
        same = {"colour": other.colour == item.colour, "digit": digit == item.digit, "place": place == item.place_index}
        if [name for name, equal in same.items() if not equal] == [change]:
            found.append(other)
    return found


def _clashes(other: SceneObject, objects: tuple[SceneObject, ...], index: int) -> bool:
    """Whether another object of the scene has this digit or stands in this place."""
    rest = [item for position, item in enumerate(objects) if position != index]
    return any(item.digit == other.digit or item.place_index == other.place_index for item in rest)
