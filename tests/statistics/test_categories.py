from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
import torch

import interp
from interp.errors import InputError, InputTypeError
from interp.geometry import compare, homogeneity, label_overlap
from interp.probes import LinearProbe, fit_batched, probe_layers
from interp.statistics.categories import labels_of, read_labels

WORDS = ["cat", "dog"] * 5
NUMBERS = [1, 2] * 5


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (WORDS, ["cat", "dog"]),
        (tuple(WORDS), ["cat", "dog"]),
        (np.array(WORDS), ["cat", "dog"]),
        (np.array(WORDS, dtype=object), ["cat", "dog"]),
        (pd.Series(WORDS, index=range(50, 60)), ["cat", "dog"]),
        (pd.Series(WORDS, dtype="category"), ["cat", "dog"]),
        (pd.Categorical(WORDS), ["cat", "dog"]),
        (pd.Series(NUMBERS, dtype="Int64"), [1, 2]),
        (torch.tensor(NUMBERS), [1, 2]),
        (torch.tensor(NUMBERS, dtype=torch.bfloat16), [1.0, 2.0]),
        ([torch.tensor(1), torch.tensor(2)] * 5, [1, 2]),
        ([np.int64(1), 2] * 5, [1, 2]),
        ([1, 1.0, 2, 2.0, 1] * 2, [1, 2]),
        ([True, False] * 5, [True, False]),
        (["a", 1] * 5, ["a", 1]),
        (["", "nan"] * 5, ["", "nan"]),
        (np.array(["nan", "a"] * 5), ["nan", "a"]),
        (range(10), list(range(10))),
        (np.array([b"a", b"b"] * 5), ["a", "b"]),
    ],
    ids=range(19),
)
def test_labels_of_any_form(values, expected):
    distinct, numbers = read_labels(values, 10)
    assert distinct == expected
    assert list(map(type, distinct)) == list(map(type, expected))
    assert len(numbers) == 10


@pytest.mark.parametrize(
    "values",
    [
        [*WORDS[:7], None, *WORDS[8:]],
        [*WORDS[:7], math.nan, *WORDS[8:]],
        [*WORDS[:7], np.float32("nan"), *WORDS[8:]],
        [*WORDS[:7], pd.NA, *WORDS[8:]],
        [*WORDS[:7], pd.NaT, *WORDS[8:]],
        [*NUMBERS[:7], math.inf, *NUMBERS[8:]],
        np.array([*WORDS[:7], np.nan, *WORDS[8:]]),  # numpy has made it the string "nan"
        np.array([*WORDS[:7], np.nan, *WORDS[8:]], dtype=object),
        np.ma.masked_array(NUMBERS, mask=np.arange(10) == 7),
        pd.Series([*WORDS[:7], None, *WORDS[8:]]),
        pd.Series([*WORDS[:7], None, *WORDS[8:]], dtype="category"),
        pd.Series([*WORDS[:7], None, *WORDS[8:]], dtype="string"),
        pd.Series([*NUMBERS[:7], None, *NUMBERS[8:]], dtype="Int64"),
        pd.Series([True] * 7 + [None] + [False] * 2, dtype="boolean"),
        torch.tensor([*NUMBERS[:7], math.nan, *NUMBERS[8:]]),
    ],
    ids=range(15),
)
def test_a_missing_label_is_counted_and_placed_wherever_labels_are_taken(values):
    states = np.random.default_rng(0).normal(size=(2, 10, 3))
    missing, many = "1 of 10 {} are missing.*the first at example 7", np.random.default_rng(1).normal(size=(2, 40, 3))
    for call, name in [
        (lambda: probe_layers(states, values), "labels"),
        (lambda: probe_layers(states, WORDS, groups=values), "groups"),
        (lambda: probe_layers(states, WORDS, types=values), "types"),
        (lambda: fit_batched(torch.from_numpy(states), values), "labels"),
        (lambda: label_overlap(states[0], values, k=2), "labels"),
        (lambda: homogeneity(values, WORDS), "clusters"),
        (lambda: compare(many, many, metrics=["label_overlap"], labels=values), "labels"),
    ]:
        with pytest.raises(InputError, match=missing.format(name)) as caught:
            call()
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("pair", [(1, "1"), ("1", 1.0), (True, 1), (0, False), ("True", True), (1.5, "1.5")], ids=str)
def test_labels_that_look_alike_are_not_merged(pair):
    for call in (
        lambda: read_labels([*pair, "other", *pair]),
        lambda: probe_layers(np.random.default_rng(0).normal(size=(1, 8, 2)), [*pair] * 4),
        lambda: LinearProbe().fit(np.eye(4), [*pair] * 2),
    ):
        with pytest.raises(InputError, match="which look alike"):
            call()


@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        (WORDS[:9], InputError, "9 labels for 10 examples"),
        (np.array(WORDS)[:, None], InputError, r"shape \(10, 1\)"),
        ([[word] for word in WORDS], InputError, r"shape \(10, 1\)"),
        ([(1, 2)] * 10, InputError, r"shape \(10, 2\)"),
        ([[1], [1, 2]] * 5, InputError, "several lengths"),
        ([object()] * 10, InputError, "labels contain <object"),
        ([1j] * 10, InputError, "labels contain 1j"),
        (pd.date_range("2020", periods=10), InputError, "labels contain Timestamp"),
        ("colour", InputError, "6 labels for 10 examples.*is a string.*activations, whose labels have names"),
        (dict.fromkeys(range(10)), InputTypeError, "labels is a dict"),
        (set(range(10)), InputTypeError, "labels is a set"),
        (iter(WORDS), InputTypeError, "labels is a list_iterator"),
        (7, InputTypeError, "labels is a int"),
    ],
    ids=range(13),
)
def test_what_is_no_label_is_refused(values, error, message):
    with pytest.raises(error, match=message) as caught:
        read_labels(values, 10)
    assert "\n" not in str(caught.value)


def test_a_string_names_a_label_of_activations(toy):
    scenes = interp.toy.scenes(48, seed=0, objects=1)
    acts = interp.capture(toy, scenes, positions="image", progress=False)
    found = probe_layers(acts, "colour", types="digit", permutations=5)
    expected = probe_layers(acts, scenes.labels["colour"], types=scenes.labels["digit"], permutations=5)
    assert torch.equal(found.accuracy, expected.accuracy)
    assert torch.equal(found.control_task, expected.control_task)
    named, given = (
        compare(acts, acts, metrics=["label_overlap"], labels=labels, subsamples=0, permutations=2).value
        for labels in ("colour", scenes.labels["colour"])
    )
    assert torch.equal(named, given)
    for call, message in [
        (
            lambda: probe_layers(acts, "color"),
            "labels='color' is not a label of these activations: they have 'count', 'digit'",
        ),
        (lambda: probe_layers(acts, "colour", groups="scene"), "groups='scene' is not a label"),
        (lambda: probe_layers(acts["resid"], "colour"), "labels='colour' is a string"),
        (lambda: label_overlap(acts["resid"][4], "colour"), "labels='colour' is a string"),
    ]:
        with pytest.raises(InputError, match=message):
            call()


def test_a_named_label_is_that_of_each_token_and_one_a_row_is_refused(toy):
    scenes = interp.toy.scenes(3, seed=0, objects=1)
    acts = interp.capture(toy, scenes, positions="image", reduce="none", progress=False)
    colours = scenes.labels["colour"]
    assert labels_of("colour", acts, "resid") == [colour for colour in colours for _ in range(36)]
    with pytest.raises(InputError, match=r"3 labels, one a row, for 108 examples.*acts.places\('resid'\).rows"):
        probe_layers(acts, colours)
