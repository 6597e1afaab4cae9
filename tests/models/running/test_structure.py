"""What a user says of a model's parts is taken, proved like what is found, and refused in one line where it is wrong."""

import copy
from dataclasses import replace

import pytest
from transformers import PreTrainedConfig

import interp
import zoo
from interp.models.layout.discovery import find_structure
from interp.models.running.readout import LogitScaling


def test_parts_given_by_hand_are_taken_and_proved():
    model, path = zoo.build("llava"), "model.language_model.norm"
    assert interp.load(model=model, structure={"norm": path}).structure.norm == path
    with pytest.raises(interp.LayoutError, match="failed the proof 'readout'"):
        interp.load(model=model, structure={"norm": "model.language_model.layers.1.input_layernorm"})
    with pytest.raises(interp.InputError, match=r"norm='model.nothing' is not a module of Llava"):
        interp.load(model=model, structure={"norm": "model.nothing"})
    with pytest.raises(interp.InputError, match="structure has no 'normm'"):
        interp.load(model=model, structure={"normm": path})


LAYERS, BLOCKS = "model.language_model.layers", "model.vision_tower.encoder.layers"


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("model.norm", "structure='model.norm': expected its fields by name"),
        (["norm"], "expected its fields by name"),
        ({"norm": None}, "structure norm=None is not a module of Llava"),
        ({"norm": ["a"]}, r"structure norm=\['a'\] is not a module of Llava"),
        ({"layers": ""}, "structure layers='' is not a module of Llava"),
        ({"layers": BLOCKS}, f"structure layers='{BLOCKS}' is not a list of 4 layers"),
        ({"layers": "lm_head"}, "structure layers='lm_head' is not a list of 4 layers"),
        ({"n_layers": 3, "layers": LAYERS}, "is not a list of 3 layers: expected one, or n_layers too"),
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
    wrong = replace(own, readout=LogitScaling(scale=3.0), trims=True)
    taken = find_structure(model, wrong)
    assert (taken.readout, taken.attn_out, taken.trims) == (None, None, None)
    assert interp.load(model=model, structure=wrong).structure == own
    with pytest.raises(interp.InputError, match=r"structure vision='model.visual' is not a module of LlavaFor"):
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
