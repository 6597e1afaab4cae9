"""The demo on the toy: the same numbers locally and remotely, and a report that shows and describes them."""

import dataclasses
import re

import numpy as np
import pytest
import torch

from interp.plots import lens_on_image
from interp.reports import demo as analyses
from interp.reports.demo import STAGE1, STEPS, TUNED, Size, distinct_scenes, grouped_accuracy, name_patches
from interp.reports.demo_page import demo_page, summarise_demo
from interp.reports.findings import findings, first_above, paragraph
from interp.toy import scenes
from reports.browser import CHROMIUM, visit

SMALL = Size(shown=2, evaluated=8, named=6, pairs=2, candidates=12, probed=200, scenes=60, neighbours=10)
TOPICS = ["answers", "logit lens", "patching", "probes", "alignment", "phase", "bypass", "dimension"]


@pytest.fixture(scope="module")
def demo(toy, stage1):
    steps = []
    results = analyses.analyse(stage1, toy, size=SMALL, seed=3, step=steps.append)
    assert tuple(steps) == STEPS
    return results


def test_every_number_is_the_same_through_a_remote_model(demo, remote_toy):
    import interp

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
        *(f"dimension/MODEL/{modality}" for modality in ("image", "caption")),
        *(f"retained/{modality}" for modality in ("image", "caption")),
    }
    assert all(np.isfinite(values).all() for values in demo.numbers().values())


def test_scenes_for_geometry_differ_in_more_than_the_order_of_words():
    chosen = distinct_scenes(400, seed=0)
    bags = [tuple(sorted(scene.caption.split())) for scene in chosen]
    assert len(set(bags)) == len(bags) > 350


def test_grouped_accuracy_is_the_share_of_all_questions(demo):
    grouped = grouped_accuracy(demo.accuracy)
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
    for finding in results:
        assert finding.text in text
        assert (finding.agrees is None) == (finding.claim == "")
    assert any(finding.claim in text for finding in results if finding.claim)
    for unlike in (finding for finding in results if finding.agrees is False):
        assert unlike.claim in text.partition("does not support")[2]


def _replaced(demo, values):
    """The demo with these alignment matrices, as if measured without error."""
    geometry = {}
    for model, value in values.items():
        matrix = dataclasses.replace(demo.geometry[model].alignment, values=value, low=value - 0.01, high=value + 0.01)
        geometry[model] = dataclasses.replace(demo.geometry[model], alignment=matrix)
    return dataclasses.replace(demo, geometry=geometry)


def _matrix(diagonal, entry):
    values = torch.full((9, 9), 0.2, dtype=torch.float64)
    values[range(9), range(9)] = torch.tensor(diagonal, dtype=torch.float64)
    values[0, entry] = 0.5
    return values


def test_the_paragraph_follows_the_numbers(demo):
    narrow = [0.2, 0.2, 0.3, 0.5, 0.3, 0.2, 0.2, 0.2, 0.2]
    wide = [0.2, 0.2, 0.7, 0.8, 0.7, 0.2, 0.2, 0.2, 0.2]
    like = _replaced(demo, {STAGE1: _matrix(narrow, 3), TUNED: _matrix(wide, 4)})
    unlike = _replaced(demo, {STAGE1: _matrix(wide, 3), TUNED: _matrix(narrow, 0)})
    verdicts = {topic: [] for topic in ("alignment", "phase", "bypass")}
    for one in (like, unlike):
        for finding in findings(one):
            if finding.topic in verdicts:
                verdicts[finding.topic].append(finding.agrees)
    assert verdicts == {topic: [True, False] for topic in verdicts}
    texts = {finding.topic: finding.text for finding in findings(like)}
    assert "state 3 in toy:stage1 and states 2 to 4 in toy:tuned: wider" in texts["phase"]
    assert "higher after tuning" in texts["alignment"]
    assert "textual state 4 of 8" in texts["bypass"]


def test_a_state_counts_as_gained_only_beyond_the_error(demo):
    """One more state in the phase, but within the intervals: no wider."""
    one = torch.full((9, 9), 0.2, dtype=torch.float64).fill_diagonal_(0.45)
    more = one.clone()
    one[8, 8] = 0.39  # chance is 10/59, so that the phase ends at 0.394
    doubted = next(f for f in findings(_replaced(demo, {STAGE1: one, TUNED: more})) if f.topic == "phase")
    assert "states 0 to 7 in toy:stage1 and states 0 to 8 in toy:tuned: no wider after tuning within" in doubted.text
    assert doubted.agrees is False
    one[8, 8] = 0.2
    sure = next(f for f in findings(_replaced(demo, {STAGE1: one, TUNED: more})) if f.topic == "phase")
    assert sure.agrees is True


