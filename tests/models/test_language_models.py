"""A language model alone beside the VLM that was built on it: on text each call gives the same numbers with either."""

import pytest
import torch
from PIL import Image
from transformers import (
    BertConfig,
    BertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaForSequenceClassification,
    LlamaModel,
    T5Config,
    T5ForConditionalGeneration,
)

import interp
from interp.interop.transformer_lens import to_transformer_lens
from interp.interventions import Ablate, Knockout, Patch, Reweight, Scale, Skip, Steer, Truncate
from interp.models.layout.patches import patches_of

TEXTS = [
    "a red 3 at top . what colour is the 3 ?",
    "a blue 4 . where is the 4 ?",
    "a green 7 at left . what colour is the 7 ?",
]
DIRECTION = torch.randn(128, generator=torch.Generator().manual_seed(0))
INTERVENTIONS = {
    "Patch": Patch(site="attn_out", layers=3, positions=[2], value=DIRECTION),
    "Ablate": Ablate(site="mlp_out", layers=[2, 5], positions="text", value="mean"),
    "Knockout": Knockout(source=[1, 2], target="last", layers=range(2, 6)),
    "Skip": Skip(layers=4, positions="question"),
    "Truncate": Truncate(positions=[1, 2, 3], from_layer=3),
    "Steer": Steer(direction=DIRECTION, layers=3, positions="all", scale=2.0),
    "Scale": Scale(site="z", layers=2, positions="all", factor=0.5, heads=1),
    "Reweight": Reweight(kind="uniform", layers=[1, 6]),
}


@pytest.fixture(scope="module")
def pair(bare, stage1):
    """The same rows for both."""
    return (bare, bare.prepare(TEXTS)), (stage1, stage1.prepare(TEXTS))


def of_both(pair, call):
    return [call(vlm, rows) for vlm, rows in pair]


def test_its_batches_are_those_of_the_vlm(pair):
    (bare, ours), (_, theirs) = pair
    assert {*ours.inputs} == {*theirs.inputs}
    assert all(torch.equal(ours.inputs[name], theirs.inputs[name]) for name in ours.inputs)
    assert ours.tokens == theirs.tokens
    for name in ("text", "special", "padding", "all", "question", "last", "after_image"):
        assert torch.equal(ours.positions[name], theirs.positions[name]), name
    assert not ours.positions["image"].any()
    assert not ours.has_images
    spans = bare.prepare(TEXTS[:1], spans={"object": "red 3"})
    assert [spans.tokens[0][at] for at in spans.positions["object"][0].nonzero().flatten()] == ["red", "3"]
    assert bare.prepare(TEXTS, [None] * 3).tokens == ours.tokens
    assert ours.row(1).tokens == bare.prepare(TEXTS[1:2]).tokens


def test_its_proofs_are_all_but_that_of_images(bare):
    frame = bare.check().to_frame()
    assert list(frame["name"]) == ["layers", "readout", "identity", "effect", "sites", "last"]
    assert set(frame["outcome"]) == {"passed"}
    assert list(bare.check(bare.prepare(TEXTS)).to_frame()["name"]) == list(frame["name"])
    assert not bare.takes_images


def test_its_answers_are_those_of_the_vlm(pair):
    for positions in ("last", "all"):
        ours, theirs = of_both(pair, lambda vlm, rows, at=positions: vlm.logits(rows, positions=at))
        assert torch.equal(ours, theirs)
    ours, theirs = of_both(pair, lambda vlm, rows: vlm.generate(rows, 4))
    assert ours == theirs


@pytest.mark.parametrize("name", INTERVENTIONS)
def test_each_intervention_does_what_it_does_in_the_vlm(pair, name):
    edit = [INTERVENTIONS[name]]
    ours, theirs = of_both(pair, lambda vlm, rows: vlm.logits(rows, edit))
    assert torch.equal(ours, theirs)
    assert not torch.allclose(ours, pair[0][0].logits(pair[0][1]), atol=1e-4)
    ours, theirs = of_both(pair, lambda vlm, rows: vlm.generate(rows, 3, edit))
    assert ours == theirs


