"""The page on extending: each example is short, runs as it stands, and then works wherever its kind works."""

import re
from pathlib import Path

import pytest
import torch

import interp
from interp import geometry
from interp.lens import logit_lens
from interp.patching import layer_sweep, probability

PAGE = (Path(__file__).parent.parent / "docs" / "extending.md").read_text()
EXAMPLES = dict(re.findall(r"^## (?:An? )(.*?)\n.*?```python\n(.*?)```", PAGE, flags=re.DOTALL | re.MULTILINE))


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """All names of the page, after its examples ran one after the other."""
    names: dict = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("page"))
        for example in EXAMPLES.values():
            exec(compile(example, "docs/extending.md", "exec"), names)
    yield names
    geometry.unregister_measure("energy_distance")


def test_there_is_one_of_each_kind_and_it_is_short():
    assert list(EXAMPLES) == ["intervention", "metric", "measure of geometry", "readout", "figure"]
    assert all(len(example.splitlines()) < 40 for example in EXAMPLES.values())


def test_the_intervention_works_wherever_interventions_do(page, toy, few):
    prompt = few[0].questions[0]
    batch = toy.prepare(texts=[prompt.prompt], images=[few[0].image])
    noise = page["Noise"](layers=[0, 3], positions="image", scale=3.0)
    before, after = toy.logits(batch), toy.logits(batch, [noise])
    assert not torch.equal(before, after)
    assert torch.equal(after, toy.logits(batch, [noise]))
    assert len(toy.generate(batch, 3, [noise])) == 1
    acts = [interp.capture(toy, [batch], interventions=each, progress=False)["resid"][...] for each in ([], [noise])]
    moved = (acts[0] != acts[1]).any(dim=-1).flatten().tolist()
    assert moved == [True] * 9
    assert not torch.equal(logit_lens(toy, batch).entropy, logit_lens(toy, batch, interventions=[noise]).entropy)
    sweep = layer_sweep(toy, batch, page["Noise"], metric=probability(prompt.answer), positions="image", scale=3.0)
    assert len(sweep.windows) == 8


def test_the_measure_works_in_comparisons_matrices_and_figures(page):
    frame = page["comparison"].to_frame()
    assert (frame.measure == "energy_distance").all()
    assert frame.value.gt(frame.chance).all()
    assert frame.p.max() < 0.06
    matrix = page["matrix"]
    assert matrix.values.shape == (3, 3)
    assert (matrix.values < torch.as_tensor(matrix.chance)).all()  # minus the distance: more is more alike
    x = torch.tensor([[0.0], [1.0]])
    assert page["energy_distance"](x, x + 1) == pytest.approx(2 * 1.0 - 1.0 - 1.0)
    for drawn in (page["comparison"].plot(), page["matrix"].plot()):
        assert "energy distance" in drawn.to_json()


def test_the_readout_says_what_it_says_and_its_figure_draws_it(page, toy):
    norms, batch = page["norms"], page["batch"]
    states = interp.capture(page["vlm"], [batch], reduce="none", interventions=[page["noise"]], progress=False)[
        "resid"
    ][...]
    torch.testing.assert_close(norms.values, states.norm(dim=-1).mean(dim=1), atol=1e-4, rtol=0)
    assert norms.provenance.model == "toy"
    assert len(norms.plot().data) >= 2
