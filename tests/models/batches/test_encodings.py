"""Encodings that no model can take, or not as they are meant, are refused in one line before any is run."""

import numpy as np
import pytest
import torch
from PIL import Image

import interp
import processors
import zoo
from interp.models.batches.encodings import explained
from interp.models.batches.maker import BatchMaker, ModelInputs
from models.test_families import family, picture

PICTURE, TALL = Image.new("RGB", (32, 16)), Image.new("RGB", (16, 40))


def maker(name, **more):
    processor = processors.build(name)
    token = processor.tokenizer.convert_tokens_to_ids(processors.IMAGE_TOKENS[name])
    return BatchMaker(processor, processor.tokenizer, ModelInputs(token, len(processor.tokenizer), **more))


def refused(made, encoding, message):
    with pytest.raises(interp.InputError, match=message) as caught:
        made.from_encoding(encoding)
    assert "\n" not in str(caught.value)


def two_rows(name="llava"):
    return dict(maker(name).prepare(["<image> hello", "<image> hi"], [PICTURE, PICTURE], False).inputs)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"input_ids": torch.zeros(3, dtype=torch.long)}, r"input_ids of shape \(batch, seq\)"),
        ({"input_ids": torch.zeros(2, 23)}, "input_ids are of torch.float32"),
        (
            {"attention_mask": torch.ones(2, 5)},
            r"attention_mask has shape \(2, 5\): expected that of input_ids, \(2, 23\)",
        ),
        ({"attention_mask": torch.full((2, 23), 2)}, "attention_mask holds 2: expected 1 for a real token"),
        ({"attention_mask": torch.full((2, 23), float("-inf"))}, "attention_mask holds -inf"),
        ({"attention_mask": torch.tensor([[1] * 23, [0] * 23])}, "row 1 has no token"),
        ({"input_ids": torch.full((2, 23), 9999)}, "input_ids hold 9999 in row 0: this model's ids go from 0 to"),
        ({"input_ids": torch.full((2, 23), -1)}, "input_ids hold -1"),
        ({"input_ids": torch.full((2, 23), 70)}, r"pixel_values of shape \(2, 3, 16, 16\) is given, but no row holds"),
    ],
)
def test_encodings_that_are_refused(change, message):
    encoding = two_rows()
    assert encoding["input_ids"].shape == (2, 23)
    refused(maker("llava"), {**encoding, **change}, message)


def test_image_tokens_without_pixels():
    encoding = two_rows()
    del encoding["pixel_values"]
    refused(maker("llava"), encoding, "an encoding without pixel values: row 0 has 16 image tokens")


def test_an_image_cut_off():
    """Truncated on the right inside the second row's image; with its processor, and by equal pictures without."""
    encoding = {n: t[:, :18] if t.ndim == 2 else t for n, t in two_rows().items()}
    encoding["input_ids"], encoding["attention_mask"] = (encoding[n].clone() for n in ("input_ids", "attention_mask"))
    refused(maker("llava"), encoding, r"have \[16, 14\] image tokens, but their 2 images make 32: a row was cut off")
    made = maker("llava")
    bare = BatchMaker(None, None, ModelInputs(made.model_inputs.image_token_id))
    refused(bare, encoding, "row 1 has 14 image tokens, row 0 has 16, for pictures of one size: an image was cut off")
    for name in ("qwen2_vl", "pixtral", "llava_next"):
        inputs = maker(name).prepare(["<image>"], [TALL], False).inputs
        cut = {
            n: t[:, :5] if n in ("input_ids", "attention_mask", "mm_token_type_ids") else t for n, t in inputs.items()
        }
        refused(maker(name), cut, "cut off inside an image")


def test_images_of_different_size_are_not_cut_off():
    batch = maker("pixtral").prepare(["<image>", "<image>"], [PICTURE, TALL], False)
    bare = BatchMaker(None, None, ModelInputs(maker("pixtral").model_inputs.image_token_id)).from_encoding(batch.inputs)
    assert bare.positions["image_0"].sum(dim=1).tolist() == [32, 24]


