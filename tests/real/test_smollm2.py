"""A LLaVA around a real language model: SmolLM2-135M with a small random tower, held against transformers and plain hooks.

Run with ``SMOLLM2=folder pytest -m real``, where the folder has ``SmolLM2-135M-Instruct.Q4_1.gguf``. With ``-s`` the tests
print the memory and the CPU time of load, sweep and capture.
"""

import importlib.util
import os
import resource
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from PIL import Image

import interp
from interp.geometry import participation_ratio
from interp.lens import logit_lens
from interp.patching import logit_difference, patch_sweep

GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
FOLDER = os.environ.get("SMOLLM2", "")


def missing():
    """Why these tests cannot run here; empty where they can."""
    if not FOLDER:
        return "the environment variable SMOLLM2 names no folder"
    if not (Path(FOLDER) / GGUF).is_file():
        return f"the folder that SMOLLM2 names has no {GGUF}"
    return "" if importlib.util.find_spec("gguf") else "the gguf package is not installed"


pytestmark = [pytest.mark.real, pytest.mark.skipif(bool(missing()), reason=missing() or "all is here")]


@contextmanager
def measured(what):
    cpu, wall = time.process_time(), time.perf_counter()
    yield
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"\n{what}: {time.process_time() - cpu:.2f} s CPU, {time.perf_counter() - wall:.2f} s, peak {memory:.0f} MB")


@pytest.fixture(scope="module")
def language():
    """SmolLM2 itself and its tokenizer."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(FOLDER, gguf_file=GGUF)
    return AutoModelForCausalLM.from_pretrained(FOLDER, gguf_file=GGUF, dtype=torch.float32).eval(), tokenizer


@pytest.fixture(scope="module")
def vlm(language):
    """The same decoder behind a random CLIP tower of 16 patches."""
    from transformers import CLIPVisionConfig, CLIPVisionModel
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    decoder, tokenizer = language
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4}
    torch.manual_seed(2)  # with other draws a word behind the picture may be a sink
    tower = CLIPVisionModel(CLIPVisionConfig(**sizes, image_size=48, patch_size=12)).eval()
    pictures = CLIPImageProcessorPil(size={"shortest_edge": 48}, crop_size={"height": 48, "width": 48})
    connector = torch.nn.Sequential(torch.nn.Linear(64, 576), torch.nn.GELU(), torch.nn.Linear(576, 576)).eval()
    for part in (connector[0], connector[2]):  # as transformers draws a new LLaVA
        torch.nn.init.normal_(part.weight, std=0.02)
        torch.nn.init.zeros_(part.bias)
    with measured("assemble"):
        return interp.assemble(
            language_model=decoder,
            tokenizer=tokenizer,
            vision=tower,
            image_processor=pictures,
            connector=connector,
            vision_feature_layer=-1,
        )


def states_by_hooks(model, inputs, layer=None, edit=None):
    """The outputs of SmolLM2's layers and its logits by plain hooks, with the output of one layer edited."""
    states = []

    def hook(number, output):
        state = output[0] if isinstance(output, tuple) else output
        state = edit(state) if number == layer else state
        states.append(state)
        return (state, *output[1:]) if isinstance(output, tuple) else state

    handles = [
        module.register_forward_hook(lambda module, args, output, number=number: hook(number, output))
        for number, module in enumerate(model.model.layers)
    ]
    try:
        with torch.no_grad():
            logits = model(**inputs).logits
    finally:
        for handle in handles:
            handle.remove()
    return torch.stack(states), logits


def test_every_proof_passes(vlm):
    frame = vlm.check().to_frame()
    assert set(frame["outcome"]) == {"passed"}, frame.to_string()


def test_logits_are_those_of_the_language_model(vlm, language):
    decoder, tokenizer = language
    batch = vlm.prepare(texts=["The capital of France is"])
    own = states_by_hooks(decoder, tokenizer("The capital of France is", return_tensors="pt"))[1]
    logits = vlm.logits(batch, positions="all")
    words = own.shape[-1]
    difference = (logits[..., :words] - own).abs().max() / own.abs().max()
    print(f"\nlargest difference to SmolLM2 alone: {difference.item():.1e} of the largest logit")
    assert difference <= 1e-5
    assert (logits[..., words:].amax(-1) < own.amax(-1)).all()


def test_it_is_written_and_loaded_with_its_tied_head(vlm, tmp_path):
    vlm.model.save_pretrained(tmp_path)
    vlm.processor.save_pretrained(tmp_path)
    assert not any(FOLDER.encode() in file.read_bytes() for file in tmp_path.glob("*.json*"))
    again = interp.load(tmp_path)
    assert again.model.lm_head.weight is again.model.get_input_embeddings().weight
    rows = {"texts": ["<image> A picture of"], "images": [Image.new("RGB", (60, 48), (200, 30, 60))]}
    ours, theirs = (each.logits(each.prepare(**rows)) for each in (vlm, again))
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-4)


