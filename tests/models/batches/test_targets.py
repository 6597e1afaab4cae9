"""A target word is the token with which the tokenizer itself goes on where the word is written behind the row's prompt."""

import copy
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch
import transformers
from PIL import Image

import interp
import processors
from alphabets import TOKENIZERS
from interp.lens import direct_logit_attribution, logit_lens
from interp.models.batches.continuations import Ending, written_behind
from interp.models.batches.maker import BatchMaker, ModelInputs
from interp.models.batches.targets import target_ids, target_ids_of, word_id
from interp.patching import layer_sweep, patch_sweep, probability
from interp.patching.metrics import answer_ids

PICTURE = Image.new("RGB", (32, 16))
LOSSLESS = ("byte_level", "single_digits", "gemma")
# A prompt, and what stands between it and a word.
PROMPTS = {
    "the colour is": " ",
    "What colour is the circle?": " ",
    "colour:": " ",
    "3 of 12": " ",
    "the colour is ": "",
    "the colour is  ": "",
    "colour:\n": "",
    "colour:\n\n": "",
    "colour:\t": "",
    "<image>": "",
    "<image>colour:\n": "",
    "<image><image>the colour is": " ",
    "the colour is<|turn|>": "",
    "the colour is<|turn|>\n": "",
    "answer: (": "",
    'the colour is "': "",
    "the colour is “": "",
    "这是": "",
    'colour="': "",
    '"is it?"': " ",
    "colour/": "",
    "<answer>": "",
    "**colour:**": " ",
    "colour: **": "",
}
WORDS = ("red", " red", "Red", "reddish", "3", "12", "sind", "Äpfel", "🙂", "\n", " ")
# Ends of prompts in code, markup and lists, behind which a word is written directly and behind a space.
DIRECTLY = (
    'x = "', 'print("', '{"a": "b", "c":"', "f('", "{'a': '", "x='", '"', "the colour `", "```", "**", "It is **", "the <b>",
    '<a href="x">', "a/", "re-", "5+3=", "under_", "foo@", "http://", "C:\\", "word—", "costs $", "($", 'said “so” and “',
)  # fmt: skip
BEHIND_A_SPACE = (
    'said "yes"', '"yes,"', "it's \"so\"", "the dog'", "`x`", "``x``", 'the 5"', "2 *", "-", "- red\n-", "x ==", "x =", "->",
    "List<int>", "a </b>", "<br/>", "<unk>", "____", "a _", "50%", "C#", "C++", "red /", "3 <", "1. red\n2.", "(a)", "is —",
    "word --", "5 €",
)  # fmt: skip
# Words before which no space is written, whatever the prompt ends in.
DIRECT = (".", ",", "</s>", "<|turn|>", "红色")


@dataclass(frozen=True)
class Words:
    """A tokenizer as the part of a model that targets need."""

    tokenizer: Any

    @property
    def vocab_size(self):
        return len(self.tokenizer)


def encoded(tokenizer, *prompts):
    """A batch of these prompts as an encoding, of which no text is known; each image token is there once."""
    maker = BatchMaker(None, tokenizer, ModelInputs(tokenizer.convert_tokens_to_ids("<image>"), len(tokenizer)))
    inputs = dict(tokenizer(list(prompts), return_tensors="pt", padding=True))
    images = sum(prompt.count("<image>") for prompt in prompts)
    return maker.from_encoding(inputs | ({"pixel_values": torch.zeros(images, 3, 4, 4)} if images else {}))


def read_on(tokenizer, prompt, written):
    """The tokens behind the prompt's own where both are tokenized together; None where they merge."""
    own, both = (tokenizer(text)["input_ids"] for text in (prompt, prompt + written))
    return both[len(own) :] if both[: len(own)] == own else None


