"""The demo on the toy: the same numbers locally and remotely, and a report that shows and describes them."""

import dataclasses
import itertools
import math
import re

import numpy as np
import pandas as pd
import pytest
import torch

import interp
from interp.geometry.entry import DILUTIONS
from interp.plots import lens_on_image
from interp.reports import demo as analyses
from interp.reports.demo import STAGE1, STEPS, TUNED, Size, distinct_scenes, grouped_accuracy, name_patches
from interp.reports.demo_page import demo_page, summarise_demo
from interp.reports.findings import Finding, corrected, decision, findings, first_above, paragraph
from interp.reports.hand_over import crossing_depths, hand_over
from interp.statistics import Verdict, verdict
from interp.toy import scenes
from reports.browser import CHROMIUM, visit

SMALL = Size(shown=2, evaluated=8, named=6, pairs=5, candidates=24, probed=200, scenes=60, neighbours=10)
TOPICS = ["answers", "logit lens", "patching", "probes", "alignment", "phase", "bypass", "dimension"]


@pytest.fixture(scope="module")
def demo(toy, stage1):
    steps = []
    results = analyses.analyse(stage1, toy, size=SMALL, seed=3, step=steps.append)
    assert tuple(steps) == STEPS
    return results


def test_every_number_is_the_same_through_a_remote_model(demo, remote_toy):
    remote_stage1 = interp.load("toy:stage1", device="cpu", remote="local")
    local, remote = demo.numbers(), analyses.analyse(remote_stage1, remote_toy, size=SMALL, seed=3).numbers()
    assert list(local) == list(remote)
    for name, values in local.items():
        np.testing.assert_allclose(remote[name], values, rtol=0, atol=1e-5, err_msg=name)


def test_every_analysis_is_among_the_numbers(demo):
    names = {re.sub(r"toy:\w+", "MODEL", name) for name in demo.numbers()}
    assert names == {
        "accuracy",
        "lens/entropy",
        "lens/top_probs",
        "naming/MODEL",
        "patching/values",
        "patching/effect",
        *(f"patching/{group}" for group in ("image", "question", "last")),
        *(f"probes/MODEL/{what} from {modality}" for what in ("digit", "colour") for modality in ("image", "caption")),
        "alignment/MODEL",
        "bypass/MODEL",
        "entry/MODEL",
        "patching/hand-over",
        *(f"dimension/MODEL/{modality}" for modality in ("image", "caption")),
        *(f"retained/{modality}" for modality in ("image", "caption")),
    }
    assert all(np.isfinite(values).all() for values in demo.numbers().values())


def test_scenes_for_geometry_differ_in_more_than_the_order_of_words():
    chosen = distinct_scenes(400, seed=0)
    bags = [tuple(sorted(scene.caption.split())) for scene in chosen]
    assert len(set(bags)) == len(bags) > 350


def test_grouped_accuracy_is_the_share_of_all_questions(demo):
    grouped = grouped_accuracy(demo.responses)
    assert len(grouped) == 8
    row = grouped.iloc[0]
    part = demo.accuracy.query("model == @row.model and modality == @row.modality and group == @row.group")
    assert row.n == part["n"].sum()
    assert row.accuracy == pytest.approx((part["accuracy"] * part["n"]).sum() / part["n"].sum())
    assert (grouped["low"] <= grouped["accuracy"]).all()
    assert (grouped["accuracy"] <= grouped["high"]).all()


