"""Do the patches of an object say what it is? Shares of the toy's patches, and the same search on shuffled pictures.

A patch names its object where the object's digit or colour is among the top five words at its position. The place is left
out, a patch's position alone tells it. What is reported is the best state of the best lens, so the null has to choose
as freely: the labels of every picture are those of another one with as many objects, and of all states and lenses the
best is taken again.
"""

from __future__ import annotations

import pytest
import torch

import interp
from interp.lens import TunedLens, logit_lens, tuned_lens
from interp.toy.language import COLOURS

PICTURES = 80
WORDS = (*map(str, range(10)), *COLOURS)


def said(lens, pictures):
    """Bool `[state, picture, patch, word]`: which of the digits and colours are among each patch's top words."""
    states, positions, _ = lens.top_ids.shape
    told = [[[word in found for word in WORDS] for found in _stripped(lens, state)] for state in range(states)]
    return torch.tensor(told).reshape(states, pictures, positions // pictures, len(WORDS))


def _stripped(lens, state):
    return [{word.strip() for word in lens.words(state, position)} for position in range(lens.top_ids.shape[1])]


def wanted(scenes):
    """Bool `[picture, patch, word]`: the digit and the colour of the object that a patch shows; none on the ground."""
    names = torch.zeros(len(scenes), 36, len(WORDS), dtype=torch.bool)
    for picture, scene in enumerate(scenes):
        for patch, owner in enumerate(scene.patch_labels.flatten().tolist()):
            if owner >= 0:
                item = scene.objects[owner]
                names[picture, patch, [item.digit, WORDS.index(item.colour)]] = True
    return names


def shares(told, names):
    """The share of the objects' patches that name their object `[..., state]`, for what patches say and should say."""
    objects = names.any(dim=-1)
    return (told & names).any(dim=-1)[..., objects].double().mean(dim=-1)


def shuffled(scenes, generator):
    """For each picture the number of one with as many objects; its own is as likely as any other."""
    order = torch.arange(len(scenes))
    counts = torch.tensor([len(scene.objects) for scene in scenes])
    for count in counts.unique():
        alike = (counts == count).nonzero()[:, 0]
        order[alike] = alike[torch.randperm(len(alike), generator=generator)]
    return order


def permutation_p(told, scenes, draws=500, seed=0):
    """How often the best state of the best lens (`told` is a list, one a lens) is as good on shuffled labels; and the
    mean of these best ones."""
    generator = torch.Generator().manual_seed(seed)
    names, together = wanted(scenes), torch.cat(told)
    best = shares(together, names).max()
    null = torch.stack([shares(together, names[shuffled(scenes, generator)]).max() for _ in range(draws)])
    return (1 + int((null >= best).sum())) / (1 + draws), float(null.mean())


@pytest.fixture(scope="module")
def scenes():
    return interp.toy.scenes(PICTURES, seed=41)


@pytest.fixture(scope="module")
def told(toy, scenes):
    lens = TunedLens.fit(toy, asked(interp.toy.scenes(96, seed=42, split="train")), positions="image", seed=0)
    batch = toy.prepare(["<image>"] * PICTURES, [scene.image for scene in scenes])
    return [said(logit_lens(toy, batch), PICTURES), said(tuned_lens(toy, batch, lens), PICTURES)]


def asked(scenes):
    return [(scene.image, "<image>") for scene in scenes]


def test_patches_name_their_objects(scenes, told):
    best = [shares(each, wanted(scenes)).max() for each in told]
    p, chance = permutation_p(told, scenes, draws=300)
    assert p < 0.01
    assert max(best) > chance + 0.1
    for each in told:
        assert permutation_p([each], scenes, draws=300)[0] < 0.01


def test_the_search_finds_nothing_where_there_is_nothing(scenes, told):
    """Labels that are shuffled already have a p that is anything; over several of them it is seldom small."""
    generator = torch.Generator().manual_seed(1)
    found = []
    for _ in range(10):
        order = shuffled(scenes, generator)
        found.append(permutation_p([each[:, order.argsort()] for each in told], scenes, draws=60)[0])
    assert sum(p < 0.1 for p in found) <= 4
