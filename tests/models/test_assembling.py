"""A model put together of parts is what its parts are: on text the language model, on pictures connector(tower(pixels))."""

import copy
import json

import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    CLIPConfig,
    CLIPModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PixtralVisionConfig,
    PixtralVisionModel,
    PreTrainedTokenizerFast,
    SiglipConfig,
    SiglipModel,
    SiglipVisionConfig,
    SiglipVisionModel,
    SwinConfig,
    SwinModel,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

import interp
import zoo
from interp.models.layout.image_positions import apart
from interp.patching import transplant
from zoo.shrink import VOCABULARY

TOWER = {
    "hidden_size": 24,
    "intermediate_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
}
TEXTS = ["w5 w6 w7 w8", "w40 w9 w31 w150 w77"]


def tokenizer(words=VOCABULARY):
    """One word for each id of the zoo's language models."""
    names = {"<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": 3, **{f"w{number}": number for number in range(4, words)}}
    plain = Tokenizer(WordLevel(names, unk_token="<unk>"))
    plain.pre_tokenizer = WhitespaceSplit()
    special = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=plain, **special)


def pictures(side=32):
    return CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size={"height": side, "width": side})


def drawn(kind, config):
    torch.manual_seed(0)
    return kind(config).eval()


@pytest.fixture(scope="module")
def clip():
    return drawn(CLIPVisionModel, CLIPVisionConfig(**TOWER))


@pytest.fixture(scope="module")
def parts(clip):
    """The arguments of a call that works."""
    return {
        "language_model": zoo.build("llama"),
        "tokenizer": tokenizer(),
        "vision": clip,
        "image_processor": pictures(),
    }


@pytest.fixture(scope="module")
def vlm(parts):
    return interp.assemble(**parts)


@pytest.fixture(scope="module")
def picture():
    pixels = torch.randint(256, (40, 50, 3), generator=torch.Generator().manual_seed(4), dtype=torch.uint8)
    return Image.fromarray(pixels.numpy())


# The toy, taken apart and put together -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def apart_on_disk(bare, stage1, tmp_path_factory):
    """The toy's first stage as three folders: a language model, a tower, and a connector in LLaVA's layout alone."""
    root = tmp_path_factory.mktemp("parts")
    bare.model.save_pretrained(root / "language")
    bare.tokenizer.save_pretrained(root / "language")
    stage1.model.model.vision_tower.save_pretrained(root / "tower")
    stage1.processor.image_processor.save_pretrained(root / "tower")
    own = stage1.model.model.multi_modal_projector.state_dict()
    names = {"linear_1": "model.mm_projector.0", "linear_2": "model.mm_projector.2"}
    torch.save({names[key.split(".")[0]] + "." + key.split(".")[1]: own[key] for key in own}, root / "mm_projector.bin")
    return root


def in_fresh_memory(vlm):
    """The same weights where a new tensor would lie: sums of a mapped file's weights may differ in their last bits."""
    for parameter in vlm.model.parameters():
        parameter.data = parameter.data.clone()
    return vlm


def test_the_toys_parts_come_together_to_the_toy_bit_for_bit(apart_on_disk, stage1, few):
    assembled = interp.assemble(
        language_model=apart_on_disk / "language",
        vision=apart_on_disk / "tower",
        connector=apart_on_disk,
        vision_feature_layer=-1,
        device="cpu",
    )
    theirs = stage1.model.state_dict()
    assert {*assembled.model.state_dict()} == {*theirs}
    assert all(torch.equal(tensor, theirs[key]) for key, tensor in assembled.model.state_dict().items())
    rows = {"texts": [scene.questions[0].prompt for scene in few], "images": [scene.image for scene in few]}
    both = [each.logits(each.prepare(**rows), positions="all") for each in (in_fresh_memory(assembled), stage1)]
    assert torch.equal(*both)
    assert assembled.generate(assembled.prepare(**rows), 3) == stage1.generate(stage1.prepare(**rows), 3)
    assert assembled.name == "language with tower"
    assert set(assembled.check().to_frame()["outcome"]) == {"passed"}


