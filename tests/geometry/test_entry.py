"""Where visual features enter: verdicts on clouds that merely share content, and on a planted entry."""

import dataclasses
import math

import numpy as np
import pandas as pd
import pytest
import torch

from interp.errors import InputError
from interp.geometry import alignment_matrix, entry_controls
from interp.geometry.bypass import BypassResult
from interp.geometry.entry import DILUTIONS, entry_verdict

LAYERS, WIDTH = 7, 32
SETTINGS = {"k": 20, "subsamples": 30, "permutations": 0}


def turned(cloud, rng, noise):
    """A cloud in a turned space of WIDTH features, with noise."""
    turn = np.linalg.qr(rng.normal(size=(WIDTH, WIDTH)))[0][: cloud.shape[1]] * math.sqrt(WIDTH / cloud.shape[1])
    return torch.tensor(cloud @ turn + noise * rng.normal(size=(len(cloud), WIDTH)))


def sharing(seed, n=300, first=1.5, entry=0.5, placebo=(1.0,), other=False):
    """State 0, text and placebos that all carry one content; textual layer 0 with more noise, or half of other content."""
    rng = np.random.default_rng(seed)
    content = rng.normal(size=(n, 6))
    of_first = np.concatenate([content[:, :3], rng.normal(size=(n, 3))], axis=1) if other else content
    text = [turned(of_first, rng, 0.5 if other else first), *(turned(content, rng, 0.5) for _ in range(LAYERS - 1))]
    return turned(content, rng, entry), torch.stack(text), [turned(content, rng, each) for each in placebo]


def entering(seed, n=300, own=0.6, layer=3):
    """State 0 has the own code of one textual layer; the placebo has only what all layers share."""
    rng = np.random.default_rng(seed)
    content, codes = rng.normal(size=(n, 6)), rng.normal(size=(LAYERS, n, 6))
    text = torch.stack([turned(content, rng, 0.3) + own * turned(code, rng, 0) for code in codes])
    return text[layer] + 0.5 * torch.tensor(rng.normal(size=(n, WIDTH))), text, [turned(content, rng, 0.7)]


def bypass(entry, text, placebos, **more):
    matrix = alignment_matrix(entry[None], text, **SETTINGS)
    return matrix.bypass(placebo=alignment_matrix(entry_controls(entry, *placebos), text, **SETTINGS), **more)


@pytest.mark.parametrize(
    "design",
    [{}, {"placebo": (0.5,)}, {"entry": 1.0, "placebo": (0.5,)}, {"other": True}, {"entry": 0.3, "placebo": (2.0,)}],
)
def test_what_all_clouds_share_is_no_entry(design):
    """The gain is beyond doubt in all draws, and the verdict never supports an entry."""
    results = [bypass(*sharing(seed, **design)) for seed in range(5)]
    assert all(result.p[0] < 0.01 and result.gain_low[0] > 0 for result in results)
    values = [result.verdict.value for result in results]
    assert "supported" not in values
    assert values.count("contradicted") >= (0 if design.get("placebo") == (2.0,) else 3)
    assert min(result.entry_p for result in results) > 0.05


def test_a_planted_entry_is_found():
    results = [bypass(*entering(seed)) for seed in range(5)]
    assert [result.verdict.value for result in results] == ["supported"] * 5
    assert 0.05 < np.mean([result.verdict.estimate for result in results]) < 0.2
    assert max(result.entry_p for result in results) < 0.05


def test_an_entry_at_the_first_layer_is_contradicted_without_any_control():
    entry, text, _ = entering(0, layer=0)
    assert alignment_matrix(entry[None], text, **SETTINGS).bypass().verdict.value == "contradicted"


def test_without_a_placebo_nothing_is_supported():
    entry, text, _ = entering(0)
    result = alignment_matrix(entry[None], text, **SETTINGS).bypass()
    assert result.p[0] < 0.01
    assert result.verdict.value == "undecided"
    assert (result.verdict.low, result.verdict.detectable) == (-math.inf, math.inf)
    assert math.isnan(result.entry_p)