def test_a_processor_of_another_model():
    processor = processors.build("llava")
    other = BatchMaker(processor, processor.tokenizer, ModelInputs(7, len(processor.tokenizer)))
    with pytest.raises(interp.InputError, match=r"writes '<image>' for an image, .* \(id 7\)"):
        other.prepare(["<image>"], [PICTURE], False)
    small = BatchMaker(processor, processor.tokenizer, ModelInputs(maker("llava").model_inputs.image_token_id, 60))
    with pytest.raises(interp.InputError, match="ids go from 0 to 59"):
        small.prepare(["zzz"], None, False)


def test_padding_on_the_right():
    """Last is the last real token, and a row alone is without its padding."""
    processor = processors.build("qwen2_vl")
    texts = ["<|image_pad|> long text here", "<|image_pad|> hi"]
    right = processor(text=texts, images=[[PICTURE], [TALL]], return_tensors="pt", padding=True, padding_side="right")
    batch = maker("qwen2_vl").from_encoding(right)
    assert [
        row[column] for row, column in zip(batch.tokens, batch.positions["last"].long().argmax(dim=1), strict=True)
    ] == ["e", "i"]
    assert batch.positions["padding"][1, -1]
    assert batch.positions.grids == [[(2, 4)], [(5, 2)]]
    with pytest.raises(interp.InputError, match="pixel_values have no row axis"):
        batch.row(1)


def test_rows_of_an_encoding():
    batch = maker("llava").from_encoding(two_rows())
    alone = batch.row(1)
    assert alone.inputs["input_ids"].shape == (1, 20)
    assert alone.inputs["pixel_values"].shape == (1, 3, 16, 16)
    # As many pictures as rows, but both of them the second row's.
    made = maker("llava").prepare(["hello", "<image> <image>"], [None, [PICTURE, TALL]], False)
    with pytest.raises(interp.InputError, match="pixel_values have no row axis"):
        maker("llava").from_encoding(made.inputs).row(1)


def test_multimodal_positions_are_repeated_along_their_own_axis():
    inputs = dict(maker("qwen2_vl").prepare(["<image> hi"], [PICTURE], False).inputs)
    seq = inputs["input_ids"].shape[1]
    inputs["position_ids"] = torch.arange(3 * seq).reshape(3, 1, seq)
    batch = maker("qwen2_vl").from_encoding(inputs).repeat(2)
    assert batch.inputs["position_ids"].shape == (3, 2, seq)
    assert (batch.inputs["position_ids"][:, 0] == batch.inputs["position_ids"][:, 1]).all()
    assert batch.inputs["image_grid_thw"].shape == (2, 3)


def test_image_positions_of_a_model_without_an_image_token():
    """They are asked for where there are pixels, and only there."""
    asked = []

    def find_images(inputs):
        asked.append(set(inputs))
        found = torch.zeros(inputs["input_ids"].shape, dtype=torch.bool)
        found[:, 1:5] = True
        return found

    processor = processors.build("llava")
    made = BatchMaker(processor, processor.tokenizer, ModelInputs(find_images=find_images))
    assert not made.prepare(["hello"], None, False).positions["image"].any()
    assert not asked
    batch = made.prepare(["<image> hello"], [PICTURE], False)
    assert batch.positions["image"].sum() == batch.positions["image_0"].sum() == 4
    assert len(asked) == 1
    assert batch.positions.boxes(0)[0].shape == (4, 4)
    nothing = BatchMaker(processor, processor.tokenizer, ModelInputs(find_images=lambda inputs: None))
    assert not nothing.prepare(["<image> hello"], [PICTURE], False).positions["image"].any()


def test_the_models_own_complaint_in_one_line(toy, few):
    """What only the model can tell: it makes another number of features than there are places."""
    inputs = dict(toy.prepare(["<image> where ?"], [few[0].image]).inputs)
    for name in ("input_ids", "attention_mask"):
        inputs[name] = inputs[name][:, 3:]
    with pytest.raises(ValueError, match="do not match"):
        toy.model(**inputs)
    with pytest.raises(interp.InputError, match="34 places") as caught, explained():
        toy.model(**inputs)
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match=r"^something else$"), explained():
        raise ValueError("something else")


EXTRAS = {
    "labels": lambda ids: ids,
    "ragged labels": lambda ids: [[1], [2, 3]],
    "label_ids": lambda ids: [0, 1],
    "num_items_in_batch": lambda ids: 7,
    "offset_mapping": lambda ids: [[(0, 1)], [(1, 2)]],
    "special_tokens_mask": lambda ids: torch.zeros_like(ids),
}


