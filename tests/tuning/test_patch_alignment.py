"""The loss of patch alignment against its formula in numpy, on batches against plain hooks, and what it refuses."""

import pickle

import numpy as np
import pytest
import torch
from PIL import Image

import interp
from families import family
from interp.data.sources import source_of
from interp.tuning import token_places, tune
from interp.tuning.patch_alignment import PatchAlignment, masked_objects, patch_alignment_loss
from interp.words import dictionary_of, projector_report


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float32)


def by_formula(tokens, weights, table, temperature=0.07):
    tokens, weights, table = (np.asarray(each.detach(), dtype=np.float64) for each in (tokens, weights, table))
    total = 0.0
    for token, own in zip(tokens, weights, strict=True):
        cosines = table @ token / np.linalg.norm(table, axis=1).clip(min=1e-9) / np.linalg.norm(token)
        shares = np.exp(cosines / temperature) / np.exp(cosines / temperature).sum()
        total -= float((own * np.log(shares)).sum())
    return total / weights.sum()


# The loss ----------------------------------------------------------------------------------------------------------------


def test_the_loss_is_its_formula():
    tokens, table = normal(5, 8), normal(11, 8, seed=1)
    weights = normal(5, 11, seed=2).clamp(min=0)
    assert float(patch_alignment_loss(tokens, weights, table)) == pytest.approx(
        by_formula(tokens, weights, table), rel=1e-5
    )
    lists = [[3], [], [0, 10], [], [4, 4, 5]]
    evenly = torch.zeros(5, 11, dtype=torch.float32)
    evenly[0, 3], evenly[2, [0, 10]], evenly[4, 4], evenly[4, 5] = 1, 0.5, 2 / 3, 1 / 3
    found = patch_alignment_loss(tokens, lists, table, temperature=0.5)
    assert float(found) == pytest.approx(by_formula(tokens, evenly, table, 0.5), rel=1e-5)
    assert float(patch_alignment_loss(3 * tokens, lists, 7 * table, 0.5)) == pytest.approx(float(found), rel=1e-5)


def test_only_labelled_tokens_get_a_gradient_and_no_word_does():
    tokens, table = normal(4, 8).requires_grad_(), normal(6, 8, seed=1).requires_grad_()
    patch_alignment_loss(tokens, [[1], [], [2, 3], []], table).backward()
    assert (tokens.grad != 0).any(dim=1).tolist() == [True, False, True, False]
    assert table.grad is None
    tokens.grad = None
    nothing = patch_alignment_loss(tokens, [[], [], [], []], table)
    nothing.backward()
    assert (float(nothing.detach()), bool(tokens.grad.any())) == (0, False)


def test_moving_to_where_all_words_lie_is_no_gain():
    """Words that share a large direction: tokens there have high cosines with their own words and with all others."""
    common = torch.zeros(16, dtype=torch.float32)
    common[0] = 3
    table = normal(20, 16) + common
    words = [[number] for number in range(20)]
    there = common.expand(20, -1)
    cosines = torch.nn.functional.cosine_similarity(there, table)
    assert cosines.mean() > 0.5
    strangers = patch_alignment_loss(there, [[(number + 1) % 20] for number in range(20)], table)
    assert float(patch_alignment_loss(there, words, table)) == pytest.approx(float(strangers), abs=0.01)
    assert float(patch_alignment_loss(table, words, table)) < float(strangers) - 1


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"temperature": 0}, "temperature=0: expected a number above 0"),
        ({"temperature": "low"}, "temperature='low': expected a number above 0"),
        ({"words": [[0]]}, r"words=\[\[0\]\]: expected a list of rows of the table for each of 2 tokens"),
        ({"words": 7}, "words=7: expected a list"),
        ({"words": [0, 1]}, r"words=\[0, 1\]: expected a list"),
        ({"words": [[0], [5]]}, "word 5: expected a row of the table, 0 to 4"),
        ({"words": [[0], [-1]]}, "word -1: expected a row"),
        ({"words": [[0], ["red"]]}, "word 'red': expected a row"),
        ({"words": torch.ones(2, 4)}, "expected weights from 0, Float .2, 5."),
        ({"words": -torch.ones(2, 5)}, "expected weights from 0, Float .2, 5."),
        ({"words": torch.full((2, 5), torch.nan)}, "expected weights from 0, Float .2, 5."),
        ({"table": normal(5, 4)}, r"tokens are Tensor of shape \(2, 3\) and table is .*: expected .* of one width"),
    ],
)
def test_what_has_no_loss_is_one_line(change, words):
    arguments = {"tokens": normal(2, 3), "words": [[0], [1]], "table": normal(5, 3), **change}
    with pytest.raises(interp.InputError, match=words) as caught:
        patch_alignment_loss(**arguments)
    assert "\n" not in str(caught.value)