def read(vlm, rows, key):
    clean, corrupted = rows.row(0), rows.row(2)
    metric = interp.patching.logit_difference("red", "green")
    prefers = interp.patching.probability("red")
    calls = {
        "patch_sweep": lambda: interp.patching.patch_sweep(vlm, clean, corrupted, metric=metric).values,
        "attribution": lambda: interp.patching.attribution_patch(vlm, clean, corrupted, metric=metric).values,
        "flow": lambda: (
            interp.patching.flow(
                vlm, rows, edges=[("question", "last"), ([1, 2], "last")], window=3, metric=prefers
            ).values
        ),
        "layer_sweep": lambda: (
            interp.patching.layer_sweep(vlm, rows, intervention=Skip, window=2, metric=prefers, positions="last").values
        ),
        "contribution": lambda: interp.patching.layer_contribution(vlm, rows, positions="question").values,
        "logit_lens": lambda: interp.lens.logit_lens(vlm, rows, positions="text").top_probs,
        "attribution of logits": lambda: (
            interp.lens.direct_logit_attribution(vlm, rows, "red", heads=True, sources=("text",)).values
        ),
        "shares": lambda: interp.lens.attention_share(vlm, rows, queries="last", keys="question").values,
        "masses": lambda: interp.lens.attention_masses(vlm, rows, kinds=("text", "special")).values,
        "capture": lambda: interp.capture(
            vlm, [rows], sites=("resid", "q", "pattern"), positions="text", progress=False
        )["resid"][...],
    }
    return calls[key]()


@pytest.mark.parametrize(
    "key",
    [
        *("patch_sweep", "attribution", "flow", "layer_sweep", "contribution", "logit_lens", "attribution of logits"),
        *("shares", "masses", "capture"),
    ],
)
def test_what_is_read_of_it_is_read_of_the_vlm(pair, key):
    ours, theirs = of_both(pair, lambda vlm, rows: read(vlm, rows, key))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6, equal_nan=True)
    assert ours.numel()


def test_a_sweep_is_what_hooks_say(bare):
    """Each cell against transformers' own forward pass with a plain hook."""
    rows = bare.prepare(TEXTS)
    clean, corrupted = rows.row(0), rows.row(2)
    red, green = (bare.tokenizer.convert_tokens_to_ids(word) for word in ("red", "green"))
    swept = interp.patching.patch_sweep(
        bare,
        clean,
        corrupted,
        layers=[0, 3, 7],
        positions=[2, 3, -1],
        metric=interp.patching.logit_difference(red, green),
    )
    with torch.no_grad():
        states = bare.model(**clean.inputs, output_hidden_states=True).hidden_states
    for row, layer in enumerate((0, 3, 7)):
        for at, (column,) in enumerate(swept.columns):

            def hook(_, args, column=column, layer=layer):
                state = args[0].clone()
                state[:, column] = states[layer][:, column]
                return (state, *args[1:])

            handle = bare.model.model.layers[layer].register_forward_pre_hook(hook)
            with torch.no_grad():
                logits = bare.model(**corrupted.inputs).logits[0, -1]
            handle.remove()
            assert float(swept.values[row, at]) == pytest.approx(float(logits[red] - logits[green]), abs=1e-4)


def test_captures_of_both_are_compared(bare, toy, tmp_path):
    captions = interp.toy.scenes(24, seed=5).captions()
    ours = interp.capture(bare, captions, positions="text", out=tmp_path / "acts", progress=False)
    theirs = interp.capture(toy, captions, positions="text", progress=False)
    matrix = interp.geometry.alignment_matrix(ours["resid"], theirs["resid"], metric="cka")
    assert matrix.values.shape == (9, 9)
    assert matrix.values[0, 0] > 0.99 > matrix.values[8, 8]  # tuning changed the last states most
    labels = ours.labels if len(ours.labels) else None
    assert labels is not None
    probed = interp.probes.probe_layers(ours, [index % 2 for index in range(24)], control=False)
    assert len(probed.to_frame())