def test_a_bypass_takes_the_interval_and_the_permutations(demo):
    def judge(**parts):
        other = _replaced(demo, dict.fromkeys((STAGE1, TUNED), _matrix([0.2] * 9, 4)))
        matrix = dataclasses.replace(other.geometry[TUNED].alignment, **parts)
        geometry = {**other.geometry, TUNED: dataclasses.replace(other.geometry[TUNED], alignment=matrix)}
        return next(f for f in findings(dataclasses.replace(other, geometry=geometry)) if f.topic == "bypass")

    wide = torch.zeros(20, 9, 9, dtype=torch.float64)
    wide[::2, 0, 4] = 1.0
    holds = judge()
    assert holds.agrees is True
    assert "is 0.30 (95 % interval" in holds.text
    assert judge(flips=torch.ones(99, 9, 9, dtype=torch.float64)).agrees is False
    assert judge(parts=wide).agrees is False


def test_tuning_is_not_credited_for_what_the_connector_brings(demo):
    def judge(before, after):
        accuracy = demo.accuracy.copy()
        rows = (accuracy["modality"] == "image") & (accuracy["group"] == "abstraction")
        accuracy["n"] = 200
        accuracy.loc[rows & (accuracy["model"] == STAGE1), "accuracy"] = before
        accuracy.loc[rows & (accuracy["model"] == TUNED), "accuracy"] = after
        return next(f for f in findings(dataclasses.replace(demo, accuracy=accuracy)) if f.topic == "answers")

    cases = {
        (0.6, 0.9): (True, "is above the ", "and above the interval of toy:stage1"),
        (0.88, 0.9): (False, "is above the ", "and not above the interval of toy:stage1"),
        (0.0, 0.01): (False, "is not above the ", "and above the interval of toy:stage1"),
    }
    for shares, (agrees, chance, gain) in cases.items():
        finding = judge(*shares)
        assert finding.agrees is agrees
        assert chance in finding.text
        assert gain in finding.text


def _patched(demo, image, last, answered=5):
    groups = {
        name: dataclasses.replace(demo.patching.groups[name], values=torch.tensor(effect))
        for name, effect in (("image", image), ("last", last))
    }
    patching = dataclasses.replace(demo.patching, groups={**demo.patching.groups, **groups}, answered=answered)
    return next(item for item in findings(dataclasses.replace(demo, patching=patching)) if item.topic == "patching")


def test_the_layer_that_hands_the_answer_over_is_read_off_the_groups(demo):
    middle = _patched(demo, [1, 0.9, 0.8, 0.6, 0.2, 0, 0, 0], [0, 0, 0, 0.1, 0.2, 0.7, 1, 1])
    assert "up to layer 3 of 7, the clean last token from layer 5 on" in middle.text
    assert middle.agrees is True
    early = _patched(demo, [1, 0.1, 0, 0, 0, 0, 0, 0], [0, 0.9, 1, 1, 1, 1, 1, 1])
    assert early.agrees is False
    nowhere = _patched(demo, [0.1] * 8, [0.1] * 8)
    assert "never restores half" in nowhere.text
    assert nowhere.agrees is False
    unable = _patched(demo, [1.0] * 8, [1.0] * 8, answered=0)
    assert "no answer to restore" in unable.text
    assert unable.agrees is None


def test_a_probe_leaves_chance_where_its_interval_does(demo):
    probe = demo.probes[TUNED]["digit", "image"]
    flat = torch.zeros_like(probe.low)
    low = flat.clone()
    low[4:] = 0.9
    assert first_above(dataclasses.replace(probe, low=low)) == 4
    assert first_above(dataclasses.replace(probe, low=flat)) is None
    assert first_above(dataclasses.replace(probe, low=low, control=torch.ones_like(low))) is None


def test_the_summary_is_a_table_of_both_models(demo):
    rows = summarise_demo(demo)
    assert len(rows) == 9
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