# Batches -----------------------------------------------------------------------------------------------------------------


def row_of(scene, **changes):
    masks = [
        {"words": f"{each.colour} {each.digit}", "mask": mask}
        for each, mask in zip(scene.objects, scene.masks, strict=True)
    ]
    return {"image": scene.image, "text": "<image>", "answer": scene.caption, "masks": masks, **changes}


def rows_of(records):
    return source_of(records).read(0, len(records))


def prepared(vlm, rows):
    return vlm.prepare([row.text for row in rows], [row.image for row in rows])


def projector_output(vlm, batch):
    """What the projector makes of a batch, held by a plain hook."""
    held = []
    hook = vlm.model.get_submodule(vlm.structure.projector).register_forward_hook(lambda *each: held.append(each[-1]))
    with torch.no_grad():
        vlm.model(**vlm.inputs_of(batch))
    hook.remove()
    return held[0]


def test_a_batch_of_the_toy_is_the_formula_on_its_scenes(toy):
    scenes = interp.toy.scenes(3, seed=2)
    text = {"text": "a red 3 at top .", "answer": "x", "image": None, "masks": None}
    rows = rows_of([row_of(scenes[0]), text, row_of(scenes[1], masks=None), row_of(scenes[2])])
    batch = prepared(toy, rows)
    extra = PatchAlignment(toy, beta=0.5)
    targets, output = extra.targets(rows, batch), projector_output(toy, batch)
    assert all(name.startswith("extra_") for name in targets)
    assert targets["extra_tokens"].tolist() == [36, 0, 36, 36]
    tokens, weights = [], []
    table = dictionary_of(toy, "embed").rows
    for place, scene in ((0, scenes[0]), (2, scenes[2])):
        for patch, token in enumerate(output[place]):
            own, (y, x) = torch.zeros(len(table)), divmod(patch, 6)
            for each, mask in zip(scene.objects, scene.masks, strict=True):
                for word in (each.colour, str(each.digit)):
                    share = mask[8 * y : 8 * y + 8, 8 * x : 8 * x + 8].mean()
                    own[toy.tokenizer.convert_tokens_to_ids(word)] += share / 2
            tokens.append(token)
            weights.append(own)
    expected = by_formula(torch.stack(tokens), torch.stack(weights), table)
    assert float(extra.loss(output, targets)) == pytest.approx(0.5 * expected, rel=1e-4)
    assert float(extra.count(targets)) == pytest.approx(float(torch.stack(weights).sum()), rel=1e-5)


