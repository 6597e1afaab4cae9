"""Pool sizes: equal numbers of tokens for both modalities, and a note where two captures have unequal ones."""

import pytest
import torch

import interp
from interp import geometry


@pytest.fixture(scope="module")
def tokens(toy):
    scenes = interp.toy.scenes(60, seed=0)
    options = {"reduce": "none", "layers": [0, 4, 8], "progress": False}
    visual = interp.capture(toy, scenes, positions="image", **options)
    textual = interp.capture(toy, scenes.captions(), positions="text", **options)
    return visual, textual


def test_all_tokens_are_what_two_means_give(toy, tokens):
    found = geometry.pool_sizes(*tokens, sizes=[1, 4], k=5)
    assert found.sizes == (1, 4, 0)
    scenes = interp.toy.scenes(60, seed=0)
    options = {"layers": [0, 4, 8], "progress": False}
    visual = interp.capture(toy, scenes, positions="image", **options)
    textual = interp.capture(toy, scenes.captions(), positions="text", **options)
    matrix = geometry.alignment_matrix(visual, textual, k=5)
    torch.testing.assert_close(found.values[-1], matrix.values.diagonal(), atol=0.01, rtol=0)
    assert found.phase(0) == matrix.phase()
    assert found.pooled == (36.0, textual.pooled("resid")["mean"])
    assert found.to_frame().shape == (9, 7)


def test_means_of_more_tokens_are_less_noisy():
    """A signal that rows share, and noise of each token: the likeness grows with the number of tokens."""
    draw = torch.Generator().manual_seed(0)
    rows = torch.arange(80).repeat_interleave(16)
    signal = torch.randn(80, 4, generator=draw)[rows]
    visual, textual = (signal + 2 * torch.randn(2, 1, 1280, 4, generator=draw)).unbind(0)
    found = geometry.pool_sizes(visual, textual, [1, 2, 4, 8], "cka", rows=(rows, rows))
    values = found.values[:, 0]
    assert values[0] < values[2] < values[4]
    assert values[0] < 0.4 < 0.6 < values[-1]
    assert torch.equal(geometry.pool_sizes(visual, textual, [4], "cka", rows=(rows, rows)).values[0], found.values[2])
    order = torch.randperm(1280, generator=draw)  # tokens in any order
    other = geometry.pool_sizes(visual[:, order], textual, [1], "cka", rows=(rows[order], rows))
    torch.testing.assert_close(other.values[-1], found.values[-1])


def test_sizes_that_a_row_does_not_have_are_left_out(tokens):
    found = geometry.pool_sizes(*tokens, sizes=[2, 64], k=5)
    assert found.sizes == (2, 0)
    assert "sizes [64] are left out" in found.provenance.notes[0]
    with pytest.raises(interp.InputError, match="size=64: expected one of"):
        found.phase(64)


def test_captures_of_unequally_many_tokens_are_noted(toy):
    scenes = interp.toy.scenes(12, seed=0)
    options = {"layers": [0, 4], "progress": False}

    def notes(reduce, **more):
        visual = interp.capture(toy, scenes, positions="image", reduce=reduce, **options)
        textual = interp.capture(toy, scenes.captions(), positions="text", reduce=reduce, **options)
        matrix = geometry.alignment_matrix(visual, textual, k=3, **more)
        compared = geometry.compare(visual, textual, metrics=["cka"], permutations=3)
        return [[n for n in each.provenance.notes if "positions" in n] for each in (matrix, compared)]

    for (note,) in notes("mean"):
        assert note.startswith("visual examples are means of 36 positions and textual ones of ")
        assert 'reduce="mean:k" for both' in note
    assert notes("mean:3") == [[], []]
    assert notes("sample") == [[], []]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"rows": torch.arange(20)}, "expected two, the row of each visual and of each textual token"),
        ({"rows": (["a"] * 20, ["a"] * 20)}, "rows of visual of shape .* and type <U1: expected one int a token"),
        ({"sizes": []}, "expected numbers of tokens from 1"),
        ({"sizes": [0]}, "expected numbers of tokens from 1"),
        ({"rows": None}, "visual is a Tensor and rows=None"),
        ({"rows": (torch.arange(20), torch.arange(21))}, "textual has 20 tokens and rows for 21"),
        ({"rows": (torch.arange(20) // 2, torch.arange(20) // 4)}, "2 states of 10 rows, .* and textual 2 of 5"),
        (
            {"rows": (torch.arange(20), torch.arange(20) + 1)},
            "of 20 rows, .* and textual 2 of 20, .*: expected the same",
        ),
    ],
)
def test_what_cannot_be_pooled(unchecked, options, words):
    x = torch.randn(2, 20, 3)
    with pytest.raises(interp.InputError, match=words):
        geometry.pool_sizes(x, x, **{"k": 2, "rows": (torch.arange(20), torch.arange(20)), **options})