def test_parts_in_hand_come_together_without_a_copy(bare, stage1, few):
    assembled = interp.assemble(
        language_model=bare,
        vision=stage1,
        connector=stage1.model.model.multi_modal_projector,
        vision_feature_layer=-1,
        name="first stage",
    )
    assert assembled.name == "first stage"
    rows = {"texts": [few[0].questions[0].prompt], "images": [few[0].image]}
    assert torch.equal(assembled.logits(assembled.prepare(**rows)), stage1.logits(stage1.prepare(**rows)))
    assert assembled.model.config.text_config.vocab_size == 75  # the toy's tokenizer has a word for images already
    language = bare.model.state_dict()
    for key, tensor in assembled.model.state_dict().items():
        from_language = key.replace("model.language_model.", "model.")
        source = language[from_language] if from_language in language else stage1.model.state_dict()[key]
        assert tensor.data_ptr() == source.data_ptr(), key
    for parameter in assembled.model.parameters():
        parameter.requires_grad_(False)
    assert all(parameter.requires_grad for parameter in bare.model.parameters())


def test_before_and_after_tuning_can_be_compared(bare, stage1, toy, few):
    """The assembled first stage with the tuned model's layers, embedding and head is the tuned model."""
    projector = stage1.model.model.multi_modal_projector
    before = interp.assemble(language_model=bare, vision=stage1, connector=projector, vision_feature_layer=-1)
    rows = toy.prepare([few[0].questions[0].prompt], [few[0].image])
    whole = transplant(before, toy, "all", ("layers", "norm", "head", "embed", "projector"))
    assert torch.equal(whole.logits(rows), toy.logits(rows))
    hybrid = transplant(before, toy, range(4)).logits(rows)
    assert not torch.equal(hybrid, toy.logits(rows))
    assert not torch.equal(hybrid, before.logits(rows))


# What it is --------------------------------------------------------------------------------------------------------------


def by_hand(vlm, tower, picture):
    """What the connector makes of a picture, without LLaVA's code: the tower's states, put through two linear maps."""
    config, projector = vlm.model.config, vlm.model.model.multi_modal_projector
    pixels = vlm.processor.image_processor(images=[picture], return_tensors="pt")["pixel_values"]
    reads = config.vision_feature_layer
    with torch.no_grad():
        states = tower(pixels.to(tower.dtype), output_hidden_states=True).hidden_states
        chosen = torch.cat([states[read] for read in ([reads] if isinstance(reads, int) else reads)], dim=-1)
        chosen = chosen[:, 1:] if config.vision_feature_select_strategy == "default" else chosen
        return projector.linear_2(projector.act(projector.linear_1(chosen)))[0]


def test_a_picture_enters_as_the_tower_and_the_connector_make_it(vlm, clip, picture):
    batch = vlm.prepare(["w5 <image> w6"], [picture])
    states = interp.capture(vlm, [batch], positions="image", reduce="none", progress=False)["resid"][0]
    assert torch.equal(states, by_hand(vlm, clip, picture))
    assert len(states) == 16 == vlm.model.config.image_seq_length
    assert isinstance(vlm.model, LlavaForConditionalGeneration)
    assert isinstance(vlm.processor, LlavaProcessor)


def test_the_parts_stay_as_they_are(clip):
    language, words, processor = copy.deepcopy(zoo.build("llama")), tokenizer(), pictures()
    before = copy.deepcopy((language.state_dict(), language.config.to_dict(), words.get_vocab(), clip.state_dict()))
    interp.assemble(language_model=language, tokenizer=words, vision=clip, image_processor=processor)
    after = (language.state_dict(), language.config.to_dict(), words.get_vocab(), clip.state_dict())
    for ours, theirs in zip(before, after, strict=True):
        assert {*ours} == {*theirs}
        assert all(torch.equal(ours[k], theirs[k]) if torch.is_tensor(ours[k]) else ours[k] == theirs[k] for k in ours)


