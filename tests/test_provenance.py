"""Equal inputs have equal fingerprints, any change gives another one, and a run records its model, inputs and changes."""

import dataclasses
import importlib.metadata
import platform
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from interp.interventions import Skip
from interp.provenance import Provenance, fingerprint, package_versions, provenance_of_run


def batch(**inputs):
    return SimpleNamespace(inputs=inputs)


def example(**changes):
    inputs = {"input_ids": torch.arange(6).reshape(2, 3), "pixel_values": torch.linspace(0, 1, 8).reshape(2, 4)}
    return batch(**{**inputs, **changes})


@given(st.lists(st.integers(-(2**31), 2**31 - 1), min_size=1, max_size=6))
def test_equal_inputs_have_equal_fingerprints(numbers):
    first = batch(ids=torch.tensor(numbers), mask=torch.ones(len(numbers)))
    again = batch(mask=torch.ones(len(numbers)), ids=torch.tensor(numbers))
    strided = batch(ids=torch.tensor(numbers).repeat_interleave(2)[::2], mask=torch.ones(len(numbers)))
    assert fingerprint(first) == fingerprint(again) == fingerprint(strided)
    assert len(fingerprint(first)) == 64


@given(st.integers(0, 5), st.integers(0, 63))
def test_any_bit_changes_the_fingerprint(entry, bit):
    ids = example().inputs["input_ids"].clone()
    ids.view(-1)[entry] ^= torch.tensor(1) << bit
    assert fingerprint(example(input_ids=ids)) != fingerprint(example())


@pytest.mark.parametrize(
    "changes",
    [
        {"input_ids": torch.arange(6).reshape(3, 2)},
        {"input_ids": torch.arange(6).reshape(2, 3).int()},
        {"pixel_values": torch.linspace(0, 1, 8).reshape(2, 4).view(torch.int32)},
        {"pixel_values": -torch.linspace(0, 1, 8).reshape(2, 4)},
        {"more": torch.zeros(0)},
    ],
    ids=["shape", "dtype", "dtype of equal bytes", "sign", "another input"],
)
def test_shape_dtype_and_names_count(changes):
    assert fingerprint(example(**changes)) != fingerprint(example())


def test_the_name_of_an_input_counts():
    assert fingerprint(batch(a=torch.ones(2))) != fingerprint(batch(b=torch.ones(2)))


def test_the_order_and_number_of_batches_count():
    one, other = example(), example(input_ids=torch.zeros(2, 3))
    prints = {fingerprint(*batches) for batches in ([], [one], [other], [one, other], [other, one], [one, one])}
    assert len(prints) == 6


def test_small_dtypes_and_single_numbers_are_hashed():
    for dtype in (torch.bool, torch.bfloat16, torch.uint8):
        assert fingerprint(batch(x=torch.ones(3).to(dtype))) != fingerprint(batch(x=torch.zeros(3).to(dtype)))
    assert fingerprint(batch(x=torch.tensor(1))) != fingerprint(batch(x=torch.tensor(2)))


def test_a_run_records_model_inputs_and_changes():
    vlm = SimpleNamespace(name="toy", revision="abc")
    skip = Skip(layers=[1])
    batches = [example(), example(input_ids=torch.zeros(2, 3))]
    provenance = provenance_of_run(vlm, batches, [skip], seed=3, notes=("by resuming",))
    assert provenance == Provenance(
        model="toy",
        revision="abc",
        data=fingerprint(*batches),
        seed=3,
        interventions=(repr(skip),),
        notes=("by resuming",),
        versions=package_versions(),
    )
    plain = provenance_of_run(vlm, batches)
    assert (plain.seed, plain.interventions, plain.notes) == (None, (), ())
    with pytest.raises(dataclasses.FrozenInstanceError):
        plain.seed = 1


def test_a_run_of_a_model_has_its_provenance(toy):
    prompt = toy.prepare(["where is the 3 ?"])
    provenance = provenance_of_run(toy, [prompt])
    assert (provenance.model, provenance.revision) == (toy.name, toy.revision)
    assert provenance.data == fingerprint(toy.prepare(["where is the 3 ?"]))
    assert provenance.data != fingerprint(toy.prepare(["where is the 4 ?"]))


def test_versions_are_read_once_and_copied_for_each_result():
    versions = package_versions()
    assert versions["python"] == platform.python_version()
    versions["torch"] = "changed"
    assert package_versions() == {**versions, "torch": importlib.metadata.version("torch")}
    assert Provenance().versions is not Provenance().versions