def test_a_placebo_that_says_nothing_of_the_first_layer_decides_nothing():
    """Where nothing is like textual layer 0, no contrast could show an effect of interest."""
    results = [bypass(*sharing(seed, first=12.0)) for seed in range(4)]
    assert {result.verdict.value for result in results} == {"undecided"}
    assert all(result.p[0] < 0.01 for result in results)


def test_each_placebo_has_to_be_exceeded():
    entry, text, placebos = entering(0)
    rng = np.random.default_rng(9)
    same = entry + 0.3 * torch.tensor(rng.normal(size=entry.shape))  # a "placebo" that enters there just as well
    assert bypass(entry, text, placebos).verdict.value == "supported"
    both = bypass(entry, text, [torch.stack([*placebos, same])])
    assert both.verdict.value == "contradicted"
    assert sorted(set(both.contrasts["control"])) == ["none", "placebo 0", "placebo 1"]


def test_a_ceiling_credits_the_first_layer_for_what_nothing_could_reach():
    """Textual layer 0 is noisy: other captions of the same meaning are little like it, so state 0 need not be."""
    entry, text, _ = sharing(0)
    rng = np.random.default_rng(1)
    again = torch.stack([text[0] + 0.1 * torch.tensor(rng.normal(size=text[0].shape)), *text[1:].flip(0)])
    noisy = sharing(0, first=1.5)[2][0][None]  # no more like layer 0 than state 0 is
    matrix = alignment_matrix(entry[None], text, **SETTINGS)

    def contrast(second):
        frame = matrix.bypass(ceiling=alignment_matrix(second, text, **SETTINGS)).contrasts
        return frame[frame["control"] == "ceiling"]["estimate"].max()

    gain = float(matrix.bypass().gain[0])
    assert contrast(again) > 0.7 * gain  # something is like layer 0, state 0 is not
    assert contrast(noisy) < 0.3 * gain
    values = matrix.values[0] - matrix.chance
    most = alignment_matrix(noisy, text, **SETTINGS).values[0] - matrix.chance
    expected = values[2] - values[0] * most[2] / most[0]
    frame = matrix.bypass(ceiling=alignment_matrix(noisy, text, **SETTINGS)).contrasts
    row = frame[(frame["control"] == "ceiling") & (frame["textual"] == 2)].iloc[0]
    assert row["estimate"] == pytest.approx(float(expected))


def test_lengths_of_rows_alone_are_no_entry():
    """Textual layer 0 has the content in its directions, under lengths of rows that say nothing."""
    rng = np.random.default_rng(0)
    entry, text, _ = sharing(0, first=0.5)
    text[0] *= torch.tensor(np.exp(rng.normal(size=(300, 1))))
    matrix = alignment_matrix(entry[None], text, **SETTINGS)
    unit = [each / each.norm(dim=-1, keepdim=True) for each in (entry[None], text)]
    result = matrix.bypass(matched=alignment_matrix(*unit, **SETTINGS))
    frame = result.contrasts.groupby("control")["estimate"].max()
    assert frame["none"] > 0.1 > 0.05 > frame["matched"]
    assert result.verdict.high < 0.1 < result.gain_low[0]


def test_controls_are_mixtures_that_keep_centre_and_spread():
    entry, _, (placebo,) = sharing(0)
    rows = entry_controls(entry + 5, placebo[:, :8], seed=1)
    assert rows.shape == (2 * len(DILUTIONS), 300, WIDTH)
    assert torch.equal(rows[0], entry + 5)
    assert torch.equal(rows[len(DILUTIONS), :, :8], placebo[:, :8])
    assert not rows[len(DILUTIONS) :, :, 8:].any()
    for row in rows[: len(DILUTIONS)]:
        torch.testing.assert_close(row.mean(dim=0), entry.mean(dim=0) + 5)
        assert float(row.var()) == pytest.approx(float(entry.var()), rel=0.05)