def outcome(tokenizer, batch, word):
    """The token of a word and no problem, or none and what the error says."""
    try:
        return target_ids(Words(tokenizer), batch, word).item(), ""
    except interp.InputError as error:
        return None, str(error)


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize("prompt", PROMPTS)
def test_the_token_with_which_the_tokenizer_goes_on(name, prompt):
    tokenizer = TOKENIZERS[name]()
    batch, merged = encoded(tokenizer, prompt), 0
    if tokenizer.unk_token_id in batch.inputs["input_ids"] and name != "whole_words":
        pytest.skip("the ids do not tell how this prompt ends")
    own = batch.inputs["input_ids"][0].tolist()
    for word in (*WORDS, *DIRECT):
        written = word if word[0].isspace() or word in DIRECT else PROMPTS[prompt] + word
        expected = read_on(tokenizer, prompt, written)
        found, problem = outcome(tokenizer, batch, word)
        if problem:
            assert "\n" not in problem
            assert expected is None or len(expected) != 1 or expected == [tokenizer.unk_token_id]
            last = tokenizer.convert_ids_to_tokens((expected or [tokenizer.eos_token_id])[-1])
            assert not expected or name == "whole_words" or repr(last) in problem
            continue
        merged += expected is None
        # Where words have no spaces, those of the vocabulary stand behind one.
        assert expected in ([found], None) or name in ("whole_words", "plain_python")
        if name in LOSSLESS:  # also where a prompt and a word would have become one token
            assert tokenizer.decode([*own, found]).endswith(prompt + written)
    assert merged or name not in LOSSLESS or prompt != "the colour is "


def test_how_a_word_is_written_behind_code_and_markup():
    written = {text: written_behind(Ending(text, (), closed=False), "red") for text in (*DIRECTLY, *BEHIND_A_SPACE)}
    assert written == dict.fromkeys(DIRECTLY, "red") | dict.fromkeys(BEHIND_A_SPACE, " red")


def test_a_prompt_that_ends_in_a_space_reads_on_without_another():
    for name, token in {"byte_level": "red", "llama_legacy": "red", "llama": "red", "unigram": "red"}.items():
        tokenizer = TOKENIZERS[name]()
        together = tokenizer.convert_ids_to_tokens(tokenizer("the colour is red")["input_ids"])[-1]
        found = target_ids(Words(tokenizer), encoded(tokenizer, "the colour is "), "red")
        assert tokenizer.convert_ids_to_tokens(found.tolist()) == [token] != [together]


@pytest.mark.parametrize("name", ["prefixed", "byte_level"])
def test_a_word_that_has_one_token_behind_a_space_alone(name):
    """Behind a prompt that ends in a space it is made of pieces, and the one token would read as a second space."""
    word = "Äpfel"
    tokenizer = TOKENIZERS[name]()
    assert len(read_on(tokenizer, "the colour is", f" {word}")) == 1
    found, problem = outcome(tokenizer, encoded(tokenizer, "the colour is "), word)
    assert found is None
    assert f"target {word!r} is " in problem
    assert " tokens, [" in problem
    assert "▁" not in problem
    assert "Ġ" not in problem


