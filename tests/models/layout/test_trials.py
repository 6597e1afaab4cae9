"""The batches on which a layout is proved: rows of ordinary tokens, a small picture, and the padding on either side."""

import torch

import interp
import zoo
from interp.models.layout.trials import padded_on_the_other_side, trials_for
from zoo.table import load


def test_rows_are_turned_around_their_padding():
    left = zoo.pad([[5, 6, 7], [8]])
    right = zoo.pad([[5, 6, 7], [8]], side="right")
    for given, wanted in ((left, right), (right, left)):
        turned = padded_on_the_other_side(given)
        assert all(torch.equal(turned[name], wanted[name]) for name in wanted)


def test_a_row_is_padded_and_no_token_is_special(toy):
    batch = trials_for(toy).batch
    assert batch.positions["padding"].sum(dim=1).tolist() == [0, 3]
    special = torch.tensor([*toy.tokenizer.all_special_ids, toy.structure.image_token_id])
    assert not torch.isin(batch.inputs["input_ids"], special).any()


def test_a_picture_is_made_where_there_is_a_processor(toy, tiny, mixed):
    assert trials_for(toy).pictured.positions["image"].any(dim=1).all()
    trials = trials_for(interp.load(model=tiny, check=False))
    assert trials.pictured is None
    assert trials.reason.startswith("there is no image processor")
    assert trials_for(toy, mixed).pictured is mixed


def test_a_model_that_needs_an_image_has_no_trial_without(toy):
    trials = trials_for(load("blip-2"))
    assert trials.batch is None
    assert "does not run on text alone" in trials.reason
    assert "\n" not in trials.reason
