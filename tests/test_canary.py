"""Every name of nnsight that this package uses, used once on the smallest module: a new nnsight fails here first.

The name of each test says what the package relies on. If one fails after an upgrade, look for the name in
`interp/models/running/trace.py`, or in `loading.py` for the two ways to load a model.
"""

import ast
from pathlib import Path

import nnsight
import pytest
import torch
from torch import nn

import interp

# The names of nnsight that this package may use. A new name needs a test here.
USED = {"save", "ndif", "NNsight", "TransformersModel"}


class Two(nn.Module):
    """Two blocks; the second takes a keyword and returns a tuple."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(3, 3), Second()

    def forward(self, x):
        return self.second(self.first(x), mask=torch.ones(3))[0]


class Second(nn.Module):
    def forward(self, x, mask=None):
        return x * mask, mask


@pytest.fixture
def wrapped():
    torch.manual_seed(0)
    return nnsight.NNsight(Two())


X = torch.ones(2, 3)


def test_only_these_names_are_used():
    named = set()
    for path in Path(interp.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "nnsight":
                assert node.module == "nnsight", f"{path}: {node.module} is not public"
                named |= {alias.name for alias in node.names}
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "nnsight":
                named.add(node.attr)
    assert named <= USED


def test_a_model_in_hand_is_wrapped_and_unwrapped(wrapped):
    assert isinstance(wrapped._module, Two)
    assert wrapped.first.path.endswith("first")


def test_a_trace_reads_and_saves_a_dictionary(wrapped):
    with torch.no_grad(), wrapped.trace(X):
        saved = nnsight.save({})
        saved["first"] = wrapped.first.output.clone()
        saved["second"] = wrapped.second.output[0]
        saved["out"] = wrapped.output
    with torch.no_grad():
        assert torch.equal(saved["first"], wrapped._module.first(X))
    assert torch.equal(saved["second"], saved["out"])


def test_an_input_and_an_output_are_replaced(wrapped):
    with torch.no_grad(), wrapped.trace(X):
        wrapped.first.input = torch.zeros(2, 3)
        wrapped.second.output = (wrapped.second.output[0] + 1, None)
        out = nnsight.save(wrapped.output)
    assert torch.allclose(out, wrapped._module.first.bias + 1)


def test_keywords_are_replaced(wrapped):
    with torch.no_grad(), wrapped.trace(X):
        args, kwargs = wrapped.second.inputs
        wrapped.second.inputs = (args, {**kwargs, "mask": torch.zeros(3)})
        out = nnsight.save(wrapped.output)
    assert (out == 0).all()


def test_a_part_named_as_what_every_envoy_serves_stands_beside_it():
    module = nn.Sequential(nn.Linear(3, 3))
    module.add_module("output", nn.Linear(3, 3))
    with pytest.warns(UserWarning, match="submodule named 'output'"):
        wrapped = nnsight.NNsight(module)
    with torch.no_grad(), wrapped.trace(X):
        wrapped.E_output.input = torch.zeros(2, 3)
        out = nnsight.save(wrapped.output)
    assert torch.equal(out, module.output.bias.expand(2, 3))


def test_a_function_called_in_a_trace_does_the_same(wrapped):
    def scale(envoy, saved):
        envoy.output = envoy.output * 0
        saved["done"] = envoy.output

    with torch.no_grad(), wrapped.trace(X):
        saved = nnsight.save({})
        scale(wrapped.first, saved)
    assert (saved["done"] == 0).all()


def test_a_trace_is_stopped(wrapped):
    with torch.no_grad(), wrapped.trace(X) as tracer:
        first = nnsight.save(wrapped.first.output)
        tracer.stop()
    assert first.shape == (2, 3)


def test_a_cache_keeps_visits_in_order(wrapped):
    with torch.no_grad(), wrapped.trace(X) as tracer:
        cache = tracer.cache(modules=[wrapped.second, wrapped.first], include_inputs=True).save()
    assert list(cache.keys()) == [wrapped.first.path, wrapped.second.path]
    assert len(cache[wrapped.first.path]) == 1
    assert torch.equal(cache[wrapped.first.path].input, X)
    assert isinstance(cache[wrapped.second.path].output, tuple)


def test_a_cache_is_read_inside_its_own_trace(wrapped):
    with torch.no_grad(), wrapped.trace(X) as tracer:
        cache = tracer.cache(modules=[wrapped.first], include_inputs=True)
        wrapped.second.input
        shapes = nnsight.save([(path, len(cache[path]), tuple(cache[path].output.shape)) for path in cache.keys()])  # noqa: SIM118
        tracer.stop()
    assert shapes == [(wrapped.first.path, 1, (2, 3))]


def test_a_transformers_model_generates(toy):
    batch = toy.prepare(["where is the 3 ?"])
    with torch.no_grad(), toy.nnsight.generate(**toy.inputs_of(batch), max_new_tokens=2, do_sample=False) as tracer:
        ids = nnsight.save(tracer.result)
    assert ids.shape[1] <= batch.inputs["input_ids"].shape[1] + 2
    assert isinstance(toy.nnsight, nnsight.TransformersModel)


def test_each_step_of_a_generation_is_edited_and_another_block_reads_what_comes_out(toy):
    batch = toy.prepare(["where is the 3 ?"])
    lengths = []
    with torch.no_grad(), toy.nnsight.generate(max_new_tokens=3, min_new_tokens=3, do_sample=False) as tracer:
        with tracer.invoke(**toy.inputs_of(batch)):
            for step in tracer.iter[:3]:
                lengths.append((step, toy.layers[0].input.shape[1]))
                toy.layers[0].output = toy.layers[0].output * 0
        with tracer.invoke():
            ids = nnsight.save(tracer.result)
    length = batch.inputs["input_ids"].shape[1]
    assert lengths == [(0, length), (1, 1), (2, 1)]
    assert ids.shape[1] == length + 3


def test_a_loop_that_ends_early_says_so_in_these_words(toy, recwarn):
    batch = toy.prepare(["where is the 3 ?"])
    with torch.no_grad(), toy.nnsight.generate(max_new_tokens=1, do_sample=False) as tracer:
        with tracer.invoke(**toy.inputs_of(batch)):
            for _ in tracer.iter[:3]:
                toy.layers[0].input
        with tracer.invoke():
            ids = nnsight.save(tracer.result)
    messages = [str(warning.message) for warning in recwarn]
    assert any("was never reached: the loop asked for a step the run did not make" in each for each in messages)
    assert ids.shape[1] == batch.inputs["input_ids"].shape[1] + 1


def test_a_package_is_registered_and_traced_as_if_remote(remote_toy):
    nnsight.ndif.register(interp)
    batch = remote_toy.prepare(["where is the 3 ?"])
    with torch.no_grad(), remote_toy.nnsight.trace(**remote_toy.inputs_of(batch), remote="local"):
        state = nnsight.save(remote_toy.layers[0].output)
    assert state.shape[-1] == remote_toy.structure.d_model
