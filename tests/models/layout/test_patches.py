"""The states of the tower and the projector's output: against plain hooks, and whose each patch is against autograd."""

import pytest
import torch
from torch.nn.functional import normalize

import interp
import zoo
from feeding import feeding, watched
from interp.models.architectures import architectures
from interp.models.layout.patches import RowsNotApart, _become, _by_tokens, patches_of, take_patches
from interp.models.running.steps import Edit, Read, reads_of_vision, take_each, whole
from interp.models.running.trace import run_forward
from zoo.table import batch, load

SUPPORTED = [row.name for row in architectures() if row.verdict == "supported"]
# What there is not, and the reason that is given.
NO_BLOCKS, NO_PROJECTOR = "has no image tower made of blocks", "has no projector of its own"
REFUSED = {
    "vision": {
        **dict.fromkeys(("chameleon", "emu3", "fuyu", "gemma4_unified"), NO_BLOCKS),
        **dict.fromkeys(("inkling_mm_model", "minicpmv4_6", "minicpmv4_7"), "expected states of one shape"),
        "step3p7": "runs its image tower 2 times",
    },
    "projector": {
        **dict.fromkeys(("chameleon", "emu3", "granite4_vision", "inkling_mm_model", "ovis2"), NO_PROJECTOR),
        **{"hunyuan_vl": "runs its projector 2 times", "step3p7": "runs its projector 2 times"},
        "lfm2_vl": "runs its projector 7 times",
    },
}
HAD = [(name, site) for site, refused in REFUSED.items() for name in SUPPORTED if name not in refused]
# Features that are no token of state 0: added to an embedding or a position, or changed once more.
CHANGED = ("blip-2", "gemma4_unified", "kosmos-2", "kosmos-2.5", "molmo2")
# By one factor, or each to a length of its own.
SCALED = ("granite_docling", "hyperclovax_vision_v2", "muse_glimmer", "muse_spark")


def test_how_many_architectures_have_them():
    assert [sum(site == each for _, each in HAD) for site in REFUSED] == [68, 68]


@pytest.mark.parametrize(("name", "site"), [(name, site) for site, names in REFUSED.items() for name in names])
def test_what_is_refused_says_why_in_one_line(name, site):
    with pytest.raises(interp.LayoutError, match=REFUSED[site][name]) as caught:
        patches_of(load(name), batch(name), site)
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, RowsNotApart) == (" times" in REFUSED[site][name])


@pytest.mark.parametrize(("name", "site"), HAD)
def test_examples_are_the_tokens_that_feed_a_row(name, site):
    """All of them, but for what no picture moves, and each with the row that it feeds."""
    vlm, rows = load(name), batch(name)
    patches, fed = patches_of(vlm, rows, site), feeding(vlm, rows, site)
    assert len(patches) == len(patches.index.unique()) > 0
    assert (fed[:, patches.index].sum(dim=0) == 1).all()
    assert torch.equal(fed[:, patches.index].long().argmax(dim=0), patches.rows)
    assert patches.rows.diff().min() >= 0
    others = fed.any(dim=0).index_fill(0, patches.index, False).nonzero().flatten()
    if len(others):  # class tokens and registers
        held = torch.cat([each.flatten(0, -2) for each in watched(vlm, rows, site)["tower"]])
        seen = watched(vlm, second_picture_dimmed(name), site)["tower"]
        assert torch.equal(held[others], torch.cat([each.flatten(0, -2) for each in seen])[others])


@pytest.mark.parametrize(("name", "site"), HAD)
def test_another_picture_in_a_row_moves_the_patches_of_that_row_alone(name, site):
    vlm, rows = load(name), batch(name)
    patches = patches_of(vlm, rows, site)
    read = [Read("seen", "vision_pre" if site == "vision" else site, 0, take_patches, (patches.index, None))]
    before, after = (run_forward(vlm, b, reads=read, logits=None)["seen"] for b in (rows, second_picture_dimmed(name)))
    assert torch.equal((before != after).any(dim=-1), patches.rows == 1)