@pytest.mark.parametrize("extra", EXTRAS)
def test_what_a_collator_adds_changes_nothing(toy, mixed, extra):
    """Labels would make the model compute a loss."""
    name = extra.split()[-1]
    encoding = {**mixed.inputs, name: EXTRAS[extra](mixed.inputs["input_ids"])}
    batch = toy.prepare(encoding=encoding)
    assert name not in batch.inputs
    assert torch.equal(toy.logits(batch), toy.logits(mixed))


FORMS = {
    "arrays": lambda tensor: tensor.numpy(),
    "lists": lambda tensor: tensor.tolist(),
    "lists of tensors": list,
    "lists of arrays": lambda tensor: list(tensor.numpy()),
    "narrow ints": lambda tensor: tensor if tensor.is_floating_point() else tensor.numpy().astype(np.uint16),
    "arrays that cannot be written": lambda tensor: np.frombuffer(
        tensor.numpy().tobytes(), tensor.numpy().dtype
    ).reshape(tensor.shape),
    "with a gradient": lambda tensor: tensor.clone().requires_grad_() if tensor.is_floating_point() else tensor,
}


@pytest.mark.parametrize("form", FORMS)
def test_any_form_of_numbers(toy, mixed, form, recwarn):
    encoding = {name: FORMS[form](tensor) for name, tensor in mixed.inputs.items()}
    assert torch.equal(toy.logits(toy.prepare(encoding=encoding)), toy.logits(mixed))
    assert not recwarn.list


def test_what_is_no_input_of_rows(toy, mixed):
    for name, value in {"use_cache": True, "inputs_embeds": torch.zeros(3, 5, 2), "past_key_values": object()}.items():
        refused(
            toy.maker,
            {**mixed.inputs, name: value},
            f"the encoding has '{name}', which is not an input of rows: leave it",
        )


def test_what_a_strict_forward_pass_does_not_take():
    made = maker("llava", named=["input_ids", "attention_mask", "pixel_values"], takes_others=False)
    assert made.from_encoding(two_rows()).has_images
    refused(
        made,
        {**two_rows(), "sizes": [1, 2]},
        "has 'sizes', which this model's forward pass does not take: leave it out",
    )


@pytest.mark.parametrize("name", ["llava_next", "llava_onevision", "qwen2_vl", "glm4v", "idefics3", "gemma3"])
def test_an_encoding_without_an_input_that_comes_with_pixels(name):
    """Whatever the processor makes of a picture is needed, one input as much as another."""
    vlm = family(name)
    inputs = vlm.prepare(["<image> a"], [picture()]).inputs
    assert torch.equal(vlm.logits(vlm.prepare(encoding=inputs)), vlm.logits(vlm.prepare(["<image> a"], [picture()])))
    beside = set(inputs) - {"input_ids", "attention_mask", "pixel_values"}
    assert beside
    for absent in beside:
        refused(
            vlm.maker, {key: value for key, value in inputs.items() if key != absent}, f"but no '?{absent}'?, which"
        )


@pytest.mark.parametrize(
    ("name", "absent"),
    [
        ("qwen2_5_vl", "image_grid_thw"),
        ("llava_next", "image_sizes"),
        ("minicpmv4_6", "target_sizes"),
        ("lfm2_vl", "spatial_shapes"),
        ("molmo2", "image_grids"),
        ("gemma4", "image_position_ids"),
        ("kosmos-2", "image_embeds_position_mask"),
        ("instructblip", "qformer_input_ids"),
        ("deepseek_vl_hybrid", "high_res_pixel_values"),
    ],
)
def test_without_a_processor_the_model_itself_tells(name, absent):
    vlm, encoding = interp.load(model=zoo.build(name), check=False), zoo.encode(name)
    vlm.logits(vlm.prepare(encoding=encoding))
    del encoding[absent]
    with pytest.raises(interp.InputError, match=f"the encoding has no {absent}, and the model fails without") as caught:
        vlm.logits(vlm.prepare(encoding=encoding))
    assert "\n" not in str(caught.value)


def test_another_error_stays_what_it_is(toy, mixed):
    with pytest.raises(AttributeError, match=r"^'NoneType' object has no attribute 'x'$"), explained({}, toy):
        None.x


