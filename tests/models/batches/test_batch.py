"""A batch gives its rows back one by one, and repeats a row; each row is what it was among the others."""

import re

import pytest
import torch

import interp


def test_a_row_alone_gives_the_same_logits(toy, mixed):
    together = toy.logits(mixed)
    for index in range(len(mixed)):
        alone = mixed.row(index)
        assert not alone.positions["padding"].any()
        torch.testing.assert_close(toy.logits(alone)[0], together[index], atol=2e-5, rtol=0)
    assert mixed.row(-1).tokens == mixed.row(2).tokens


def test_repeat_is_the_same_row(toy, mixed):
    logits = toy.logits(mixed.row(0).repeat(3))
    assert logits.shape[0] == 3
    torch.testing.assert_close(logits, toy.logits(mixed.row(0)).expand(3, -1), atol=2e-5, rtol=0)
    with pytest.raises(interp.InputError, match="3 rows cannot be repeated"):
        mixed.repeat(2)


def test_rows_that_a_batch_does_not_have(mixed):
    for wrong in (5, -4, "a", 0.0, True, [1]):
        with pytest.raises(interp.InputError, match=f"row={re.escape(repr(wrong))}: this batch has 3 rows"):
            mixed.row(wrong)


def test_several_rows_are_a_batch_without_the_padding_of_the_others(toy):
    """The first and last of three rows, of which the one left out was the longest."""
    texts = ["where is the 3 ?", "a red 3 at top and a blue 7 at bottom . where is the 3 ?", "where ?"]
    batch = toy.prepare(texts, spans={"mark": "?"})
    part = batch.part([0, -1])
    assert part.texts == (texts[0], texts[2])
    assert part.inputs["input_ids"].shape[1] == int(batch.positions["all"][0].sum())
    assert part.positions["mark"].nonzero().tolist() == [[0, 5], [1, 5]]
    assert batch.part(range(3)) is batch
