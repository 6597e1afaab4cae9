"""Outlying rows: planted ones are named, and change what features and clouds look like."""

import numpy as np
import pytest
import torch

import interp
from interp.geometry import alignment_matrix, compare, massive_features, outlying_rows, participation_ratio, standardise


@pytest.fixture
def cloud():
    """200 rows in 16 dimensions, three of them with two huge features."""
    x = torch.randn(200, 16, generator=torch.Generator().manual_seed(0))
    x[[5, 60, 199], :2] += 2000.0
    return x


@pytest.mark.parametrize("times", [1e-20, 1.0, 1e20])
def test_the_planted_rows_at_any_scale(cloud, times):
    assert outlying_rows(cloud * times).tolist() == [5, 60, 199]
    assert outlying_rows((cloud * times).numpy().astype(np.float64)).tolist() == [5, 60, 199]


def test_any_state_of_a_stack(cloud):
    plain = torch.randn(200, 16, generator=torch.Generator().manual_seed(1))
    assert outlying_rows(torch.stack([plain, cloud])).tolist() == [5, 60, 199]
    assert outlying_rows(plain).tolist() == []


def test_zeros_have_no_usual_length():
    x = torch.zeros(9, 4)
    x[0] = 1.0
    assert outlying_rows(x).tolist() == []
    assert outlying_rows(torch.tensor([[1.0, 0.0], [0.0, 2.0]])).tolist() == []


def test_features_with_and_without_them(cloud):
    rest = torch.ones(200, dtype=torch.bool)
    rest[outlying_rows(cloud)] = False
    assert massive_features(cloud).tolist() == [0, 1]
    assert massive_features(cloud[rest]).tolist() == []
    assert participation_ratio(cloud) < 1.1
    assert participation_ratio(standardise(cloud)[rest]) < participation_ratio(standardise(cloud[rest])) - 1


def test_compare_and_alignment_note_them_per_modality(cloud):
    plain = torch.randn(1, 200, 16, generator=torch.Generator().manual_seed(2))
    for result in (
        compare(cloud[None], plain, metrics=["participation_ratio"], permutations=1, subsamples=2),
        alignment_matrix(cloud[None], plain, subsamples=0),
    ):
        (note,) = result.provenance.notes
        assert note.startswith("3 of 200 visual examples are over 20 times as long")
        assert "5, 60, 199" in note
    assert alignment_matrix(plain, plain, subsamples=0).provenance.notes == ()


def test_a_cloud_of_two_shapes_is_refused():
    with pytest.raises(interp.InputError):
        outlying_rows(torch.zeros(2, 3, 4, 5))
