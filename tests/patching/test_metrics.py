"""Metrics against their closed forms."""

import math

import numpy as np
import pytest
import torch

import interp
from interp.patching import cross_entropy, kl_divergence, logit_difference, probability
from interp.patching.metrics import bind_to_batches, bind_to_rows

LOGITS = torch.log(torch.tensor([[0.5, 0.25, 0.25], [0.1, 0.2, 0.7]]))


@pytest.fixture(scope="module")
def two(toy):
    """A batch of two rows."""
    return toy.prepare(texts=["a red 3 at top . what colour is the 3 ?", "a red 3 at top . where is the 3 ?"])


def test_closed_forms():
    torch.testing.assert_close(logit_difference(0, 1)(LOGITS), torch.tensor([math.log(2), -math.log(2)]))
    torch.testing.assert_close(logit_difference([0, 2], [1, 0])(LOGITS), torch.tensor([math.log(2), math.log(7)]))
    torch.testing.assert_close(probability([0, 2])(LOGITS), torch.tensor([0.5, 0.7]))
    torch.testing.assert_close(cross_entropy(1)(LOGITS), -torch.log(torch.tensor([0.25, 0.2])))
    torch.testing.assert_close(kl_divergence(LOGITS)(LOGITS), torch.zeros(2))
    uniform = torch.zeros(2, 3)
    expected = (LOGITS.exp() * (LOGITS + math.log(3))).sum(-1)
    torch.testing.assert_close(kl_divergence(uniform)(LOGITS), expected)  # KL(changed || reference)


def test_a_metric_bound_to_a_row_is_that_rows(toy, two):
    logits = torch.randn(4, toy.structure.vocab_size)
    red, blue, top = (toy.tokenizer.convert_tokens_to_ids(word) for word in ("red", "blue", "top"))
    bound = bind_to_rows(logit_difference(["red", "top"], "blue"), toy, two)[1]
    torch.testing.assert_close(bound(logits), logits[:, top] - logits[:, blue])
    assert (
        bind_to_rows(logit_difference(["red", "top"], "blue"), toy, two)[0](logits)[0]
        == logits[0, red] - logits[0, blue]
    )
    reference = torch.randn(2, toy.structure.vocab_size)
    torch.testing.assert_close(
        bind_to_rows(kl_divergence(reference), toy, two)[1](logits), kl_divergence(reference[1:].expand(4, -1))(logits)
    )


@pytest.mark.parametrize(
    ("targets", "words"),
    [
        (
            "elephant",
            "'elephant' is not a word of this vocabulary, it becomes '<unk>': expected a word that is one token",
        ),
        ("red elephant", r"'red elephant' is 2 tokens, \['red', '<unk>'\]"),
        ("red green", r"is 2 tokens, \['red', 'green'\]"),
        (75, "token ids go from 0 to 74"),
        (["red"], "1 targets for 2 rows"),
        (None, "target None: expected a word that is one token, or a token id"),
        (3.0, "target 3.0: expected a word"),
        (True, "target True: expected a word"),
        ([3, 4.0], "target 4.0: expected a word"),
    ],
)
def test_what_is_no_target(toy, two, targets, words):
    with pytest.raises(interp.InputError, match=words):
        bind_to_rows(probability(targets), toy, two)[0]


def test_ids_may_be_of_any_kind_of_int_and_come_one_by_one(toy, two):
    each = [5, np.int64(5), torch.tensor(5), [5, 6], np.array([5, 6]), torch.tensor([5, 6]), (id for id in (5, 6))]
    for ids in each:
        metric = probability(ids)
        for _ in range(2):  # a metric may be bound more than once
            assert bind_to_rows(metric, toy, two)[0].references == (torch.tensor(5),)


@pytest.mark.parametrize("shape", [(3, 75), (2, 74)])
def test_a_reference_has_the_shape_of_the_logits(toy, two, shape):
    with pytest.raises(interp.InputError, match=r"reference of shape \(.*expected logits of 2 rows, \(2, 75\)"):
        bind_to_rows(kl_divergence(torch.zeros(shape)), toy, two)[0]


def test_a_function_gives_one_number_a_row_and_may_give_a_truth(toy, two):
    right = bind_to_rows(lambda logits: logits.argmax(dim=-1) == 1, toy, two)[0]
    torch.testing.assert_close(right(torch.eye(3)), torch.tensor([0.0, 1.0, 0.0]))
    for wrong in (lambda logits: logits, lambda logits: logits.mean(), lambda logits: [1.0, 2.0]):
        with pytest.raises(interp.InputError, match=r"the metric '<lambda>' gives .* for 2 rows of logits: expected"):
            bind_to_rows(wrong, toy, two)[0](LOGITS)


def test_words_need_a_model():
    for words in ("red", ["red", "blue"]):
        with pytest.raises(interp.InputError, match="needs token ids"):
            probability(words)(LOGITS)


def test_targets_and_references_are_shared_out_over_batches(toy, mixed):
    parts = [mixed.row(0), mixed.part([1, 2])]
    logits = [torch.randn(len(part), toy.structure.vocab_size) for part in parts]
    ids = [toy.tokenizer.convert_tokens_to_ids(word) for word in ("red", "top", "two")]
    blue = toy.tokenizer.convert_tokens_to_ids("blue")
    found = bind_to_batches(logit_difference(["red", "top", "two"], "blue"), toy, parts)
    expected = [
        logits[0][0, ids[0]] - logits[0][0, blue],
        *(logits[1][i, ids[i + 1]] - logits[1][i, blue] for i in (0, 1)),
    ]
    torch.testing.assert_close(
        torch.cat([measure(each) for measure, each in zip(found, logits, strict=True)]), torch.stack(expected)
    )
    near = bind_to_batches(kl_divergence(torch.cat(logits)), toy, parts)
    assert all(measure(each).abs().max() < 1e-5 for measure, each in zip(near, logits, strict=True))


def test_what_is_no_metric(toy, mixed):
    for bind in (lambda metric: bind_to_batches(metric, toy, [mixed]), lambda metric: bind_to_rows(metric, toy, mixed)):
        with pytest.raises(interp.errors.InputTypeError, match="metric='probability': expected a metric"):
            bind("probability")
        with pytest.raises(interp.InputError, match=r"reference of shape \(2, 75\): expected logits of 3 rows"):
            bind(kl_divergence(torch.zeros(2, 75)))
