"""How far interventions go: distances by hand, the unchanged run as control, and references that cannot serve."""

import pytest
import torch
from sklearn.covariance import LedoitWolf

import interp
from interp.interventions import Ablate, Scale, Skip, Steer
from interp.models.running.steps import reads_of_states, whole
from interp.models.running.trace import run_forward
from interp.readouts import off_distribution
from interp.statistics import few_rows


@pytest.fixture(scope="module")
def scenes():
    return interp.toy.scenes(64, seed=3, distinct=True)


@pytest.fixture(scope="module")
def usual(toy, scenes):
    return interp.capture(toy, scenes[4:], positions="image", reduce="none", progress=False)


@pytest.fixture(scope="module")
def batch(toy, scenes):
    return toy.prepare(texts=["<image>"] * 4, images=[scene.image for scene in scenes[:4]])


def test_the_numbers_are_those_by_hand(toy, batch, usual):
    steer = Steer(
        direction=torch.randn(128, generator=torch.Generator().manual_seed(0)), layers=4, positions="image", scale=3.0
    )
    report = off_distribution(toy, batch, [steer], usual, "image")
    edits = toy.edits_of(batch, [steer])
    seen = run_forward(toy, batch, edits, reads_of_states(toy, whole, (), edits))
    cloud, rows = usual["resid"][5].double(), usual.rows
    sizes, axes = torch.linalg.eigh(torch.from_numpy(LedoitWolf().fit(cloud.numpy()).covariance_))
    among = torch.cdist(cloud @ axes / sizes.sqrt(), cloud @ axes / sizes.sqrt())
    among[rows[:, None] == rows] = torch.inf
    usually = among.amin(dim=1).sort().values
    for row in range(4):
        states = seen[5][row][batch.positions["image"][row]].double()
        distance = torch.cdist(states @ axes / sizes.sqrt(), cloud @ axes / sizes.sqrt()).amin(dim=1)
        assert float(report.distance[row, 5]) == pytest.approx(float((distance / usually.mean()).mean()), rel=1e-3)
        norm = states.norm(dim=1) / cloud.norm(dim=1).quantile(0.5, interpolation="lower")
        assert float(report.norm[row, 5]) == pytest.approx(float(norm.mean()), rel=1e-4)
        outside = (distance > usually.quantile(0.95)).double().mean()
        assert float(report.outside[row, 5]) == pytest.approx(float(outside), abs=0.03)
        odds = seen["logits"][row].double().softmax(dim=-1)
        assert float(report.entropy[row]) == pytest.approx(float(-(odds * odds.log()).nan_to_num().sum()), rel=1e-4)


def test_without_a_change_the_run_is_its_own_control(toy, batch, usual):
    report = off_distribution(toy, batch, [Scale(layers=3, positions="all", factor=1.0)], usual, "image")
    assert torch.allclose(report.distance, report.distance_unchanged, atol=1e-4)
    assert 0.8 < report.distance_unchanged.mean() < 1.3  # the rows are of the reference's kind
    assert report.outside_unchanged.mean() < 0.15
    frame = report.to_frame()
    assert frame[frame.measure == "norm"].difference.abs().max() < 1e-4
    unchanged = off_distribution(toy, batch, [], usual, "image")
    assert unchanged.to_frame()[["low", "high"]].abs().to_numpy().max() == 0
    assert unchanged.provenance.notes == few_rows(4)


def test_a_large_step_is_outside_and_the_states_of_another_row_are_not(toy, batch, usual):
    direction = torch.randn(128, generator=torch.Generator().manual_seed(1))
    place = {"layers": 3, "positions": "image"}
    step, other, zero = (
        off_distribution(toy, batch, [change], usual, "image")
        for change in (
            Steer(direction=direction, scale=3.0, **place),
            Ablate(site="resid_pre", value="resample", **place),
            Ablate(site="resid_pre", **place),
        )
    )
    assert step.outside[:, 3].min() > 0.9
    assert other.outside[:, 3].max() < 0.3
    assert step.distance[:, 3].mean() > 3 * other.distance[:, 3].mean()
    assert zero.norm[:, 3].max() == 0
    assert torch.equal(step.distance[:, 2], step.distance_unchanged[:, 2])  # nothing is changed before


def test_rows_without_positions_do_not_count(toy, scenes, usual):
    both = toy.prepare(texts=["<image>", "a red 3 at top ."], images=[scenes[0].image, None])
    report = off_distribution(toy, both, [Skip(layers=2)], usual, "image")
    assert report.distance[1].isnan().all()
    assert not report.distance[0].isnan().any()
    assert not report.to_frame().value.isna().any()


def test_references_that_cannot_serve_are_refused_in_a_line(toy, batch, scenes, usual):
    pooled = interp.capture(toy, scenes[:2], progress=False)
    with pytest.raises(interp.InputError, match="pooled states: expected a capture with reduce='none'"):
        off_distribution(toy, batch, [], pooled, "image")
    with pytest.raises(interp.InputError, match="has attn_out: expected a capture of resid"):
        off_distribution(toy, batch, [], interp.capture(toy, scenes[:2], sites=("attn_out",), progress=False), "image")
    with pytest.raises(interp.InputTypeError, match="reference is a Tensor"):
        off_distribution(toy, batch, [], torch.zeros(9, 5, 128), "image")
    first = interp.capture(toy, interp.toy.scenes(120, seed=0).captions(), positions=[0], reduce="none", progress=False)
    with pytest.raises(interp.InputError, match="most states 0 of the reference repeat those of other rows"):
        off_distribution(toy, batch, [], first, "image")
    one = interp.capture(toy, scenes[:1], reduce="none", progress=False)
    with pytest.raises(interp.InputError, match="the reference has 36 states: expected 100 or more"):
        off_distribution(toy, batch, [], one)
