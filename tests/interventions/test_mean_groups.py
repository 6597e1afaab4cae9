"""Mean ablation by groups: each state becomes the mean of its group, computed by hand; a reference gives the means of its own."""

import dataclasses
import re

import pytest
import torch

import interp
from interp.interventions import Ablate, Patch

QUESTIONS = [
    "a red 3 at top . where is the 3 ?",
    "a blue 4 at left . where is the 4 ?",
    "a red 5 at top . what colour is it ?",
]
KINDS = ["where", "where", "colour"]
PLACE = {"site": "resid_pre", "layers": [2, 5], "positions": [0, 2]}


@pytest.fixture(scope="module")
def batch(toy):
    return toy.prepare(texts=QUESTIONS)


@pytest.fixture(scope="module")
def states(toy, batch):
    """The unchanged states `[layer, row, position, width]`."""
    acts = interp.capture(
        toy, [batch], sites=("resid_pre",), layers=[2, 5], positions=[0, 2], reduce="none", progress=False
    )
    return acts["resid_pre"][...].reshape(2, 3, 2, -1)


def expected(states, by):
    """The states of the batch, each replaced by the mean of its group."""
    changed = torch.empty_like(states)
    for row in range(3):
        for place in range(2):
            rows = [other for other in range(3) if "labels" not in by or KINDS[other] == KINDS[row]]
            places = [place] if "position" in by else [0, 1]
            changed[:, row, place] = states[:, rows][:, :, places].mean(dim=(1, 2))
    return changed


@pytest.mark.parametrize(
    ("by", "parts"), [(None, ""), ("position", "position"), (KINDS, "labels"), (("position", KINDS), "position labels")]
)
def test_each_state_becomes_the_mean_of_its_group(toy, batch, states, by, parts):
    value = expected(states, parts).reshape(2, 6, -1)
    by_hand = toy.logits(batch, [Patch(**PLACE, value=value)])
    torch.testing.assert_close(toy.logits(batch, [Ablate(**PLACE, value="mean", by=by)]), by_hand)
    assert by is None or not torch.allclose(by_hand, toy.logits(batch, [Ablate(**PLACE, value="mean")]), atol=1e-3)


@pytest.mark.parametrize("with_labels", [False, True])
def test_a_reference_gives_its_own_means(toy, batch, states, with_labels):
    reference = toy.prepare(texts=[QUESTIONS[2], QUESTIONS[0], QUESTIONS[1], QUESTIONS[0]])
    kinds = ["colour", "where", "where", "where"]
    acts = interp.capture(
        toy, [reference], sites=("resid_pre",), layers=[2, 5], positions=[0, 2], reduce="none", progress=False
    )
    acts = dataclasses.replace(acts, labels={"kind": kinds}) if with_labels else acts
    of_reference = acts["resid_pre"][...].reshape(2, 4, 2, -1)
    where, colour = of_reference[:, 1:].mean(dim=1), of_reference[:, 0]
    if with_labels:
        value, by = torch.stack([where, where, colour], dim=1), ("position", {"kind": KINDS})
    else:
        value, by = of_reference.mean(dim=1)[:, None].expand(2, 3, 2, -1), "position"
    by_hand = toy.logits(batch, [Patch(**PLACE, value=value.reshape(2, 6, -1))])
    torch.testing.assert_close(toy.logits(batch, [Ablate(**PLACE, value=acts, by=by)]), by_hand)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"by": "rows", "value": "mean"},
            "by='rows': expected 'position', labels of the rows, or ('position', labels)",
        ),
        ({"by": ["a", "b"], "value": "mean"}, "2 labels in by for 3 examples: expected one an example"),
        ({"by": {"kind": KINDS}, "value": "mean"}, "names are those of a reference's labels, pass one label a row"),
        ({"by": "position", "value": "zero"}, "by='position' with value='zero': only a mean has groups, leave by out"),
        (
            {"by": "position", "value": "mean", "positions": "text"},
            "by='position' with [10, 11] positions in the rows: expected as many in each",
        ),
    ],
)
def test_wrong_groups_are_refused_in_a_line(toy, batch, options, message):
    with pytest.raises(interp.InputError, match=re.escape(message)):
        toy.logits(batch, [Ablate(**PLACE | options)])


def test_a_group_that_the_reference_lacks_is_refused(toy, batch):
    acts = interp.capture(
        toy, interp.toy.scenes(2, seed=0).captions(), positions="text", progress=False, sites=("resid_pre",)
    )
    with pytest.raises(interp.InputError, match="expected a label of the reference and those of the rows"):
        toy.logits(batch, [Ablate(**PLACE, value=acts, by=KINDS)])
    name = next(iter(acts.labels), None)
    if name is not None:
        with pytest.raises(interp.InputError, match="no row of the reference has 'where'"):
            toy.logits(batch, [Ablate(**PLACE, value=acts, by={name: KINDS})])


def test_generation_writes_the_means_of_groups_to_new_tokens_too(toy, batch):
    ablate = Ablate(site="resid_pre", layers=[2], positions="text", value="mean", by=KINDS)
    prompt_alone = ablate.edits(toy, batch)[0]
    with_new = ablate.edits(toy, batch, new=2)[0]
    assert len(with_new.arguments[0]) == len(prompt_alone.arguments[0]) + 2 * len(batch)
    by_position = Ablate(**PLACE, value="mean", by="position")
    assert len(by_position.edits(toy, batch, new=2)[0].arguments[0]) == len(
        by_position.edits(toy, batch)[0].arguments[0]
    )
