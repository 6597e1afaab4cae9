"""Means over models of frames and results, against `random_effects` of their numbers."""

import math

import numpy as np
import pandas as pd
import pytest
import torch

import interp
from interp.errors import InputError, InputTypeError
from interp.patching import layer_sweep, logit_difference
from interp.probes import probe_layers
from interp.statistics import holm, mean_over_models, random_effects


def frame(seed=0, **columns):
    rng = np.random.default_rng(seed)
    values = rng.normal(size=4)
    table = {"layer": [0, 1, 2, 3], "kind": list("aabb"), "value": values, "low": values - 0.5, "high": values + 0.5}
    return pd.DataFrame({**table, "chance": 0.1 * seed, "n": 10 + seed, **columns})


FRAMES = {f"seed {seed}": frame(seed) for seed in range(5)}
VALUES = torch.tensor(np.stack([each["value"] for each in FRAMES.values()]))
ERROR = 0.5 / 1.959964


def test_each_cell_has_the_random_effects_of_its_numbers():
    table = mean_over_models(FRAMES, rows="own")
    found = random_effects(VALUES, torch.full_like(VALUES, ERROR))
    assert table[["layer", "kind", "models"]].values.tolist() == [[0, "a", 5], [1, "a", 5], [2, "b", 5], [3, "b", 5]]
    for name in ("mean", "low", "high", "next_low", "next_high", "p"):
        np.testing.assert_allclose(table[name], getattr(found, name))
    np.testing.assert_allclose(table["tau"], found.tau2.sqrt())
    np.testing.assert_allclose(table["p_holm"], holm(found.p))
    np.testing.assert_allclose(table["smallest"], VALUES.amin(dim=0))
    np.testing.assert_allclose(table["largest"], VALUES.amax(dim=0))
    np.testing.assert_allclose(table["chance"], 0.2)


def test_on_the_same_rows_all_of_the_errors_may_be_shared():
    own, same = (mean_over_models(FRAMES, rows=rows) for rows in ("own", "same"))
    np.testing.assert_allclose(same["mean"], VALUES.mean(dim=0))
    np.testing.assert_allclose(same["tau"], VALUES.std(dim=0))
    noisy = {name: each.assign(low=each["value"] - 9, high=each["value"] + 9) for name, each in FRAMES.items()}
    widths = [mean_over_models(noisy, rows=rows).eval("high - low") for rows in ("own", "same")]
    assert (widths[1] > 2 * widths[0]).all()  # 1 / sqrt(5) of an error is left where none is shared
    np.testing.assert_allclose(same["p"], own["p"])
    pd.testing.assert_frame_equal(same, mean_over_models(FRAMES))  # what holds in either case is the default


def test_frames_come_in_a_mapping_a_list_or_in_one():
    whole = pd.concat([each.assign(model=name) for name, each in FRAMES.items()])
    expected = mean_over_models(FRAMES)
    pd.testing.assert_frame_equal(mean_over_models(whole), expected)
    pd.testing.assert_frame_equal(mean_over_models(list(FRAMES.values())), expected)


def test_errors_are_read_from_their_column_or_from_the_bounds_of_the_value():
    errors = [frame(seed, error=0.2).drop(columns=["low", "high"]) for seed in range(3)]
    values = torch.tensor(np.stack([each["value"] for each in errors]))
    found = random_effects(values, torch.full_like(values, 0.2))
    np.testing.assert_allclose(mean_over_models(errors, rows="own")["low"], found.low)
    changes = [each.assign(gain=2.0, gain_low=1.0, gain_high=3.0) for each in FRAMES.values()]
    assert mean_over_models(changes, "gain")["mean"].tolist() == [2.0] * 4


def test_results_of_several_models_are_taken_as_they_are():
    """Sweeps and probes of two toys, of which `toy:stage1` has read captions alone."""
    models = {name: interp.load(name, device="cpu") for name in ("toy:stage1", "toy:tuned")}
    rows = interp.toy.pairs(4, seed=0, change="colour")
    metric = logit_difference([pair.answer for pair in rows], [pair.other for pair in rows])
    prompts, pictures = [pair.prompt for pair in rows], [pair.clean.image for pair in rows]
    sweeps = {
        name: layer_sweep(vlm, vlm.prepare(prompts, pictures), metric=metric, positions="image", progress=False)
        for name, vlm in models.items()
    }
    table = mean_over_models(sweeps)
    assert table["start"].tolist() == list(range(8))
    np.testing.assert_allclose(table["mean"], np.mean([each.values for each in sweeps.values()], axis=0), rtol=1e-5)
    draw = torch.randn(3, 60, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float32)
    probes = [probe_layers(draw + shift, ["a", "b"] * 30) for shift in (0, 1)]
    table = mean_over_models(probes, "accuracy")
    assert table["state"].tolist() == [0, 1, 2]
    assert {"chance", "control"} <= set(table)


def test_one_model_says_nothing_of_the_next():
    table = mean_over_models([frame()])
    assert table[["low", "high", "next_low", "next_high", "tau", "p"]].isna().all(axis=None)
    assert table["mean"].tolist() == frame()["value"].tolist()


def test_a_cell_without_bounds_has_none():
    unknown = [each.assign(low=math.nan, high=math.nan) for each in FRAMES.values()]
    assert mean_over_models(unknown)[["low", "high", "p"]].isna().all(axis=None)


@pytest.mark.parametrize(
    ("results", "options", "message"),
    [
        ([], {}, "results of no model"),
        (frame(), {}, "one frame without a column 'model'"),
        ("toy:tuned", {}, "results='toy:tuned': expected results or frames"),
        ([frame(), 3], {}, "'model 1' is a int: expected a result or a frame"),
        ([frame(), frame()], {"value": "depth"}, "'model 0' has no column 'depth'"),
        ([frame(), frame()], {"by": ["depth"]}, "'model 0' has no column 'depth'"),
        ([frame(), frame()], {"by": "kind"}, "several rows of one cell in .*'kind'"),
        ([frame(), frame()[:3]], {}, "'model 1' has other cells than 'model 0'"),
        ([frame(), frame().drop(columns="high")], {}, "'value' has no bounds: expected columns 'error'"),
        ([frame(), frame(low=9.0, high=10.0)], {}, "'value' is outside 'low' and 'high'"),
        ([frame(), frame()], {"value": "kind"}, "'kind' has no|column 'kind' holds"),
        ([frame(), frame()], {"rows": "others"}, "^rows='others'"),
    ],
)
def test_bad_input_is_one_line(results, options, message):
    with pytest.raises((InputError, InputTypeError), match=message) as caught:
        mean_over_models(results, **options)
    assert "\n" not in str(caught.value)