def test_padding_without_its_mask(toy, mixed, bare):
    """On either side: without the mask the model would read padding as text."""
    inputs = dict(mixed.inputs)
    assert not inputs.pop("attention_mask").all()
    with pytest.raises(
        interp.InputError, match=r"no attention_mask, and row 0 begins with the padding token 0: pass the"
    ):
        toy.prepare(encoding=inputs)
    with pytest.raises(interp.InputError, match="row 1 ends with the padding token 0"):
        bare.prepare(encoding={"input_ids": [[1, 9, 10], [1, 9, 0]]})
    alike = toy.prepare(["a red 3", "a red 4"]).inputs
    assert torch.equal(
        toy.logits(toy.prepare(encoding={"input_ids": alike["input_ids"]})), toy.logits(toy.prepare(encoding=alike))
    )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t[0], r"shape \(3, 48, 48\): expected what .* makes, \(1, 3, 48, 48\) for one picture"),
        (lambda t: t[:, None], r"shape \(2, 1, 3, 48, 48\)"),
        (lambda t: (t * 0 + 200).to(torch.uint8), r"of torch.uint8: expected torch.float32"),
        (lambda t: t[:1], "have 1 entries, and 2 rows have image tokens"),
        (lambda t: t.where(t != t[1, 2, 3, 4], torch.nan), "hold NaN or infinity"),
        (lambda t: t.where(t != t[1, 2, 3, 4], torch.inf), "hold NaN or infinity"),
    ],
)
def test_pixels_that_are_not_what_the_processor_makes(toy, few, change, words):
    inputs = toy.prepare(["<image> a", "<image> b"], [few[0].image, few[1].image]).inputs
    refused(toy.maker, {**inputs, "pixel_values": change(inputs["pixel_values"])}, f"^pixel_values .*{words}")


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        (
            "qwen2_vl",
            lambda t: {"mm_token_type_ids": t["mm_token_type_ids"][:1]},
            r"mm_token_type_ids has shape \(1, 28\)",
        ),
        (
            "qwen2_vl",
            lambda t: {"pixel_values": t["pixel_values"][:80]},
            "80 patches, and image_grid_thw speaks of 160",
        ),
        (
            "qwen2_vl",
            lambda t: {"image_grid_thw": t["image_grid_thw"][:1]},
            "image_grid_thw have 1 entries, and 2 rows",
        ),
        (
            "idefics3",
            lambda t: {"pixel_attention_mask": t["pixel_attention_mask"][:1]},
            "pixel_attention_mask have 1 entries",
        ),
        ("llava_next", lambda t: {"pixel_values": t["pixel_values"][:1]}, "pixel_values have 1 entries"),
        ("gemma3", lambda t: {"token_type_ids": t["token_type_ids"][:, 1:]}, r"token_type_ids has shape \(2, 29\)"),
    ],
)
def test_parts_that_do_not_fit_together(name, change, words):
    vlm = family(name)
    inputs = vlm.prepare(["<image> a", "<image> what ?"], [picture(seed=1), picture(seed=2)]).inputs
    refused(vlm.maker, {**inputs, **change(inputs)}, words)


@pytest.mark.parametrize("name", ["qwen2_vl", "llava_onevision"])
def test_whole_numbers_as_floats(name):
    """As a table or numpy gives them back."""
    vlm = family(name)
    batch = vlm.prepare(["<image> a", "<image> what ?"], [picture(seed=1), picture(seed=2)])
    floats = {key: value if key == "input_ids" else value.double() for key, value in batch.inputs.items()}
    assert torch.equal(vlm.logits(vlm.prepare(encoding=floats)), vlm.logits(batch))


def test_names_that_are_none(toy, mixed):
    with pytest.raises(interp.InputError, match="the encoding has 3, which this model's forward pass does not take"):
        toy.prepare(encoding={**mixed.inputs, 3: torch.ones(3)})


def test_pictures_of_a_size_that_the_model_does_not_take(toy, few):
    inputs = toy.prepare(["<image> a"], [few[0].image]).inputs
    batch = toy.prepare(encoding={**inputs, "pixel_values": inputs["pixel_values"][..., :-6, :]})
    for run in (
        toy.logits,
        lambda rows: toy.generate(rows, 2),
        lambda rows: interp.capture(toy, [rows], progress=False),
    ):
        with pytest.raises(
            interp.InputError, match=r"another size than this model takes \(.*42\*48.*48\*48.*\): use the"
        ):
            run(batch)