def second_picture_dimmed(name):
    """The batch with other pixels in row 1: zeros and places, which are whole numbers, stay."""
    inputs, first_alone = dict(batch(name).inputs), zoo.encode(name, rows=((3, 6),))
    for key, value in inputs.items():
        if value.is_floating_point():
            shorter = [axis for axis in range(value.ndim) if first_alone[key].shape[axis] != value.shape[axis]]
            start = first_alone[key].shape[shorter[0]]
            old = value.narrow(shorter[0], start, value.shape[shorter[0]] - start)
            new = torch.where(old == old.round(), old, 0.7 * old)
            inputs[key] = torch.cat([value.narrow(shorter[0], 0, start), new], dim=shorter[0])
    return load(name).prepare(encoding=inputs)


@pytest.mark.parametrize("name", [name for name, site in HAD if site == "vision"])
def test_states_are_what_hooks_on_the_blocks_see(name):
    """In one trace with the projector and the layers, which run behind the tower."""
    vlm, rows = load(name), batch(name)
    patches = patches_of(vlm, rows, "vision")
    held = []

    def hook(_, args, kwargs, output):
        held.extend([] if held else [args[0] if args else next(iter(kwargs.values()))])
        held.append(output[0] if isinstance(output, tuple) else output)

    handles = [
        block.register_forward_hook(hook, with_kwargs=True) for block in vlm.model.get_submodule(vlm.structure.blocks)
    ]
    with torch.no_grad():
        vlm.model(**vlm.inputs_of(rows))
    for handle in handles:
        handle.remove()
    reads = reads_of_vision(vlm, take_patches, (patches.index, None))
    further = [Read("last", "resid_post", vlm.structure.n_layers - 1, whole)]
    if name not in REFUSED["projector"]:
        further.append(Read("features", "projector", 0, whole))
    seen = run_forward(vlm, rows, reads=[*further, *reads], logits=None)
    assert len(reads) == len(held)
    for state, value in enumerate(held):
        torch.testing.assert_close(seen[state], value.flatten(0, -2)[patches.index], rtol=0, atol=0)


@pytest.mark.parametrize("name", [name for name, site in HAD if site == "projector"])
def test_features_are_the_image_tokens_that_they_become(name):
    """In their order, whatever the tower's own is."""
    vlm, rows = load(name), batch(name)
    patches = patches_of(vlm, rows, "projector")
    assert (patches.columns == -1).all() == (name in CHANGED)
    if name not in CHANGED:
        held = watched(vlm, rows, "projector")
        features = torch.cat([each.flatten(0, -2) for each in held["tower"]])[patches.index]
        state = held["state"][patches.rows, patches.columns]
        assert torch.equal(features, state) == (name not in SCALED)
        torch.testing.assert_close(normalize(features), normalize(state), rtol=0, atol=1e-6)
        assert rows.positions["image"][patches.rows, patches.columns].all()


def test_the_windows_of_a_tower_are_put_in_order():
    patches = patches_of(load("qwen2_5_vl"), batch("qwen2_5_vl"), "projector")
    assert patches.index.diff().min() < 0
    assert patches.columns.diff()[patches.rows.diff() == 0].min() > 0


# Padding -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["idefics2", "aria"])
def test_pixels_that_are_masked_make_no_patch(name):
    """The lower half of the second image."""
    inputs = dict(zoo.encode(name))
    key = next(key for key in inputs if key in ("pixel_attention_mask", "pixel_mask"))
    mask = torch.ones_like(inputs[key])
    mask[1, ..., 8:, :] = 0
    rows = load(name).prepare(encoding={**inputs, key: mask})
    patches = patches_of(load(name), rows, "vision")
    assert patches.rows.bincount().tolist() == [16, 8]
    fed = feeding(load(name), rows, "vision")
    assert torch.equal(fed.any(dim=0).nonzero().flatten(), patches.index)
    everything = patches_of(load(name), load(name).prepare(encoding={**inputs, key: torch.ones_like(mask)}), "vision")
    assert everything.rows.bincount().tolist() == [16, 16]