def test_the_parts_of_a_batch_add_up_by_what_is_labelled(toy):
    rows = rows_of([row_of(scene) for scene in interp.toy.scenes(5, seed=4)])
    extra = PatchAlignment(toy, beta=2.0)
    whole, parts = [], []
    for kept, chosen in ((whole, [rows]), (parts, [rows[:1], rows[1:2], rows[2:]])):
        for some in chosen:
            batch = prepared(toy, some)
            targets = extra.targets(some, batch)
            kept.append((extra.loss(projector_output(toy, batch), targets), extra.count(targets)))
    assert len({float(loss) for loss, _ in parts}) == 3
    total = sum(loss * count for loss, count in parts) / sum(count for _, count in parts)
    torch.testing.assert_close(total, whole[0][0])


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "gemma3"])
def test_rows_of_pictures_of_any_size_are_labelled_where_they_show(name):
    """Words of several tokens, two pictures in a row, merged patches and windows: against the states that enter layer 0."""
    vlm = family(name)
    draw = np.random.default_rng(5)
    pictures = [
        Image.fromarray(draw.integers(256, size=(h, w, 3), dtype=np.uint8)) for w, h in ((28, 28), (64, 40), (40, 28))
    ]
    left = [np.zeros(picture.size[::-1], dtype=bool) for picture in pictures]
    for mask in left:  # the left half as the processor shows it, whatever it crops away
        mask[:, : mask.shape[1] // 2] = True
    rows = rows_of(
        [
            {"image": pictures[0], "text": "<image>", "masks": [{"words": "red", "mask": left[0]}]},
            {
                "image": pictures[1:],
                "text": "<image> <image>",
                "masks": [{"words": "ab cd", "mask": left[2], "image": 1}],
            },
        ]
    )
    batch = prepared(vlm, rows)
    extra = PatchAlignment(vlm, beta=1.0)
    table = dictionary_of(vlm, "embed").rows
    acts = interp.capture(vlm, [batch], sites=("resid",), positions="image", reduce="none", progress=False)
    spelt = [[" red"], [" ab", " cd"]]
    tokens, weights, at = [], [], 0
    for row, names in enumerate(spelt):
        boxes = torch.cat(batch.positions.boxes(row))
        first_of_last = len(boxes) - int(batch.positions[f"image_{row}"][row].sum())
        ids = [vlm.tokenizer(each, add_special_tokens=False)["input_ids"] for each in names]
        for place, box in enumerate(boxes):
            # The share of the box that is left of the middle.
            share = float(((0.5 - box[0]) / (box[2] - box[0])).clamp(0, 1)) if place >= first_of_last else 0.0
            own = torch.zeros(len(table))
            for pieces in ids:
                for piece in pieces:
                    own[piece] += share / len(ids) / len(pieces)
            tokens.append(acts["resid"][0][at])
            weights.append(own)
            at += 1
    expected = by_formula(torch.stack(tokens), torch.stack(weights), table)
    found = extra.loss(projector_output(vlm, batch), extra.targets(rows, batch))
    assert float(found) == pytest.approx(expected, rel=1e-3)
    shuffled = by_formula(torch.stack(tokens).flip(0), torch.stack(weights), table)
    assert abs(shuffled - expected) > 3e-3 * expected  # another order is another loss


def test_objects_for_the_report_are_those_of_the_scenes(toy):
    scenes = interp.toy.scenes(6, seed=3)
    objects = masked_objects(toy, [row_of(scene) for scene in scenes])
    for scene, own in zip(scenes, objects, strict=True):
        for number, (shows, words) in enumerate(own):
            expected = scene.masks[number].reshape(6, 8, 6, 8).any(axis=(1, 3)).flatten()
            assert shows.tolist() == expected.tolist()
            each = scene.objects[number]
            assert toy.tokenizer.convert_ids_to_tokens(words) == [each.colour, str(each.digit)]
    by_name = [
        [(shows, [each.colour, str(each.digit)]) for (shows, _), each in zip(own, scene.objects, strict=True)]
        for own, scene in zip(objects, scenes, strict=True)
    ]
    assert projector_report(toy, scenes, objects).alignment == projector_report(toy, scenes, by_name).alignment
    with pytest.raises(interp.InputError, match=r"^none of 6 rows has masks: expected a column masks, [^\n]*$"):
        masked_objects(toy, scenes)
    with pytest.raises(interp.InputTypeError, match="data is made of batches, which have no masks"):
        masked_objects(toy, [toy.prepare(["<image>"], [scenes[0].image])])


# What is refused ---------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("beta", [-1, 0, float("nan"), "much", True])
def test_a_beta_that_is_no_weight(toy, beta):
    with pytest.raises(interp.InputError, match=r"patch_alignment=.*: expected a number from 0"):
        PatchAlignment(toy, beta)


def test_rows_without_a_mask(toy, few):
    extra = PatchAlignment(toy, 1.0)
    extra.check(rows_of([row_of(few[0], masks=None), row_of(few[1])]))
    with pytest.raises(interp.InputError, match=r"patch_alignment=1.0, but none of 2 rows has masks[^\n]*$"):
        extra.check(rows_of([row_of(few[0], masks=None), row_of(few[1], masks=[])]))


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        (
            {"words": "red blorp", "mask": np.ones((48, 48), dtype=bool)},
            r"row 0 \('0'\), mask 0 \(red blorp\): word 'blorp' becomes",
        ),
        ({"words": "red", "mask": np.ones((48, 47), dtype=bool)}, r"row 0 \('0'\), mask 0: a mask of 47 x 48 pixels"),
        ({"words": "red", "mask": np.zeros((48, 48), dtype=bool)}, r"row 0 \('0'\), mask 0: the mask is empty"),
    ],
)
def test_masks_that_cannot_be_used(toy, few, entry, words):
    rows = rows_of([row_of(few[0], masks=[entry])])
    with pytest.raises(interp.InputError, match=words) as caught:
        PatchAlignment(toy, 1.0).targets(rows, prepared(toy, rows))
    assert "\n" not in str(caught.value)


