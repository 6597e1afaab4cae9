"""Bars of long runs: on a terminal and in notebooks, never in a file, one at a time, and counted to the end."""

import inspect
import os
import pty
import subprocess
import sys
import types

import pytest
import torch

import interp
from interp import geometry, lens, patching, probes, progress, toy
from interp.interventions import Skip

# A run of three steps of 0.15 seconds, in each of which another run with a bar of its own takes place.
RUN = """
import sys, time
from interp import progress
progress.PATIENCE = 0.1
def run(visible=True):
    with progress.progress_bar("outer run", 3, "cells", visible) as bar:
        for step in range(3):
            time.sleep(0.15)
            bar.advance(remark="<[red]>")
            with progress.progress_bar("inner run", 2, "cells") as inner:
                for _ in inner.each(range(2)):
                    time.sleep(0.15)
            print("printed", step)
"""


def in_terminal(code, stdout=None, **environment):
    """Run code with standard error, and unless it is given standard output, on a terminal; what that shows."""
    master, terminal = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "120", **environment}
    process = subprocess.Popen(
        [sys.executable, "-c", RUN + code], stdout=stdout or terminal, stderr=terminal, env=environment
    )
    os.close(terminal)
    shown = b""
    while True:
        try:
            part = os.read(master, 65536)
        except OSError:  # the other end is closed
            part = b""
        if not part:
            break
        shown += part
    os.close(master)
    assert process.wait() == 0
    return shown.decode()


def test_a_terminal_shows_how_far_a_run_is_and_the_time_left():
    shown = in_terminal("run()")
    assert "outer run" in shown
    assert "1/3" in shown
    assert "0:00:0" in shown  # the time left, from the first moment on
    assert "-:--:--" not in shown
    assert "<[red]>" in shown  # no markup
    assert "inner run" not in shown
    assert shown.rstrip().endswith("printed 2") or shown.index("printed 2") > shown.rindex("2/3")


def test_what_is_printed_goes_where_it_went_before(tmp_path):
    with (tmp_path / "out").open("w") as file:
        shown = in_terminal("run()", stdout=file)
    assert (tmp_path / "out").read_text() == "printed 0\nprinted 1\nprinted 2\n"
    assert "outer run" in shown
    assert "printed" not in shown


@pytest.mark.parametrize(
    ("code", "environment"),
    [
        ("with progress.quiet(): run()", {}),
        ("run()", {"INTERP_PROGRESS": "0"}),
        ("run()", {"TERM": "dumb"}),
        ("progress.PATIENCE = 5\nrun()", {}),
    ],
)
def test_no_bar_where_none_is_wanted_or_worth_it(code, environment):
    assert in_terminal(code, **environment).split() == "printed 0 printed 1 printed 2".split()


def test_progress_false_hides_the_bar_of_a_run():
    shown = in_terminal("run(visible=False)")
    assert "outer run" not in shown
    assert "inner run" in shown  # which was not asked to be silent


def test_a_pipe_gets_no_bar_though_colours_are_forced():
    environment = {**os.environ, "FORCE_COLOR": "1"}
    done = subprocess.run([sys.executable, "-c", f"{RUN}\nrun()"], capture_output=True, text=True, env=environment)
    assert (done.stdout, done.stderr) == ("printed 0\nprinted 1\nprinted 2\n", "")


def test_a_bar_goes_with_an_error_and_makes_place_for_the_next():
    shown = in_terminal(
        """
try:
    with progress.progress_bar("fails", 3, "cells") as bar:
        for _ in bar.each(range(2)):
            time.sleep(0.2)
        raise KeyError
except KeyError:
    pass
run()
"""
    )
    assert "fails" in shown
    assert "outer run" in shown
    assert shown.count("\x1b[?25l") == shown.count("\x1b[?25h") == 2  # the cursor comes back


def test_no_rich_before_a_bar_is_due():
    code = f"{RUN}\nprogress.PATIENCE = 5\nrun()\nprint([m for m in ('rich', 'torch') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("[]\n")


class Cell:
    """A display of a notebook, as IPython gives it."""

    def __init__(self):
        self.contents = []

    def update(self, content):
        self.contents.append(content if isinstance(content, str) else content._repr_mimebundle_([], [])["text/plain"])


def test_a_notebook_shows_one_display_and_clears_it(monkeypatch):
    cells = []

    def display(content, display_id):
        cells.append(Cell())
        cells[-1].update(content)
        return cells[-1]

    fake = types.ModuleType("IPython.display")
    fake.display, fake.HTML = display, str
    monkeypatch.setitem(sys.modules, "IPython", types.ModuleType("IPython"))
    monkeypatch.setitem(sys.modules, "IPython.display", fake)
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    monkeypatch.setattr(progress, "PATIENCE", 0)
    monkeypatch.setattr(progress, "_REDRAW", 0)
    with progress.progress_bar("sweep", 3, "cells") as bar:
        for _ in bar.each(range(3)):
            pass
    (cell,) = cells
    assert "1/3" in cell.contents[0]
    assert "2/3" in cell.contents[1]
    assert cell.contents[-1] == ""


def test_the_end_of_a_run_is_no_reason_to_begin_a_bar(monkeypatch):
    monkeypatch.setattr(progress, "PATIENCE", 0)
    monkeypatch.setattr(progress.Bar, "_open", lambda bar: pytest.fail("it opened"))
    with progress.progress_bar("sweep", 1, "cells") as bar:
        bar.advance()


