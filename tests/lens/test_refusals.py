"""What no lens takes, said in one line before the model runs: seeds, batches and interventions that are none."""

import re

import numpy as np
import pytest
import torch

import interp
from interp.interventions import Skip
from interp.lens import (
    TunedLens,
    attention_masses,
    attention_share,
    direct_logit_attribution,
    head_pursuit,
    logit_lens,
    projector_report,
    quantise,
    scale_heads,
    unnormed_lens,
    visual_token_stats,
    vocabulary_decomposition,
    word_alignment,
)

pytestmark = pytest.mark.usefixtures("unchecked")
EYE = torch.eye(6)


@pytest.fixture(scope="module")
def acts(toy, few):
    return interp.capture(toy, few, sites=("z",), positions="last", progress=False)


@pytest.mark.parametrize("seed", [None, "x", -1, 1.5, True, np.True_, 2**32])
def test_seeds(toy, mixed, few, acts, seed):
    share = attention_share(toy, mixed)
    heads = head_pursuit(toy, acts, ["red"], k=1, lists=1)
    for take in (
        lambda: vocabulary_decomposition(EYE, EYE, 1, seed=seed),
        lambda: visual_token_stats([0, 1, 0], seed=seed),
        lambda: quantise(EYE, 2, seed=seed),
        lambda: word_alignment(EYE, [[0]] * 6, EYE, seed=seed),
        lambda: direct_logit_attribution(toy, mixed, "red", seed=seed),
        lambda: attention_share(toy, mixed, seed=seed),
        lambda: attention_masses(toy, mixed, seed=seed),
        lambda: share.decay(seed),
        lambda: head_pursuit(toy, acts, ["red"], 1, seed=seed),
        lambda: heads.control(1, seed),
        lambda: projector_report(toy, few, seed=seed),
        lambda: TunedLens.fit(toy, few, seed=seed),
    ):
        with pytest.raises(interp.InputError, match=r"^seed=[^\n]*: expected an int of 0 or more, below 2\*\*32$"):
            take()


LENSES = {
    "logit": logit_lens,
    "unnormed": unnormed_lens,
    "attribution": lambda *given, **more: direct_logit_attribution(*given, targets="red", **more),
    "share": attention_share,
    "masses": attention_masses,
}


@pytest.mark.parametrize("name", LENSES)
@pytest.mark.parametrize("kind", ["batch", "interventions"])
def test_batches_and_interventions(toy, mixed, name, kind):
    wrong = {
        "batch": [((each,), {}, "is not a batch: make one") for each in ("red", None, [mixed], mixed.inputs)],
        "interventions": [
            ((mixed,), {"interventions": each}, words)
            for each, words in (
                (5, "interventions=5: expected a list"),
                (None, "interventions=None: expected a list"),
                ("skip", "interventions='skip': expected a list"),
                (Skip(layers=3), r"interventions=Skip\(.*: expected a list"),
                ([[Skip(layers=3)]], r"\[Skip\(.* is not an intervention"),
                ([3], "3 is not an intervention"),
            )
        ],
    }
    for given, more, words in wrong[kind]:
        with pytest.raises(interp.InputTypeError, match=words) as caught:
            LENSES[name](toy, *given, **more)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("wrong", ["no", 1, None, [0]])
def test_what_is_asked_for_with_true(toy, mixed, acts, wrong):
    for name, take in (
        ("heads", lambda: direct_logit_attribution(toy, mixed, "red", heads=wrong)),
        ("joint", lambda: vocabulary_decomposition(EYE, EYE, 1, joint=wrong)),
        ("center", lambda: vocabulary_decomposition(EYE, EYE, 1, center=wrong)),
        ("center", lambda: head_pursuit(toy, acts, ["red"], 1, center=wrong)),
    ):
        with pytest.raises(interp.InputError, match=rf"^{name}={re.escape(repr(wrong))}: expected True or False$"):
            take()


@pytest.mark.parametrize(
    ("take", "words"),
    [
        (lambda toy, batch, acts: direct_logit_attribution(toy, batch, "red", sources=5), "sources=5: expected names"),
        (lambda toy, batch, acts: word_alignment(EYE, None, EYE), "words=None: expected a list for each object"),
        (lambda toy, batch, acts: head_pursuit(toy, acts, None, 1), "target None: expected a word"),
        (lambda toy, batch, acts: head_pursuit(toy, acts, [], 1), r"words=\[\] is empty: expected the words"),
        (lambda toy, batch, acts: scale_heads([5], 2), r"5 among the heads: expected pairs of ints, \(layer, head\)"),
        (lambda toy, batch, acts: scale_heads("ab", 2), "'a' among the heads: expected pairs"),
        (lambda toy, batch, acts: scale_heads([(1, 0.5)], 2), r"\(1, 0\.5\) among the heads: expected pairs"),
    ],
)
def test_other_things(toy, mixed, acts, take, words):
    with pytest.raises(interp.InterpError, match=words) as caught:
        take(toy, mixed, acts)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("targets", [{"red", "blue", "green"}, {"red": 1, "blue": 2, "green": 3}, b"abc", bytearray(3)])
def test_targets_without_an_order_of_rows(toy, mixed, targets):
    """Of three rows: as many as these, so that they would be taken in whatever order, or for token ids."""
    for read in (logit_lens, direct_logit_attribution):
        with pytest.raises(interp.InputError, match=r"^targets=[^\n]*: expected a word or a token id for all rows, or"):
            read(toy, mixed, targets=targets)


def test_one_word_may_be_a_number_of_any_kind(toy, acts):
    names = [
        head_pursuit(toy, acts, words, 1, lists=2).concept for words in (40, np.int64(40), torch.tensor([40]), [40])
    ]
    assert names == [names[0]] * 4