def test_an_object_that_is_cropped_away(toy):
    """The toy's processor cuts the middle square out of a wide picture."""
    edge = np.zeros((48, 96), dtype=bool)
    edge[:, :20] = True
    picture = Image.new("RGB", (96, 48))
    for mask, fits in ((edge, False), (np.roll(edge, 10, axis=1), True)):
        rows = rows_of([{"image": picture, "text": "<image>", "masks": [{"words": "red", "mask": mask}]}])
        if fits:
            targets = PatchAlignment(toy, 1.0).targets(rows, prepared(toy, rows))
            # 6 of 48 columns are seen: three quarters of the first patch of each of six rows.
            assert targets["extra_weights"][targets["extra_weights"] > 0].tolist() == pytest.approx(
                [0.75] * 6, abs=0.02
            )
        else:
            with pytest.raises(interp.InputError, match=r"mask 0 \(red\): no image token shows a part of it[^\n]*$"):
                PatchAlignment(toy, 1.0).targets(rows, prepared(toy, rows))


def test_a_model_whose_projector_stays_as_it_is(toy):
    import copy

    extra, model = PatchAlignment(toy, 1.0), copy.deepcopy(toy.model).requires_grad_(False)
    model.get_submodule(toy.structure.layers).requires_grad_(True)
    with pytest.raises(
        interp.InputError, match=r"neither it nor the image tower is trained: expected connector=True[^\n]*$"
    ):
        extra.watched(model)
    model.get_submodule(toy.structure.vision).requires_grad_(True)
    assert extra.watched(model) is model.get_submodule(toy.structure.projector)


def test_outputs_that_are_not_the_batchs_tokens(toy, few):
    rows = rows_of([row_of(few[0])])
    extra = PatchAlignment(toy, 1.0)
    targets = extra.targets(rows, prepared(toy, rows))
    with pytest.raises(interp.LayoutError, match=r"made 72 outputs in a batch of 36 image tokens[^\n]*$"):
        extra.loss(normal(2, 36, 128), targets)


def test_a_language_model_alone_has_no_projector(bare):
    with pytest.raises(interp.LayoutError, match=r"has no projector of its own[^\n]*$"):
        PatchAlignment(bare, 1.0)