def test_the_rule_takes_the_weakest_contrast_at_the_strongest_layer():
    def judged(*rows):
        return entry_verdict(
            pd.DataFrame(rows, columns=["control", "textual", "estimate", "low", "high", "p", "reach"]), 0.1
        )

    far = math.inf
    sure = [("none", 1, 0.4, 0.3, 0.5, 0.001, far), ("none", 2, 0.4, 0.3, 0.5, 0.002, far)]
    placebo = [("placebo", 1, 0.0, -0.1, 0.1, 1.0, far), ("placebo", 2, 0.2, 0.1, 0.3, 0.01, far)]
    found, p = judged(*sure, *placebo)
    assert (found.value, found.estimate, found.low, found.high, p) == ("supported", 0.2, 0.1, 0.3, 0.01)
    assert (
        judged(*sure, placebo[0], ("placebo", 2, -0.02, -0.1, 0.05, 1, far))[0].value == "undecided"
    )  # high 0.1 at layer 1
    assert judged(*sure, *(("placebo", at, 0, -0.05, 0.05, 1, far) for at in (1, 2)))[0].value == "contradicted"
    unable = judged(*sure, *(("placebo", at, 0, -0.05, 0.05, 1, 0.04) for at in (1, 2)))[0]
    assert unable.value == "undecided"
    assert judged(*sure)[0].value == "undecided"
    assert judged()[0].value == "undecided"


def test_a_state_that_is_like_no_textual_layer_contradicts_no_entry():
    """Its gain is small because nothing is shared: an entry could not have been seen."""
    _, text, _ = sharing(0, n=120)
    entry, placebo = torch.randn(2, 120, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    result = bypass(entry, text, placebo[None], smallest=0.07)
    alone = result.contrasts.query("control == 'none'")
    assert (alone["high"] < 0.07).all()
    assert (alone["reach"] < 0.07).all()
    assert result.verdict.value == "undecided"


def test_refusals():
    entry, text, placebos = sharing(0, n=60)
    matrix = alignment_matrix(entry[None], text, k=5)
    rows = entry_controls(entry, *placebos)
    for call, message in [
        (lambda: entry_controls(entry), "no placebo: pass vision"),
        (lambda: entry_controls(entry, placebos[0][:50]), "entry has 60 examples and placebo 0 50"),
        (lambda: matrix.bypass(placebo=matrix), "placebo has 1 rows: expected alignment_matrix"),
        (lambda: matrix.bypass(placebo=alignment_matrix(rows, text, k=6)), "placebo has k 6, this matrix 5"),
        (lambda: matrix.bypass(placebo=alignment_matrix(rows, text, k=5, seed=1)), "placebo has seed 1, this matrix 0"),
        (lambda: matrix.bypass(placebo=alignment_matrix(rows, text[:3], k=5)), "textual states 3"),
        (lambda: matrix.bypass(placebo=alignment_matrix(rows.flip(0), text, k=5)), "row 0 of placebo differs"),
        (lambda: matrix.bypass(smallest=0), "smallest=0"),
    ]:
        with pytest.raises(InputError, match=message):
            call()


def test_few_halves_widen_the_bounds():
    """Of three halves Student's t has two degrees of freedom: 9.9 for five layers at once, where the normal has 2.6."""
    entry, text, _ = sharing(0, n=60)
    matrix = alignment_matrix(entry[None], text, k=5, subsamples=3, permutations=0)
    row = matrix.bypass().contrasts.iloc[0]
    gains = matrix.parts[:, 0, int(row["textual"])] - matrix.parts[:, 0, 0]
    assert row["high"] - row["estimate"] == pytest.approx(9.92484 * float(gains.std()), rel=1e-4)


def test_kept_and_read_again(tmp_path):
    result = bypass(*sharing(0, n=60))
    again = BypassResult.load(result.save(tmp_path / "bypass"))
    assert again.verdict == result.verdict
    assert again.contrasts.equals(result.contrasts)
    older = dataclasses.replace(result, contrasts=None)  # as files were before
    assert older.verdict.value == "undecided"


def test_without_half_samples_nothing_is_decided():
    entry, text, placebos = sharing(0, n=60)
    plain = {"k": 5, "subsamples": 0, "permutations": 0}
    rows = alignment_matrix(entry_controls(entry, *placebos), text, **plain)
    assert alignment_matrix(entry[None], text, **plain).bypass(placebo=rows).verdict.value == "undecided"