@pytest.mark.parametrize("name", ["llama", "gemma3_text"])  # the second one's head is its embedding
def test_a_vocabulary_grows_by_the_mean_of_its_rows(parts, name):
    language = zoo.build(name)
    vlm = interp.assemble(**parts | {"language_model": language})
    rows = vlm.model.config.text_config.vocab_size
    assert (rows, vlm.model.config.image_token_id) == (192, 160)  # a multiple of 64, as 32,064 of 32,000
    for new, old in (
        (vlm.model.get_input_embeddings(), language.get_input_embeddings()),
        (vlm.model.get_output_embeddings(), language.get_output_embeddings()),
    ):
        assert new.weight.shape[0] == rows
        assert torch.equal(new.weight[:VOCABULARY], old.weight)
        torch.testing.assert_close(new.weight[VOCABULARY:], old.weight.mean(0).expand(rows - VOCABULARY, -1))
    logits = vlm.logits(vlm.prepare(TEXTS), positions="all")
    assert (logits[..., VOCABULARY:].amax(-1) < logits[..., :VOCABULARY].amax(-1)).all()
    assert vlm.model.get_output_embeddings().weight is vlm.model.get_input_embeddings().weight or name == "llama"


def test_words_that_were_added_to_the_tokenizer_get_rows_too(parts):
    """As a tuned model's tokenizer has them, with which both stages read the same ids."""
    words = tokenizer()
    words.add_tokens(["<image>", "<fill>"], special_tokens=True)
    vlm = interp.assemble(**parts | {"tokenizer": words})
    assert (vlm.model.config.text_config.vocab_size, vlm.model.config.image_token_id) == (192, 160)
    assert vlm.prepare(["w5 <fill>"]).inputs["input_ids"].tolist() == [[5, 161]]


FITS = """bloom deepseek_v3 falcon gemma3_text gpt2 gpt_neox gpt_oss llama mistral mixtral olmo olmo2 opt phi3 qwen2 qwen3
    qwen3_next""".split()
REFUSED = {
    "cohere": "on text the assembled model is not its CohereForCausalLM",  # a scale behind the head
    "gemma2": "on text the assembled model is not its Gemma2ForCausalLM",  # a cap
    "phi": "has a bias in its head",
    "bert": "has a bias in its head",
    "roberta-prelayernorm": "has a bias in its head",
    "mamba": "does not run inside a LLaVA",
    "openai-gpt": "does not run inside a LLaVA",
    "recurrent_gemma": "does not run inside a LLaVA",
}


@pytest.mark.parametrize("name", FITS)
def test_on_text_it_is_the_language_model(parts, name):
    language = zoo.build(name)
    vlm = interp.assemble(**parts | {"language_model": language})
    for text in TEXTS:
        ids = torch.tensor([[int(word[1:]) for word in text.split()]])
        with torch.no_grad():
            wanted = language(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
        assert apart(wanted, vlm.logits(vlm.prepare([text]), positions="all")[..., :VOCABULARY]) <= 1e-5
    assert set(vlm.check().to_frame()["outcome"]) == {"passed"}


@pytest.mark.parametrize("name", REFUSED)
def test_a_language_model_that_does_not_fit_is_refused_by_what_it_does(parts, name):
    with pytest.raises(interp.LayoutError, match=REFUSED[name]) as error:
        interp.assemble(**parts | {"language_model": zoo.build(name)})
    assert "\n" not in str(error.value)


def test_every_language_model_of_the_zoo_is_one_or_the_other():
    assert {*FITS, *REFUSED} == {*zoo.TEXTS}


# Saved and loaded --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["llama", "gemma3_text", "gpt2", "opt"]
)  # a tie that LLaVA knows, and two that it does not
def test_written_and_loaded_it_is_the_same(parts, picture, tmp_path, name):
    vlm = interp.assemble(**parts | {"language_model": zoo.build(name)})
    vlm.model.save_pretrained(tmp_path)
    vlm.processor.save_pretrained(tmp_path)
    again = interp.load(tmp_path, device="cpu")
    ours, theirs = vlm.model.state_dict(), again.model.state_dict()
    assert {*ours} == {*theirs}
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    rows = {"texts": ["<image> w5 w6", "w7"], "images": [picture, None]}
    batches = [each.prepare(**rows) for each in (vlm, again)]
    assert batches[0].tokens == batches[1].tokens
    torch.testing.assert_close(vlm.logits(batches[0]), again.logits(batches[1]), rtol=0, atol=1e-5)
    model, report = AutoModelForImageTextToText.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values())
    inputs = AutoProcessor.from_pretrained(tmp_path)(text="<image> w5 w6", images=picture, return_tensors="pt")
    with torch.no_grad():
        logits = model(**inputs).logits[0, -1]
    torch.testing.assert_close(logits, vlm.logits(batches[0])[0], rtol=0, atol=1e-5)


