"""What goes wrong silently in architectures of transformers, each seen once and held: what a model is found to be, what its
states are, and which inputs it cannot do without."""

import copy

import pytest
import torch

import interp
import zoo
from interp.interventions import Knockout, Patch
from interp.models.running.structure import Added
from interp.models.running.trace import run_forward, run_generate
from zoo.table import batch, load, report


def layer_inputs(name):
    """What enters each layer in transformers' own forward pass, by plain hooks."""
    vlm, seen = load(name), []

    def keep(_, args, kwargs):
        seen.append((args[0] if args else next(iter(kwargs.values()))).clone())

    layers = vlm.model.get_submodule(vlm.structure.layers)
    handles = [layer.register_forward_pre_hook(keep, with_kwargs=True) for layer in layers]
    with torch.no_grad():
        vlm.model(**vlm.inputs_of(batch(name)))
    for handle in handles:
        handle.remove()
    return seen


@pytest.mark.parametrize(
    ("name", "part", "path"),
    [
        ("lfm2_vl", "norm", "model.language_model.embedding_norm"),
        ("nemotron_h_omni", "norm", "language_model.model.norm_f"),
        ("nemotron_h_omni", "head", "language_model.lm_head"),  # get_output_embeddings() gives None
        ("fuyu", "norm", "model.language_model.final_layernorm"),
        ("fuyu", "vision", None),  # its image encoder is said to be the whole model
        ("emu3", "vision", None),
        ("llama4", "layers", "language_model.model.layers"),  # get_decoder() gives the causal model above them
        ("blip-2", "layers", "language_model.model.decoder.layers"),
        ("idefics3", "layers", "model.text_model.layers"),
        ("qwen2_vl", "projector", "model.visual.merger"),  # inside the tower
        ("glm4v", "projector", "model.visual.merger"),
        ("qwen3_vl", "projector", "model.visual.merger"),  # not one of the mergers of DeepStack beside it
        ("qwen3_vl", "blocks", "model.visual.blocks"),
        ("internvl", "blocks", "model.vision_tower.encoder.layer"),
        ("mistral3", "blocks", "model.vision_tower.transformer.layers"),
    ],
)
def test_parts_under_other_names(name, part, path):
    assert getattr(load(name).structure, part) == path


@pytest.mark.parametrize("name", ["mllama", "florence2"])
def test_an_image_token_id_is_no_proof_of_image_tokens(name):
    assert zoo.build(name).config.image_token_id is not None
    with pytest.raises(interp.LayoutError):
        load(name)


@pytest.mark.parametrize("name", ["qwen3_vl", "cohere_compass", "granite_docling", "granite4_vision"])
def test_under_deepstack_a_state_is_what_leaves_a_layer(name):
    """Image features are added between early layers: a state is one thing before them and another behind."""
    vlm, rows = load(name), batch(name)
    report(name)
    assert vlm.structure.continuous is False
    acts = interp.capture(vlm, [rows], sites=("resid", "resid_pre"), positions="all", reduce="none", progress=False)
    real, image = (rows.positions[kind] for kind in ("all", "image"))
    for ours, entering in zip(acts["resid_pre"][...], layer_inputs(name), strict=True):
        torch.testing.assert_close(ours, entering[real], rtol=1e-5, atol=1e-5)
    added = (acts["resid_pre"][...] - acts["resid"][...][:-1]).abs().amax(dim=-1) > 0
    assert added[1, image[real]].any()
    assert not added[:, ~image[real]].any()


def test_features_may_be_added_to_the_placeholders():
    """molmo2: what stands at an image position is the placeholder's embedding and the features, not the features alone."""
    vlm, rows = load("molmo2"), batch("molmo2")
    image = rows.positions["image"]
    entering = layer_inputs("molmo2")[0][image]
    seen = []
    projector = vlm.model.get_submodule(vlm.structure.projector)
    handle = projector.register_forward_hook(lambda _, given, output: seen.append(output))
    with torch.no_grad():
        vlm.model(**vlm.inputs_of(rows))
        placeholder = vlm.model.get_input_embeddings()(torch.tensor([vlm.structure.image_token_id]))[0]
    handle.remove()
    features = seen[0].last_hidden_state
    torch.testing.assert_close(entering, features + placeholder, rtol=1e-4, atol=1e-4)
    assert vlm.check(rows).passed


@pytest.mark.parametrize("name", ["chameleon", "mistral_large4"])
def test_layers_that_give_tuples(name):
    vlm, rows = load(name), batch(name)
    acts = interp.capture(vlm, [rows], sites="resid_post", positions="all", reduce="none", progress=False)
    assert acts["resid_post"].shape[1] == int(rows.positions["all"].sum())


