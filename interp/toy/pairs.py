"""Pairs of scenes with equal prompts that differ in one thing: what patching compares.

The two scenes of a pair show the same number of digits in the same places. One of the digits has another colour or another
value, or (for `change="place"`) another place. The question asks for exactly this property, so its answer is one word for
the clean scene and another word for the corrupted scene, while the prompts are the same, token by token.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Bool

from interp.arguments import checked_choice, checked_seed
from interp.displays import Display
from interp.errors import InputError
from interp.toy.language import COLOURS, IMAGE_TOKEN, SceneObject
from interp.toy.scenes import SPLITS, Scene, combinations, draw_glyphs, scenes

_CHANGES = ("colour", "digit", "place")


@dataclass(frozen=True)
class Pair(Display):
    """Two scenes and a question that tells them apart. Unpacks as (clean, corrupted, answer, other answer).

    `changed` is the index of the object that differs. `prompt` begins with the image placeholder, the two `text_prompts`
    with the captions instead. `spans` names what differs and what the question calls it, for `VLM.prepare`:

    >>> import interp
    >>> vlm, rows = interp.load("toy"), pairs(2, seed=0)
    >>> pictures, spans = [pair.clean.image for pair in rows], [pair.spans for pair in rows]
    >>> clean = vlm.prepare([pair.prompt for pair in rows], pictures, spans=spans)
    >>> clean.positions["object"].sum(dim=1).tolist(), clean.positions["mention"].sum(dim=1).tolist()
    ([4, 4], [1, 1])
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

    @property
    def mask(self) -> Bool[np.ndarray, "row column"]:
        """The patches of the changed object, at both places where it moved."""
        return (self.clean.patch_labels == self.changed) | (self.corrupted.patch_labels == self.changed)

    @property
    def spans(self) -> dict[str, Any]:
        """Spans of `prompt`, with either picture: ``object``, the patches of the changed object, and ``mention``, the words of
        the question that say which object is meant."""
        return {"object": self.mask, "mention": self._mention(self.prompt)}

    @property
    def text_spans(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """The same spans of the two `text_prompts`; there ``object`` are the words of the caption about the changed object."""
        clean, corrupted = self.text_prompts
        return self._text_spans(clean, self.clean), self._text_spans(corrupted, self.corrupted)

    def _text_spans(self, text: str, scene: Scene) -> dict[str, Any]:
        words = scene.objects[self.changed].words
        start = text.index(words)
        return {"object": (start, start + len(words)), "mention": self._mention(text)}

    def _mention(self, text: str) -> tuple[int, int]:
        """The range of the words in the question that say which object is meant: its digit, or its place."""
        item = self.clean.objects[self.changed]
        words = item.place if item.place in self.question.split() else str(item.digit)
        start = len(text) - len(self.question) + self.question.index(f" {words} ") + 1
        return start, start + len(words)

    def __iter__(self):
        return iter((self.clean, self.corrupted, self.answer, self.other))


def pairs(
    n: int, seed: int, change: str = "colour", split: str = "test", objects: int = 2, by: str = "digit"
) -> list[Pair]:
    """Draw `n` pairs of scenes with `objects` digits each that differ in the colour, digit or place of one object.

    >>> clean, corrupted, answer, other = pairs(1, seed=0)[0]
    >>> answer in clean.caption and other in corrupted.caption
    True

    Everything else is the same in both pictures, including glyphs and noise (a changed digit needs another glyph). The
    objects of both scenes belong to `split`. With `by="place"` the question about a colour names the object by its place
    ("what colour is at top ?"). No toy was trained on that; the organism `circuit` answers it (`interp.toy.planted`).

    Raises `InputError` for an unknown change, split or `by`, for `by="place"` with another change, and if `change="place"` is
    combined with more than one object: captions name objects in reading order, so moving one of several could change the order
    of the caption.
    """
    checked_choice(change, "change", _CHANGES)
    checked_choice(split, "split", SPLITS)
    if checked_choice(by, "by", ("digit", "place")) == "place" and change != "colour":
        raise InputError(f"change={change!r}: expected change='colour' with by='place'")
    if change == "place" and objects != 1:
        raise InputError(f"objects={objects!r}: expected objects=1 for pairs that differ in place")
    rng = np.random.default_rng([checked_seed(seed), _CHANGES.index(change), 2])
    rows: list[Pair] = []
    while len(rows) < n:
        scene = scenes(1, seed=int(rng.integers(2**31)), split=split, objects=objects)[0]
        pair = _vary(scene, change, split, rng)
        if pair is not None:
            if by == "place":
                pair = replace(pair, question=f"what colour is at {pair.clean.objects[pair.changed].place} ?")
            name = f"pair-{split}-{seed}-{len(rows)}"
            clean, corrupted = replace(pair.clean, id=f"{name}-clean"), replace(pair.corrupted, id=f"{name}-corrupted")
            rows.append(replace(pair, clean=clean, corrupted=corrupted))
    return rows


def _vary(scene: Scene, change: str, split: str, rng: np.random.Generator) -> Pair | None:
    """A pair in which one object of the scene is changed; None if the split has no object to change it into."""
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
    variants = []
    for colour, digit, place in combinations(split):
        other = SceneObject(place, digit, COLOURS[colour])
        same = {"colour": other.colour == item.colour, "digit": digit == item.digit, "place": place == item.place_index}
        if [name for name, equal in same.items() if not equal] == [change]:
            variants.append(other)
    return variants


def _clashes(other: SceneObject, objects: tuple[SceneObject, ...], index: int) -> bool:
    """Whether an object of the scene, other than the one at `index`, has this digit or this place."""
    rest = [item for position, item in enumerate(objects) if position != index]
    return any(item.digit == other.digit or item.place_index == other.place_index for item in rest)
