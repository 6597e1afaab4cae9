"""Numbers of a comparison against answers whose truth is planted, and against plain means."""

from dataclasses import replace

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest
import torch

from interp.errors import InputError
from interp.results import Result
from interp.statistics import holm, paired_change
from interp.tuning.band_answers import BandAnswers
from interp.tuning.band_comparison import COUNTED, BandComparison, layers_in_words, median_bounds
from interp.tuning.bands import Band

SHARES = {"full": 0.9, "early": 0.55, "middle": 0.9}
TEXT = {"full": 0.95, "early": 0.95, "middle": 0.7}
SCENES, EACH = 200, 3


def answers(shares, before, seed=0, of_runs=0.0, scenes=SCENES):
    """Answers of bands with these shares right; the same questions are hard for all of them."""
    rng = np.random.default_rng(seed)
    n = scenes * EACH
    ease = rng.random((1, 1, n))
    runs = of_runs * rng.normal(size=(len(shares), 3, 1))
    chances = np.array([*shares.values()])[:, None, None] + runs
    right = torch.from_numpy(ease + 0.05 * rng.normal(size=(len(shares), 3, n)) < chances)
    questions = pd.DataFrame(
        {
            "id": [str(index) for index in range(n)],
            "kind": ["colour", "count", "place"] * scenes,
            "group": [str(index // EACH) for index in range(n)],
            "answer": ["red", "one", "top"] * (scenes // 2) + ["blue", "two", "top"] * (scenes - scenes // 2),
        }
    )
    return BandAnswers(tuple(shares), questions, right, torch.from_numpy(ease[0, 0] < before))


def compared(seed=0, text=True, **options):
    bands = {"full": [Band(range(8))] * 3, "early": [Band(range(4))] * 3, "middle": [Band([2, 3, 4, 5])] * 3}
    costs = [
        {
            "band": name,
            "seed": s,
            "unchanged": True,
            "cut_off": 0.0,
            **{each: 100.0 * len(band[0].layers) for each in COUNTED},
        }
        for name, band in bands.items()
        for s in range(3)
    ]
    seconds = torch.tensor([1.0, 0.6, 0.8], dtype=torch.float64)[:, None, None] * torch.rand(
        1, 7, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)
    ).add(0.5).expand(-1, -1, 3)
    return BandComparison(
        bands=bands,
        seeds=[0, 1, 2],
        test=answers(SHARES, 0.3, seed, **options),
        text=answers(TEXT, 0.95, seed + 1, scenes=100) if text else None,
        costs=pd.DataFrame(costs),
        loss=torch.ones(3, 3, 5),
        seconds=seconds,
    )


@pytest.fixture(scope="module")
def comparison():
    return compared()


def test_the_table_holds_what_was_planted(comparison):
    table = comparison.table().set_index("band")
    assert list(table.index) == ["full", "early", "middle", "untuned", "chance"]
    right = comparison.test.right.double()
    for place, name in enumerate(SHARES):
        row = table.loc[name]
        assert row["score"] == pytest.approx(float(right[place].mean()))
        assert row["of_full"] == pytest.approx(float(right[place].mean() / right[0].mean()))
        assert row["score_low"] < SHARES[name] < row["score_high"]
        assert row["of_full_low"] < SHARES[name] / SHARES["full"] < row["of_full_high"] or name == "full"
        assert row["text_kept"] == pytest.approx(row["text"] / table.loc["untuned", "text"])
        assert row["text_change"] == pytest.approx(row["text"] - table.loc["untuned", "text"])
    assert table.loc["full", ["of_full", "of_full_low", "of_full_high"]].tolist() == [1, 1, 1]
    assert table["verdict"].tolist() == ["", "inferior", "not inferior", "inferior", ""]
    assert table["text_verdict"].tolist() == ["not inferior", "not inferior", "inferior", "", ""]
    assert table.loc["early", "p_holm"] < 0.001 < 0.05 < table.loc["middle", "p_holm"]
    assert table.loc["middle", "text_p_holm"] < 0.001
    assert table.loc["chance", "score"] == pytest.approx((0.5 + 0.5 + 1) / 3)
    assert np.isnan(table.loc["untuned", "text_p_holm"])


def test_a_band_that_is_not_shown_to_be_as_good_is_undecided():
    """The same bands with few questions, and with seeds that differ: neither margin is excluded."""
    few, unsteady = compared(scenes=8), compared(of_runs=0.12)
    for each in (few, unsteady):
        table = each.table().set_index("band")
        assert table.loc["middle", "verdict"] == "undecided"
        assert table.loc["middle", "p_holm"] > 0.05
    assert compared().table(margin=0.5).set_index("band").loc["early", "verdict"] == "not inferior"


def test_verdicts_are_wrong_as_rarely_as_they_say():
    """A band at the margin itself is called not inferior in 2.5 % of comparisons, or in fewer."""
    called = 0
    for seed in range(200):
        given = answers({"full": 0.8, "band": 0.76}, 0.3, seed, of_runs=0.02, scenes=50)
        called += given.ratio("band", "full").low > 0.95
    assert called <= 12


def test_pairs_of_bands_are_tested_with_a_p_for_all(comparison):
    tests = comparison.tests()
    assert len(tests) == 6
    assert tests["p_holm"].tolist() == holm(tests["p"]).tolist()
    by = tests.set_index(["band", "other"])
    right = comparison.test.right.double().mean(dim=1)
    assert by.loc[("full", "early"), "difference"] == pytest.approx(float(right[0].mean() - right[1].mean()))
    assert by.loc[("full", "early"), "p_holm"] < 1e-3
    assert by.loc[("full", "middle"), "p_holm"] > 0.05
    text = comparison.tests(data="text").set_index(["band", "other"])
    kept = comparison.text.change("early", "middle")
    assert text.loc[("early", "middle"), ["difference", "low", "p"]].tolist() == [kept.value, kept.low, kept.p]
    assert text.loc[("early", "middle"), "p_holm"] < 0.001 < 0.05 < text.loc[("full", "early"), "p_holm"]
    with pytest.raises(InputError, match="data='loss' is unknown: use one of test, text"):
        comparison.tests(data="loss")
    # A paired test over questions alone finds the same difference, with an interval that leaves out other seeds.
    change = comparison.test.change("middle", "full")
    alone = paired_change(right[0], right[2], comparison.test.questions["group"])
    assert change.value == pytest.approx(float(alone.difference))
    assert change.low < float(alone.low) < float(alone.high) < change.high


def test_questions_of_a_group_stay_together(comparison):
    """Every interval is that of the groups, which is wider: their questions are made alike here."""
    test = comparison.test
    right, alike = test.right[..., ::EACH].repeat_interleave(EACH, dim=2), test.before[::EACH].repeat_interleave(EACH)
    given = replace(test, right=right, before=alike)
    apart = replace(given, questions=given.questions.assign(group=given.questions["id"]))
    for number in ("score", "ratio", "change"):
        names = ("early",) if number == "score" else ("early", "full")
        grouped, single = (getattr(each, number)(*names) for each in (given, apart))
        assert grouped.error_rows > 1.5 * single.error_rows


def test_p_of_a_table_count_all_its_bands(comparison):
    table = comparison.table().set_index("band")
    of_score = [comparison.test.change(name, "full").p for name in ("early", "middle", "untuned")]
    of_text = [comparison.text.change(name, "untuned").p for name in SHARES]
    assert table.loc[["early", "middle", "untuned"], "p_holm"].tolist() == holm(of_score).tolist()
    assert table.loc[[*SHARES], "text_p_holm"].tolist() == holm(of_text).tolist()


def test_kinds_are_scored_on_their_own(comparison):
    counts = comparison.table("count").set_index("band")
    keep = comparison.test.questions["kind"].to_numpy() == "count"
    assert counts.loc["early", "score"] == pytest.approx(float(comparison.test.right[1][:, keep].double().mean()))
    assert comparison.table(["colour", "count", "place"])["score"].tolist() == comparison.table()["score"].tolist()
    assert counts.loc["chance", "score"] == 0.5
    with pytest.raises(InputError, match=r"kinds=\['sum'\]: expected one or more of colour, count, place"):
        comparison.table("sum")
    with pytest.raises(InputError, match="margin=1"):
        comparison.table(margin=1)


def test_the_frame_has_every_number(comparison):
    frame = comparison.to_frame().set_index(["data", "kind", "band", "measure"])
    table = comparison.table().set_index("band")
    assert frame.loc[("test", "all", "middle", "of_full"), "low"] == table.loc["middle", "of_full_low"]
    assert frame.loc[("text", "all", "middle", "of_untuned"), "high"] == table.loc["middle", "text_kept_high"]
    assert frame.loc[("cost", "all", "early", "time"), "value"] == table.loc["early", "time"]
    assert set(frame.index.get_level_values("kind")) == {"all", "colour", "count", "place"}
    assert frame.index.is_unique
    assert frame.loc[("test", "all", "early", "score"), "error_runs"] > 0


def test_costs_are_shares_of_full(comparison):
    table = comparison.table().set_index("band")
    assert table["time"].tolist()[:3] == pytest.approx([1, 0.6, 0.8])
    assert table["flops"].tolist()[:3] == [1, 0.5, 0.5]
    assert table["gradient_bytes"].tolist()[:3] == [800, 400, 400]
    assert table.loc["middle", "time_low"] == pytest.approx(0.8)


def test_bounds_of_a_median_hold_it():
    rng = np.random.default_rng(0)
    for n in (6, 7, 15):
        bounds = [median_bounds(list(values)) for values in rng.exponential(size=(2000, n))]
        held = np.mean([low <= np.log(2) <= high for _, low, high in bounds])
        assert 0.945 <= held < 0.99
    assert np.isnan(median_bounds([1.0] * 5)[1:]).all()
    assert np.isnan(median_bounds([])).all()


def test_it_is_saved_loaded_and_drawn(comparison, tmp_path):
    again = BandComparison.load(comparison.save(tmp_path / "comparison"))
    assert again.to_frame().equals(comparison.to_frame())
    assert again.bands == comparison.bands
    assert isinstance(again, Result)
    figure = comparison.plot()
    assert isinstance(figure, go.Figure)
    assert len(figure.data) == 2
    assert list(figure.data[0].x) == ["full", "early", "middle"]
    assert figure.data[0].y[1] == pytest.approx(comparison.table()["of_full"][1])
    assert "time of a step 60% of full" in figure.data[0].customdata[1]
    levels = [shape.y0 for shape in figure.layout.shapes]
    assert comparison.table().set_index("band").loc["untuned", "of_full"] in levels
    one = compared(text=False)
    assert len(one.plot(kinds="count").data) == 1
    assert "text" not in one.table()


def test_a_name_from_outside_is_drawn_as_text():
    given = compared(text=False)
    names = {"full": "full", "early": "<b>early</b>", "middle": "middle"}
    shares = dict(zip(names.values(), SHARES.values(), strict=True))
    costs = given.costs.assign(band=given.costs["band"].map(names))
    bands = {names[name]: band for name, band in given.bands.items()}
    hostile = BandComparison(bands, [0, 1, 2], answers(shares, 0.3), None, costs, given.loss, given.seconds)
    assert hostile.plot().data[0].x[1] == "&lt;b&gt;early&lt;/b&gt;"


def test_layers_in_words():
    assert layers_in_words([Band(range(2, 6))] * 3) == "2-5"
    assert layers_in_words([Band([0, 2, 4])]) == "0 2 4"
    assert layers_in_words([Band((), connector=True)]) == "none"
    assert layers_in_words([Band([0, 1]), Band([1, 2])]) == "0-1; 1-2"


def test_what_does_not_fit_together_is_refused(comparison):
    fields = {
        name: getattr(comparison, name) for name in ("bands", "seeds", "test", "text", "costs", "loss", "seconds")
    }
    with pytest.raises(InputError, match="expected all of each"):
        BandComparison(**fields | {"seeds": [0, 1]})
    with pytest.raises(InputError, match="a band named 'full'"):
        BandComparison(**fields | {"bands": {"all": comparison.bands["full"], "early": [], "middle": []}})
    with pytest.raises(InputError, match="one at least"):
        BandAnswers(("full",), comparison.test.questions, comparison.test.right, comparison.test.before)
