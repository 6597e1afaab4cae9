"""Which calls take activations, and what the others say."""

from __future__ import annotations

import pytest
import torch

import interp
from interp.errors import InputError, InputTypeError
from interp.geometry import (
    alignment_matrix,
    cka,
    compare,
    curvature,
    density_peaks,
    distinct_rows,
    intrinsic_dimension,
    massive_features,
    modality_gap,
    nearest_neighbors,
    neighbor_overlap,
    standardise,
)


@pytest.fixture(scope="module")
def acts(toy):
    scenes = interp.toy.scenes(40, seed=0, distinct=True)
    return interp.capture(toy, scenes, sites=("resid", "z"), positions="image", progress=False)


@pytest.fixture(scope="module")
def one(acts):
    return acts.select(sites="resid")


def test_functions_of_stacks_take_activations_of_one_site(one):
    stack = one["resid"]
    assert torch.equal(alignment_matrix(one, one, k=5).values, alignment_matrix(stack, stack, k=5).values)
    settings = {"metrics": ["cka"], "subsamples": 0, "permutations": 2}
    assert torch.equal(compare(one, stack, **settings).value, compare(stack, stack, **settings).value)
    assert torch.equal(curvature(one), curvature(stack))
    assert torch.equal(standardise(one), standardise(stack))
    assert torch.equal(massive_features(one), massive_features(stack))
    assert torch.equal(distinct_rows(one), distinct_rows(stack))


def test_the_same_rows_in_another_order_are_no_pairs(one):
    turned = one.select(rows=list(range(39, -1, -1)))
    for call in (
        lambda: alignment_matrix(one, turned, k=5),
        lambda: compare(one, turned, ["cka"], subsamples=0, permutations=2),
    ):
        with pytest.raises(
            InputError, match=r"row 0 of visual has the id .* select those of one in the order of the other"
        ):
            call()
    before, after = (alignment_matrix(each, each, k=5, permutations=0) for each in (one, turned))
    with pytest.raises(InputError, match="the matrices have examples="):
        before.change(after)
    settings = {"metrics": ["cka"], "permutations": 2}
    with pytest.raises(InputError, match="in another order"):
        compare(one, one, **settings).change(compare(turned, turned, **settings))


def test_of_several_sites_one_has_to_be_named(acts):
    for call in (
        lambda: alignment_matrix(acts, acts),
        lambda: compare(acts, acts, labels="x"),
        lambda: curvature(acts),
    ):
        with pytest.raises(InputError, match=r"has 2 sites, resid, z: expected one, as in acts\['resid'\]"):
            call()
    with pytest.raises(InputError, match=r"visual\['z'\] has shape \(8, 40, 4, 32\).*pass one head's"):
        alignment_matrix(acts.select(sites="z"), acts.select(sites="z"))


@pytest.mark.parametrize(
    "call",
    [
        intrinsic_dimension,
        density_peaks,
        lambda x: nearest_neighbors(x, 3),
        lambda x: neighbor_overlap(x, x),
        lambda x: cka(x, x),
        lambda x: modality_gap(x, x),
    ],
)
def test_functions_of_clouds_say_which_calls_are_for_stacks(call, one):
    stacked = "alignment_matrix, compare and curvature take all states"
    with pytest.raises(InputTypeError, match=rf"x is activations of resid: .*acts\['resid'\]\[4\]; {stacked}"):
        call(one)
    with pytest.raises(
        InputError, match=rf"x has shape \(9, 40, 128\): .*one state of a stack, as in x\[4\]; {stacked}"
    ):
        call(one["resid"])


def test_a_cloud_in_place_of_a_stack(one):
    with pytest.raises(InputError, match=r"expected \[state, example, feature\], pass one cloud as x\[None\]"):
        alignment_matrix(one["resid"][3], one["resid"][3])
