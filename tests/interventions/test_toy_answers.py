"""On the toy the answers are known, and where on the picture each stands: what is cut, moved or taken away there goes with
its answer, and what stands beside it does not."""

from collections import Counter, defaultdict
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import interp
from interp.interventions import Ablate, Knockout, Patch
from interp.models.batches.targets import word_id

_ROWS = 100
GREY = Image.new("RGB", (48, 48), (128, 128, 128))


def answers(vlm, questions, pictures, *interventions):
    """The most probable next token `[question]` after each question about its picture."""
    found = []
    for start in range(0, len(questions), _ROWS):
        part = slice(start, start + _ROWS)
        batch = vlm.prepare([question.prompt for question in questions[part]], pictures[part])
        found.append(vlm.logits(batch, interventions).argmax(dim=-1))
    return torch.cat(found)


def ids_of(vlm, words):
    return torch.tensor([word_id(vlm, word) for word in words])


def on_the_patches(batch, patches):
    """Bool `[row, 6, 6]` as positions of the rows' image tokens, Bool `[batch, seq]`."""
    mask = torch.zeros_like(batch.positions["image"])
    mask[batch.positions["image"]] = patches.flatten()
    return mask


def as_many(among, patches, seed=0):
    """As many patches of each row as there are in `patches` `[row, 6, 6]`, drawn from those `among` which they may be."""
    drawn = torch.rand(among.shape, generator=torch.Generator().manual_seed(seed)).masked_fill(~among, 2)
    order = drawn.flatten(1).argsort(dim=1).argsort(dim=1)
    chosen = (order < patches.flatten(1).sum(dim=1, keepdim=True)).reshape(among.shape)
    assert not (chosen & ~among).any()
    return chosen


def share(right):
    """In points, hundredths."""
    return 100 * float(right.float().mean())


# Cut off from the image --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def asked():
    """A thousand questions about 200 held-out scenes, 200 of each of five kinds."""
    return [(scene, q) for scene in interp.toy.scenes(200, seed=0) for q in scene.questions if q.group == "perception"]


def test_cut_off_from_the_image_it_answers_as_about_a_blank_picture(toy, asked):
    """In all to three points; and of each kind it is right no more often than one who always gives the same answer.

    Of one kind the two may differ by more, since a blank picture is still a picture: asked for a place on an empty ground
    the model says "one", which is never right, and cut off from its image it guesses a place.
    """
    questions, pictures = [q for _, q in asked], [scene.image for scene, _ in asked]
    grounds = [replace(scene, objects=(), glyphs=()).image for scene, _ in asked]
    each = {q.text: q for q in questions}  # one picture for all: what is asked twice has one answer
    on_grey = dict(zip(each, answers(toy, list(each.values()), [GREY] * len(each)), strict=True))
    blind = Knockout(source="image", target="after_image", layers="all")
    wanted = ids_of(toy, [q.answer for q in questions])
    cut = answers(toy, questions, pictures, blind) == wanted
    assert share(answers(toy, questions[:200], pictures[:200]) == wanted[:200]) >= 95
    for blank in (answers(toy, questions, grounds), torch.stack([on_grey[q.text] for q in questions])):
        assert abs(share(cut) - share(blank == wanted)) <= 3
    of_kind = defaultdict(list)
    for question, right in zip(questions, cut.tolist(), strict=True):
        of_kind[question.kind].append((right, question.answer))
    assert [len(found) for found in of_kind.values()] == [200] * 5
    for found in of_kind.values():
        most = Counter(answer for _, answer in found).most_common(1)[0][1]
        assert sum(right for right, _ in found) <= most + 0.03 * len(found)


def test_cut_off_from_the_image_no_picture_makes_a_difference(toy, asked):
    questions, pictures = [q for _, q in asked[:50]], [scene.image for scene, _ in asked[:50]]
    others = [[scene.image for scene, _ in asked[50:100]], [GREY] * 50]
    blind = [Knockout(source="image", target="after_image", layers="all")]
    batch = toy.prepare([q.prompt for q in questions], pictures)
    for other in others:
        shown = toy.prepare([q.prompt for q in questions], other)
        assert torch.equal(toy.logits(shown, blind), toy.logits(batch, blind))
        assert (toy.logits(shown) - toy.logits(batch)).abs().amax(dim=-1).min() > 0.1


# Moved -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("change", ["colour", "digit", "place"])
def test_what_enters_at_an_objects_patches_moves_its_answer(toy, change):
    """State 0 of the other picture at the patches that show what differs, and at as many that show the ground."""
    pairs = interp.toy.pairs(60, seed=0, change=change, objects=1 if change == "place" else 2)

    def batch_of(pairs, scenes):
        return toy.prepare([pair.prompt for pair in pairs], [scene.image for scene in scenes])

    def both(pairs):
        return batch_of(pairs, [pair.clean for pair in pairs]), batch_of(pairs, [pair.corrupted for pair in pairs])

    said = [toy.logits(batch).argmax(dim=-1) for batch in both(pairs)]
    meant = [ids_of(toy, words) for words in ([pair.answer for pair in pairs], [pair.other for pair in pairs])]
    right = (said[0] == meant[0]) & (said[1] == meant[1])
    assert right.sum() >= 55
    pairs, other = [pair for pair, ok in zip(pairs, right.tolist(), strict=True) if ok], meant[1][right]
    labels = torch.tensor(np.stack([(pair.clean.patch_labels, pair.corrupted.patch_labels) for pair in pairs]))
    changed = (labels == torch.tensor([pair.changed for pair in pairs])[:, None, None, None]).any(dim=1)
    ground = as_many((labels == -1).all(dim=1), changed)
    assert (changed.flatten(1).sum(dim=1) == (8 if change == "place" else 4)).all()
    clean, corrupted = both(pairs)

    def flipped(patches):
        mask = on_the_patches(clean, patches)
        given = interp.capture(toy, [corrupted], "resid_pre", positions=mask, reduce="none", layers=0, progress=False)
        patch = Patch(site="resid_pre", layers=0, positions=mask, value=given)
        return share(toy.logits(clean, [patch]).argmax(dim=-1) == other)

    assert flipped(changed) >= 80
    assert flipped(ground) <= 10


# Taken away --------------------------------------------------------------------------------------------------------------


def test_without_an_objects_patches_its_colour_is_lost(toy, asked):
    """The mean visual token of other scenes in the place of the object's four patches, or of four others; in the prompt
    alone, as a mask means. A sixth of the answers would be right by chance."""
    about = [(scene, q) for scene, q in asked if q.kind == "colour"]
    batch = toy.prepare([q.prompt for _, q in about], [scene.image for scene, _ in about])
    wanted = ids_of(toy, [q.answer for _, q in about])
    right = toy.logits(batch).argmax(dim=-1) == wanted
    assert share(right) >= 95
    labels = torch.tensor(np.stack([scene.patch_labels for scene, _ in about]))
    which = [[str(item.digit) in q.text.split() for item in scene.objects].index(True) for scene, q in about]
    patches = labels == torch.tensor(which)[:, None, None]
    visual = interp.capture(
        toy, interp.toy.scenes(50, seed=1), "resid_pre", positions="image", reduce="none", layers=0, progress=False
    )

    def lost(patches):
        cut = Ablate(site="resid_pre", layers=0, positions=on_the_patches(batch, patches), value=visual)
        said = toy.generate(batch, max_new_tokens=1, interventions=[cut])
        wrong = torch.tensor([word != q.answer for word, (_, q) in zip(said, about, strict=True)])
        return share(wrong[right])

    assert lost(patches) >= 70
    assert lost(as_many(~patches, patches)) <= 5
