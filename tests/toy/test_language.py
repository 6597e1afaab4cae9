"""The toy's language: captions parse back, answers are right, the tokenizer is word for word."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import interp
from interp.toy.language import (
    COLOURS,
    KINDS,
    NUMBERS,
    PLACES,
    VOCABULARY,
    SceneObject,
    ask,
    build_tokenizer,
    write_caption,
)

objects = st.lists(
    st.builds(SceneObject, st.integers(0, 8), st.integers(0, 9), st.sampled_from(COLOURS)),
    min_size=1,
    max_size=3,
    unique_by=(lambda item: item.place_index, lambda item: item.digit),
)


@given(objects)
def test_captions_parse_back(items):
    assert interp.toy.parse_caption(write_caption(items)) == tuple(items)


@pytest.mark.parametrize("text", ["", "a red 3 at top", "a pink 3 at top .", "a red 3 at top and a red 4 at top ."])
def test_what_is_no_caption(text):
    with pytest.raises(interp.InputError):
        interp.toy.parse_caption(text)


def answer_of(kind, items, text):
    """The answer, derived from the words of the question alone."""
    words = text.split()
    digit_named = next((item for item in items if str(item.digit) in words), None)
    place_named = next((item for item in items if item.place in words), None)
    match kind:
        case "colour":
            return digit_named.colour
        case "digit":
            return str(place_named.digit)
        case "place":
            return digit_named.place
        case "existence":
            return "yes" if any(f"{item.colour} {item.digit} ?" in text for item in items) else "no"
        case "count":
            return ["one", "two", "three"][len(items) - 1]
        case "sum":
            return NUMBERS[items[0].digit + items[1].digit]
        case "larger":
            return max(str(items[0].digit), str(items[1].digit))
        case "parity":
            return ["even", "odd"][place_named.digit % 2]
        case "same colour":
            return "yes" if len({item.colour for item in items}) == 1 else "no"


@given(objects, st.sampled_from(list(KINDS)), st.integers(0, 2**31))
def test_answers_are_right(items, kind, seed):
    question = ask(kind, items, np.random.default_rng(seed), write_caption(items))
    if question is None:
        assert kind in ("sum", "larger", "same colour")
        assert len(items) != 2
        return
    assert question.answer == answer_of(kind, items, question.text)
    assert question.text_prompt == f"{write_caption(items)} {question.text}"
    assert question.prompt == f"<image> {question.text}"
    assert question.group == (
        "perception" if kind in ("colour", "digit", "place", "existence", "count") else "abstraction"
    )


@given(objects)
def test_every_word_is_one_known_token(items):
    tokenizer = build_tokenizer()
    ids = tokenizer(write_caption(items))["input_ids"]
    assert tokenizer.unk_token_id not in ids
    assert tokenizer.decode(ids, skip_special_tokens=True) == write_caption(items)
    assert len(ids) == 1 + len(write_caption(items).split())


def test_the_tokenizer_takes_ordinary_writing():
    tokenizer = build_tokenizer()
    assert len(tokenizer) == len(VOCABULARY) == len(set(VOCABULARY))
    assert tokenizer.tokenize("What colour is the 3?") == ["what", "colour", "is", "the", "3", "?"]
    assert tokenizer.tokenize("Where is the bottom-left elephant?")[3:] == ["bottom-left", "<unk>", "?"]
    assert set(PLACES) <= set(VOCABULARY)