def test_no_file_says_from_which_folder_the_parts_came(apart_on_disk, tmp_path):
    folder = apart_on_disk
    vlm = interp.assemble(language_model=folder / "language", vision=folder / "tower", vision_feature_layer=-1)
    vlm.model.save_pretrained(tmp_path)
    vlm.processor.save_pretrained(tmp_path)
    for file in tmp_path.iterdir():
        assert str(folder).encode() not in file.read_bytes(), file.name


# Towers ------------------------------------------------------------------------------------------------------------------


def towers():
    siglip = SiglipConfig(text_config={**TOWER, "vocab_size": 50}, vision_config=TOWER)
    whole = CLIPConfig(
        text_config={**TOWER, "vocab_size": 50, "bos_token_id": 0, "eos_token_id": 1}, vision_config=TOWER
    )
    registers = {key: TOWER[key] for key in TOWER if key != "intermediate_size"}
    return {
        "CLIP": (CLIPVisionModel, CLIPVisionConfig(**TOWER), "default", 16),
        "CLIP, with its class token": (CLIPVisionModel, CLIPVisionConfig(**TOWER), "full", 17),
        "a whole CLIP": (CLIPModel, whole, "default", 16),
        "SigLIP": (SiglipVisionModel, SiglipVisionConfig(**TOWER), "full", 16),
        "a whole SigLIP": (SiglipModel, siglip, "full", 16),
        "with registers": (
            Dinov2WithRegistersModel,
            Dinov2WithRegistersConfig(**registers, mlp_ratio=2),
            "default",
            20,
        ),
    }


@pytest.mark.parametrize("name", towers())
def test_towers(parts, picture, name):
    kind, config, strategy, tokens = towers()[name]
    model = drawn(kind, config)
    vlm = interp.assemble(**parts | {"vision": model}, vision_feature_select_strategy=strategy)
    batch = vlm.prepare(["<image> w5"], [picture])
    assert batch.positions["image"].sum() == tokens == vlm.model.config.image_seq_length
    states = interp.capture(vlm, [batch], positions="image", reduce="none", progress=False)["resid"][0]
    assert torch.equal(states, by_hand(vlm, getattr(model, "vision_model", model), picture))


@pytest.mark.parametrize("reads", [0, 3, -4, (-2, -1), torch.tensor([1])])
def test_any_states_of_the_tower_can_be_read(parts, clip, picture, reads):
    vlm = interp.assemble(**parts, vision_feature_layer=reads)
    batch = vlm.prepare(["<image> w5"], [picture])
    states = interp.capture(vlm, [batch], positions="image", reduce="none", progress=False)["resid"][0]
    torch.testing.assert_close(states, by_hand(vlm, clip, picture))


def test_a_whole_clip_is_loaded_by_name_without_its_text(parts, picture, tmp_path, capfd):
    config = towers()["a whole CLIP"][1]
    whole = drawn(CLIPModel, config)
    whole.save_pretrained(tmp_path / "some-clip")
    pictures().save_pretrained(tmp_path / "some-clip")
    capfd.readouterr()
    others = {"vision": tmp_path / "some-clip", "image_processor": None}
    vlm = interp.assemble(**parts | others)
    assert "UNEXPECTED" not in "".join(capfd.readouterr())
    assert vlm.name == "LlamaForCausalLM with some-clip"
    ours, theirs = vlm.model.model.vision_tower.state_dict(), whole.vision_model.state_dict()
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


@pytest.mark.parametrize("of", ["config.json", "preprocessor_config.json"])
def test_code_beside_a_tower_is_not_run_nor_offered(parts, clip, tmp_path, monkeypatch, of):
    """On a terminal transformers would ask whether to run it."""
    clip.save_pretrained(tmp_path)
    pictures().save_pretrained(tmp_path)
    named = {"auto_map": {"AutoConfig": "code.Own", "AutoImageProcessor": "code.Own"}, "image_processor_type": "Own"}
    settings = json.loads((tmp_path / of).read_text()) | named
    (tmp_path / of).write_text(json.dumps(settings | ({"model_type": "own"} if of == "config.json" else {})))
    (tmp_path / "code.py").write_text(f"import os; os.mkdir({str(tmp_path / 'made')!r})")
    monkeypatch.setattr("builtins.input", lambda question: "y")
    with pytest.raises(interp.InputError, match="contains custom code") as caught:
        interp.assemble(**parts | {"vision": tmp_path, "image_processor": None})
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "made").exists()