def test_a_model_that_overwrites_logits_is_read_as_it_answers():
    """chameleon never answers with an image code: the lens must not either."""
    vlm, rows = load("chameleon"), batch("chameleon")
    suppressed = torch.tensor(vlm.structure.readout.suppressed)
    assert len(suppressed)
    read = interp.lens.logit_lens(vlm, rows, positions="last", top_k=5)
    assert not torch.isin(read.top_ids, suppressed).any()


def test_a_scale_in_the_config_is_not_believed():
    for name in ("aya_vision", "cohere2_vision"):
        assert load(name).model.config.text_config.logit_scale != 1
        assert load(name).structure.readout.scale == 1


def test_what_is_added_behind_a_norm():
    assert load("exaone4_5").structure.attn_out[0] == Added("post_attention_layernorm")
    assert load("chameleon").structure.attn_out[0] == Added("self_attn")
    assert load("lfm3_vl").structure.mlp_out[0] == Added("post_ffn_norm")


def test_one_mixer_a_layer():
    structure = load("nemotron_h_omni").structure
    assert [kind for kind in structure.attention] == ["linear", "none", "softmax", "none"]
    assert [added is None for added in structure.attn_out] == [False, True, False, True]
    assert [added is None for added in structure.mlp_out] == [True, False, True, False]


@pytest.mark.parametrize(("name", "kind"), [("qwen3_5", "linear"), ("lfm2_vl", "convolution")])
def test_no_edge_to_cut_where_there_is_no_softmax(name, kind):
    vlm = load(name)
    layer = vlm.structure.attention.index(kind)
    with pytest.raises(interp.InputError, match=f"layer {layer} .*{kind}"):
        vlm.logits(batch(name), [Knockout(source="image", target="last", layers=layer)])


def test_layers_that_compute_the_last_position_alone():
    """gemma4 shows its last layers only what the logits need, so states must not be read while it does."""
    vlm, rows = load("gemma4"), batch("gemma4")
    assert vlm.structure.trims
    acts = interp.capture(vlm, [rows], positions="image", reduce="none", progress=False)
    assert acts["resid"].shape[1] == int(rows.positions["image"].sum())


def test_generation_with_an_edit_where_the_last_position_would_be_alone(toy):
    """transformers asks for the last logits alone when it generates."""
    vlm = interp.load(model=zoo.build("gemma4"), processor=toy.processor, device="cpu", check=False)
    vlm.structure = load("gemma4").structure
    rows = batch("gemma4")
    edits = Patch(site="resid_pre", layers=3, positions="last", value=torch.ones(vlm.structure.d_model)).edits(
        vlm, rows
    )
    ids = run_generate(vlm, rows, edits, max_new_tokens=1, do_sample=False, eos_token_id=None, pad_token_id=0)
    assert torch.equal(ids[:, -1], run_forward(vlm, rows, edits)["logits"].argmax(dim=-1))