# The calls that have one ---------------------------------------------------------------------------------------------------


@pytest.fixture
def bars(monkeypatch):
    """Every bar that has ended, by its task: how far it came, and its total."""
    ended = {}
    monkeypatch.setattr(progress.Bar, "close", lambda bar: ended.update({bar.task: (bar.done, bar.total)}))
    return ended


def two_sides(vlm, count=2):
    found = toy.pairs(count, seed=1)
    prompts = [pair.prompt for pair in found]
    sides = (vlm.prepare(prompts, [getattr(pair, side).image for pair in found]) for side in ("clean", "corrupted"))
    return *sides, patching.logit_difference([pair.answer for pair in found], [pair.other for pair in found])


def test_sweeps_count_their_cells_and_runs(toy, bars, monkeypatch):
    clean, corrupted, metric = two_sides(toy)
    seen = []
    reach = progress.Bar.reach
    monkeypatch.setattr(progress.Bar, "reach", lambda bar, done, *rest: (seen.append(done), reach(bar, done, *rest)))
    patching.patch_sweep(toy, clean, corrupted, layers=[0, 3], positions=[5, 20, -1], metric=metric)
    assert bars.pop("patching") == (12, 12)
    assert len(seen) > 4  # within a row too
    assert seen == sorted(seen)
    patching.attribution_patch(toy, clean, corrupted, layers=[3], metric=metric)
    assert bars.pop("attribution patching") == (2, 2)
    answers = patching.probability(metric.targets[0])
    patching.flow(toy, clean, edges=[("image", "last"), ("question", "last")], window=8, metric=answers)
    assert bars.pop("flow") == (32, 32)
    patching.flow(toy, clean, edges=[("image", "last")], window=8, metric=answers, control=False)
    assert bars.pop("flow") == (8, 8)
    patching.layer_sweep(toy, clean, Skip, window=3, metric=answers, positions="image")
    assert bars.pop("layer sweep") == (6, 6)
    patching.layer_contribution(toy, [clean.row(0), clean.row(1)], window=8)
    assert bars.pop("layer contribution") == (4, 4)
    assert bars == {}


def test_a_sweep_of_whole_passes_is_counted_too(toy, bars):
    clean, corrupted, metric = two_sides(toy)
    skip = Skip(layers=5, positions="image")
    patching.patch_sweep(toy, clean, corrupted, layers=[0], positions=[5, -1], metric=metric, interventions=[skip])
    assert bars.pop("patching") == (4, 4)


def test_a_sweep_on_a_server_is_counted_by_rows(remote_toy, bars):
    clean, corrupted, metric = two_sides(remote_toy)
    patching.patch_sweep(remote_toy, clean, corrupted, layers=[7], positions=[-1], metric=metric)
    assert bars.pop("patching") == (2, 2)


def test_other_long_runs_are_counted_to_their_end(toy, bars, few):
    lens.TunedLens.fit(toy, few, positions="last", epochs=1, batch_size=2)
    assert bars.pop("collecting states") == (2, 2)
    assert bars.pop("tuned lens") == (8, 8)
    frame = interp.toy.evaluate(toy, n=2)
    assert bars.pop("evaluating toy") == (frame["n"].sum(), frame["n"].sum())
    interp.capture(toy, few)
    assert bars.pop("capture") == (3, 3)
    x, y = torch.randn(2, 3, 40, 4, generator=torch.Generator().manual_seed(0)).unbind(0)
    geometry.learn_weights(x[0], y[0], steps=5, shuffles=2)
    assert bars.pop("learning weights") == (15, 15)
    geometry.id_correlation(x[0], y[0], permutations=4)
    assert bars.pop("correlation by dimension") == (5, 5)
    probes.probe_layers(x, torch.arange(40) % 2, control=2)
    probes.probe_layers(x.numpy(), torch.arange(40) % 2, control=2)
    assert bars.pop("probes") == (9, 9)
    geometry.compare(x, y, metrics=["cka"], subsamples=2, permutations=2)
    assert bars.pop("comparing") == (3, 3)
    for metric in ("neighbor_overlap", "information_imbalance", "cka", "procrustes", "paired_cosine"):
        geometry.alignment_matrix(x, y, metric=metric, k=None if metric != "neighbor_overlap" else 5, subsamples=2)
    assert bars
    assert all(done == total for done, total in bars.values()), bars


CALLS = (
    interp.capture,
    patching.patch_sweep,
    patching.attribution_patch,
    patching.flow,
    patching.layer_sweep,
    patching.layer_contribution,
    lens.TunedLens.fit,
    lens.head_pursuit,
    probes.probe_layers,
    geometry.alignment_matrix,
    geometry.compare,
    geometry.learn_weights,
    geometry.id_correlation,
    toy.evaluate,
    toy.answer_questions,
)


@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.__name__)
def test_long_calls_take_progress(call):
    assert inspect.signature(call).parameters["progress"].default is True
    if call is not interp.capture:
        assert "progress=False" in inspect.getdoc(call)


@pytest.mark.parametrize("wrong", ["no", 0, None])
def test_progress_is_true_or_false(unchecked, wrong):
    x = torch.randn(3, 40, 4)
    for call in (geometry.alignment_matrix, geometry.compare):
        with pytest.raises(interp.InputError, match=r"^progress=.*: expected True or False$"):
            call(x, x, progress=wrong)