def test_a_text_that_its_ids_do_not_tell():
    """A bracket that is not a word of the vocabulary: the text of the prompt is known where it was prepared from one."""
    tokenizer = TOKENIZERS["unigram"]()
    strategy = {"vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
    processor = transformers.LlavaProcessor(processors.clip_images(), tokenizer, patch_size=4, **strategy)
    maker = BatchMaker(processor, tokenizer, ModelInputs(tokenizer.convert_tokens_to_ids("<image>"), len(tokenizer)))
    texts = ["<image> the colour is «", "<image> the colour is ☂"]
    batch = maker.prepare(texts, [PICTURE, PICTURE], chat=False)
    assert batch.inputs["input_ids"][:, -1].tolist() == [tokenizer.unk_token_id] * 2
    found = target_ids(Words(tokenizer), batch, "red").tolist()
    assert tokenizer.convert_ids_to_tokens(found) == ["red", "▁red"]


def test_every_row_has_its_own_ending():
    tokenizer = TOKENIZERS["byte_level"]()
    prompts = ("the colour is", "colour:\n", "answer: (", "What colour is the circle? It is ")
    batch = encoded(tokenizer, *prompts)
    expected = ["Ġred", "red", "red", "red"]
    names = tokenizer.convert_ids_to_tokens
    assert names(target_ids(Words(tokenizer), batch, "red").tolist()) == expected
    assert names(target_ids(Words(tokenizer), batch, ["red", " red", 7, "blue"]).tolist())[1] == "Ġred"
    for row, token in enumerate(expected):
        for part in (batch.row(row), batch.part([row, 0]), batch.row(row).repeat(3)):
            found = names(target_ids(Words(tokenizer), part, "red").tolist())
            assert found[0] == token
            assert len(found) == len(part)
    parts = [batch.row(2), batch.part([0, 1])]
    first, second = target_ids_of(Words(tokenizer), parts, ["red", "blue", "red"])
    assert (names(first.tolist()), names(second.tolist())) == (["red"], ["Ġblue", "red"])


def test_padding_on_the_right_is_no_ending():
    tokenizer = TOKENIZERS["byte_level"]()
    rows = [tokenizer(text)["input_ids"] for text in ("colour:\n", "What colour is the circle?")]
    longest = max(map(len, rows))
    ids = torch.tensor([[*row, *[2] * (longest - len(row))] for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
    batch = BatchMaker(None, tokenizer, ModelInputs(3, len(tokenizer))).from_encoding(
        {"input_ids": ids, "attention_mask": mask}
    )
    found = target_ids(Words(tokenizer), batch, "red").tolist()
    assert tokenizer.convert_ids_to_tokens(found) == ["red", "Ġred"]


@pytest.mark.parametrize("name", processors.PROCESSORS)
def test_whatever_a_processor_writes_around_images(name):
    """Bytes are tokens, so a word is a letter; a space before it would be a token of its own."""
    processor = processors.build(name)
    token = processor.tokenizer.convert_tokens_to_ids(processors.IMAGE_TOKENS[name])
    maker = BatchMaker(processor, processor.tokenizer, ModelInputs(token, len(processor.tokenizer)))
    for text in ("<image> a ", "<image> a\n", "b <image> a("):
        batch = maker.prepare([text], [PICTURE], chat=False)
        found = target_ids(Words(processor.tokenizer), batch, "x")
        assert processor.tokenizer.convert_ids_to_tokens(found.tolist()) == ["x"]
    batch = maker.prepare(["<image> colour"], [PICTURE], chat=False)
    if batch.tokens[0][-1] != "Ċ":  # PaliGemma ends each prompt with a newline
        with pytest.raises(
            interp.InputError, match=r"target 'x' is 2 tokens, \['Ġ', 'x'\]: .*row 0 ends in '.*colour'"
        ):
            target_ids(Words(processor.tokenizer), batch, "x")


def test_ids_that_no_text_makes():
    """A word cut in other places than the tokenizer cuts it: what follows it is the same."""
    tokenizer = TOKENIZERS["byte_level"]()
    ids = [1, *(tokenizer.convert_tokens_to_ids(letter) for letter in "red")]
    batch = BatchMaker(None, tokenizer, ModelInputs(3, len(tokenizer))).from_encoding(
        {"input_ids": torch.tensor([ids])}
    )
    assert tokenizer.convert_ids_to_tokens(target_ids(Words(tokenizer), batch, "blue").tolist()) == ["Ġblue"]


def test_an_image_that_is_no_word_of_the_tokenizer():
    tokenizer = TOKENIZERS["byte_level"]()
    image = len(tokenizer) + 5
    ids = torch.tensor([[1, image, image]])
    batch = BatchMaker(None, tokenizer, ModelInputs(image, len(tokenizer) + 9)).from_encoding(
        {"input_ids": ids, "pixel_values": torch.zeros(1, 3, 4, 4)}
    )
    assert tokenizer.convert_ids_to_tokens(target_ids(Words(tokenizer), batch, "red").tolist()) == ["red"]


def test_a_row_is_read_once(monkeypatch):
    """500 equal rows with 600 image tokens before the words cost as much as one."""
    tokenizer = TOKENIZERS["byte_level"]()
    row = encoded(tokenizer, "<image>" * 600 + "the colour is")
    lengths = []
    encode = type(tokenizer).encode

    def counted(self, text, **options):
        lengths.append(len(text))
        return encode(self, text, **options)

    monkeypatch.setattr(type(tokenizer), "encode", counted)
    target_ids(Words(tokenizer), row.repeat(500), ["red", "blue"] * 250)
    assert len(lengths) <= 4
    assert max(lengths) < 40


@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_word_behind_no_prompt_is_that_of_running_text(name):
    tokenizer = TOKENIZERS[name]()
    running = read_on(tokenizer, "is it", " red")
    assert [word_id(Words(tokenizer), "red")] == [word_id(Words(tokenizer), " red")] == running
    assert word_id(Words(tokenizer), 7) == 7


def test_a_word_behind_no_prompt_may_be_one_without_a_space():
    tokenizer = TOKENIZERS["single_digits"]()
    assert tokenizer.convert_ids_to_tokens(word_id(Words(tokenizer), "3")) == "3"
    with pytest.raises(interp.InputError, match=r"target ' 3' is 2 tokens, \['Ġ', '3'\]"):
        word_id(Words(tokenizer), " 3")
    with pytest.raises(interp.InputError, match="target '' adds no token"):
        word_id(Words(tokenizer), "")


def test_words_outside_the_models_own_vocabulary():
    """A tokenizer may have more tokens than the model has logits."""
    tokenizer = TOKENIZERS["byte_level"]()

    class Fewer(Words):
        vocab_size = 10

    with pytest.raises(interp.InputError, match="token ids go from 0 to 9"):
        target_ids(Fewer(tokenizer), encoded(tokenizer, "the colour is"), "red")


@pytest.fixture(scope="module")
def byte_vlm(tiny):
    """A tiny LLaVA whose tokenizer tells "red" from " red"."""
    tokenizer, hf = TOKENIZERS["byte_level"](), copy.deepcopy(tiny)
    hf.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    hf.config.image_token_id = hf.config.image_token_index = tokenizer.convert_tokens_to_ids("<image>")
    torch.manual_seed(0)
    torch.nn.init.normal_(hf.lm_head.weight, std=0.3)
    strategy = {"vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
    processor = transformers.LlavaProcessor(processors.clip_images(size=32), tokenizer, patch_size=8, **strategy)
    return interp.load(model=hf, processor=processor, device="cpu")


@pytest.mark.parametrize(("prompt", "token"), [("<image> the colour is", "Ġred"), ("<image> the colour:\n", "red")])
def test_every_call_that_takes_words_reads_them_behind_the_prompt(byte_vlm, prompt, token):
    pictures = [Image.new("RGB", (32, 32), colour) for colour in ("red", "blue")]
    batch, other = (byte_vlm.prepare([prompt], [picture]) for picture in pictures)
    right = byte_vlm.tokenizer.convert_tokens_to_ids(token)
    own, others = (byte_vlm.logits(each)[0].softmax(-1)[right].item() for each in (batch, other))
    close = partial(pytest.approx, rel=1e-4)
    assert logit_lens(byte_vlm, batch, positions="last", targets="red").target_probs[-1, 0].item() == close(own)
    attribution = direct_logit_attribution(byte_vlm, batch, "red")
    assert attribution.totals[0].item() == close(byte_vlm.logits(batch)[0, right].item())
    metric = probability("red")
    swept = patch_sweep(byte_vlm, batch, other, layers=[0], positions=[-1], metric=metric)
    assert [swept.clean_rows.item(), swept.corrupted_rows.item()] == close([own, others])
    assert layer_sweep(byte_vlm, batch, metric=metric, positions="image").baseline == close(own)
    assert [ids.tolist() for ids in answer_ids(metric, byte_vlm, [batch, other])] == [[right], [right]]


def test_a_word_that_differs_behind_the_rows_of_a_pair_is_refused(byte_vlm):
    clean, corrupted = (byte_vlm.prepare(texts=[text]) for text in ("is it red?", "is it red\n"))
    assert len(clean.tokens[0]) == len(corrupted.tokens[0])
    with pytest.raises(
        interp.InputError, match=r"row 0: a word of the metric is token \d+ behind the clean prompt and"
    ):
        patch_sweep(byte_vlm, clean, corrupted, metric=probability("red"))
