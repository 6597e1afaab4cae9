"""What is drawn of states in words is what the results hold."""

import pytest
import torch

import interp
from interp import plots
from interp.lens import Dictionary, HeadResult, ProjectorResult, visual_token_stats, vocabulary_decomposition


def test_words_are_counted_and_shown_as_they_are():
    found = vocabulary_decomposition(torch.eye(3)[[0, 0, 1]], Dictionary(torch.eye(3), ("<image>", "b", "c")), k=1)
    (bars,) = found.plot().data
    assert bars.x == ("&lt;image&gt;", "b")
    assert bars.y == (2, 1)
    assert f"turned at random {found.chance:.1%}" in found.plot().layout.title.text


def test_tokens_that_read_alike_are_one_word():
    """A vector that takes both counts once; and no chance is said where none was drawn."""
    words = Dictionary(torch.eye(3), ("red", "red", "blue"))
    found = vocabulary_decomposition(torch.tensor([[2.0, 1, 0], [0, 2, 1]]), words, k=2, draws=0)
    (bars,) = found.plot().data
    assert (bars.x, bars.y) == (("red", "blue"), (2, 1))
    assert found.plot().layout.title.text == "Words taken: 100.0% explained"


def test_words_that_are_digits_are_names_and_no_numbers():
    words = Dictionary(torch.eye(3), ("7", "3", "12"))
    found = vocabulary_decomposition(torch.tensor([[2.0, 1, 0], [0, 2, 1]]), words, k=2, draws=0)
    assert found.plot().layout.xaxis.type == "category"
    assert set(found.plot().data[0].x) == {"7", "3", "12"}


def test_heads_are_drawn_by_their_margin():
    scores, null = torch.tensor([[0.5, 0.1], [0.2, torch.nan]]), torch.tensor([[0.1, 0.2], [0.2, torch.nan]])
    found = HeadResult(scores, null, torch.full((2, 2), 0.5), (3, 7), ((("a",), ("b",)), (("c",),)), ("a", "b", "c"))
    (cells,) = found.plot().data
    assert [list(row) for row in cells.z] == [pytest.approx([0.4, -0.1]), [pytest.approx(0.0), None]]
    assert list(cells.y) == ["3", "7"]
    assert (cells.zmin, cells.zmax) == (pytest.approx(-0.4), pytest.approx(0.4))


def test_a_projector_beside_a_random_map():
    found = ProjectorResult(
        *(torch.tensor(each) for each in ([2.0, 1.0, 1.9], [5.0, 3.0, 4.9], [1.0, 0.5, 0.8])),
        0.1,
        None,
        None,
        None,
        torch.tensor([[0]]),
        torch.tensor([[0.3]]),
        torch.tensor([0]),
        {"0": "a"},
    )
    assert found.plot().data[0].y == (5, 3, pytest.approx(4.9))
    assert found.plot(measure="kept").layout.shapes[0].y0 == 0.1
    with pytest.raises(interp.InputError, match="measure='size' is unknown: use one of entropy, participation, kept"):
        found.plot(measure="size")


def test_codes_by_rank():
    figure = visual_token_stats([[0, 1, 0, 1], [0, 1, 2, 1]]).plot()
    assert figure == plots.tokens_figure(visual_token_stats([[0, 1, 0, 1], [0, 1, 2, 1]]))
    counts, equal = figure.data
    assert counts.y == (4, 3, 1)
    assert equal.y == (8 / 3, 8 / 3)