def test_patches_that_are_zero_with_their_place_are_padding():
    inputs = dict(zoo.encode("kosmos-2.5"))
    inputs["flattened_patches"] = inputs["flattened_patches"].clone()
    inputs["flattened_patches"][1, 12:] = 0
    vlm = load("kosmos-2.5")
    patches = patches_of(vlm, vlm.prepare(encoding=inputs), "vision")
    assert patches.rows.bincount().tolist() == [16, 12]


def test_a_black_picture_has_patches(toy, few):
    """Not what pixels hold but where they stand makes a patch."""
    from PIL import Image

    black = Image.new("RGB", (48, 48))
    rows = toy.prepare(texts=["<image> a", "<image> a"], images=[black, few[0].image])
    assert patches_of(toy, rows, "vision").rows.bincount().tolist() == [36, 36]


# Totals that agree by chance -----------------------------------------------------------------------------------------------


def test_as_many_images_as_rows_are_not_one_each_where_a_row_has_none():
    """Two tiled images in row 0 and text alone in row 1: their pixels look like one image a row."""
    inputs = zoo.encode("llava_next")
    first, second = (ids[mask.bool()].tolist() for ids, mask in zip(*map(inputs.get, zoo.pad([[1]])), strict=True))
    rows = load("llava_next").prepare(encoding={**inputs, **zoo.pad([first + second, [5, 6, 7]])})
    assert patches_of(load("llava_next"), rows, "vision").rows.tolist() == [0] * 36


def test_no_row_ends_inside_a_sequence():
    """Nine tiles of four patches are as many as the 14 and 22 image tokens, of which some are ends of lines."""
    assert _by_tokens(batch("llava_next"), torch.ones(36, 1).bool()) == [14, 22]
    assert _by_tokens(batch("llava_next"), torch.ones(9, 4).bool()) is None


def test_equal_features_become_tokens_in_their_order():
    blue, red, cut_off = torch.eye(3)
    features, row = torch.stack([blue, blue, cut_off, red]), torch.zeros(4, dtype=torch.long)
    assert _become(features, row, 2 * torch.stack([blue, blue, red]), row[:3]).tolist() == [0, 1, 3]
    assert _become(features, row, torch.stack([blue, blue, blue]), row[:3]) is None
    assert _become(features, row, torch.stack([blue + red]), row[:1]) is None


# The toy -----------------------------------------------------------------------------------------------------------------


def test_the_toy_has_36_patches_a_picture(toy, few, mixed):
    for site in ("vision", "projector"):
        assert patches_of(toy, mixed, site).rows.tolist() == [0] * 36 + [2] * 36
    columns = patches_of(toy, mixed, "projector").columns
    assert torch.equal(columns, mixed.positions["image"].nonzero()[:, 1])
    two = toy.prepare(texts=["<image> <image> a", "<image>"], images=[[few[0].image, few[1].image], few[2].image])
    assert patches_of(toy, two, "vision").rows.bincount().tolist() == [72, 36]


def test_batches_of_one_kind_are_looked_at_once(toy, few, monkeypatch):
    first, second = (toy.prepare(texts=[text], images=[few[0].image]) for text in ("<image> a", "a a a <image> a"))
    found = patches_of(toy, first, "projector")
    monkeypatch.setattr("interp.models.layout.patches._look", None)
    again = patches_of(toy, second, "projector")
    assert torch.equal(again.index, found.index)
    assert torch.equal(again.columns, found.columns + 3)  # the columns are those of this batch