def test_a_patch_where_the_last_position_would_be_alone():
    vlm, rows = load("gemma4"), batch("gemma4")
    layer, width, place = 3, vlm.structure.d_model, rows.positions["last"]
    patch = Patch(site="resid_pre", layers=layer, positions="last", value=torch.full((width,), 0.5))

    def hook(_, args):
        return (torch.where(place[..., None], torch.tensor(0.5), args[0]), *args[1:])

    handle = vlm.model.get_submodule(vlm.structure.layers)[layer].register_forward_pre_hook(hook)
    with torch.no_grad():
        theirs = vlm.model(**vlm.inputs_of(rows)).logits[:, -1]
    handle.remove()
    torch.testing.assert_close(vlm.logits(rows, [patch]), theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "name", ["llava", "granite_docling", "llama4", "cohere2_vision", "gemma3", "blip-2", "hyperclovax_vision_v2"]
)
def test_what_is_written_is_what_is_added(name):
    """Behind a norm, times a constant, rows one after the other: a layer adds to the stream what is written at its sites."""
    vlm, rows = load(name), batch(name)
    report(name)
    value = torch.randn(vlm.structure.d_model, generator=torch.Generator().manual_seed(0))
    for layer in range(vlm.structure.n_layers):
        place = {"layers": layer, "positions": "all"}
        edits = [Patch(site="attn_out", value=value, **place), Patch(site="mlp_out", value=-3 * value, **place)]
        sites = ("resid_pre", "attn_out", "mlp_out", "resid_post")
        acts = interp.capture(vlm, [rows], sites, "all", "none", interventions=edits, progress=False)
        before, attn, mlp, after = (acts[site][...][layer] for site in sites)
        torch.testing.assert_close(attn, value.expand_as(attn), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(mlp, -3 * value.expand_as(mlp), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(after - before, (-2 * value).expand_as(after), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["gemma3", "paligemma", "qwen2_5_vl", "molmo2", "gemma4_unified"])
def test_an_encoding_without_its_token_types_is_refused(name):
    """Without them these models run all the same and see the image as if it were text."""
    whole = zoo.encode(name)
    types = next(key for key in whole if key.endswith("token_type_ids"))
    partial = {key: value for key, value in whole.items() if key != types}
    with torch.no_grad():
        right, wrong = (zoo.build(name)(**inputs).logits[:, -1] for inputs in (whole, partial))
    assert (right - wrong).abs().max() > 0.1
    with pytest.raises(interp.InputError, match=f"{types!r}"):
        load(name).prepare(encoding=partial)


def test_a_wrapper_hides_no_argument():
    """PEFT's models hand everything on: which inputs are needed is asked of the model inside."""

    class Wrapper(torch.nn.Module):
        def __init__(self, base_model):
            super().__init__()
            self.base_model, self.config = base_model, base_model.config

        def forward(self, *args, **kwargs):
            return self.base_model(*args, **kwargs)

        def get_base_model(self):
            return self.base_model

        def __getattr__(self, name):
            try:
                return super().__getattr__(name)
            except AttributeError:
                return getattr(super().__getattr__("base_model"), name)

    vlm = interp.load(model=Wrapper(zoo.build("qwen2_5_vl")).eval())
    assert vlm.accepts("logits_to_keep")
    partial = {name: value for name, value in zoo.encode("qwen2_5_vl").items() if name != "mm_token_type_ids"}
    with pytest.raises(interp.InputError, match="'mm_token_type_ids'"):
        vlm.prepare(encoding=partial)


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "paligemma", "instructblip", "ernie4_5_vl_moe", "kosmos-2"])
def test_a_batch_is_all_that_the_model_gets(name):
    vlm = load(name)
    with torch.no_grad():
        theirs = zoo.build(name)(**zoo.encode(name)).logits[:, -1]
    torch.testing.assert_close(vlm.logits(batch(name)), theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["qwen2_vl", "minicpmv4_6", "lfm2_vl"])
def test_rows_of_packed_pixels_are_not_cut_naively(name):
    with pytest.raises(interp.InputError, match="no row axis"):
        batch(name).row(0)


@pytest.mark.parametrize("name", ["blip-2", "instructblip", "instructblipvideo", "kosmos-2"])
def test_what_does_not_run_on_text_alone_waits_for_an_image(name):
    vlm = interp.load(model=zoo.build(name))
    assert set(vlm.check().to_frame()["outcome"]) == {"pending"}
    with pytest.raises(interp.LayoutError, match=r"not known .*does not run on text alone"):
        vlm.trait("readout")
    assert set(vlm.check(vlm.prepare(encoding=zoo.encode(name))).to_frame()["outcome"]) == {"passed"}


@pytest.mark.parametrize("name", ["kosmos-2", "kosmos-2.5", "instructblipvideo"])
def test_image_positions_without_an_image_token(name):
    """They are what the pixels move: known here from the mask or the placeholder that the zoo writes."""
    inputs, image = zoo.encode(name), batch(name).positions["image"]
    assert load(name).structure.image_token_id is None
    if "image_embeds_position_mask" in inputs:
        assert torch.equal(image, inputs["image_embeds_position_mask"] == 1)
    else:
        assert torch.equal(image, inputs["input_ids"] == load(name).model.config.video_token_id)


def test_two_rows_are_two_rows():
    """A layer's output is a tensor: its first element is the first row, not the states."""
    rows = batch("llava")
    acts = interp.capture(load("llava"), [rows], positions="last", reduce="last", progress=False)
    assert acts["resid"].shape[1] == 2
    assert not torch.equal(acts["resid"][-1][0], acts["resid"][-1][1])


def test_eager_and_sdpa_are_one_model():
    for name in ("gemma3", "llama4", "qwen2_vl"):
        model = copy.deepcopy(zoo.build(name))
        model.set_attn_implementation("eager")
        vlm = interp.load(model=model)
        cut = [Knockout(source="image", target="last", layers=0)]
        for edits in ([], cut):
            torch.testing.assert_close(
                vlm.logits(batch(name), edits), load(name).logits(batch(name), edits), rtol=1e-5, atol=2e-5
            )
