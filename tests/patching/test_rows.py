"""A metric of a data set in batches is that of each batch with its own targets; what is neither is refused."""

import pytest
import torch

import interp
from interp.patching import kl_divergence, logit_difference
from interp.patching.rows import batches_of, measures_of


def test_targets_and_references_are_shared_out_over_batches(toy, mixed):
    parts = [mixed.row(0), mixed.part([1, 2])]
    logits = [torch.randn(len(part), toy.structure.vocab_size) for part in parts]
    ids = [toy.tokenizer.convert_tokens_to_ids(word) for word in ("red", "top", "two")]
    blue = toy.tokenizer.convert_tokens_to_ids("blue")
    found = measures_of(logit_difference(["red", "top", "two"], "blue"), toy, parts)
    expected = [
        logits[0][0, ids[0]] - logits[0][0, blue],
        *(logits[1][i, ids[i + 1]] - logits[1][i, blue] for i in (0, 1)),
    ]
    torch.testing.assert_close(
        torch.cat([measure(each) for measure, each in zip(found, logits, strict=True)]), torch.stack(expected)
    )
    near = measures_of(kl_divergence(torch.cat(logits)), toy, parts)
    assert all(measure(each).abs().max() < 1e-5 for measure, each in zip(near, logits, strict=True))


def test_what_is_no_data_and_no_metric(toy, mixed):
    for given in (["image"], "image", 3, None, (mixed, 3)):
        with pytest.raises(interp.errors.InputTypeError, match="expected a batch"):
            batches_of(given)
    with pytest.raises(interp.InputError, match="batch is an empty list"):
        batches_of([])
    with pytest.raises(interp.errors.InputTypeError, match="metric='probability': expected a metric"):
        measures_of("probability", toy, [mixed])
    with pytest.raises(interp.InputError, match=r"reference of shape \(2, 75\): expected logits of 3 rows"):
        measures_of(kl_divergence(torch.zeros(2, 75)), toy, [mixed])
