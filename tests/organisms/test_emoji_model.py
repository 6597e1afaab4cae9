"""The model that reads emoji: on text it is its language model, and prompts are what its page says."""

import copy

import pytest
import torch
from PIL import Image

from interp import InputError, capture
from interp.organisms.emoji.emoji_model import assembled, without_template
from interp.organisms.emoji.picture import pictures
from interp.organisms.emoji.tower import tower_pixels
from interp.tuning import tune
from interp.tuning.examples import Collator, training_rows

RED, BLUE = (Image.new("RGB", (64, 64), colour) for colour in ((200, 30, 60), (30, 60, 200)))
TURNS = [
    ("<image>\nWhat is this?", "red apple"),
    ("What is the ground?", "gray"),
    ("How many?", "one"),
    ("Where?", "middle"),
]
STEPS = {"max_steps": 3, "per_device_train_batch_size": 8, "learning_rate": 1e-2, "lr_scheduler_type": "constant"}


def chats(count):
    """So many conversations of four turns about pictures of different colours."""
    turns = [{"from": who, "value": said} for turn in TURNS for who, said in zip(("human", "gpt"), turn, strict=True)]
    return [{"image": (RED, BLUE)[row % 2], "conversations": turns} for row in range(count)]


def test_it_is_proved(small):
    frame = small.check().to_frame()
    assert set(frame["outcome"]) == {"passed"}, frame.to_string()


def test_the_vocabulary_grows_by_the_image_token_alone(small, small_parts):
    language, tokenizer, _ = small_parts
    rows = len(language.get_input_embeddings().weight)
    table = small.model.get_input_embeddings().weight
    assert len(table) == small.structure.vocab_size == rows + 1
    assert small.structure.image_token_id == rows
    assert small.model.lm_head.weight is table
    torch.testing.assert_close(table[rows], table[:rows].mean(0))
    assert "<image>" not in tokenizer.get_vocab()  # the parts stay as they are
    assert language.lm_head.weight is language.get_input_embeddings().weight
    assert len(language(torch.tensor([[0, 5]])).logits[0, 0]) == rows


def test_on_text_it_is_its_language_model(small, small_parts):
    language, tokenizer, _ = small_parts
    text = "<|im_start|>The capital of France is"
    own = language(**tokenizer(text, return_tensors="pt")).logits
    assert torch.equal(small.logits(small.prepare([text]), positions="all")[..., :-1], own)


def test_the_connector_reads_what_the_tower_was_trained_for(small, small_parts):
    """The states at the patches that `tower.PatchNamer` reads, of the pixels that it reads."""
    drawn = pictures(2, seed=0)
    pixels = tower_pixels(drawn)
    batch = small.prepare(["<|im_start|><image>A picture of"] * 2, [each.image for each in drawn])
    torch.testing.assert_close(batch.inputs["pixel_values"], pixels)
    with torch.no_grad():
        states = small_parts[2](pixel_values=pixels).last_hidden_state[:, 1:]
        entering = small.model.model.multi_modal_projector(states)
    merged = capture(small, batch, sites=["resid"], positions="image", reduce="none", progress=False)["resid"][0]
    torch.testing.assert_close(merged, entering.flatten(0, 1))


def test_connectors_come_as_a_module_and_as_tensors(small, small_parts):
    tensors = small.model.model.multi_modal_projector.state_dict()
    again = assembled(*small_parts, tensors, check=False)
    batch = small.prepare(["<|im_start|><image>A picture of"], [RED])
    assert torch.equal(small.logits(batch), again.logits(batch))
    with pytest.raises(InputError, match=r"lacks linear_2\.weight"):
        assembled(*small_parts, {name: each for name, each in tensors.items() if name != "linear_2.weight"})


def test_a_vocabulary_with_room_does_not_grow(small_parts):
    language, tokenizer, tower = small_parts
    roomy = copy.deepcopy(language)
    roomy.resize_token_embeddings(len(tokenizer) + 5, mean_resizing=False)
    vlm = assembled(roomy, tokenizer, tower, None)
    assert vlm.structure.vocab_size == len(tokenizer) + 5


def test_a_caption_begins_with_the_begin_token(small):
    batch = small.prepare(["<|im_start|><image>A picture of"], [RED])
    assert batch.tokens[0] == ["<|im_start|>", *["<image>"] * 16, *"AĠpictureĠof"]
    assert batch.positions.grid(0) == [(4, 4)]


def test_a_question_is_a_turn_without_a_system_prompt(small):
    image, text = small.prepare(["<image>\nWhat?", "red apple\nWhat?"], [RED, None], chat=True).tokens
    head, tail = ["<|im_start|>", *"userĊ"], [*"What?", "<|im_end|>", "Ċ", "<|im_start|>", *"assistantĊ"]
    assert image == [*head, *["<image>"] * 16, "Ċ", *tail]
    assert text[-len(head) - 10 - len(tail) :] == [*head, *"redĠappleĊ", *tail]
    # transformers' own call makes the same prompt of the same question.
    parts = [{"type": "image"}, {"type": "text", "text": "What?"}]
    prompt = small.processor.apply_chat_template([{"role": "user", "content": parts}], add_generation_prompt=True)
    assert prompt == "<|im_start|>user\n<image>\nWhat?<|im_end|>\n<|im_start|>assistant\n"


def test_labels_of_a_conversation_are_its_answers(small):
    batch = Collator(small)(training_rows(small, chats(2)))
    image = batch["input_ids"] == small.structure.image_token_id
    assert image.sum(1).tolist() == [16, 16]
    assert (batch["labels"][image] == -100).all()
    labels = batch["labels"][0]
    assert small.tokenizer.decode(labels[labels >= 0]) == "".join(f"{answer}<|im_end|>" for _, answer in TURNS)
    assert (labels[labels >= 0] == batch["input_ids"][0][labels >= 0]).all()


def test_captions_are_trained_as_they_are_without_the_template(small):
    bare = without_template(small)
    row = {"text": "<|im_start|><image>A picture of", "answer": " red apple", "image": RED}
    batch = Collator(bare)(training_rows(bare, [row]))
    assert (
        bare.tokenizer.decode(batch["input_ids"][0]) == f"<|im_start|>{'<image>' * 16}A picture of red apple<|im_end|>"
    )
    labels = batch["labels"][0]
    assert bare.tokenizer.decode(labels[labels >= 0]) == " red apple<|im_end|>"
    assert bare.model.lm_head.weight is small.model.lm_head.weight
    assert small.processor.chat_template  # the model it was made of keeps its own


def test_connector_and_a_band_are_tuned_on_conversations_of_four_turns(small):
    result = tune(small, chats(8), layers=range(1, 3), lora=2, connector=True, arguments=STEPS)
    assert result.unchanged
    assert result.loss[-1] < result.loss[0] - 0.1
    places = {
        name.split(".layers.")[-1].split(".")[0] if ".layers." in name else "connector" for name in result.trained
    }
    assert places == {"1", "2", "connector"}
    batch = small.prepare(["<|im_start|>text"])
    assert not torch.equal(result.vlm.logits(batch), small.logits(batch))