# Precision ---------------------------------------------------------------------------------------------------------------


def test_the_rest_comes_to_the_language_models_precision(parts, clip):
    language = copy.deepcopy(zoo.build("llama")).bfloat16()
    vlm = interp.assemble(**parts | {"language_model": language})
    assert {parameter.dtype for parameter in vlm.model.parameters()} == {torch.bfloat16}
    assert clip.dtype == torch.float32
    batch = vlm.prepare([TEXTS[0]])
    with torch.no_grad():
        wanted = language(**{key: batch.inputs[key] for key in ("input_ids", "attention_mask")}).logits[:, -1]
    assert torch.equal(vlm.logits(batch)[:, :VOCABULARY], wanted)


def test_all_of_it_can_be_brought_to_another_precision(parts, clip, tmp_path):
    """The tower straight from its own precision, not by way of the language model's."""
    language = copy.deepcopy(zoo.build("llama")).bfloat16()
    vlm = interp.assemble(**parts | {"language_model": language}, dtype="float32")
    assert {parameter.dtype for parameter in vlm.model.parameters()} == {torch.float32}
    assert {parameter.dtype for parameter in language.parameters()} == {torch.bfloat16}
    ours = vlm.model.model.vision_tower.state_dict()
    assert all(torch.equal(ours[key], tensor) for key, tensor in clip.state_dict().items())
    vlm.model.save_pretrained(tmp_path)
    assert interp.load(tmp_path, check=False).model.dtype == torch.float32


# What does not go --------------------------------------------------------------------------------------------------------


def dead():
    """A connector that passes nothing on."""
    connector = torch.nn.Linear(24, 64)
    torch.nn.init.zeros_(connector.weight)
    return connector


def not_finite():
    language = copy.deepcopy(zoo.build("llama"))
    language.model.norm.weight.data.fill_(torch.nan)
    return language


SWIN = {"image_size": 32, "patch_size": 4, "embed_dim": 16, "depths": [1, 1], "num_heads": [2, 2], "window_size": 4}
ODD = {
    "no tokenizer": (lambda: {"tokenizer": None}, "expected the language model's, pass tokenizer="),
    "no image processor": (lambda: {"image_processor": None}, "pass image_processor="),
    "a vlm as language model": (lambda: {"language_model": "toy", "tokenizer": None}, "'toy' takes images by itself"),
    "a number": (lambda: {"language_model": 3}, "language_model is a int: expected a name"),
    "a module": (lambda: {"language_model": torch.nn.Linear(2, 2)}, "language_model is a Linear: expected a name"),
    "a model without a head": (lambda: {"language_model": zoo.build("llama").model}, "LlamaModel has no linear head"),
    "in training": (lambda: {"language_model": copy.deepcopy(zoo.build("llama")).train()}, r"call model\.eval\(\)"),
    "without weights": (lambda: {"language_model": copy.deepcopy(zoo.build("llama")).to("meta")}, "no weights here"),
    "a name that is none": (lambda: {"language_model": "nobody/nothing"}, "'nobody/nothing' cannot be loaded"),
    "no tower of this name": (lambda: {"vision": "nobody/nothing"}, "cannot be loaded as an image tower"),
    "no tower in it": (lambda: {"vision": zoo.build("llama")}, "in which no image tower of transformers is found"),
    "vision is a list": (lambda: {"vision": []}, "vision is a list: expected a name, a model in hand, or a VLM"),
    "a tower without weights": (
        lambda: {"vision": CLIPVisionModel(CLIPVisionConfig(**TOWER)).to("meta")},
        "vision is not whole on one device",
    ),
    "a tower without a class token": (
        lambda: {"vision": drawn(SiglipVisionModel, SiglipVisionConfig(**TOWER))},
        "SiglipVisionModel has no class token",
    ),
    "a tower that merges patches": (
        lambda: {"vision": drawn(SwinModel, SwinConfig(**SWIN))},
        "SwinModel makes states",
    ),
    "a tower of pictures of any size": (
        lambda: {"vision": drawn(PixtralVisionModel, PixtralVisionConfig(**TOWER))},
        "expected one row a picture",
    ),
    "pictures of another size": (lambda: {"image_processor": pictures(24)}, "do not fit together .*24.*32"),
    "another strategy": (lambda: {"vision_feature_select_strategy": "patch"}, "use one of default, full"),
    "too deep": (lambda: {"vision_feature_layer": 4}, r"vision_feature_layer=\[4\]: expected -4 to 3"),
    "one of two too deep": (lambda: {"vision_feature_layer": [-1, -5]}, "expected -4 to 3"),
    "no state": (lambda: {"vision_feature_layer": []}, "expected an int, such as -2, or a list"),
    "a word for a state": (lambda: {"vision_feature_layer": "last"}, "expected an int, such as -2, or a list"),
    "no word": (lambda: {"image_token": " "}, "expected a word, such as '<image>'"),
    "a word with a role": (lambda: {"image_token": "<pad>"}, "'<pad>' is the tokenizer's pad_token"),
    "another tokenizer": (lambda: {"tokenizer": tokenizer(400)}, "words up to id 399, the LlamaForCausalLM embeds 160"),
    "quantised": (lambda: {"dtype": "nf4"}, "dtype='nf4': expected 'auto'"),
    "another device": (lambda: {"device": "meta"}, "move it yourself"),
    "not finite": (lambda: {"language_model": not_finite()}, "LlamaForCausalLM by itself gives logits"),
    "another width": (lambda: {"connector": torch.nn.Linear(23, 64)}, r"\(64, 23\): expected \(64, 24\)"),
    "nothing gets through": (lambda: {"connector": dead()}, "another picture leaves the logits"),
    "no template": (lambda: {"chat_template": 3}, "chat_template=3: expected a template of Jinja as text, or None"),
    "a seed": (lambda: {"seed": -1}, "seed=-1: expected an int of 0 or more"),
    "check": (lambda: {"check": "no"}, "check='no': expected True or False"),
}