def test_the_simulation_gives_the_same_patches(toy, remote_toy, mixed):
    here, there = [], []
    for vlm, seen in ((toy, here), (remote_toy, there)):
        for site in ("vision", "projector"):
            patches = patches_of(vlm, mixed, site)
            index = (patches.index, torch.float64)
            reads = [Read("features", "projector", 0, take_patches, index)]
            if site == "vision":
                reads = reads_of_vision(vlm, take_patches, index, states=[0, 2])
            seen += [patches.rows, patches.columns, *run_forward(vlm, mixed, reads=reads, logits=None).values()]
    assert all(map(torch.equal, here, there))
    assert {value.dtype for value in here} == {torch.int64, torch.float64}


def test_an_edit_of_a_state_is_read_in_it_and_reaches_the_layers(toy, mixed):
    index = patches_of(toy, mixed, "vision").index
    mine = index[:36]
    edit = Edit("vision_pre", 1, clear, (mine,))
    reads = reads_of_vision(toy, take_patches, (index, None), edits=[edit])
    rows, columns = mixed.positions["image"].nonzero(as_tuple=True)
    reads.append(Read("entered", "resid_pre", 0, take_each, (rows, columns, None)))
    plain, changed = (run_forward(toy, mixed, edits, reads, logits=None) for edits in ([], [edit]))
    assert torch.equal(plain[0], changed[0])
    assert (changed[1][:36] == 0).all()
    assert torch.equal(plain[1][36:], changed[1][36:])
    assert (plain["entered"] != changed["entered"]).any(dim=-1).tolist() == [True] * 36 + [False] * 36


def clear(value, index):
    value = value.clone()
    value[index] = 0
    return value


@pytest.mark.parametrize("name", ["llama4", "minicpm_ocr", "kosmos-2"])
def test_a_feature_is_edited_in_whatever_a_module_gives(name):
    """Blocks that give tuples, projectors that give lists or attention weights beside."""
    vlm, rows = load(name), batch(name)
    patches = patches_of(vlm, rows, "projector")
    edits = [Edit("projector", 0, clear, (patches.index[patches.rows == 1],))]
    image = rows.positions["image"]
    reads = [Read("entered", "resid_pre", 0, whole), Read("block", "vision_post", 0, whole)]
    plain, changed = (run_forward(vlm, rows, each, reads, logits=None) for each in ([], edits))
    moved = (plain["entered"] != changed["entered"]).any(dim=-1)
    assert torch.equal(moved, image & torch.tensor([[False], [True]]))
    edits = [Edit("vision_post", 0, whole)]
    assert torch.equal(run_forward(vlm, rows, edits, reads, logits=None)["entered"], plain["entered"])


# What cannot be had ------------------------------------------------------------------------------------------------------


def test_what_has_no_patches_is_refused(toy, mixed):
    with pytest.raises(interp.InputError, match="site='resid' has no patches"):
        patches_of(toy, mixed, "resid")
    with pytest.raises(interp.InputError, match="the batch has no image"):
        patches_of(toy, toy.prepare(texts=["a red 3"]), "vision")
    with pytest.raises(interp.InputError, match=r"state 9: the image tower of 'toy' has states 0 to \d"):
        reads_of_vision(toy, whole, (), states=[9])
    with pytest.raises(interp.InputError, match="block -1"):
        run_forward(toy, mixed, reads=[Read(0, "vision_post", -1, whole)])
    with pytest.raises(interp.LayoutError, match=NO_BLOCKS):
        reads_of_vision(load("fuyu"), whole, ())


def test_a_tower_that_runs_once_an_image_can_be_run_row_by_row():
    vlm = load("hunyuan_vl")
    with pytest.raises(RowsNotApart):
        patches_of(vlm, batch("hunyuan_vl"), "projector")
    alone = vlm.prepare(encoding=zoo.encode("hunyuan_vl", rows=((3, 6),)))
    patches = patches_of(vlm, alone, "projector")
    # Of the ten image tokens four are learned: the ends of rows, and of the image.
    assert len(patches) == 6 < int(alone.positions["image"].sum())
