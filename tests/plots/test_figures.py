"""Figures show the numbers of a result and what they are compared with; tokens are shown, not interpreted as HTML."""

import math
import subprocess
import sys

import numpy as np
import plotly.graph_objects as go
import pytest
import torch
from PIL import Image

from interp import plots
from interp.errors import InputError, InputTypeError
from interp.lens import logit_lens
from interp.patching import logit_difference, patch_sweep
from interp.plots.series import Series
from interp.plots.theme import EFFECT_SCALE, label
from interp.probes import probe_layers
from interp.toy import pairs


def drawn(figure, kind):
    return [trace for trace in figure.data if trace.type == kind]


@pytest.fixture(scope="module")
def sweep(toy, colour_pairs):
    clean, corrupted, metric = colour_pairs
    return patch_sweep(toy, clean, corrupted, layers=[1, 5], metric=metric)


@pytest.fixture(scope="module")
def states():
    rng = np.random.default_rng(0)
    shared = rng.normal(size=(120, 6))
    return torch.from_numpy(
        np.stack([shared @ rng.normal(size=(6, 12)) + scale * rng.normal(size=(120, 12)) for scale in (3, 0.1, 1)])
    )


def test_importing_plots_is_light():
    code = (
        "import sys; from interp import plots; print([m for m in ('plotly', 'torch', 'sklearn') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_every_name_is_a_function():
    assert len(set(plots.__all__)) == len(plots.__all__) > 30
    assert all(callable(getattr(plots, name)) for name in plots.__all__)
    with pytest.raises(AttributeError, match=r"'interp.plots' has no attribute 'nothing'"):
        plots.nothing


def test_a_result_and_its_figure_function_draw_the_same(sweep):
    assert sweep.plot() == plots.figure(sweep) == plots.patch_figure(sweep)


@pytest.mark.parametrize("nothing", [3, "text", [], None, object(), [1, 2]])
def test_what_has_no_figure_is_refused(nothing):
    with pytest.raises(InputTypeError, match="has no figure"):
        plots.figure(nothing)


def test_a_type_of_the_users_own_can_be_registered():
    class Own:
        pass

    plots.figure.register(Own)(lambda result, **options: go.Figure(layout={"title": "own"}))
    assert plots.figure(Own()).layout.title.text == "own"


def test_patching_is_centred_at_no_effect_and_names_its_columns(sweep):
    figure = plots.figure(sweep)
    (heatmap,) = drawn(figure, "heatmap")
    np.testing.assert_array_equal(np.array(heatmap.z, dtype=float), np.float32(sweep.effect.numpy()))
    assert heatmap.zmid == 0
    assert heatmap.zmax == -heatmap.zmin == pytest.approx(sweep.effect.abs().max().item())
    assert EFFECT_SCALE[2] == (0.5, "#ffffff")
    assert list(figure.layout.yaxis.ticktext) == list(map(str, sweep.layers))
    assert heatmap.y == figure.layout.yaxis.tickvals
    assert list(figure.layout.xaxis.ticktext) == [label(token) for token in sweep.tokens]
    assert list(figure.layout.xaxis.ticktext[:3]) == ["&lt;bos&gt;", "patch 0,0", "patch 0,1"]
    low, high = f"{sweep.low[0, 3]:.3f}", f"{sweep.high[0, 3]:.3f}"
    assert heatmap.customdata[0][3][2] == f"<br>95 % {low} to {high}"


def test_one_row_of_patching_has_no_interval(toy):
    pair = pairs(1, seed=2)[0]
    clean, corrupted = (toy.prepare([pair.prompt], [side.image]) for side in (pair.clean, pair.corrupted))
    one = patch_sweep(
        toy, clean, corrupted, layers=0, positions=[-1, -2], metric=logit_difference(pair.answer, pair.other)
    )
    (heatmap,) = drawn(plots.figure(one), "heatmap")
    assert heatmap.customdata[0][0][2] == ""


def test_patching_takes_other_names_for_its_columns(sweep):
    names = [f"place {number}" for number in range(len(sweep.tokens))]
    assert list(plots.figure(sweep, labels=names).layout.xaxis.ticktext) == names
    with pytest.raises(InputError, match="3 labels"):
        plots.figure(sweep, labels=["a", "b", "c"])


def test_the_lens_over_depth(toy, few):
    batch = toy.prepare(["<image> what colour is the 3 ?"], [few[0].image])
    plain = logit_lens(toy, batch)
    band, line = drawn(plots.figure(plain), "scatter")
    np.testing.assert_allclose(line.y, plain.entropy.mean(dim=1))
    np.testing.assert_allclose(band.y[:9], plain.entropy.quantile(0.9, dim=1))
    assert plots.figure(plain).layout.shapes[0].y0 == pytest.approx(math.log(plain.vocab_size))

    aimed = logit_lens(toy, batch, positions="last", targets="red")
    (line,) = drawn(plots.figure(aimed), "scatter")
    np.testing.assert_allclose(line.y, aimed.target_probs[:, 0])
    assert plots.figure(aimed).layout.shapes[0].y0 == pytest.approx(1 / aimed.vocab_size)


def test_the_lens_on_the_image(toy, few):
    batch = toy.prepare(["<image>", "<image> where is the 3 ?"], [few[0].image, few[1].image])
    read = logit_lens(toy, batch, top_k=3)
    figure = plots.lens_on_image(read, few[1].image, (6, 6), row=1, state=2)
    maps = drawn(figure, "heatmap")
    assert len(maps) == len(figure.layout.sliders[0].steps) == 9
    assert [trace.visible for trace in maps] == [state == 2 for state in range(9)]
    for state, trace in enumerate(maps):
        np.testing.assert_array_equal(np.array(trace.z).flatten(), read.top_probs[state, 36:, 0].numpy())
        words = [read.words(state, 36 + patch)[0] for patch in range(36)]
        assert np.array(trace.text).flatten().tolist() == [label(word) for word in words]
    # hovering tells all of the top k, the third patch of the second row being the ninth
    hover = maps[4].customdata[1][2]
    assert hover.startswith("patch row 1, column 2<br>")
    assert [line.split("  ")[0] for line in hover.split("<br>")[1:]] == [label(word) for word in read.words(4, 36 + 8)]
    assert figure.layout.images[0].source.startswith("data:image/png;base64,")
    step = figure.layout.sliders[0].steps[7]
    assert step.args[0]["visible"] == [state == 7 for state in range(9)] * 2  # the words, and the frames around some


def test_a_word_is_found_on_the_image(toy, few):
    read = logit_lens(toy, toy.prepare(["<image>", "<image>"], [few[0].image, few[1].image]), top_k=3)
    figure = plots.lens_on_image(read, few[1].image, (6, 6), row=1, state=2)
    frames = drawn(figure, "scatter")
    assert [trace.visible for trace in frames] == [state == 2 for state in range(9)]
    assert figure.layout.sliders[0].pad.t >= 8 + 33  # below the menu, which is 33 pixels high
    nothing, *buttons = figure.layout.updatemenus[0].buttons
    assert nothing.args[0]["x"] == ([],) * 9 or nothing.args[0]["x"] == [[]] * 9
    for button in (buttons[0], buttons[-1]):
        places, traces = button.args
        assert [figure.data[trace] for trace in traces] == frames
        for state in range(9):
            framed = {6 * y + x for x, y in zip(places["x"][state], places["y"][state], strict=True)}
            patches = {patch for patch in range(36) if button.label in map(label, read.words(state, 36 + patch))}
            assert framed == patches
    counts = [sum(map(len, button.args[0]["x"])) for button in buttons]
    assert counts == sorted(counts, reverse=True)
    assert counts[0] > 0

    word = read.words(8, 36)[0]
    (_, only) = plots.lens_on_image(read, few[1].image, (6, 6), row=1, words=[word]).layout.updatemenus[0].buttons
    assert only.label == label(word)
    assert f'"label":"{word}"' in figure.to_html(include_plotlyjs=False).replace('": "', '":"')
    with pytest.raises(InputError, match=r"words=\['elephant'\]: no patch"):
        plots.lens_on_image(read, few[1].image, (6, 6), row=1, words=["elephant"])


def test_a_grid_that_does_not_fit_is_refused(toy, few):
    read = logit_lens(toy, toy.prepare(["<image>"], [few[0].image]))
    with pytest.raises(InputError, match="grid of 5 x 6 patches for 36"):
        plots.lens_on_image(read, few[0].image, (5, 6))
    with pytest.raises(InputError, match="for 0 positions"):
        plots.lens_on_image(read, few[0].image, (6, 6), row=1)
    with pytest.raises(InputError, match="state=9: expected a state from 0 to 8"):
        plots.lens_on_image(read, few[0].image, (6, 6), state=9)
    for grid in (None, [(6, 6)], [(6, 6), (6, 6)], "66"):
        with pytest.raises(InputError, match=r"grid=.*expected \(rows, columns\)"):
            plots.lens_on_image(read, few[0].image, grid)
    for state in ("last", -1, 2.0):
        with pytest.raises(InputError, match=f"state={state!r}: expected a state from 0 to 8"):
            plots.lens_on_image(read, few[0].image, (6, 6), state=state)
    for words in ("red", [3]):
        with pytest.raises(InputError, match=r"words=.*: expected a list of words"):
            plots.lens_on_image(read, few[0].image, (6, 6), words=words)
    for image in (None, "scene.png"):
        with pytest.raises(InputTypeError, match=f"image={image!r} is a .*: expected a PIL image"):
            plots.lens_on_image(read, image, (6, 6))


def test_one_of_several_images_of_a_row(toy, few):
    """Sides of a grid may be numpy's, as those of an array are."""
    batch = toy.prepare(["<image> and <image>"], [[few[0].image, few[1].image]])
    grid = tuple(np.array(batch.positions.grid(0)[1]))
    with pytest.raises(InputError, match=r"6 x 6 patches for 72 positions .* as with positions='image_0'"):
        plots.lens_on_image(logit_lens(toy, batch), few[1].image, grid)
    read = logit_lens(toy, batch, positions="image_1")
    figure = plots.lens_on_image(read, few[1].image, grid)
    shown = np.array(drawn(figure, "heatmap")[-1].z).flatten()
    np.testing.assert_array_equal(shown, read.top_probs[-1, :, 0].numpy())


def test_a_large_picture_is_not_enlarged(toy, few):
    read = logit_lens(toy, toy.prepare(["<image>"], [few[0].image]))
    small = plots.lens_on_image(read, Image.new("RGB", (900, 900)), (6, 6))
    assert len(small.layout.images[0].source) < 20_000


def test_probes_show_interval_control_and_chance(states):
    labels = ["a" if value > 0 else "b" for value in states[1, :, 0]]
    result = probe_layers(states, labels)
    figure = plots.figure(result)
    band, line, control = drawn(figure, "scatter")
    np.testing.assert_allclose(line.y, result.accuracy)
    np.testing.assert_allclose(band.y, [*result.high, *reversed(result.low)])
    np.testing.assert_allclose(control.y, result.control)
    assert figure.layout.shapes[0].y0 == pytest.approx(result.chance, abs=1e-5)
    two = plots.probe_figure({"one": result, "<b>other</b>": result})
    assert [trace.name for trace in drawn(two, "scatter") if trace.showlegend is None] == [
        "one",
        "&lt;b&gt;other&lt;/b&gt;",
    ]
    assert len(two.layout.shapes) == 1


def test_probes_show_p_and_the_control_task(states):
    labels = ["a" if value > 0 else "b" for value in states[1, :, 0]]
    result = probe_layers(states, labels, types=[index % 7 for index in range(len(labels))])
    _, line, _, task = drawn(plots.figure(result), "scatter")
    np.testing.assert_allclose(task.y, result.control_task)
    assert task.name == "accuracy, control task"
    assert task.line.color == line.line.color
    for state, (symbol, hover) in enumerate(zip(line.marker.symbol, line.customdata, strict=True)):
        assert symbol == ("circle-open" if result.p_family[state] > 0.05 else "circle")
        of_all, selectivity = result.p_family[state], result.selectivity[state]
        assert (
            hover[2]
            == f"state {state} (p {result.p[state]:.2g}, of all states {of_all:.2g}, selectivity {selectivity:.2g})"
        )
    assert set(line.marker.symbol) == {"circle", "circle-open"}
    bare = probe_layers(states, labels, permutations=0, control=False)
    assert set(drawn(plots.figure(bare), "scatter")[1].marker.symbol) == {"circle"}


def test_probes_show_the_control_by_group_where_the_split_tears_groups(states):
    picture = np.repeat(np.arange(50), 4)
    rng = np.random.default_rng(0)
    leaky = (rng.normal(size=(50, 20))[picture] + 0.1 * rng.normal(size=(200, 20)))[None]
    labels = (picture % 7 < 3).astype(int)
    torn = probe_layers(leaky, labels)
    by_group = drawn(plots.figure(torn), "scatter")[-1]
    assert by_group.name == "accuracy, labels shuffled by group"
    np.testing.assert_allclose(by_group.y, torn.group_control)
    whole = probe_layers(leaky, labels, groups=picture)
    assert "by group" not in "".join(trace.name for trace in drawn(plots.figure(whole), "scatter"))


def test_a_change_of_probes_is_drawn_with_its_interval(states):
    labels = ["a" if value > 0 else "b" for value in states[1, :, 0]]
    change = probe_layers(states, labels).change(probe_layers(states.flip(0), labels))
    band, line = drawn(plots.figure(change), "scatter")
    np.testing.assert_allclose(line.y, change.difference)
    np.testing.assert_allclose(band.y, [*change.high, *reversed(change.low)])
    assert list(line.marker.symbol) == ["circle-open" if p > 0.05 else "circle" for p in change.p_holm]
    assert len(set(line.marker.symbol)) == 2


def test_a_series_with_a_gap_and_one_that_does_not_fit():
    figure = plots.series_figure({"line": Series(values=[1.0, math.nan, 2.0])}, "title", "y", chance={"<low>": 0.5})
    assert list(figure.data[0].y) == [1.0, None, 2.0]
    assert figure.layout.annotations[0].text == "&lt;low&gt; 0.5"
    with pytest.raises(InputError, match=r"series 'line' has 2 values and a different number of low"):
        plots.series_figure({"line": Series(values=[1, 2], low=[1], high=[1, 2])}, "title", "y")
    with pytest.raises(InputError, match="series 'line' has 0 values"):
        plots.series_figure({"line": Series(values=[])}, "title", "y")


def test_accuracy_by_kind():
    import pandas as pd

    frame = pd.DataFrame(
        {
            "model": ["a", "b"],
            "modality": ["text", "text"],
            "kind": ["sum", "sum"],
            "accuracy": [0.5, 0.8],
            "low": [0.4, 0.7],
            "high": [0.7, 0.9],
            "chance": [0.2, 0.2],
            "n": [10, 10],
        }
    )
    chance, first, second = plots.accuracy_figure(frame).data
    assert list(chance.y) == [0.2]
    assert [*first.y, *second.y] == [0.5, 0.8]
    np.testing.assert_allclose([first.error_y.array[0], first.error_y.arrayminus[0]], [0.2, 0.1])


@pytest.mark.parametrize(
    ("token", "shown"),
    [
        ("<image>", "&lt;image&gt;"),
        ("a & b", "a &amp; b"),
        ("\u0120the", " the"),
        ("\u2581the", " the"),
        ("\n", "⏎"),
        ("\x00\u200b", "··"),
        ("x" * 40, "x" * 23 + "…"),
        (7, "7"),
    ],
)
def test_labels_show_tokens_as_they_are(token, shown):
    assert label(token) == shown
