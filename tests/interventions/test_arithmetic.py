"""Arithmetic on states, against plain hooks and least squares: a direction is added as it is given, a factor multiplies, and
along projected directions nothing is left."""

import numpy as np
import pytest
import torch

import interp
from interp.errors import InputError, InputTypeError
from interp.interventions import Ablate, Project, Scale, Steer
from interp.models.running.steps import Read, reads_of_states, whole
from interp.models.running.trace import run_forward
from interp.probes import probe_layers
from patterned import batch_of, load


def states(vlm, batch, *interventions):
    """All states `[state, batch, seq, width]`."""
    edits = vlm.edits_of(batch, interventions)
    seen = run_forward(vlm, batch, edits, reads_of_states(vlm, whole, (), edits), logits=None)
    return torch.stack([seen[state] for state in range(len(seen))])


def hooked(vlm, batch, module, hook):
    handle = module.register_forward_hook(hook, with_kwargs=True)
    try:
        with torch.no_grad():
            return vlm.model(**vlm.inputs_of(batch)).logits[:, -1]
    finally:
        handle.remove()


# Steer -------------------------------------------------------------------------------------------------------------------


def test_a_direction_is_added_as_it_is_given(toy, mixed):
    direction = torch.randn(128, generator=torch.Generator().manual_seed(0)) * 5
    text = mixed.positions["text"]
    found = states(toy, mixed, Steer(direction=direction, layers=4, positions="text", scale=-0.5))
    plain = states(toy, mixed)
    torch.testing.assert_close(found[4][text], plain[4][text] - 0.5 * direction)
    assert torch.equal(found[4][~text], plain[4][~text])
    layer = toy.model.get_submodule(f"{toy.structure.layers}.3")

    def add(module, args, kwargs, out):
        return out + (-0.5 * direction) * text[..., None]

    steer = Steer(direction=direction, layers=4, positions="text", scale=-0.5)
    torch.testing.assert_close(toy.logits(mixed, [steer]), hooked(toy, mixed, layer, add), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["llava", "gemma3", "paligemma", "llama4", "qwen3_5"])
def test_heads_are_steered_alone(name):
    vlm, batch = load(name), batch_of(name, padded=True)
    layer = next(layer for layer, place in enumerate(vlm.trait("z")) if place is not None)
    width = vlm.structure.z[layer].d_head
    steer = Steer(direction=torch.ones(2, width), layers=layer, positions="last", scale=3, site="z", heads=[1, 3])
    read = [Read(0, "z", layer, whole)]
    plain, found = (
        run_forward(vlm, batch, edits, read, logits=None)[0] for edits in ((), vlm.edits_of(batch, [steer]))
    )
    expected = plain.clone()
    expected[:, -1, [1, 3]] += 3
    assert torch.equal(found, expected)
    assert not torch.allclose(vlm.logits(batch, [steer]), vlm.logits(batch))


def test_nothing_is_added_at_scale_nought(toy, mixed):
    still = Steer(direction=torch.ones(128), layers="all", positions="all", scale=0)
    assert (toy.logits(mixed, [still]) == toy.logits(mixed)).all()


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"direction": [1.0]}, "direction is a list: expected a tensor"),
        ({"direction": torch.ones(7)}, r"\(7,\) does not fit \(1, 3, 128\)"),
        ({"scale": float("nan")}, "scale=nan: expected a finite number"),
        ({"scale": float("-inf")}, "scale=-inf: expected a finite number"),
        ({"scale": np.float32("nan")}, r"scale=np.float32\(nan\): expected a finite number"),
        ({"scale": torch.ones(2)}, r"scale=Tensor of shape \(2,\): expected a finite number"),
        ({"scale": 10**400}, "scale=1000.*: expected a finite number"),
        ({"scale": np.bool_(True)}, "scale=np.True_: expected a finite number"),
        ({"scale": "large"}, "scale='large': expected a finite number"),
        ({"scale": True}, "scale=True: expected a finite number"),
        ({"layers": []}, r"layers=\[\] names no layer"),
        ({"heads": 0}, "heads=0: resid_pre has no heads"),
        ({"site": "resid"}, "site='resid' is unknown"),
    ],
)
def test_wrong_steering(toy, mixed, wrong, words):
    with pytest.raises(interp.InterpError, match=words):
        toy.logits(
            mixed, [Steer(**{"direction": torch.ones(128), "layers": 0, "positions": "last", "scale": 1.0, **wrong})]
        )


def test_numbers_of_other_libraries_are_numbers(toy, mixed):
    expected = toy.logits(mixed, [Steer(direction=torch.ones(128), layers=3, positions="last", scale=2)])
    for scale in (2.0, np.float32(2), np.int64(2), np.array(2.0), torch.tensor(2.0)):
        steer = Steer(direction=torch.ones(128), layers=3, positions="last", scale=scale)
        assert (toy.logits(mixed, [steer]) == expected).all()


