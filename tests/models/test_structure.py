"""Parts are found by what they are, on models that differ in everything a name could tell."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn
from transformers import PreTrainedConfig

import interp
import zoo
from interp.models.structure import Readout, find_structure, resolve


def test_the_toys_parts(toy):
    s = toy.structure
    assert resolve(toy.model, s.layers) is toy.model.model.language_model.layers
    assert resolve(toy.model, s.norm) is toy.model.model.language_model.norm
    assert resolve(toy.model, s.head) is toy.model.lm_head
    assert resolve(toy.model, s.embed) is toy.model.model.language_model.embed_tokens
    assert resolve(toy.model, s.vision) is toy.model.model.vision_tower
    assert resolve(toy.model, s.projector) is toy.model.model.multi_modal_projector
    assert (s.n_layers, s.d_model, s.n_heads) == (8, 128, 4)
    assert s.vocab_size == len(toy.tokenizer)
    assert s.image_token_id == toy.tokenizer.convert_tokens_to_ids("<image>")


def test_a_model_in_hand_without_a_processor(tiny):
    vlm = interp.load(model=tiny)
    assert (vlm.structure.n_layers, vlm.structure.d_model, vlm.structure.vocab_size) == (3, 32, 90)
    ids = torch.tensor([[1, *[7] * 16, 20, 21]])
    batch = vlm.prepare(encoding={"input_ids": ids, "pixel_values": torch.randn(1, 3, 32, 32)})
    assert batch.positions.grid(0) == [(4, 4)]
    assert set(vlm.check(batch).to_frame()["outcome"]) == {"passed"}
    with pytest.raises(interp.InputError, match="without a tokenizer"):
        vlm.generate(batch)


class Renamed(nn.Module):
    """A decoder whose parts are called otherwise."""

    def __init__(self, old):
        super().__init__()
        self.embed_tokens, self.opening = old.embed_tokens, copy.deepcopy(old.norm)
        self.stack, self.closing = old.layers, old.norm
        self.stack[0].side_projection = nn.Linear(2, 2)  # called like a projector, and none


class Wrapper(nn.Module):
    def __init__(self, old):
        super().__init__()
        self.config, self.body, self.lm_head = old.config, Renamed(old.model.language_model), old.lm_head

    def forward(self, input_ids, pixel_values=None):
        raise NotImplementedError

    def get_decoder(self):
        return self.body

    def get_output_embeddings(self):
        return self.lm_head

    def get_input_embeddings(self):
        return self.body.embed_tokens


def test_parts_do_not_depend_on_their_names(tiny):
    """A decoder whose layers and norm are called otherwise is found all the same."""
    found = find_structure(Wrapper(copy.deepcopy(tiny)))
    assert (found.layers, found.norm, found.head) == ("body.stack", "body.closing", "lm_head")
    assert found.vision is None
    assert found.projector is None


def test_an_encoder_decoder_is_refused_by_name():
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(d_model=16, d_ff=16, d_kv=8, num_layers=1, num_heads=2, vocab_size=20)
    with pytest.raises(interp.LayoutError, match="T5ForConditionalGeneration is an encoder-decoder"):
        interp.load(model=T5ForConditionalGeneration(config).eval())


def test_parts_given_by_hand_are_taken_and_proved():
    model, path = zoo.build("llava"), "model.language_model.norm"
    assert interp.load(model=model, structure={"norm": path}).structure.norm == path
    with pytest.raises(interp.LayoutError, match="failed the proof 'readout'"):
        interp.load(model=model, structure={"norm": "model.language_model.layers.1.input_layernorm"})
    with pytest.raises(interp.InputError, match=r"norm='model.nothing' is no module of Llava"):
        interp.load(model=model, structure={"norm": "model.nothing"})
    with pytest.raises(interp.InputError, match="structure has no 'normm'"):
        interp.load(model=model, structure={"normm": path})


LAYERS, BLOCKS = "model.language_model.layers", "model.vision_tower.encoder.layers"


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("model.norm", "structure='model.norm': expected its fields by name"),
        (["norm"], "expected its fields by name"),
        ({"norm": None}, "structure norm=None is no module of Llava"),
        ({"norm": ["a"]}, r"structure norm=\['a'\] is no module of Llava"),
        ({"layers": ""}, "structure layers='' is no module of Llava"),
        ({"layers": BLOCKS}, f"structure layers='{BLOCKS}' is no list of 4 layers"),
        ({"layers": "lm_head"}, "structure layers='lm_head' is no list of 4 layers"),
        ({"n_layers": 3, "layers": LAYERS}, "is no list of 3 layers: expected one, or n_layers too"),
        ({"n_layers": "x"}, "structure n_layers='x': expected an int from 1 on"),
        ({"n_heads": True}, "structure n_heads=True: expected an int"),
        ({"image_token_id": "<image>"}, "structure image_token_id='<image>': expected an int"),
        ({"attn": "self_attn"}, "structure attn='self_attn': expected a tuple with one entry a layer"),
        ({"attn": ("self_attn",)}, "structure attn has 1 entries: expected one for each of 4 layers"),
        ({"mlp": ("mpl",) * 4}, "structure mlp has 'mpl' for layer 0: expected None or one of self_attn, mlp"),
        ({"heads": (4, 4, 4, 4.0)}, "structure heads has 4.0 for layer 3: expected an int"),
        ({"attention": ("soft",) * 4}, "structure attention has 'soft' for layer 0: expected one of softmax"),
        ({"trims": True}, "structure trims=True: this is measured on the model, leave it out"),
    ],
)
def test_parts_that_are_none(given, words):
    with pytest.raises(interp.InputError, match=words) as caught:
        interp.load(model=zoo.build("llava"), structure=given)
    assert "\n" not in str(caught.value)


def test_parts_that_do_not_run_are_refused_in_one_line():
    with pytest.raises(interp.LayoutError, match="cannot be run with the structure= that was given") as caught:
        interp.load(model=zoo.build("llava"), structure={"norm": "lm_head"})
    assert "\n" not in str(caught.value)


def test_a_whole_structure_is_taken_without_what_was_measured():
    model = zoo.build("llava")
    own = interp.load(model=model).structure
    assert own.readout is not None
    wrong = replace(own, readout=Readout(scale=3.0), trims=True)
    taken = find_structure(model, wrong)
    assert (taken.readout, taken.attn_out, taken.trims) == (None, None, None)
    assert interp.load(model=model, structure=wrong).structure == own
    with pytest.raises(interp.InputError, match=r"structure vision='model.visual' is no module of LlavaFor"):
        find_structure(model, find_structure(zoo.build("qwen2_vl")))


def test_a_given_tower_is_where_blocks_and_projector_are_looked_for():
    model = zoo.build("llava")
    inner = find_structure(model, {"vision": "model.vision_tower.encoder"})
    assert (inner.vision, inner.blocks) == ("model.vision_tower.encoder", BLOCKS)
    none = find_structure(model, {"vision": None})
    assert (none.vision, none.blocks, none.projector) == (None, None, "model.multi_modal_projector")
    assert find_structure(model, {"vision": "model.multi_modal_projector"}).blocks is None


def test_what_a_config_does_not_say_can_be_given(tiny):
    """Some keep the language model's config under a name of their own, as InternVL's chat models do."""
    model = copy.deepcopy(tiny)
    model.config = PreTrainedConfig(llm_config=tiny.config.text_config, image_token_id=7)
    given = {"n_layers": 3, "d_model": 32, "n_heads": 4, "n_kv_heads": 2, "attention": ["sliding"] * 3}
    for name, absent in (("n_layers", "num_hidden_layers"), ("n_heads", "num_attention_heads")):
        with pytest.raises(interp.LayoutError, match=f"does not say {absent}, .* pass structure= with {name}"):
            find_structure(model, {key: value for key, value in given.items() if key != name})
    vlm = interp.load(model=model, structure=given)
    expected = interp.load(model=tiny).structure
    assert vlm.structure == replace(expected, d_vision=None)


def test_a_model_whose_images_have_an_input_of_their_own_can_be_given(tiny):
    class OwnInput(Wrapper):
        def forward(self, input_ids, picture=None):
            raise NotImplementedError

    model = OwnInput(copy.deepcopy(tiny))
    model.config = copy.deepcopy(tiny.config)
    with pytest.raises(interp.LayoutError, match="takes no image"):
        find_structure(model)
    assert find_structure(model, {"image_token_id": 7}).image_token_id == 7