def test_words_of_heads_and_the_other_library(bare, tmp_path):
    pytest.importorskip("transformer_lens")
    rows = bare.prepare(TEXTS)
    acts = interp.capture(bare, [rows], sites=("resid_pre", "z"), positions="all", reduce="none", progress=False)
    assert to_transformer_lens(acts)["resid_pre", 3].shape == (3, rows.inputs["input_ids"].shape[1], 128)
    heads = interp.capture(bare, interp.toy.scenes(12, seed=1).captions(), sites="z", positions="last", progress=False)
    assert len(interp.lens.head_pursuit(bare, heads, ["red", "blue", "green"], k=2, lists=5).to_frame())


def test_a_lens_of_one_reads_the_other(pair, toy):
    (bare, _), (stage1, _) = pair
    lens = interp.lens.TunedLens.fit(bare, TEXTS * 2, positions="all", epochs=1)
    probs = [interp.lens.tuned_lens(vlm, rows, lens, positions="last").top_probs for vlm, rows in pair]
    assert torch.equal(*probs)
    back = interp.lens.TunedLens.fit(stage1, TEXTS * 2, positions="all", epochs=1)
    assert torch.equal(back.matrices, lens.matrices)
    with pytest.raises(interp.InputError, match="this lens was fitted on 'LlamaForCausalLM' with norm and head"):
        interp.lens.tuned_lens(toy, toy.prepare(TEXTS), lens, positions="last")


# Where it comes from -----------------------------------------------------------------------------------------------------


def test_from_a_folder_and_through_the_simulation(bare, tmp_path):
    wanted = bare.logits(bare.prepare(TEXTS))
    bare.model.save_pretrained(tmp_path)
    without = interp.load(tmp_path, device="cpu")
    assert without.processor is None
    assert without.tokenizer is None
    assert torch.equal(without.logits(without.prepare(encoding=bare.prepare(TEXTS).inputs)), wanted)
    assert interp.load(tmp_path, processor=bare.tokenizer, device="cpu", check=False).processor is bare.tokenizer
    bare.tokenizer.save_pretrained(tmp_path)
    for remote in (False, "local"):
        vlm = interp.load(tmp_path, device="cpu", remote=remote)
        assert vlm.processor is vlm.tokenizer
        assert vlm.nnsight.task == "text-generation"
        torch.testing.assert_close(vlm.logits(vlm.prepare(TEXTS)), wanted, rtol=0, atol=1e-6)
        assert vlm.generate(vlm.prepare(TEXTS), 2) == bare.generate(bare.prepare(TEXTS), 2)
        assert interp.capture(vlm, TEXTS, positions="text", progress=False)["resid"].shape == (9, 3, 128)


def test_the_processor_of_its_vlm_lends_its_tokenizer(bare, toy):
    vlm = interp.load(model=bare.model, processor=toy.processor, check=False)
    assert vlm.processor is toy.tokenizer
    assert vlm.prepare(TEXTS).tokens == bare.prepare(TEXTS).tokens


def test_token_types_that_it_does_not_name_are_left_out(bare):
    rows = bare.prepare(TEXTS)
    given = {"input_ids": rows.inputs["input_ids"], "attention_mask": rows.inputs["attention_mask"]}
    types = {"token_type_ids": torch.zeros_like(given["input_ids"])}
    assert torch.equal(bare.logits(bare.prepare(encoding={**given, **types})), bare.logits(rows))


class Reversed(GPT2LMHeadModel):
    """A language model of the user's own."""


def test_a_class_of_ones_own():
    torch.manual_seed(0)
    model = Reversed(GPT2Config(vocab_size=60, n_embd=32, n_layer=2, n_head=4, n_positions=64)).eval()
    assert interp.load(model=model).check().passed


def other_models(bare):
    config = bare.model.config
    tiny = BertConfig(vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16)
    return {
        "LlamaModel": LlamaModel(config),
        "LlamaForSequenceClassification": LlamaForSequenceClassification(config),
        "BertForMaskedLM": BertForMaskedLM(tiny),
        "T5ForConditionalGeneration": T5ForConditionalGeneration(
            T5Config(d_model=16, d_ff=16, d_kv=8, num_layers=1, num_heads=2, vocab_size=20)
        ),
    }


