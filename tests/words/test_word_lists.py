"""Word lists: what is drawn matches the concept in norm, frequency and coherence, and is one of many."""

import pytest
import torch

import interp
from interp.words.word_lists import coherence_of, matched_lists


def clustered(seed=0):
    """600 rows in 60 clusters, of lengths from 1 to 3, about the same within a cluster."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(60, 24, generator=generator).repeat_interleave(10, dim=0)
    rows = centres + 0.8 * torch.randn(600, 24, generator=generator)
    lengths = 1 + 2 * torch.rand(60, 1, generator=generator).repeat_interleave(10, dim=0)
    return rows / rows.norm(dim=1, keepdim=True) * (lengths + 0.1 * torch.rand(600, 1, generator=generator))


@pytest.mark.parametrize("concept", [list(range(40, 46)), [5, 105, 205, 305, 405, 505], [7]])
def test_lists_match_in_norm_and_coherence(concept):
    rows, tokens = clustered(), torch.tensor(concept)
    drawn = matched_lists(rows, tokens, torch.ones(600, dtype=torch.bool), 50, seed=0)
    norms, unit = rows.norm(dim=1), rows / rows.norm(dim=1, keepdim=True)
    target = float(coherence_of(unit[tokens]))
    assert drawn.matched
    assert len(drawn.ids) == 50
    assert drawn.target == pytest.approx(target)
    torch.testing.assert_close(drawn.coherence, coherence_of(unit[drawn.ids]))
    assert (drawn.coherence - target).abs().max() <= max(0.02, abs(target) / 10)
    assert (norms[drawn.ids].sort(dim=1).values - norms[tokens].sort().values).abs().max() < 0.5
    assert all(len(set(each)) == len(concept) for each in drawn.ids.tolist())
    assert all(len(set(each) & set(concept)) <= len(concept) // 2 for each in drawn.ids.tolist())
    assert len({tuple(sorted(each)) for each in drawn.ids.tolist()} | {tuple(sorted(concept))}) == 51


def test_lists_of_a_coherent_concept_are_coherent_and_those_of_a_loose_one_are_not():
    """The cosine of words of one cluster is about .6; lists drawn at random have .0."""
    rows, everything = clustered(), torch.ones(600, dtype=torch.bool)
    tight = matched_lists(rows, torch.arange(40, 46), everything, 50, seed=0)
    loose = matched_lists(rows, torch.arange(5, 600, 100), everything, 50, seed=0)
    assert tight.coherence.min() > 0.4
    assert loose.coherence.abs().max() < 0.2
    assert len((tight.ids // 10).unique()) > 4  # of several clusters


def test_lists_match_in_frequency():
    rows, tokens = clustered(), torch.arange(10, 600, 120)
    counts = torch.arange(600.0).flip(0)
    drawn = matched_lists(rows, tokens, torch.ones(600, dtype=torch.bool), 50, seed=0, frequencies=counts)
    plain = matched_lists(rows, tokens, torch.ones(600, dtype=torch.bool), 50, seed=0)
    off, plain_off = ((each.ids - tokens).abs().float().mean() for each in (drawn, plain))
    assert off < 100 < plain_off


def test_where_no_list_is_as_coherent_it_is_said():
    rows = torch.eye(40)
    rows[1] = rows[0] + 0.1 * rows[2]
    drawn = matched_lists(rows, torch.tensor([0, 1]), torch.ones(40, dtype=torch.bool), 20, seed=0)
    assert not drawn.matched
    assert len(drawn.ids)
    with pytest.raises(interp.InputError, match="3 tokens beside 5 words: expected as many"):
        matched_lists(rows, torch.arange(5), torch.arange(40) < 8, 5, seed=0)