def test_naming_counts_the_words_of_the_right_object(toy, monkeypatch):
    data = scenes(3, seed=5)

    class Oracle:
        """A lens that reads the colour off every patch of an object at state 1, and nothing at state 0."""

        rows = torch.arange(3).repeat_interleave(36)
        top_ids = torch.zeros(2, 108, 1, dtype=torch.long)

        def words(self, state, position):
            scene, owner = data[position // 36], data[position // 36].patch_labels.flatten()[position % 36]
            return [scene.objects[owner].colour if state and owner >= 0 else "?"]

    monkeypatch.setattr(analyses, "logit_lens", lambda *_, **__: Oracle())
    naming = name_patches(toy, data)
    assert naming.values.tolist() == [0.0, 1.0]
    assert naming.control[0] == 0
    assert naming.low[1] < 1 == naming.high[1]
    objects = sum(len(scene.objects) for scene in data)
    assert naming.low[1] == pytest.approx(objects / (objects + 1.96**2), abs=1e-4)  # Wilson: an object counts once


def test_every_patch_of_an_object_is_counted(demo):
    assert demo.patches == 4 * sum(len(scene.objects) for scene in scenes(SMALL.named, seed=3 + 2))


def test_patching_all_image_tokens_at_the_entry_restores_everything(demo):
    assert demo.patching.groups["image"].values[0].item() == pytest.approx(1, abs=1e-4)
    assert demo.patching.groups["last"].values[0].item() == pytest.approx(0, abs=1e-4)


def test_a_position_is_named_by_its_patch(demo):
    labels = demo.patching.labels
    assert labels[1] == "patch 0,0" or labels[1] == "patch 0,0 ●"
    assert sum(name.endswith("●") for name in labels) == 4
    assert labels[-1] == "?"


def test_the_paragraph_has_every_finding_and_judges_every_claim(demo):
    results = findings(demo)
    assert [finding.topic for finding in results] == TOPICS
    text = paragraph(results)
    ends = {"supported": "support the", "contradicted": "contradict the", "undecided": "leave undecided"}
    for finding in results:
        assert finding.text in text
        assert (finding.value == "") == (finding.claim == "")
        if finding.claim:
            assert finding.claim in text.partition(ends[finding.value])[2]


def test_images_and_captions_are_compared_by_means_of_equally_many_tokens(toy):
    data = distinct_scenes(12, seed=0)
    states = analyses.capture_states(toy, data, f"mean:{analyses.POOLED}", 0)
    every = interp.capture(toy, data, positions="image", reduce="none", progress=False)
    first = every["resid"][8][every.rows == 0]
    means = first[torch.tensor(list(itertools.combinations(range(36), 4)))].mean(dim=1)
    assert (means - states["image"][8, 0]).abs().amax(dim=1).min() < 1e-4


def test_a_verdict_without_bounds_says_that_nothing_could_have_been_seen():
    unable = Verdict("undecided", 0.01, -math.inf, math.inf, 0.05, math.inf)
    assert str(unable).endswith("none of any size could have been seen")


def test_the_table_of_claims_has_each_effect_with_its_interval_and_the_smallest_of_interest(demo):
    results = findings(demo)
    table = demo_page(demo).sections[0].blocks[1]
    assert table.columns == ["claim", "here", "effect (95 % interval)", "smallest of interest", "p, corrected"]
    cells = {row[0]: row[1:] for row in table.rows}
    for finding in results:
        if finding.claim:
            _, effect, smallest, _ = cells[finding.claim]
            assert effect.startswith(f"{finding.verdict.estimate:.2g} (")
            assert smallest.startswith(f"{finding.verdict.smallest:.2g}") or finding.topic == "patching"
    assert "Holm" in table.caption


def test_what_was_not_shown_is_never_said_not_to_be(demo):
    text = paragraph(findings(demo)) + str(summarise_demo(demo))
    assert not re.search(r"does not|never (?!trained)|absent|no wider|not different", text)


def _geometry(demo, matrices, placebo=None):
    """The demo with these alignment matrices."""
    geometry = {
        model: dataclasses.replace(
            demo.geometry[model], alignment=matrix, placebo=placebo or demo.geometry[model].placebo
        )
        for model, matrix in matrices.items()
    }
    return dataclasses.replace(demo, geometry=geometry)


def _measured(matrix, values, spread=0.004):
    """This matrix with other values, and half-samples that differ from them by a little."""
    noise = torch.randn(50, *values.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    bounds = {"low": values - 2 * spread, "high": values + 2 * spread}
    null = None if matrix.null is None else torch.full_like(matrix.null, matrix.chance)
    return dataclasses.replace(matrix, values=values, parts=values + spread * noise, subsamples=50, null=null, **bounds)


def _diagonal(*numbers):
    return torch.full((9, 9), 0.2, dtype=torch.float64).diagonal_scatter(torch.tensor(numbers, dtype=torch.float64))


def _judged(demo, topic, before, after, spread=0.004):
    matrix = demo.geometry[TUNED].alignment
    other = _geometry(
        demo, {STAGE1: _measured(matrix, before), TUNED: _measured(matrix, after, spread)}, _placebo(demo, after)
    )
    return next(finding for finding in findings(other) if finding.topic == topic)


def _placebo(demo, values):
    """A matrix of controls in which state 0 is as in `values`, and so is the placebo."""
    steps = torch.linspace(1, 0, len(DILUTIONS), dtype=torch.float64)[:, None]
    matrix = demo.geometry[TUNED].alignment
    rows = matrix.chance + (values[:1] - matrix.chance) * steps
    return _measured(demo.geometry[TUNED].placebo, torch.cat([rows] * 3))


NARROW = _diagonal(0.2, 0.2, 0.3, 0.5, 0.3, 0.2, 0.2, 0.2, 0.2)
WIDE = _diagonal(0.2, 0.2, 0.7, 0.8, 0.7, 0.2, 0.2, 0.2, 0.2)


def test_the_phase_is_compared_at_one_threshold_and_paired(demo):
    wider = _judged(demo, "phase", NARROW, WIDE)
    assert wider.value == "supported"
    assert "state 3 in toy:stage1 and states 2 to 4 in toy:tuned" in wider.text
    assert _judged(demo, "alignment", NARROW, WIDE).value == "supported"
    assert _judged(demo, "phase", WIDE, NARROW).value == "contradicted"
    assert _judged(demo, "alignment", WIDE, NARROW).value == "contradicted"
    low = _diagonal(0.36, 0.4, 0.43, 0.44, 0.43, 0.4, 0.36, 0.2, 0.2)  # at its own threshold, 7 states
    assert _judged(demo, "phase", WIDE, low).value == "contradicted"
    doubted = _judged(demo, "phase", NARROW, WIDE, spread=1.0)
    assert doubted.value == "undecided"
    assert re.search(r"an effect under [\d.]+ layers could not have been seen", decision(doubted, " layers"))


def test_a_bypass_has_to_go_beyond_the_tower(demo):
    """State 0 is most like textual state 4, and so are states of the image tower."""
    values = _diagonal(*[0.3] * 9)
    values[0, 4] = 0.6
    shared = _judged(demo, "bypass", NARROW, values)
    assert "most similar to textual state 4 of 8" in shared.text
    assert shared.value == "contradicted"
    matrix = demo.geometry[TUNED].alignment
    own = _measured(matrix, values)
    placebo = _placebo(demo, values)
    flat = placebo.values.clone()
    flat[len(DILUTIONS) :] = flat[len(DILUTIONS) :, :1]  # the tower prefers no textual state
    enters = _geometry(demo, {STAGE1: own, TUNED: own}, _measured(placebo, flat))
    assert enters.geometry[TUNED].bypass.verdict.value == "supported"


def test_holm_takes_back_what_holds_only_by_the_number_of_claims():
    claims = [Finding(str(number), "", "so", verdict(0.2, 0.01, 0.4, 0.1), 0.03) for number in range(3)]
    (alone,) = corrected(claims[:1])
    assert (alone.value, alone.p_holm) == ("supported", 0.03)
    judged = corrected(claims)
    assert [finding.value for finding in judged] == ["undecided"] * 3
    assert decision(judged[0]) == "undecided: p is 0.09 after correction for the number of claims"


def test_tuning_is_not_credited_for_what_the_connector_brings(demo):
    """The answers of both models to the same questions, paired: `same` of them as before, others right after tuning alone."""

    def judge(before, after, n=60):
        frame = pd.concat(
            [demo.responses[TUNED].assign(scene=lambda part, at=at: part["scene"] + 100 * at) for at in range(n // 8)]
        )
        rng, draws = np.random.default_rng(0), {}
        asked = (frame["modality"] == "image") & (frame["group"] == "abstraction")
        luck = rng.permutation(asked.sum()) / asked.sum()
        for model, share in ((STAGE1, before), (TUNED, after)):
            draws[model] = frame.assign(model=model)
            draws[model].loc[asked, "right"] = luck < share
        return next(f for f in findings(dataclasses.replace(demo, responses=draws)) if f.topic == "answers")

    assert judge(0.6, 0.9).value == "supported"
    assert judge(0.9, 0.9).value == "contradicted"
    assert judge(0.9, 0.6).value == "contradicted"
    assert judge(0.0, 0.2).value == "contradicted"  # more than before, but below the most common answer
    assert "paired by question" in judge(0.6, 0.9).text


def _patched(demo, depths, answered=5):
    """The demo with rows that hand the answer over at these depths."""
    layers = torch.arange(8.0)
    image = torch.stack([(8 * depth + 0.5 - layers).clamp(0, 1) for depth in depths])
    over = hand_over(image, 1 - image)
    groups = {
        name: dataclasses.replace(demo.patching.groups[name], values=values)
        for name, values in (("image", image.mean(dim=0)), ("last", (1 - image).mean(dim=0)))
    }
    patching = dataclasses.replace(
        demo.patching, groups={**demo.patching.groups, **groups}, answered=answered, hand_over=over
    )
    return next(item for item in findings(dataclasses.replace(demo, patching=patching)) if item.topic == "patching")


def test_the_hand_over_is_judged_by_its_interval(demo):
    rng = np.random.default_rng(0)
    spread = rng.uniform(-0.1, 0.1, size=10)
    middle = _patched(demo, 0.5 + spread)
    assert middle.value == "supported"
    assert "meets with 33%: supported" in middle.text
    assert _patched(demo, 0.15 + spread).value == "contradicted"
    assert _patched(demo, 0.85 + spread).value == "contradicted"
    assert _patched(demo, 1 / 3 + spread).value == "undecided"
    assert _patched(demo, [0.5]).value == "undecided"
    unable = _patched(demo, 0.5 + spread, answered=0)
    assert "no answer to restore" in unable.text
    assert unable.value == ""


def test_a_hand_over_at_a_random_depth_rarely_looks_intermediate(demo):
    """55 of 100 did where any layer but the first and the last ones was intermediate."""
    rng = np.random.default_rng(1)
    values = []
    for depth in rng.uniform(0.05, 0.95, size=200):
        ends = (8 * (depth + rng.normal(scale=0.1, size=10)).clip(0.02, 0.98) + 0.5)[:, None]
        image = torch.tensor((ends - np.arange(8)).clip(0, 1))
        values.append(hand_over(image, 1 - image).verdict.value)
    assert 0.15 < values.count("supported") / 200 < 0.35
    assert values.count("contradicted") > 80


def test_the_depth_is_where_the_curves_cross():
    depths = torch.tensor([0.0625, 0.25, 0.5, 0.9])
    image = (8 * depths[:, None] + 0.5 - torch.arange(8)).clamp(0, 1)
    torch.testing.assert_close(crossing_depths(image, 1 - image), depths.double(), atol=0.02, rtol=0)
    assert crossing_depths(torch.zeros(1, 8), torch.ones(1, 8)).tolist() == [0.0]


def test_a_probe_leaves_chance_where_its_interval_does(demo):
    probe = dataclasses.replace(demo.probes[TUNED]["digit", "image"], p_family=None)
    flat = torch.zeros_like(probe.low)
    low = flat.clone()
    low[4:] = 0.9
    assert first_above(dataclasses.replace(probe, low=low)) == 4
    assert first_above(dataclasses.replace(probe, low=flat)) is None
    assert first_above(dataclasses.replace(probe, low=low, control=torch.ones_like(low))) is None
    unsure = torch.full_like(low, 0.06)
    unsure[6] = 0.04
    assert first_above(dataclasses.replace(probe, low=low, p_family=unsure)) == 6


def test_the_summary_is_a_table_of_both_models(demo):
    rows = summarise_demo(demo)
    assert len(rows) == 10
    assert all(len(row) == 3 and all(isinstance(cell, str) for cell in row) for row in rows)


def test_the_report_shows_every_section_in_a_browser(demo, tmp_path):
    page = demo_page(demo)
    assert [section.title for section in page.sections] == [
        "Findings",
        "Questions and answers",
        "Logit lens on the image patches",
        "Activation patching: where the answer is",
        "Linear probes",
        "Geometry of images and captions",
    ]
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine")
    target = page.write(tmp_path / "demo.html")
    slide = """(() => {
        const plot = [...document.querySelectorAll('.js-plotly-plot')].find(p => p.layout.sliders);
        const step = plot.layout.sliders[0].steps[0];
        return Plotly.update(plot, ...step.args).then(() =>
            [...plot.querySelectorAll('.heatmaplayer text, .hm text')].map(t => t.textContent));
    })()"""
    visited = visit(
        target,
        "[...document.querySelectorAll('.js-plotly-plot')].filter(p => p.querySelector('.main-svg')).length",
        "document.querySelectorAll('.js-plotly-plot').length",
        "document.body.innerText.includes('<image>') || document.querySelectorAll('h2').length",
        slide,
    )
    assert visited.complaints == []
    assert visited.outside(target) == []
    assert visited.values[0] == visited.values[1] == 12
    words = [demo.lens.words(0, patch)[0] for patch in range(36)]
    assert [text for text in visited.values[3] if text] == words


def test_the_words_on_the_picture_are_the_lens(demo):
    figure = lens_on_image(demo.lens, demo.scenes[demo.lens_scene].image, demo.lens_grid)
    np.testing.assert_array_equal(np.array(figure.data[8].z).flatten(), demo.lens.top_probs[8, :, 0].numpy())
