"""Slots: a value is taken as the site means it, its own comes back to the bit, another one is there afterwards."""

import copy
import inspect
from types import SimpleNamespace

import pytest
import torch

import slot_cases
from interp.models.running import slots
from slot_cases import D_HEAD, HEADS, LENGTH, ROWS, WIDTH, cases, draw

NAMES = list(cases())
WRITTEN = [name for name, case in cases().items() if case.other is not None]


def classes():
    return [
        each
        for each in vars(slots).values()
        if inspect.isclass(each) and issubclass(each, slots.Slot) and each is not slots.Slot
    ]


def alike(a, b):
    """Whether two values, however nested, are equal to the bit."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.shape == b.shape and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, tuple | list):
        return type(a) is type(b) and len(a) == len(b) and all(map(alike, a, b))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(alike(a[name], b[name]) for name in a)
    return a == b


def near(a, b):
    return alike(a, b) if not isinstance(a, torch.Tensor) else torch.allclose(a.float(), b.float(), atol=1e-6)


def test_every_slot_has_a_case():
    assert {type(case.slot) for case in cases().values()} == set(classes())


@pytest.mark.parametrize("name", NAMES)
def test_the_value_is_what_the_site_means(name):
    slot, module, context, value, *_ = cases()[name]
    _, found = slot.take(SimpleNamespace(**module), context)
    assert near(found, value)


# A mask that was left out is None afterwards, which is the same to a layer.
@pytest.mark.parametrize("name", [name for name in WRITTEN if name != "left out"])
def test_its_own_value_changes_nothing(name):
    slot, module, context, *_ = cases()[name]
    envoy, before = SimpleNamespace(**module), copy.deepcopy(module)
    whole, value = slot.take(envoy, context)
    same = value.clone() if isinstance(value, torch.Tensor) else value
    slot.put(envoy, context, whole, value, same)
    assert alike(vars(envoy), before)


@pytest.mark.parametrize("name", WRITTEN)
def test_another_value_is_there_afterwards(name):
    """At the module itself: what it held before is not changed in place, and all that is not of the site is as it was."""
    slot, module, context, value, other, seen = cases()[name]
    envoy, before = SimpleNamespace(**module), copy.deepcopy(module)
    whole, value = slot.take(envoy, context)
    slot.put(envoy, context, whole, value, other)
    assert alike(module, before)
    assert not alike(vars(envoy), before)
    if seen:
        assert near(slot.take(envoy, context)[1], other)


@pytest.mark.parametrize("name", NAMES)
def test_a_slot_says_on_which_side_it_is(name):
    """Replay hooks the module there: nothing else may be needed, and nothing else written."""
    slot, module, context, _, other, _ = cases()[name]
    (held,) = module
    assert slot.side == held.removesuffix("s")
    if other is not None:
        envoy = SimpleNamespace(**module)
        whole, value = slot.take(envoy, context)
        slot.put(envoy, context, whole, value, other)
        assert vars(envoy).keys() == module.keys()


def test_a_slot_for_another_number_of_rows():
    heads = slot_cases.Heads("o", "input", 1, 0, WIDTH, D_HEAD, 0)
    for slot, changed in [
        (slots.OutputSlot(0.3, 2), slots.OutputSlot(0.3, 5)),
        (slots.MidSlot(slots.OutputSlot(0.3, 2)), slots.MidSlot(slots.OutputSlot(0.3, 5))),
        (slots.HeadsSlot(heads, 2), slots.HeadsSlot(heads, 5)),
        (slots.OutputSlot(0.3), slots.OutputSlot(0.3)),
        (slots.InputSlot(), slots.InputSlot()),
        (slots.HeadsSlot(heads, None), slots.HeadsSlot(heads, None)),
    ]:
        assert slot.for_rows(5) == changed


def test_only_what_moved_is_written():
    """What rounds on the way to the site and back stays to the bit at the other positions."""
    entered, output = draw(1, 50, 64), draw(1, 50, 63 + 1) + 0.1
    for slot in (slots.MidSlot(slots.OutputSlot(0.263)), slots.OutputSlot(0.263)):
        module = SimpleNamespace(output=output)
        whole, value = slot.take(module, {"resid_pre": entered})
        new = value.clone()
        new[0, 7] = 0
        slot.put(module, {"resid_pre": entered}, whole, value, new)
        others = torch.arange(50) != 7
        assert torch.equal(module.output[:, others], output[:, others])
        assert not torch.equal(module.output[:, 7], output[:, 7])


@pytest.mark.parametrize("name", ["pattern", "tower pattern", "computed pattern"])
def test_other_weights_give_another_output(name):
    """The mean of the values with them, projected, at the query that was changed alone; later steps get that z."""
    slot, module, context, value, other, _ = cases()[name]
    envoy = SimpleNamespace(**module)
    whole, value = slot.take(envoy, context)
    new = value.clone()
    new[1, 2] = other[1, 2]
    slot.put(envoy, context, whole, value, new)
    before, after = slots.first(module["output"]), slots.first(envoy.output)
    assert (before != after).any(dim=-1).nonzero().tolist() == [[1, 2]]
    v, z = (context[f"{slot.prefix}{site}"] for site in ("v", "z"))
    mean = torch.einsum("bqhk,bkhd->bqhd", new, v)
    torch.testing.assert_close(z, mean)
    torch.testing.assert_close(after, slot.projection(mean.flatten(2)))


def test_another_z_is_projected():
    slot, module, context, _, other, _ = cases()["rebuilt"]
    envoy = SimpleNamespace(**module)
    whole, before = slot.take(envoy, context)
    slot.put(envoy, context, whole, before, other)
    torch.testing.assert_close(envoy.output[0], slot.projection(other.flatten(2)))
    assert envoy.output[1] is module["output"][1]


def test_heads_of_a_group_share_a_value_and_a_window_has_the_last_keys():
    pattern, v = draw(1, 1, 4, 2).softmax(dim=-1), draw(1, 3, 2, D_HEAD)
    mean = slots.mean_of_values(pattern, v)
    for head in range(4):
        torch.testing.assert_close(mean[0, 0, head], pattern[0, 0, head] @ v[0, 1:, head // 2])


def test_weights_of_rotated_queries_and_keys_depend_on_how_far_they_are_apart():
    """Equal vectors everywhere: after a rotation by their positions only the distance between two tokens counts."""
    q = k = torch.ones(1, LENGTH, HEADS, D_HEAD)
    turn = torch.outer(torch.arange(LENGTH).float(), torch.tensor([0.7, 0.2])).repeat(1, 2)[None]
    everyone = torch.ones(1, 1, LENGTH, LENGTH).bool()
    scores = slots.weights_of(q, k, everyone, (turn.cos(), turn.sin()))[0, :, 0].log()
    scores = scores - scores.diagonal()[:, None]
    torch.testing.assert_close(scores[0, 1], scores[1, 2])
    torch.testing.assert_close(scores[0, 1], scores[2, 1])
    assert scores[0, 2] < scores[0, 1] < -0.01
    assert (slots.weights_of(q, k, everyone, None) == 1 / LENGTH).all()


def test_the_angles_are_kept_for_later_steps():
    slot, module, context, *_ = cases()["chunks"]
    slot.take(SimpleNamespace(**module), context)
    assert context["angles"] == "angles"


def test_an_argument_is_found_by_name_or_by_place():
    argument = slots.Argument("mask", 1)
    assert argument.of(("x", "m"), {}) == argument.of(("x",), {"mask": "m"}) == "m"
    assert argument.of(("x",), {}) is None
    assert argument.put(("x", "m"), {}, 1) == (("x", 1), {})
    assert argument.put(("x",), {"mask": "m"}, 1) == argument.put(("x",), {}, 1) == (("x",), {"mask": 1})


def test_what_runs_in_a_trace_carries_no_annotations():
    functions = [
        each for each in vars(slots).values() if inspect.isfunction(each) and each.__module__ == slots.__name__
    ]
    methods = [vars(each)[name] for each in classes() for name in ("take", "put") if name in vars(each)]
    assert len(functions) > 10
    assert len(methods) > 15
    assert not any(function.__annotations__ for function in (*functions, *methods))


def test_a_row_is_a_sequence_where_patches_come_packed():
    assert slots.in_rows(
        draw(ROWS * LENGTH, WIDTH), None, {"vision_mask": torch.ones(ROWS, 1, LENGTH, LENGTH)}
    ).shape == (
        ROWS,
        LENGTH,
        WIDTH,
    )
