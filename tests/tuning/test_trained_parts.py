"""Which parameters are trained: each part by the model's own modules, and one line for whatever cannot be."""

import pytest
import torch

import interp
import zoo
from interp.tuning.trained_parts import trained_names, training_notes

INSIDE = ("qwen2_5_vl", "qwen3_vl", "glm4v", "exaone4_5", "hunyuan_vl")  # their projector stands inside the tower


@pytest.fixture
def of_zoo():
    return lambda name: interp.load(model=zoo.build(name), check=False)


def below(vlm, path):
    return {f"{path}.{name}" for name, _ in vlm.model.get_submodule(path).named_parameters()}


def test_parts_of_the_toy(toy):
    model = toy.model
    assert trained_names(toy, range(2, 4)) == [
        f"model.language_model.layers.{layer}.{name}"
        for layer in (2, 3)
        for name, _ in model.model.language_model.layers[layer].named_parameters()
    ]
    assert trained_names(toy, [-1, 7]) == trained_names(toy, 7)
    assert set(trained_names(toy, (), connector=True)) == below(toy, "model.multi_modal_projector")
    assert set(trained_names(toy, (), vision=True)) == below(toy, "model.vision_tower")
    assert trained_names(toy, (), head=True) == ["model.language_model.norm.weight", "lm_head.weight"]
    everything = trained_names(toy, connector=True, vision=True, head=True)
    assert {name for name, _ in model.named_parameters()} - {*everything} == {
        "model.language_model.embed_tokens.weight"
    }


@pytest.mark.parametrize("name", INSIDE)
def test_a_projector_inside_the_tower_is_the_connectors_alone(of_zoo, name):
    vlm = of_zoo(name)
    s = vlm.structure
    connector, tower = (set(trained_names(vlm, (), **{part: True})) for part in ("connector", "vision"))
    assert s.projector.startswith(f"{s.vision}.")
    assert connector == below(vlm, s.projector)
    assert connector | tower == below(vlm, s.vision)
    assert not connector & tower


def test_a_tied_head_trains_the_embedding_and_says_so(tiny, toy):
    vlm = interp.load(model=tiny, check=False)
    names = trained_names(vlm, (), head=True)
    assert names == ["model.language_model.embed_tokens.weight", "model.language_model.norm.weight"]
    assert "the embedding was trained too" in training_notes(vlm, names)[0]
    assert training_notes(toy, trained_names(toy, (), head=True)) == ()


@pytest.mark.parametrize(
    ("chosen", "words"),
    [
        ({"layers": ()}, r"layers=\(\) and no other part: expected something to train"),
        ({"layers": []}, r"layers=\[\] and no other part"),
        ({"layers": range(0)}, "and no other part"),
        ({"layers": 8}, "layer 8: 'toy' has layers 0 to 7"),
        ({"layers": range(6, 10)}, "layer 8: 'toy' has layers 0 to 7"),
        ({"layers": "middle"}, "layers='middle': expected 'all', an int or ints"),
        ({"layers": None}, "layers=None: expected 'all', an int or ints"),
        ({"layers": 1.5}, "layers=1.5: expected"),
        ({"layers": True}, "layers=True: expected"),
        ({"connector": "no"}, "connector='no': expected True or False"),
        ({"head": 1}, "head=1: expected True or False"),
    ],
)
def test_what_is_refused(unchecked, toy, chosen, words):
    with pytest.raises(interp.InputError, match=words) as caught:
        trained_names(toy, **chosen)
    assert "\n" not in str(caught.value)


def test_parts_that_a_model_lacks(unchecked, bare, of_zoo):
    with pytest.raises(interp.InputError, match="has no connector with weights of its own: leave it out"):
        trained_names(bare, connector=True)
    with pytest.raises(interp.InputError, match="has no image tower with weights"):
        trained_names(bare, vision=True)
    with pytest.raises(interp.InputError, match="has no image tower with weights"):
        trained_names(of_zoo("fuyu"), vision=True)
    with pytest.raises(interp.InputTypeError, match="vlm is a LlamaForCausalLM: expected a model"):
        trained_names(bare.model)


def test_layers_that_hold_one_module_go_together(bare):
    model = zoo.make(bare.model.config)
    model.model.layers[5].mlp = model.model.layers[2].mlp
    vlm = interp.load(model=model, check=False)
    for band in (2, range(3, 8)):
        with pytest.raises(
            interp.InputError, match="are one tensor, and only one of them was chosen: train both parts"
        ) as e:
            trained_names(vlm, band)
        assert "layers.2.mlp" in str(e.value)
        assert "layers.5.mlp" in str(e.value)
    both = trained_names(vlm, [2, 5])
    assert len(both) == len(set(both)) == 9 + 6
    assert sum("mlp" in name for name in both) == 3


def test_an_embedding_that_another_part_shares_is_refused(bare):
    model = zoo.make(bare.model.config)
    model.model.layers[0].extra = model.model.embed_tokens
    with pytest.raises(interp.InputError, match="are one tensor, and only one of them was chosen"):
        trained_names(interp.load(model=model, check=False), 0)


def test_weights_that_cannot_be_trained(bare, tmp_path, toy):
    model = zoo.make(bare.model.config)
    with torch.no_grad():
        weights = model.model.layers[1].mlp.up_proj.weight
    vlm = interp.load(model=model, check=False)
    model.model.layers[1].mlp.up_proj.weight = torch.nn.Parameter(weights.char(), requires_grad=False)
    with pytest.raises(
        interp.InputError, match=r"is quantised \(.*layers.1.mlp.up_proj.weight\): expected weights in float32"
    ):
        trained_names(vlm, 0)
    model.model.layers[1].mlp.up_proj.weight = torch.nn.Parameter(weights.to(torch.float8_e4m3fn), requires_grad=False)
    with pytest.raises(interp.InputError, match="is quantised"):
        trained_names(vlm, 0)
    nowhere = interp.load(model=zoo.make(bare.model.config), check=False)
    nowhere.model.to("meta")
    with pytest.raises(interp.InputError, match="has no weights here: training needs the model loaded on this machine"):
        trained_names(nowhere, 0)
    with torch.inference_mode():
        model = zoo.make(bare.model.config)
    with pytest.raises(interp.InputError, match=r"was loaded within torch.inference_mode\(\): load it outside"):
        trained_names(interp.load(model=model, check=False), 0)
    toy.model.save_pretrained(tmp_path / "toy")
    spread = interp.load(
        tmp_path / "toy",
        check=False,
        device_map={"model": "cpu", "lm_head": "disk"},
        offload_folder=tmp_path / "offload",
    )
    with pytest.raises(interp.InputError, match="is spread over devices by accelerate, whose hooks cannot be trained"):
        trained_names(spread, 0)