def test_it_knows_a_capital(vlm):
    assert vlm.generate(vlm.prepare(texts=["The capital of France is"]), max_new_tokens=1) == [" Paris"]


def test_a_patching_sweep_is_that_of_hooks(vlm, language):
    decoder, tokenizer = language
    texts = ["The capital of France is", "The capital of Italy is"]
    words = [tokenizer(word)["input_ids"][0] for word in (" Paris", " Rome")]
    clean, corrupted = (vlm.prepare(texts=[text]) for text in texts)
    with measured("sweep of 30 layers and 5 positions"):
        result = patch_sweep(vlm, clean, corrupted, site="resid_post", metric=logit_difference(*words))
    inputs = [tokenizer(text, return_tensors="pt") for text in texts]
    states = states_by_hooks(decoder, inputs[0])[0]
    own = torch.zeros(30, 5)
    for layer in range(30):
        for column in range(5):

            def edit(state, layer=layer, column=column):
                return torch.cat([state[:, :column], states[layer][:, column : column + 1], state[:, column + 1 :]], 1)

            logits = states_by_hooks(decoder, inputs[1], layer, edit)[1][0, -1]
            own[layer, column] = logits[words[0]] - logits[words[1]]
    assert result.values.shape == own.shape
    print(f"\nlargest difference to plain hooks: {(result.values - own).abs().max().item():.1e}")
    torch.testing.assert_close(result.values.float(), own, atol=1e-4, rtol=0)


def test_lens_ranks_are_those_by_hand(vlm, language):
    decoder, tokenizer = language
    (word,) = tokenizer(" Paris")["input_ids"]
    lens = logit_lens(vlm, vlm.prepare(texts=["The capital of France is"]), positions="last", targets=word)
    states = states_by_hooks(decoder, tokenizer("The capital of France is", return_tensors="pt"))[0]
    with torch.no_grad():
        logits = decoder.lm_head(decoder.model.norm(states[:, 0, -1]))
    by_hand = (logits > logits[:, word, None]).sum(dim=1)
    assert lens.target_ranks[1:].flatten().tolist() == by_hand.tolist()
    assert by_hand[-1] == 0


SENTENCES = [
    f"{who} {what} {where}."
    for who in ("The old man", "My sister", "Engineers", "A small dog", "Nobody")
    for what in ("walked slowly", "found a key", "wrote three letters", "was waiting")
    for where in ("near the river", "in the empty house", "before the war")
]


def test_sinks_are_noted_and_content_leaves_them_out(vlm):
    with measured(f"capture of {len(SENTENCES)} sentences"):
        text = interp.capture(vlm, SENTENCES, positions="text", progress=False)
    content = interp.capture(vlm, SENTENCES, positions="content", progress=False)
    assert text.manifest["sinks"]["rows"] == len(SENTENCES)
    assert text.manifest["sinks"]["ratio"] > 100
    assert 'positions="content"' in text.provenance.notes[0]
    assert (content.manifest["sinks"], content.provenance.notes) == (None, ())
    ratios = [participation_ratio(acts["resid"][16]) for acts in (text, content)]
    print(f"\n{text.provenance.notes[0]}; participation ratio at state 16 {ratios[0]:.2f}, of content {ratios[1]:.2f}")
    assert ratios[0] < 1.5
    assert ratios[1] > 5


@pytest.mark.parametrize("start", ["", "<|im_start|>"])
def test_content_is_all_but_the_first_token(vlm, start):
    batch = vlm.prepare(texts=[start + sentence for sentence in SENTENCES])
    expected = batch.positions["text"] & ~batch.positions.select([0])
    # After the start token "Engine" is still half a sink, 34 times as long as usual.
    half = torch.tensor([[bool(start) and token == "Engine" for token in row] for row in batch.tokens])
    assert torch.equal(batch.positions["content"], expected & ~half)


def test_a_row_of_one_word_and_one_of_repeated_words_have_no_content(vlm):
    batch = vlm.prepare(texts=["dog", "Paris", "the the the the the"])
    assert not batch.positions["content"].any()


def test_pictures_before_and_between_words(vlm):
    picture = Image.new("RGB", (48, 48), (200, 30, 60))
    batch = vlm.prepare(texts=["<image> What is this?", "What is <image> this?"], images=[picture, picture])
    assert batch.positions["image_content"].sum(dim=1).tolist() == [16, 16]
    assert batch.positions["content"].sum(dim=1).tolist() == [4, 4]  # the first token of the second row is a sink
    shares = interp.readouts.attention_share(vlm, batch, queries="content", keys="image_content")
    assert shares.to_frame().notna().any().any()