@pytest.mark.parametrize(
    ("name", "in_hand", "saved"),
    [
        ("LlamaModel", "generates no text", "holds a LlamaModel, which generates no text"),
        ("LlamaForSequenceClassification", "generates no text", "holds a LlamaForSeq.* which generates no text"),
        ("BertForMaskedLM", "generates no text", "holds a BertForMaskedLM, which generates no text"),
        ("T5ForConditionalGeneration", "is an encoder-decoder", "T5"),
    ],
)
def test_other_models_are_refused_by_name(bare, tmp_path, name, in_hand, saved):
    model = other_models(bare)[name].eval()
    with pytest.raises(interp.LayoutError, match=f"{name} {in_hand}") as caught:
        interp.load(model=model)
    assert "\n" not in str(caught.value)
    model.save_pretrained(tmp_path)
    with pytest.raises(interp.InterpError, match=saved) as caught:
        interp.load(tmp_path, device="cpu")
    assert "\n" not in str(caught.value)


# What it does not have ---------------------------------------------------------------------------------------------------

PICTURE = Image.new("RGB", (8, 8))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda v, _: v.prepare(["a"], [PICTURE]), "row 0 has 1 images, but this model takes no image"),
        (
            lambda v, _: v.prepare(["a", "b"], [None, [PICTURE] * 2]),
            "row 1 has 2 images, but this model takes no image",
        ),
        (lambda v, _: v.prepare(["<image> a"]), "text '<image> a' of row 0 has <image>, but this model takes no image"),
        (lambda v, r: v.prepare(encoding={**r.inputs, "pixel_values": torch.ones(1, 3, 4, 4)}), "takes no image"),
        (lambda v, r: interp.capture(v, [r], progress=False), "takes no image, pass positions='text'"),
        (
            lambda v, r: interp.capture(v, TEXTS, on_error="skip", progress=False),
            "takes no image, pass positions='text'",
        ),
        (lambda v, r: interp.capture(v, [r], positions="image_0", progress=False), "'image_0': 'Llama"),
        (lambda v, r: interp.capture(v, [r], sites="vision", progress=False), "no site vision"),
        (lambda v, r: interp.capture(v, [r], sites="projector", progress=False), "no site projector"),
        (lambda v, r: patches_of(v, r, "projector"), "takes no image, so it has no site projector"),
        (lambda v, r: interp.lens.logit_lens(v, r), "takes no image, pass positions='text'"),
        (lambda v, r: interp.lens.attention_share(v, r), "takes no image, pass positions='text'"),
        (lambda v, r: interp.lens.attention_masses(v, r), "takes no image, pass positions='text'"),
        (lambda v, r: interp.patching.layer_contribution(v, r), "selects nothing|takes no image"),
        (lambda v, r: v.logits(r, [Skip(layers=1, positions="image")]), "'image' selects nothing in this batch"),
        (lambda v, r: v.logits(r, [Knockout(source="image", target="last", layers=1)]), "'image' selects nothing"),
        (lambda v, r: v.logits(r, [Reweight(kind="uniform", layers="all", tower="vision")]), "no image tower"),
        (lambda v, r: interp.load(model=v.model, processor="tokenizer"), "for a language model alone its tokenizer"),
        (lambda v, r: interp.load(model=v.model).prepare(TEXTS), "loaded without a processor"),
    ],
)
def test_what_needs_an_image_is_refused_in_one_line(bare, call, words):
    with pytest.raises(interp.InterpError, match=words) as caught:
        call(bare, bare.prepare(TEXTS))
    assert "\n" not in str(caught.value)


def test_a_vlm_still_needs_more_than_a_tokenizer(toy):
    with pytest.raises(interp.InputError, match=r"expected a processor, which has a tokenizer and takes images too$"):
        interp.load(model=toy.model, processor=toy.tokenizer)
    with pytest.raises(interp.InputError, match=r"expected a processor, which has a tokenizer and takes images too$"):
        interp.load("toy", processor=toy.tokenizer, device="cpu")


def test_a_model_that_does_not_run_on_ids_is_refused(bare, monkeypatch):
    def fail(*args, **kwargs):
        raise RuntimeError("no such ids")

    monkeypatch.setattr(bare.model.model.rotary_emb, "forward", fail)
    with pytest.raises(interp.LayoutError, match="failed the proof 'layers': the model does not run on text alone"):
        interp.load(model=bare.model)
