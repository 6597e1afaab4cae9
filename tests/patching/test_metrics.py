"""Metrics against their closed forms."""

import math

import pytest
import torch

import interp
from interp.patching import cross_entropy, kl_divergence, logit_difference, probability
from interp.patching.metrics import bind

LOGITS = torch.log(torch.tensor([[0.5, 0.25, 0.25], [0.1, 0.2, 0.7]]))


def test_closed_forms():
    torch.testing.assert_close(logit_difference(0, 1)(LOGITS), torch.tensor([math.log(2), -math.log(2)]))
    torch.testing.assert_close(logit_difference([0, 2], [1, 0])(LOGITS), torch.tensor([math.log(2), math.log(7)]))
    torch.testing.assert_close(probability([0, 2])(LOGITS), torch.tensor([0.5, 0.7]))
    torch.testing.assert_close(cross_entropy(1)(LOGITS), -torch.log(torch.tensor([0.25, 0.2])))
    torch.testing.assert_close(kl_divergence(LOGITS)(LOGITS), torch.zeros(2))
    uniform = torch.zeros(2, 3)
    expected = (LOGITS.exp() * (LOGITS + math.log(3))).sum(-1)
    torch.testing.assert_close(kl_divergence(uniform)(LOGITS), expected)  # KL(changed || reference)


def test_a_metric_bound_to_a_row_is_that_rows(toy):
    logits = torch.randn(4, toy.structure.vocab_size)
    red, blue, top = (toy.tokenizer.convert_tokens_to_ids(word) for word in ("red", "blue", "top"))
    bound = bind(logit_difference(["red", "top"], "blue"), toy, rows=2, row=1)
    torch.testing.assert_close(bound(logits), logits[:, top] - logits[:, blue])
    assert (
        bind(logit_difference(["red", "top"], "blue"), toy, rows=2, row=0)(logits)[0]
        == logits[0, red] - logits[0, blue]
    )
    reference = torch.randn(2, toy.structure.vocab_size)
    torch.testing.assert_close(
        bind(kl_divergence(reference), toy, rows=2, row=1)(logits), kl_divergence(reference[1:].expand(4, -1))(logits)
    )


@pytest.mark.parametrize(
    ("targets", "words"),
    [
        ("elephant", r"'elephant' is 1 tokens, \['<unk>'\]"),
        ("red green", r"is 2 tokens, \['red', 'green'\]"),
        (75, "token ids go from 0 to 74"),
        (["red"], "1 targets for 2 rows"),
    ],
)
def test_what_is_no_target(toy, targets, words):
    with pytest.raises(interp.InputError, match=words):
        bind(probability(targets), toy, rows=2, row=0)


def test_words_need_a_model():
    with pytest.raises(interp.InputError, match="needs token ids"):
        probability("red")(LOGITS)
