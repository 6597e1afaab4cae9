"""Nuisances: what two clouds share through a caption's length alone is no finding, and what they share beyond it stays one."""

import numpy as np
import pytest
import torch

import interp
from interp import geometry
from interp.geometry.nuisance import notes_of_strata

N, DRAWS = 90, 39


def clouds(seed, shared=0.0):
    """Two clouds that are driven by one length of each example, and otherwise share `shared` of their features."""
    rng = np.random.default_rng(seed)
    length = rng.integers(4, 9, size=N)
    common = rng.normal(size=(N, 6))
    made = []
    for _ in range(2):
        own = rng.normal(size=(N, 6))
        direction = 2 * rng.normal(size=6)
        made.append(np.outer(length - 6.0, direction) + np.sqrt(1 - shared) * own + np.sqrt(shared) * common)
    return made[0][None], made[1][None], length


def small(matrix):
    return float(matrix.p_family[0, 0]) <= 0.05


@pytest.mark.parametrize("metric", ["neighbor_overlap", "cka"])
def test_a_nuisance_is_not_found_within_its_strata(metric):
    """p <= .05 in all draws without strata, in 5 % with them; and the chance level is that of shuffles within strata."""
    options = {"metric": metric, "permutations": DRAWS, "subsamples": 0, "k": None if metric == "cka" else 10}
    plain, within, off = [], [], []
    for seed in range(200):
        x, y, length = clouds(seed)
        plain.append(seed < 20 and small(geometry.alignment_matrix(x, y, **options)))
        matrix = geometry.alignment_matrix(x, y, strata=length, **options)
        within.append(small(matrix))
        off.append(float(matrix.values[0, 0]) - matrix.chance)
    assert np.mean(plain[:20]) > 0.95
    assert 0.02 <= np.mean(within) <= 0.085
    assert abs(np.mean(off)) < 0.01


def test_what_is_shared_beyond_the_nuisance_is_found():
    found = []
    for seed in range(20):
        x, y, length = clouds(seed, shared=0.6)
        found.append(small(geometry.alignment_matrix(x, y, k=10, permutations=DRAWS, subsamples=0, strata=length)))
    assert np.mean(found) > 0.9


def test_compare_shuffles_rows_labels_and_pairs_within_strata():
    metrics = ["cka", "neighbor_overlap", "label_overlap", "paired_cosine"]
    reached = {False: [], True: []}
    for seed in range(60):
        x, y, length = clouds(seed)
        labels = (length + np.random.default_rng(seed).integers(-1, 2, size=N) > 6).tolist()
        for strata in (None, length) if seed < 10 else (length,):
            frame = geometry.compare(
                x, y, metrics=metrics, labels=labels, subsamples=0, permutations=DRAWS, strata=strata
            ).to_frame()
            reached[strata is not None].append((frame.groupby("measure")["p"].mean() <= 0.05).astype(float))
    without, within = (sum(each) / len(each) for each in (reached[False], reached[True]))
    assert (without[["cka", "neighbor_overlap", "label_overlap"]] > 0.9).all()
    assert (within < 0.13).all()
    assert within.mean() < 0.09


def test_the_gap_takes_strata():
    gaps = []  # of clouds that share length alone
    for seed in range(40):
        x, y, length = clouds(seed)
        gaps.append(
            [
                geometry.modality_gap(x[0] + 1, (x[0] + y[0]) / 2, 19, strata=each).shuffled_cosine
                for each in (None, length)
            ]
        )
    without, within = np.mean(gaps, axis=0)
    assert within > without + 0.1


def test_the_correlation_by_dimension_takes_strata():
    """Where each row may only change places with its nearest one, a shuffle keeps what both clouds share."""
    shared = np.sort(np.random.default_rng(0).normal(size=(200, 1)), axis=0)
    x, y = (shared + 0.05 * np.random.default_rng(seed).normal(size=(200, 1)) for seed in (1, 2))
    without, within = (
        geometry.id_correlation(x, y, 19, "mle", strata=s).null.mean() for s in (None, np.arange(200) // 2)
    )
    assert within > without + 0.2


def test_strata_may_be_named_by_a_label_and_are_noted(toy):
    scenes = interp.toy.scenes(40, seed=0)
    acts = interp.capture(toy, scenes, layers=[0, 4], progress=False)
    name, values = next((name, each) for name, each in acts.labels.items() if 1 < len(set(each)) < 20)
    matrix = geometry.alignment_matrix(acts, acts, k=5, permutations=9, subsamples=2, strata=name)
    given = geometry.alignment_matrix(acts, acts, k=5, permutations=9, subsamples=2, strata=list(values))
    assert torch.equal(matrix.null, given.null)
    assert any(f"within {len(set(values))} strata" in note for note in matrix.provenance.notes)
    assert "3 of 5 examples are alone" in notes_of_strata(np.array([0, 0, 1, 2, 3]))[0]


def test_strata_that_do_nothing_are_refused():
    x = torch.randn(1, 40, 5)
    with pytest.raises(interp.InputError, match="no rows are shuffled for this measure"):
        geometry.alignment_matrix(x, x + 1, metric="centroid_distance", strata=[0, 1] * 20)
    with pytest.raises(interp.InputError, match="alone in its stratum"):
        geometry.alignment_matrix(x, x, k=5, strata=range(40))
    with pytest.raises(interp.InputError, match="39 strata for 40 examples"):
        geometry.compare(x, x, metrics=["cka"], strata=[0] * 39)


def test_a_nuisance_that_is_partialled_out_is_gone():
    found = []
    for seed in range(200):
        x, y, length = clouds(seed)
        rest = (geometry.partial_out(each, length) for each in (x, y))
        found.append(small(geometry.alignment_matrix(*rest, metric="cka", permutations=DRAWS, subsamples=0)))
    assert 0.01 <= np.mean(found) <= 0.09
    shared = [clouds(seed, shared=0.6) for seed in range(20)]
    kept = [[geometry.partial_out(each, length) for each in (x, y)] for x, y, length in shared]
    assert all(small(geometry.alignment_matrix(x, y, metric="cka", permutations=19, subsamples=0)) for x, y in kept)


def test_residuals_are_those_of_least_squares():
    rng = np.random.default_rng(0)
    x, nuisance = rng.normal(size=(3, 50, 4)) + 5, rng.normal(size=(50, 2)) * 1e6
    design = np.column_stack([np.ones(50), nuisance])
    wanted = np.stack([each - design @ np.linalg.lstsq(design, each, rcond=None)[0] for each in x])
    np.testing.assert_allclose(geometry.partial_out(x, nuisance), wanted, atol=1e-9)
    doubled = np.column_stack([nuisance, nuisance[:, 0] * 2, np.ones(50)])  # the same space, and constant columns
    np.testing.assert_allclose(geometry.partial_out(x[0], doubled), wanted[0], atol=1e-9)
    assert geometry.partial_out(x.astype(np.float32), nuisance).dtype == torch.float32


@pytest.mark.parametrize(
    ("nuisance", "words"),
    [
        (np.zeros(9), r"nuisance of shape \(9,\)"),
        (["a"] * 10, "for names pass strata="),
        ([np.nan] * 10, "expected finite numbers"),
        (np.random.default_rng(0).normal(size=(10, 9)), "rank 9 for 10 examples, which leaves nothing"),
    ],
)
def test_what_cannot_be_partialled_out(nuisance, words):
    with pytest.raises(interp.InputError, match=words):
        geometry.partial_out(torch.randn(10, 3), nuisance)
