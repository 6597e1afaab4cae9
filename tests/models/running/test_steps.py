"""Steps: edits and reads come in forward order, one step a site, and each step leaves its value to those that need it."""

from types import SimpleNamespace

import pytest
import torch

import interp
from interp.models.running.places import CALL
from interp.models.running.slots import InputSlot, OutputSlot, PatternSlot, RebuiltSlot
from interp.models.running.steps import (
    Edit,
    Read,
    Step,
    follow,
    reads_of_states,
    reads_of_vision,
    schedule,
    take_each,
    take_mean,
    whole,
    write,
)
from interp.models.running.trace import run_forward

# What is done to a value -------------------------------------------------------------------------------------------------


def test_pooling_is_the_mean_over_the_mask():
    torch.manual_seed(0)
    value, mask = torch.randn(2, 5, 3), torch.tensor([[1, 1, 0, 0, 0], [0, 0, 0, 1, 1]]).bool()
    expected = torch.stack([value[0, :2].mean(0), value[1, 3:].mean(0)])
    torch.testing.assert_close(take_mean(value, mask, None), expected)
    assert take_mean(value.bfloat16(), mask, None).dtype == torch.bfloat16
    assert take_mean(value.bfloat16(), mask, torch.float32).dtype == torch.float32


def test_edits_of_one_site_are_applied_in_order(toy, mixed):
    rows, columns = mixed.positions["last"].nonzero(as_tuple=True)
    ones, twos = (Edit("resid_post", 1, write, (rows, columns, torch.full((3, 128), value))) for value in (1.0, 2.0))
    read = [Read("state", "resid_post", 1, take_each, (rows, columns, None))]
    assert (run_forward(toy, mixed, [ones, twos], read)["state"] == 2).all()
    assert (run_forward(toy, mixed, [twos, ones], read)["state"] == 1).all()


# The order of steps ------------------------------------------------------------------------------------------------------


def test_steps_are_in_forward_order_whatever_the_order_of_reads(toy):
    sites = [
        "vision_pre",
        "projector",
        "resid_pre",
        "q",
        "k",
        "v",
        "z",
        "attn_out",
        "resid_mid",
        "mlp_out",
        "resid_post",
    ]
    reads = [Read((site, layer), site, layer, whole) for layer in (1, 0) for site in reversed(sites)]
    keys = [read.key for step in schedule(toy, 1, [], reads) for read in step.reads]
    blocks = [("vision_pre", 0), ("vision_pre", 1), ("projector", 1), ("projector", 0)]
    assert keys == blocks + [(site, layer) for layer in (0, 1) for site in sites[2:]]


def test_a_site_is_one_step_with_all_its_edits_and_reads(toy):
    edits = [Edit("resid_pre", 3, torch.neg), Edit("resid_pre", 3, torch.abs)]
    reads = [Read("a", "resid_pre", 3, whole), Read("b", "resid_pre", -5, whole)]  # of 8 layers, -5 is 3
    (step,) = schedule(toy, 1, edits, reads)
    assert (step.edits, step.reads, step.name) == (edits, reads, None)
    assert step.slot == InputSlot()


def test_a_call_comes_before_what_enters_the_layer(toy):
    steps = schedule(toy, 1, [], [Read(site, site, 2, whole) for site in ("resid_pre", CALL)])
    assert [read.key for step in steps for read in step.reads] == [CALL, "resid_pre"]


def test_what_a_later_step_needs_is_kept(toy):
    steps = schedule(
        toy, 1, [Edit("resid_post", 2, torch.add, (), ("resid_pre", "past"))], [Read(0, "resid_mid", 2, whole)]
    )
    assert [step.name for step in steps] == ["resid_pre", None, None]


def test_z_of_edited_weights_comes_after_them(toy):
    reads = [Read("z", "z", 2, whole)]
    assert [type(step.slot).__name__ for step in schedule(toy, 1, [], reads)] == ["HeadsSlot"]
    steps = schedule(toy, 1, [Edit("pattern", 2, torch.neg)], reads)
    assert [type(step.slot) for step in steps][-2:] == [PatternSlot, RebuiltSlot]
    assert [step.name for step in steps] == ["v", "z", None, None]


def test_the_mask_of_the_tower_is_read_alone(toy):
    with pytest.raises(interp.InputError, match=r"site='vision_mask' .* can only be read: edit vision_pattern"):
        schedule(toy, 1, [Edit("vision_mask", 0, torch.neg)], [])


# Following them ----------------------------------------------------------------------------------------------------------


def test_a_step_is_edited_then_kept_then_read():
    first, second = (SimpleNamespace(input=torch.ones(2), output=torch.full((2,), number)) for number in (3.0, 5.0))
    double = Edit("resid_pre", 0, torch.mul, (2,))
    added = Edit("resid_post", 0, torch.add, (), ("resid_pre",))
    steps = [
        Step(first, InputSlot(), "resid_pre", [double, double], [Read("before", "resid_pre", 0, torch.neg)]),
        Step(second, OutputSlot(), None, [added], [Read("after", "resid_post", 0, whole)]),
    ]
    saved = {}
    follow(steps, saved)
    assert first.input.tolist() == [4, 4]
    assert second.output.tolist() == [9, 9]
    assert {key: value.tolist() for key, value in saved.items()} == {"before": [-4, -4], "after": [9, 9]}


def test_values_of_the_past_are_put_before_new_ones():
    """In generation a step gets one position, and weights need the values of all."""
    module, values, seen = SimpleNamespace(output=torch.ones(1, 2, 1, 1)), {}, []
    keep = Edit(
        "pattern", 0, lambda value, v, past: (seen.append((v.flatten().tolist(), past)), value)[1], (), ("v", "past")
    )
    steps = [Step(module, OutputSlot(), "v"), Step(SimpleNamespace(output=torch.zeros(1)), OutputSlot(), None, [keep])]
    follow(steps, {}, 0, values)
    module.output = torch.full((1, 1, 1, 1), 2.0)
    follow(steps, {}, 2, values)
    assert seen == [([1, 1], 0), ([1, 1, 2], 2)]


# Reads of the stream -----------------------------------------------------------------------------------------------------


def test_a_state_is_read_where_it_leaves_the_layer_before(toy):
    edits = [Edit("resid_pre", -4, whole), Edit("resid_post", 6, whole)]
    places = [(read.key, read.site, read.layer) for read in reads_of_states(toy, whole, (), edits)]
    assert places[:2] == [(0, "resid_pre", 0), (1, "resid_post", 0)]
    assert places[4] == (4, "resid_pre", 4)
    assert places[-1] == (8, "resid_post", 7)
    assert [key for key, *_ in places] == list(range(9))


def test_states_of_the_tower_are_numbered_as_those_of_the_stream(toy):
    depth = len(toy.blocks)
    places = [(read.key, read.site, read.layer) for read in reads_of_vision(toy, whole, ())]
    assert places[:2] == [(0, "vision_pre", 0), (1, "vision_post", 0)]
    assert places[-1] == (depth, "vision_post", depth - 1)
    edited = reads_of_vision(toy, whole, (), [1], [Edit("vision_pre", 1, whole)])
    assert [(read.key, read.site, read.layer) for read in edited] == [(1, "vision_pre", 1)]
    with pytest.raises(interp.InputError, match=f"state {depth + 1}: the image tower of 'toy' has states 0 to {depth}"):
        reads_of_vision(toy, whole, (), [depth + 1])
