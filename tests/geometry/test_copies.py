from __future__ import annotations

import pytest
import torch

import interp
from interp.errors import InputError
from interp.geometry import (
    alignment_matrix,
    cka,
    compare,
    density_peaks,
    differentiable_imbalance,
    dimension_scaling,
    distinct_rows,
    id_correlation,
    information_imbalance,
    intrinsic_dimension,
    log_density,
    nearest_neighbors,
    neighbor_overlap,
    participation_ratio,
)
from interp.geometry.copies import COPIES, copy_tolerance, duplicates, is_one_point

DRAW = torch.Generator()


@pytest.fixture(autouse=True)
def seeded():
    DRAW.manual_seed(0)


def normal(*shape):
    return torch.randn(*shape, generator=DRAW)


def twins(cloud, part):
    """A cloud and its copies, each value off by this part of it."""
    return torch.cat([cloud, cloud * (1 + part * normal(*cloud.shape).to(cloud))])


def far(cloud, offset):
    return cloud + offset


SINGLE = 2e-7  # a unit or two in the last place of float32


@pytest.mark.parametrize(
    "cloud",
    [
        lambda: twins(normal(60, 10), SINGLE),
        lambda: twins(normal(60, 10), SINGLE).double(),
        lambda: twins(normal(60, 10), SINGLE) * 1e20,
        lambda: twins(normal(60, 10), SINGLE) * 1e-30,
        lambda: twins(far(normal(60, 10), 100), 1e-7),
        lambda: twins(far(normal(60, 10), 1e4), 1e-7),
        lambda: twins(normal(60, 10).double(), 3e-16),
        lambda: twins(normal(60, 10), 2e-3).bfloat16(),
        lambda: twins(normal(60, 10), 2e-3).bfloat16().float(),
        lambda: twins(normal(60, 10), 3e-4).half().double(),
        lambda: twins(torch.exp(2 * normal(60, 1)) * normal(60, 10), SINGLE),
        lambda: twins(torch.exp(3 * normal(60, 10)), SINGLE),
        lambda: twins(normal(60, 64) + 1e4 * torch.eye(64)[3], 1e-7),
        lambda: twins(normal(60, 512), SINGLE),
    ],
    ids=range(14),
)
def test_rows_that_are_equal_but_for_rounding_are_copies_at_any_scale(cloud):
    cloud = cloud()
    assert distinct_rows(cloud).tolist() == list(range(60))
    with pytest.raises(InputError, match=r"120 of 120 examples equal another .*, some but for rounding.*distinct_rows"):
        intrinsic_dimension(cloud)


@pytest.mark.parametrize(
    "cloud",
    [
        lambda: far(normal(200, 10), 1e3),
        lambda: far(normal(200, 10), 1e6),  # float32 is as coarse as the cloud: what differs, differs
        lambda: normal(200, 3).bfloat16().float(),
        lambda: (3 * normal(1, 64) + 0.3 * normal(300, 64)).bfloat16().float(),
        lambda: normal(200, 64) + 1e4 * torch.eye(64)[3],
        lambda: (normal(200, 64) + 1e4 * torch.eye(64)[3]).bfloat16().float(),
        lambda: torch.exp(2 * normal(300, 1)) * normal(300, 10),
        lambda: (
            torch.cat([normal(60, 10)] * 2) * (1 + 1e-5 * normal(120, 10))
        ),  # close pairs, by far more than rounding
        lambda: torch.cat([normal(60, 10).double()] * 2) * (1 + 1e-9 * normal(120, 10).double()),
        lambda: torch.cat([normal(1, 20) + 1e-5 * normal(50, 20) for _ in range(6)]),
        lambda: torch.cartesian_prod(*[torch.arange(17.0)] * 3) / 16,
        lambda: torch.rand(1500, 1, generator=DRAW),  # pairs at every distance, however small
        lambda: torch.stack([(angle := 6.28 * torch.rand(2000, generator=DRAW)).cos(), angle.sin()], dim=1),
    ],
    ids=range(13),
)
def test_real_structure_is_no_rounding(cloud):
    assert not len(duplicates(cloud()))


def test_the_precision_is_the_coarsest_that_holds_all_values():
    x = normal(20, 5)
    for kind in (torch.bfloat16, torch.float16):
        assert copy_tolerance(x.to(kind).float()) == copy_tolerance(x.to(kind).double()) == COPIES[kind]
    assert copy_tolerance(x.double()) == copy_tolerance(x) == COPIES[torch.float32]
    assert copy_tolerance(x.double() / 3) == COPIES[torch.float64]
    assert copy_tolerance(x.round().double()) == 0