@pytest.mark.parametrize("name", ODD)
def test_what_does_not_go_is_one_line(parts, name):
    make, message = ODD[name]
    with pytest.raises(interp.InterpError, match=message) as error:
        interp.assemble(**parts | make())
    assert "\n" not in str(error.value)


def test_without_proofs_anything_that_can_be_built_is_built(parts):
    vlm = interp.assemble(**parts | {"language_model": zoo.build("cohere"), "connector": dead()}, check=False)
    assert vlm.logits(vlm.prepare(["w5"])).isfinite().all()


TEMPLATE = "{% for m in messages %}USER: {{ m['content'] }} ASSISTANT:{% endfor %}"


def test_the_tokenizers_chat_template_comes_along(parts, picture, tmp_path):
    words = tokenizer()
    words.chat_template = TEMPLATE
    vlm = interp.assemble(**parts | {"tokenizer": words})
    vlm.model.save_pretrained(tmp_path)
    vlm.processor.save_pretrained(tmp_path)
    for each in (vlm, interp.load(tmp_path, device="cpu")):
        assert each.processor.chat_template == TEMPLATE
        assert each.prepare(["<image> w5"], [picture], chat=True).tokens[0][-2:] == ["w5", "<unk>"]


def test_a_chat_template_of_ones_own(parts, picture):
    words = tokenizer()
    vlm = interp.assemble(**parts | {"tokenizer": words}, chat_template=TEMPLATE)
    batch = vlm.prepare(["<image> w5"], [picture], chat=True)
    assert batch.tokens[0] == ["<unk>", *["<image>"] * 16, "w5", "<unk>"]
    assert words.chat_template is None


def test_the_language_model_attends_as_it_did(parts):
    language = copy.deepcopy(zoo.build("llama"))
    language.set_attn_implementation("eager")
    config = interp.assemble(**parts | {"language_model": language}, check=False).model.config
    assert (config.text_config._attn_implementation, config.vision_config._attn_implementation) == ("eager", "sdpa")


def test_new_connectors_differ_by_their_seed(parts):
    one, same, other = (
        interp.assemble(**parts, seed=seed, check=False).model.model.multi_modal_projector.linear_1.weight
        for seed in (0, 0, 1)
    )
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
