"""What holds around a run: no gradients, eager attention where weights are read, no collection of garbage; all ends with it."""

import gc

import pytest
import torch

import interp
from interp.models import Edit, Read
from interp.models.running.attention import implementation
from interp.models.running.steps import whole
from interp.models.running.surroundings import around_run


def state_of(vlm):
    return torch.is_grad_enabled(), gc.isenabled(), implementation(vlm)


@pytest.mark.parametrize(
    ("edits", "reads", "inside"),
    [
        ((), (), "sdpa"),
        ((), (Read("p", "pattern", 3, whole),), "eager"),
        ((Edit("pattern", 3, whole),), (), "eager"),
        ((), (Read("s", "resid_post", 3, whole),), "sdpa"),
    ],
)
def test_what_holds_around_a_run_ends_with_it(toy, mixed, edits, reads, inside):
    before = state_of(toy)
    assert before == (True, True, "sdpa")
    with around_run(toy, mixed.inputs, edits, reads):
        assert state_of(toy) == (False, False, inside)
    assert state_of(toy) == before
    with pytest.raises(ZeroDivisionError), around_run(toy, mixed.inputs, edits, reads):
        raise ZeroDivisionError
    assert state_of(toy) == before


def test_gradients_that_are_switched_on_inside_end_with_the_run(toy, mixed):
    with torch.no_grad():
        with around_run(toy, mixed.inputs):
            torch.set_grad_enabled(True)
        assert not torch.is_grad_enabled()
    assert torch.is_grad_enabled()


def test_whoever_collects_no_garbage_still_collects_none(toy, mixed):
    gc.disable()
    try:
        with around_run(toy, mixed.inputs):
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_a_complaint_about_inputs_becomes_one_line(toy, mixed):
    message = "as many as this model makes of the images: 3 places, 16 features"
    with pytest.raises(interp.InputError, match=message), around_run(toy, mixed.inputs):
        raise ValueError("image tokens do not match: tokens: 3, features: 16")