def test_of_copies_the_first_stays_and_a_chain_does_not_collapse():
    x = normal(30, 8)
    three = torch.cat([x, twins(x, 1e-7)])
    assert distinct_rows(three).tolist() == list(range(30))
    step = COPIES[torch.float32] * 0.7
    chain = torch.cat([x, x[:1] * (1 + step), x[:1] * (1 + 2 * step)])
    assert distinct_rows(chain).tolist() == [*range(30), 31]  # the last is a copy of a copy, and of no row that stays


def test_copies_are_dropped_in_all_clouds_jointly_and_by_direction():
    x, y = normal(40, 6), normal(40, 6)
    x[7] = x[3] * (1 + 1e-7)
    y[9] = y[8] * (1 - 1e-7)
    rows = distinct_rows(x, y[None])
    assert rows.tolist() == [row for row in range(40) if row not in (7, 9)]
    assert id_correlation(x[rows], y[rows], permutations=2).n == 38
    x[20] = x[21] * 3
    with pytest.raises(InputError, match=r"point the same way .* metric='cosine'"):
        intrinsic_dimension(x[rows], metric="cosine")
    kept = distinct_rows(x[rows], metric="cosine")
    assert len(kept) == 37
    assert intrinsic_dimension(x[rows][kept], metric="cosine").value > 0


@pytest.mark.parametrize(
    "measure",
    [
        intrinsic_dimension,
        lambda x: intrinsic_dimension(x, "mle"),
        lambda x: intrinsic_dimension(x, "gride"),
        lambda x: intrinsic_dimension(nearest_neighbors(x, 2)),
        dimension_scaling,
        log_density,
        lambda x: log_density(x, method="pak"),
        density_peaks,
        lambda x: id_correlation(x, x),
        lambda x: differentiable_imbalance(x, x, k=1),
    ],
    ids=range(10),
)
def test_measures_refuse_them_as_they_refuse_equal_rows(measure):
    with pytest.raises(InputError, match=r"of 120 (examples|rows)"):
        measure(twins(normal(60, 10), SINGLE))


def test_overlaps_treat_them_as_they_treat_equal_rows():
    x, y = normal(60, 10), normal(60, 8)
    exact, nearly = torch.cat([x, x]), twins(x, SINGLE)
    other = torch.cat([y, y])
    for k in (1, 5):
        assert neighbor_overlap(nearly, other, k=k) == pytest.approx(neighbor_overlap(exact, other, k=k), abs=1e-9)
        assert information_imbalance(nearly, other, k) == pytest.approx(
            information_imbalance(exact, other, k), abs=1e-6
        )
    ours, theirs = (alignment_matrix(cloud[None], other[None], k=5, subsamples=0).values for cloud in (nearly, exact))
    torch.testing.assert_close(ours, theirs)
    compared = compare(nearly[None], other[None], metrics=["2nn"], subsamples=0)
    assert compared.n == 60
    assert compared.dropped.tolist() == list(range(60, 120))


def test_a_cloud_of_one_point_but_for_rounding_has_no_shape():
    cloud = normal(1, 32).repeat(50, 1) * (1 + 1e-7 * normal(50, 32))
    assert is_one_point(cloud)
    for measure in (participation_ratio, lambda x: cka(x, normal(50, 4))):
        with pytest.raises(InputError, match="rows of x are all equal"):
            measure(cloud)
    assert neighbor_overlap(cloud, 2 * cloud, k=5) == pytest.approx(5 / 49)  # chance
    assert not is_one_point(far(normal(50, 32), 1e5))


def test_copies_with_larger_changes_are_warned_of():
    cloud = twins(normal(100, 10), 1e-4)
    estimate = intrinsic_dimension(cloud)
    assert estimate.value < 1
    assert "200 of 200 points have one neighbour over 50 times nearer" in estimate.warning
    assert not intrinsic_dimension(cloud, "gride").twins
    for d in (1, 2, 10):
        assert "nearer" not in intrinsic_dimension(normal(500, d).double() / 3).warning


def test_one_picture_in_two_batches_is_one_point(toy):
    pictures = [image for image, _ in interp.toy.scenes(40, seed=0, distinct=True).pairs()]
    texts = ("<image>", "<image> what colour is the 3 ? what colour is the 3 ?")
    data = [(image, text) for text in texts for image in pictures]
    states = interp.capture(toy, data, positions="image", reduce="last", progress=False)["resid"]
    assert not torch.equal(states[8, :40], states[8, 40:])
    for state in (2, 4, 8):
        for kind in (torch.float32, torch.bfloat16, torch.float16):
            assert distinct_rows(states[state].to(kind)).tolist() == list(range(40))
