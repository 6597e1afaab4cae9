"""What Project removes: the states it leaves are those of a least-squares fit, and along a probe's directions nothing is left."""

import pytest
import torch

import interp
from interp.errors import InputError, InputTypeError
from interp.interventions import Project, Steer
from interp.models.running.steps import Read, whole
from interp.models.running.trace import run_forward
from interp.probes import probe_layers


def read(vlm, batch, site, layer, *interventions):
    edits = vlm.edits_of(batch, interventions)
    return run_forward(vlm, batch, edits, [Read(0, site, layer, whole)], logits=None)[0]


def directions(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("site", "heads", "width"), [("resid_pre", None, 128), ("mlp_out", None, 128), ("z", [3, 1], 32)]
)
def test_the_rest_is_the_residue_of_least_squares(toy, mixed, site, heads, width):
    d = directions(3, width)
    d = torch.cat([1e-4 * d, d[:1] + d[1:2]])  # short ones count, and one that depends on the others adds nothing
    before, mask = read(toy, mixed, site, 4), mixed.positions["text"]
    after = read(toy, mixed, site, 4, Project(direction=d, layers=4, positions="text", site=site, heads=heads))
    states = before[mask] if heads is None else before[mask][:, heads].flatten(0, 1)
    fit = torch.linalg.lstsq(d[:3].T.double(), states.T.double()).solution
    residue = states - (d[:3].T.double() @ fit).T
    expected = before.clone()
    if heads is None:
        expected[mask] = residue.float()
    else:
        expected[mask.nonzero()[:, [0]], mask.nonzero()[:, [1]], torch.tensor(heads)] = residue.float().unflatten(
            0, (-1, 2)
        )
    torch.testing.assert_close(after, expected, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(after, before, atol=1e-2)
    assert torch.equal(after[~mask], before[~mask])


def test_each_layer_may_have_its_own(toy, mixed):
    d = directions(2, 1, 128)
    change = Project(direction=d, layers=[2, 5], positions="all")
    for layer, own in ((2, d[0, 0]), (5, d[1, 0])):
        seen = read(toy, mixed, "resid_pre", layer, change)[mixed.positions["all"]]
        assert (seen @ (own / own.norm())).abs().max() < 1e-4
    assert (seen @ (d[0, 0] / d[0, 0].norm())).abs().max() > 0.1


def test_refusals_are_one_line(toy, mixed):
    for direction, message in [
        (torch.ones(127), r"direction of shape \(127,\) does not fit: expected \(128,\)"),
        (torch.ones(3, 1, 128), r"\(3, 1, 128\) does not fit"),
        (torch.ones(2, 1, 1, 128), r"does not fit"),
        (torch.zeros(2, 128), r"shape \(2, 128\) is zero"),
        (torch.full((128,), torch.nan), "has numbers that are not finite"),
        (torch.ones(128, dtype=torch.long), "int64: expected real"),
    ]:
        with pytest.raises(InputError, match=message) as caught:
            toy.logits(mixed, [Project(direction=direction, layers=[1, 2], positions="all")])
        assert "\n" not in str(caught.value)
    with pytest.raises(InputTypeError, match="direction is a list"):
        toy.logits(mixed, [Project(direction=[1.0], layers=1, positions="all")])


# A probe's directions ----------------------------------------------------------------------------------------------------

STATE = 2


@pytest.fixture(scope="module")
def colours(toy):
    """A probe of the colour from the mean image token, and questions about the colours of other scenes."""
    scenes = interp.toy.scenes(240, seed=5, objects=1)
    acts = interp.capture(toy, scenes, positions="image", progress=False)
    found = probe_layers(acts, scenes.labels["colour"], permutations=0, control=False)
    others = interp.toy.scenes(30, seed=9, objects=1)
    asked = [next(question for question in scene.questions if question.kind == "colour") for scene in others]
    batch = toy.prepare(texts=[question.prompt for question in asked], images=[scene.image for scene in others])
    return scenes, found, batch


def named(toy, found, batch, *interventions):
    """Which colour the model holds most likely, as a number of the probe's classes."""
    ids = [toy.tokenizer.convert_tokens_to_ids(name) for name in found.classes]
    return toy.logits(batch, interventions)[:, ids].argmax(dim=1)


def test_steering_along_a_probes_direction_changes_the_answer(toy, colours):
    _, found, batch = colours
    scale = 40.0  # twice the norm of a state there
    turned, by_chance = [], []
    for number, name in enumerate(found.classes):
        other = directions(128, seed=number)
        for directed, kept in ((found.direction(STATE, name), turned), (other / other.norm(), by_chance)):
            change = Steer(direction=directed, layers=STATE, positions="image", scale=scale)
            kept.append((named(toy, found, batch, change) == number).float().mean())
    assert torch.stack(turned).mean() > 0.85
    assert torch.stack(by_chance).mean() < 0.3  # one in six is right


def test_projecting_a_probes_directions_out_blinds_it(toy, colours):
    scenes, found, _ = colours
    every = torch.stack([found.direction(STATE, name) for name in found.classes])
    test = found.test_rows
    truth = [scenes.labels["colour"][row] for row in test.tolist()]

    def score(direction):
        change = Project(direction=direction, layers=STATE, positions="image")
        acts = interp.capture(
            toy, scenes, sites=["resid_pre"], layers=[STATE], positions="image", interventions=[change], progress=False
        )
        return found.probes[STATE].score(acts["resid_pre"][0][test], truth)

    assert found.accuracy[STATE] > 0.9
    assert score(every) <= found.chance + 1e-9
    assert score(directions(5, 128)) > 0.9