def test_a_worker_runs_no_model(toy, few, monkeypatch):
    rows = rows_of([row_of(few[0])])
    batch = prepared(toy, rows)
    extra = PatchAlignment(toy, 1.0)
    expected = extra.targets(rows, batch)
    copied = pickle.loads(pickle.dumps(extra))  # as a worker gets it
    monkeypatch.setattr(token_places, "get_worker_info", lambda: object())
    for each in (extra, copied):  # the toy's grid is known by now
        torch.testing.assert_close(each.targets(rows, batch), expected)
    with pytest.raises(interp.InputError, match=r"expected dataloader_num_workers=0$"):
        PatchAlignment(toy, 1.0).targets(rows, batch)


# Training ----------------------------------------------------------------------------------------------------------------

QUICK = {"learning_rate": 5e-3, "lr_scheduler_type": "constant", "warmup_steps": 0, "save_strategy": "no"}


@pytest.fixture(scope="module")
def base():
    return interp.load("toy:base", device="cpu")


def trained(vlm, rows, beta, layers=(), connector=True, **arguments):
    return tune(vlm, rows, layers=layers, connector=connector, patch_alignment=beta, arguments={**QUICK, **arguments})


def test_masks_draw_held_out_objects_to_their_words(base):
    rows = [row_of(scene) for scene in interp.toy.scenes(96, seed=5, split="train")]
    test = [row_of(scene) for scene in interp.toy.scenes(20, seed=6)]
    gains = []
    for beta in (0.0, 1.0):
        vlm = trained(base, rows, beta, max_steps=8, per_device_train_batch_size=12).vlm
        report = projector_report(vlm, test, masked_objects(vlm, test))
        gains.append(report.alignment - report.alignment_null)
    assert report.alignment_p < 0.05
    assert gains[1] > gains[0] + 0.03


def test_accumulated_batches_are_one_batch(base):
    """Rows with one object and with three, and some without masks: tokens of all batches of a step count alike."""
    rows = [row_of(scene) for scene in interp.toy.scenes(8, seed=7, split="train")]
    for row in rows[:3]:
        row["masks"] = None
    whole = trained(base, rows, 1.0, max_steps=2, per_device_train_batch_size=8)
    parts = trained(base, rows, 1.0, max_steps=2, per_device_train_batch_size=2, gradient_accumulation_steps=4)
    torch.testing.assert_close(parts.loss, whole.loss, atol=1e-4, rtol=0)


def test_adapters_beside_the_connector(base, few):
    """PEFT puts its own module around the model; the projector is found within."""
    rows = [row_of(scene) for scene in few]
    result = tune(
        base, rows, layers=[0], lora=1, connector=True, patch_alignment=1.0, arguments={**QUICK, "max_steps": 1}
    )
    alone = tune(base, rows, layers=[0], lora=1, connector=True, arguments={**QUICK, "max_steps": 1})
    assert float(result.loss[0]) > float(alone.loss[0]) + 1


def test_a_row_whose_mask_cannot_be_used_is_left_out_where_it_may_be(base, few):
    rows = [row_of(scene) for scene in few]
    rows[1]["masks"][0]["mask"] = np.ones((5, 5), dtype=bool)
    with pytest.warns(UserWarning, match=r"1 rows of the data are left out: .*a mask of 5 x 5 pixels"):
        result = trained(base, interp.Data(rows, on_error="skip"), 1.0, max_steps=1)
    assert (result.rows, result.skipped) == (2, 1)
    with pytest.raises(interp.InputError, match=r"row 1 .*, mask 0: a mask of 5 x 5 pixels"):
        trained(base, rows, 1.0, max_steps=1)


def test_what_cannot_be_trained_so_is_said_before_the_first_step(base, few):
    rows = [row_of(scene, masks=None) for scene in few]
    for wrong, words in (
        (lambda: trained(base, rows, 1.0), "none of 3 rows has masks"),
        (lambda: trained(base, rows, -1.0), r"patch_alignment=-1.0: expected a number from 0"),
        (
            lambda: trained(base, [row_of(few[0])], 1.0, layers=[3], connector=False),
            "neither it nor the image tower is trained",
        ),
    ):
        with pytest.raises(interp.InputError, match=words) as caught:
            wrong()
        assert "\n" not in str(caught.value)