# Scale ------------------------------------------------------------------------------------------------------------------


def test_heads_are_scaled_as_a_hook_scales_them(toy, mixed):
    module = toy.model.get_submodule(f"{toy.structure.layers}.4.self_attn.o_proj")

    def scale(module, given):
        heads = given[0].clone().unflatten(-1, (4, 32))
        heads[:, :, [1, 3]] *= -2.5
        return (heads.flatten(2),)

    handle = module.register_forward_pre_hook(scale)
    try:
        with torch.no_grad():
            expected = toy.model(**toy.inputs_of(mixed)).logits[:, -1]
    finally:
        handle.remove()
    found = toy.logits(mixed, [Scale(layers=4, positions="all", factor=-2.5, heads=[1, 3])], positions="all")[:, -1]
    # A hook scales padding too, which nothing sees.
    torch.testing.assert_close(found, expected)


def test_a_factor_of_one_changes_no_bit_and_of_zero_ablates(toy, mixed):
    for site in ("z", "resid_pre", "mlp_out"):
        same = Scale(site=site, layers="all", positions="text", factor=1)
        assert torch.equal(toy.logits(mixed, [same]), toy.logits(mixed))
        none = Scale(site=site, layers=[2, 5], positions="text", factor=0)
        cut = Ablate(site=site, layers=[2, 5], positions="text")
        assert torch.equal(toy.logits(mixed, [none]), toy.logits(mixed, [cut]))


def test_two_scalings_are_one_by_their_product(toy, mixed):
    twice = [Scale(layers=3, positions="last", factor=factor) for factor in (4, 0.25)]
    assert torch.equal(toy.logits(mixed, twice), toy.logits(mixed))


def test_new_tokens_are_scaled_too(toy):
    """Scaled to nothing in all that is fed, each step is that of the growing text run again."""
    batch = toy.prepare(["a red 3 at top and a blue"])
    change = Scale(site="attn_out", layers=[0, 6], positions="all", factor=0.1)
    (said,) = toy.generate(batch, max_new_tokens=3, interventions=[change])
    text = batch.texts[0]
    for _ in range(3):
        token = int(toy.logits(toy.prepare([text]), [change]).argmax())
        text += " " + toy.tokenizer.decode([token])
    assert text.split()[-len(said.split()) :] == said.split()


@pytest.mark.parametrize("factor", [float("nan"), float("inf"), True, "2", None, torch.ones(2)])
def test_what_is_no_factor(toy, mixed, factor):
    for change in (
        Scale(layers=0, positions="last", factor=factor),
        Steer(direction=torch.ones(1), layers=0, positions="last", scale=factor),
    ):
        with pytest.raises(interp.InputError, match="expected a finite number") as caught:
            toy.logits(mixed, [change])
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("direction", "scale", "words"),
    [
        (torch.ones(128), 1e39, r"scale=1e\+39: expected a finite number"),
        (torch.full((128,), 1e30), 1e10, r"scale=10000000000\.0 times the direction is too large for torch.float32"),
        (
            torch.ones(128, dtype=torch.float16),
            1e5,
            r"scale=100000\.0 times the direction is too large for torch.float16",
        ),
        (torch.full((128,), torch.nan), 1.0, r"direction of shape \(128,\) has numbers that are not finite"),
    ],
)
def test_what_cannot_be_added_is_refused(toy, mixed, direction, scale, words):
    change = Steer(direction=direction, layers=0, positions="last", scale=scale)
    with pytest.raises(interp.InputError, match=words) as caught:
        toy.logits(mixed, [change])
    assert "\n" not in str(caught.value)


def test_a_factor_too_large_for_states_is_refused(toy, mixed):
    with pytest.raises(interp.InputError, match=r"factor=1e\+39: expected a finite number"):
        toy.logits(mixed, [Scale(layers=0, positions="last", factor=1e39)])


# Project ----------------------------------------------------------------------------------------------------------------


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


@pytest.mark.parametrize("shape", [(128,), (3, 128), (2, 1, 128)])
def test_a_control_has_random_directions_of_the_same_lengths(shape):
    direction = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 7
    made = (
        Steer(direction=direction, layers=[1, 2], positions="last", scale=3.0),
        Project(direction=direction, layers=[1, 2], positions="last"),
    )
    for each in made:
        control, again, other = each.control(seed=1), each.control(seed=1), each.control(seed=2)
        torch.testing.assert_close(control.direction.norm(dim=-1), direction.norm(dim=-1))
        assert (control.direction == again.direction).all()
        assert not torch.allclose(control.direction, other.direction)
        assert torch.nn.functional.cosine_similarity(control.direction, direction, dim=-1).abs().max() < 0.4
        assert (control.layers, control.positions) == (each.layers, each.positions)
