"""What is exported is whole: an intervention has its docs and its row, a result its docs, its figure, its save and load."""

import copy
import importlib
import inspect
import pickle
import pkgutil
import re
from pathlib import Path

import plotly.graph_objects as go
import pytest
import torch

import interp
from interp import geometry, interventions, lens, patching, plots, probes, readouts, tuning
from interp.models import Intervention

DOCS = Path(__file__).parent.parent / "docs"
PAGES = "\n".join(page.read_text() for page in DOCS.glob("*.md"))


def subclasses(kind):
    for child in kind.__subclasses__():
        yield child
        yield from subclasses(child)


def result_types():
    for module in pkgutil.walk_packages(interp.__path__, "interp."):
        importlib.import_module(module.name)
    return {kind.__name__: kind for kind in subclasses(interp.Result) if kind.__module__.startswith("interp.")}


RESULTS = result_types()
# Those that have no figure of their own, and why.
NO_FIGURE = {"CheckReport": "a table of proofs"}


@pytest.fixture(scope="module")
def results(toy, stage1):
    """One result of each type."""
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(3, 60, 4, generator=draw)
    y = x + 0.3 * torch.randn(3, 60, 4, generator=draw)
    pair = interp.toy.pairs(1, seed=0, change="colour")[0]
    clean, corrupted = (
        toy.prepare(texts=[pair.prompt], images=[scene.image]) for scene in (pair.clean, pair.corrupted)
    )
    metric = patching.logit_difference(pair.answer, pair.other)
    scenes = interp.toy.scenes(6, seed=0, distinct=True)
    few = toy.prepare(texts=["<image>"] * 3, images=[scene.image for scene in scenes][:3])
    z = interp.capture(toy, scenes, sites=("z",), progress=False)
    matrix = geometry.alignment_matrix(x, y, k=5, subsamples=4)
    made = [
        toy.check(),
        patching.patch_sweep(toy, clean, corrupted, layers=[3], positions=[-1], metric=metric),
        patching.flow(toy, clean, window=8, metric=patching.probability(pair.answer)),
        patching.layer_sweep(toy, clean, metric=patching.probability(pair.answer), window=8),
        lens.logit_lens(toy, clean, positions="last"),
        lens.TunedLens.fit(toy, [few], epochs=1),
        lens.direct_logit_attribution(toy, clean, pair.answer),
        lens.attention_share(toy, clean),
        lens.attention_masses(toy, clean),
        readouts.off_distribution(
            toy,
            few,
            [interventions.Skip(layers=3)],
            interp.capture(toy, scenes, reduce="none", progress=False),
            "image",
        ),
        lens.vocabulary_decomposition(torch.randn(2, 128), lens.dictionary_of(toy, "head"), 2),
        lens.head_pursuit(toy, z, ["red", "blue", "green"], 1),
        lens.projector_report(toy, scenes, k=2),
        lens.visual_token_stats(torch.arange(24) % 5, torch.arange(24) // 6),
        probed := probes.probe_layers(x, torch.arange(60) % 2),
        probed.change(probes.probe_layers(y, torch.arange(60) % 2)),
        geometry.intrinsic_dimension(x[0]),
        matrix,
        matrix.bypass(),
        matrix.change(geometry.alignment_matrix(x, y + 1, k=5, subsamples=4)),
        matrix.peak(),
        geometry.compare(x, y, metrics=["cka", "2nn"], subsamples=3, permutations=3),
        geometry.modality_gap(x[0], y[0], shuffles=3),
        geometry.id_correlation(x[0], y[0], permutations=3),
        geometry.pool_sizes(x, y, [2], k=5, rows=(torch.arange(60) // 4, torch.arange(60) // 4)),
        geometry.find_peaks(x[0]),
        geometry.log_density(x[0]),
        geometry.learn_weights(x[0], y[0], steps=2, shuffles=1),
        tuning.compare_bands(
            stage1,
            interp.toy.conversations(2, seed=0, questions=1),
            {"last": [7]},
            seeds=1,
            test=interp.toy.questions(2, seed=0),
            arguments={"max_steps": 1, "per_device_train_batch_size": 1},
            timing_rounds=0,
        ),
        tuning.tune(
            stage1,
            interp.toy.conversations(2, seed=0, questions=1),
            layers=[7],
            arguments={"max_steps": 2, "per_device_train_batch_size": 1},
        ),
    ]
    return {type(each).__name__: each for each in made}


def test_each_type_of_result_is_made_here(results):
    assert set(results) == set(RESULTS)


@pytest.mark.parametrize("name", sorted(RESULTS))
def test_a_result_is_kept_and_drawn(name, results, tmp_path):
    result = results[name]
    again = RESULTS[name].load(result.save(tmp_path / "result"))
    assert type(again) is type(result)
    assert again.to_frame().equals(result.to_frame())
    if name in NO_FIGURE:
        with pytest.raises(interp.InputTypeError, match="has no figure"):
            result.plot()
    else:
        assert isinstance(again.plot(), go.Figure)


@pytest.mark.parametrize("name", sorted(RESULTS))
def test_a_result_is_shown_copied_and_pickled(name, results):
    result = results[name]
    assert len(repr(result).splitlines()) <= 20
    assert "tensor(" not in repr(result)
    page = result._repr_html_()
    assert "<table" in page
    assert ("Plotly.newPlot" in page) == (name not in NO_FIGURE)
    for again in (copy.copy(result), copy.deepcopy(result), pickle.loads(pickle.dumps(result))):
        assert again.to_frame().equals(result.to_frame())


@pytest.mark.parametrize("name", sorted({*RESULTS, *interventions.__all__} - {"Edit", "Read"}))
def test_the_docs_name_it(name):
    assert f"`{name}" in PAGES


def test_the_page_about_results_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    every = re.findall(r"```python\n(.*?)```", (DOCS / "results.md").read_text(), flags=re.DOTALL)
    names: dict = {}
    for example in every:
        exec(compile(example, "docs/results.md", "exec"), names)
    assert names["again"].to_frame().equals(names["result"].to_frame())


def test_each_intervention_has_its_row_among_those_that_are_alike():
    rows = (Path(__file__).parent / "interventions" / "test_alike.py").read_text()
    for name in interventions.__all__:
        kind = getattr(interventions, name)
        if inspect.isclass(kind) and issubclass(kind, Intervention):
            assert f"{name}(" in rows, f"{name} has no row in test_alike.py"


def test_each_figure_that_is_exported_is_a_function():
    for name in plots.__all__:
        assert callable(getattr(plots, name))
