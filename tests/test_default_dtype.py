"""The default dtype of torch belongs to the user: no number depends on it, and nothing breaks under it."""

from __future__ import annotations

import ast
from pathlib import Path

import numpy as np
import pytest
import torch

import interp
from interp import geometry, lens, patching, probes
from interp.interventions import Ablate, Reweight, Scale

MAKERS = {"zeros", "ones", "empty", "rand", "randn", "linspace", "logspace", "eye", "normal"}
ROOT = Path(interp.__file__).parent


@pytest.fixture
def default_dtype():
    before = torch.get_default_dtype()
    yield torch.set_default_dtype
    torch.set_default_dtype(before)


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float32)


def calls(vlm):
    pair = interp.toy.pairs(1, seed=0, change="colour")[0]
    clean = vlm.prepare([pair.prompt], [pair.clean.image])
    corrupted = vlm.prepare([pair.prompt], [pair.corrupted.image])
    metric, scenes = patching.logit_difference(pair.answer, pair.other), interp.toy.scenes(8, seed=1, objects=1)
    x, y, lattice = draw(70, 6), draw(70, 6, seed=1), draw(70, 3).round()
    z = interp.capture(vlm, scenes, sites=("z",), positions="last", reduce="last", progress=False)

    def changed(*interventions):
        return vlm.logits(clean, list(interventions))

    yield "scale", lambda: changed(Scale(site="z", layers=2, positions="all", factor=0.3))
    yield "zero", lambda: changed(Ablate(site="z", layers=2, positions="all"))
    yield "reweight", lambda: changed(Reweight(kind="random", layers=[1, 2], seed=3))
    yield "sweep", lambda: patching.patch_sweep(vlm, clean, corrupted, layers=[2, 3], positions="last", metric=metric)
    yield "flow", lambda: patching.flow(vlm, clean, window=8, metric=patching.probability(pair.answer))
    yield "attribution_patch", lambda: patching.attribution_patch(vlm, clean, corrupted, layers=[2], metric=metric)
    yield "tuned", lambda: lens.TunedLens.fit(vlm, scenes, positions="last", epochs=1)
    yield "attribution", lambda: lens.direct_logit_attribution(vlm, clean, pair.answer)
    yield "shares", lambda: lens.attention_share(vlm, clean, queries="last", keys="image")
    yield "pursuit", lambda: lens.head_pursuit(vlm, z, ["red", "blue", "green"], 2)
    yield "projector", lambda: lens.projector_report(vlm, scenes, batch_size=8, k=5)
    yield "load", lambda: interp.load("toy", device="cpu").logits(clean)
    yield "probe", lambda: probes.probe_layers(torch.stack([x, y]), [0, 1] * 35, permutations=5)
    yield "dimension", lambda: geometry.intrinsic_dimension(x)
    yield (
        "ties",
        lambda: [geometry.neighbor_overlap(lattice, x, k=5), geometry.label_overlap(lattice, [0, 1] * 35, k=5)],
    )
    yield (
        "matrix",
        lambda: geometry.alignment_matrix(torch.stack([x, y]), torch.stack([y, x]), k=5, subsamples=3).bypass(),
    )
    yield (
        "compare",
        lambda: geometry.compare(x[None], y[None], metrics=["cka", "procrustes"], subsamples=2, permutations=2),
    )
    yield "weights", lambda: geometry.learn_weights(x, y, steps=3, shuffles=1)
    yield "copies", lambda: geometry.distinct_rows(torch.cat([x, x * (1 + 1e-7)]))


def numbers(value):
    """All arrays and frames of a result."""
    if isinstance(value, torch.Tensor):
        return [(value.dtype, value.double().nan_to_num(nan=-9.0).tolist())]
    if isinstance(value, list):
        return [number for each in value for number in numbers(each)]
    if isinstance(value, float):
        return [value]
    tensors = [
        getattr(value, name) for name in value.__dataclass_fields__ if isinstance(getattr(value, name), torch.Tensor)
    ]
    return [*numbers(tensors), value.to_frame().select_dtypes("number").fillna(-9.0).to_numpy().tolist()]


@pytest.fixture(scope="module")
def expected(toy):
    return {name: numbers(call()) for name, call in calls(toy)}


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_no_number_depends_on_the_default_dtype(dtype, toy, expected, default_dtype):
    default_dtype(dtype)
    for name, call in calls(toy):
        assert numbers(call()) == expected[name], name


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
def test_gradients_are_taken_where_the_caller_has_turned_them_off(mode, toy, expected):
    for name, call in calls(toy):
        if name in ("weights", "attribution_patch", "attribution", "tuned"):
            with mode():
                assert numbers(call()) == expected[name], name


def test_inputs_may_come_from_inference_mode():
    with torch.inference_mode():
        x = draw(60, 4).double()
    assert np.isfinite(geometry.learn_weights(x, x[:, :2], steps=2, shuffles=1).held_out)


def test_every_new_tensor_of_floats_states_its_dtype():
    for path in ROOT.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if not (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and isinstance(node.func.value, ast.Name)
            ):
                continue
            if node.func.value.id == "torch" and node.func.attr in MAKERS:
                assert any(word.arg == "dtype" for word in node.keywords), f"{path.relative_to(ROOT)}:{node.lineno}"
