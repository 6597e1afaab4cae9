"""How the blocks of image towers weigh: proved on every architecture, and what does not weigh so is not taken to."""

import copy
import functools

import pytest
import torch
from transformers import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

import interp
import zoo
from interp.interventions import Reweight
from interp.models.layout.tower_weights import prove_weighings
from interp.models.running.attention import tower_attention
from interp.models.running.steps import Read, whole
from interp.models.running.structure import TowerWeights
from interp.models.running.trace import run_forward
from towers import (
    CHOSEN_WHEN_LOADED,
    IN_SOME,
    NO_BLOCKS,
    REFUSED,
    SUPPORTED,
    batch_of,
    even,
    fresh,
    loaded,
    softmax_changed,
    weighing_blocks,
)


def test_on_how_many_architectures_they_can_be_had():
    assert (len(SUPPORTED), len(IN_SOME), len(IN_SOME) - len({*REFUSED} & {*IN_SOME})) == (76, 68, 67)


@pytest.mark.parametrize("name", [name for name in SUPPORTED if name not in NO_BLOCKS])
def test_every_other_block_is_refused_by_its_number(name):
    vlm, rows = loaded(name), batch_of(name)
    blocks, why = REFUSED.get(name, ((), ""))
    assert sorted({*range(len(tower_attention(vlm)))} - {*weighing_blocks(vlm)}) == list(blocks)
    for block in blocks:
        with pytest.raises(interp.LayoutError, match=f"^block {block} of the image tower of .*: {why}") as caught:
            run_forward(vlm, rows, reads=[Read(0, "vision_pattern", block, whole)], logits=None)
        assert "\n" not in str(caught.value)
        with pytest.raises(interp.LayoutError):
            vlm.logits(rows, [Reweight(kind="uniform", layers=[block], tower="vision")])


@pytest.mark.parametrize("name", CHOSEN_WHEN_LOADED)
def test_attention_that_is_chosen_when_a_model_is_loaded(name):
    """The weights are there in a model that was loaded with eager attention."""
    config = copy.deepcopy(zoo.build(name).config)
    model = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING[type(config)]._from_config(config, attn_implementation="eager").eval()
    model.load_state_dict(zoo.build(name).state_dict())
    vlm = interp.load(model=model, device="cpu", check=False)
    rows = vlm.checked_on = vlm.prepare(encoding=zoo.encode(name))
    found = vlm.logits(rows, [Reweight(kind="uniform", layers="all", tower="vision")])
    with softmax_changed(vlm, [0, 1], even):
        by_hand = vlm.model(**vlm.inputs_of(rows)).logits[:, -1]
    torch.testing.assert_close(found, by_hand, atol=1e-5, rtol=1e-5)


def replaced(attention, change):
    """The same attention, of which `change` makes what it gives."""
    own = type(attention)

    @functools.wraps(own.forward)
    def forward(self, *args, **kwargs):
        return change(self, own.forward(self, *args, **kwargs))

    attention.__class__ = type(own.__name__, (own,), {"forward": forward})


@pytest.mark.parametrize(
    "changed",
    [lambda w: w.flip(1), lambda w: w / 2, lambda w: w.flip(3), lambda w: 2 * w - w.flip(1), even],
    ids=["other heads", "half of it", "other keys", "below zero", "even"],
)
def test_weights_that_did_not_make_what_the_heads_give(changed):
    vlm, rows = fresh("llava", lambda blocks: replaced(blocks[1].self_attn, lambda _, out: (out[0], changed(out[1]))))
    first, second = prove_weighings(vlm, rows)
    assert isinstance(first, TowerWeights)
    assert second.startswith("the weights ")


def test_keys_that_are_hidden_without_a_word(monkeypatch):
    """The first token sees none but itself, which no mask says: even weights over all would show it more."""
    vlm, rows = fresh("llava")
    softmax = torch.nn.functional.softmax

    def blind(scores, *args, **kwargs):
        if scores.ndim == 4 and scores.shape[-1] == 17:
            scores = scores.clone()
            scores[:, :, 0, 1:] = -torch.inf
        return softmax(scores, *args, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "softmax", blind)
    assert all("not shares of one among the keys" in each for each in prove_weighings(vlm, rows))


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl"])
def test_what_stands_between_values_and_heads_is_seen(name):
    """A projection behind the heads that is given twice as much, values that are all alike."""

    def double(blocks):
        part = next(name for name in ("self_attn", "attn") if hasattr(blocks[1], name))
        attention = getattr(blocks[1], part)
        last = "out_proj" if hasattr(attention, "out_proj") else "proj"
        getattr(attention, last).register_forward_pre_hook(lambda _, args: (2 * args[0],))

    vlm, rows = fresh(name, double)
    first, second = prove_weighings(vlm, rows)
    assert isinstance(first, TowerWeights)
    assert "do not make what its heads give" in second


def test_values_that_are_alike_prove_nothing():
    def alike(blocks):
        blocks[0].self_attn.v_proj.weight.data.zero_()

    vlm, rows = fresh("llava", alike)
    first, second = prove_weighings(vlm, rows)
    assert first == "the weights that it gives do not make what its heads give"
    assert isinstance(second, TowerWeights)


def test_bounds_that_are_not_those_that_ran(monkeypatch):
    """Chunks that are cut elsewhere than the attention is told."""
    vlm, rows = fresh("qwen2_vl")
    monkeypatch.setattr("interp.models.running.places.BOUNDS", "max_seqlen")
    assert not any(isinstance(each, TowerWeights) for each in prove_weighings(vlm, rows))


def test_angles_that_are_none(monkeypatch):
    vlm, rows = fresh("qwen2_vl")
    monkeypatch.setattr("interp.models.running.places.ANGLES", "cu_seqlens")
    for each in prove_weighings(vlm, rows):
        assert not isinstance(each, TowerWeights)
        assert "\n" not in each


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "got_ocr2"])
def test_in_low_precision(name):
    vlm, rows = fresh(name)
    vlm.model.to(torch.bfloat16)
    assert all(isinstance(each, TowerWeights) for each in prove_weighings(vlm, rows))


def test_one_picture_is_tried_twice(monkeypatch):
    """Of one picture everything sees everything, whatever the bounds say."""
    vlm, _ = fresh("qwen2_vl")
    alone = vlm.prepare(encoding=zoo.encode("qwen2_vl", rows=((3, 6),)))
    monkeypatch.setattr(
        "interp.models.running.slots.tower_mask", lambda hidden, *_: torch.ones(1, 1, len(hidden), len(hidden)) > 0
    )
    assert not any(isinstance(each, TowerWeights) for each in prove_weighings(vlm, alone))


def test_loading_measures_none(toy):
    vlm = interp.load("toy", device="cpu")
    assert vlm.structure.vision_weighed is None
    assert all(isinstance(each, TowerWeights) for each in vlm.trait("vision_weighed"))
    with pytest.raises(interp.InputError, match="structure vision_weighed="):
        interp.load("toy", structure={"vision_weighed": vlm.structure.vision_weighed})


def test_a_model_without_a_processor_asks_for_a_batch():
    vlm, rows = fresh("llava")
    change = [Reweight(kind="uniform", layers=0, tower="vision")]
    with pytest.raises(
        interp.LayoutError, match=r"vision_weighed is not known .* call vlm.check\(batch\) with an image"
    ):
        vlm.logits(rows, change)
    vlm.check(rows)
    assert vlm.logits(rows, change).isfinite().all()
