"""Places: each site has a moment and a place, and what a model does not have is refused by name."""

import pytest

import interp
from interp.models.running.places import (
    ANGLES,
    BEFORE_LAYERS,
    BOUNDS,
    REBUILT,
    SITES,
    find_argument,
    moment,
    place,
    proved_place,
    rebuilt_moment,
    takes_angles,
    tower_weights,
    visibility_of,
)
from interp.models.running.slots import Argument, HeadsSlot, MaskSlot, MidSlot, TowerMaskSlot
from interp.models.running.steps import Read, whole
from interp.models.running.structure import TowerWeights
from interp.models.running.trace import run_forward
from patterned import load

# The tower of the toy returns its weights, so that its queries and keys are not looked for.
WITHOUT = ("vision_q", "vision_k")


def test_unknown_sites_and_layers(toy, mixed):
    with pytest.raises(interp.InputError, match="site='hook_z' is unknown"):
        run_forward(toy, mixed, reads=[Read(0, "hook_z", 0, whole)])
    with pytest.raises(interp.InputError, match="layer 8: 'toy' has layers 0 to 7"):
        run_forward(toy, mixed, reads=[Read(0, "resid_pre", 8, whole)])
    with pytest.raises(interp.InputError, match="layers='some'"):
        toy.layer_indices("some")
    assert toy.layer_indices(-1) == [7]
    depth = len(toy.blocks)
    with pytest.raises(interp.InputError, match=f"block {depth}: the image tower of 'toy' has blocks 0 to {depth - 1}"):
        moment(toy, depth, "vision_pre")


def test_moments_sort_in_forward_order(toy):
    """Blocks before the projector before layers, sites of one in the order of `SITES`, projections as they run."""
    sites = [site for site in BEFORE_LAYERS[:-1] if site not in WITHOUT]
    tower = [moment(toy, block, site) for block in range(len(toy.blocks)) for site in sites]
    layers = [moment(toy, layer, site) for layer in (0, 1) for site in SITES if site not in BEFORE_LAYERS]
    order = [*tower, moment(toy, 0, "projector"), *layers]
    assert sorted(reversed(order)) == order
    assert tower[-1].layer < -1 == moment(toy, 0, "projector").layer < layers[0].layer
    for weights, at in (("pattern", 1), ("vision_pattern", 0)):
        later = rebuilt_moment(toy, at, weights)
        assert later > moment(toy, at, weights)
        assert later.site == REBUILT[weights]


def test_every_site_of_the_toy_has_a_place(toy):
    for site in (site for site in SITES if site not in WITHOUT):
        at = moment(toy, 1, site)
        envoy, slot = place(toy, 2, at.layer, site)
        assert envoy is not None
        assert slot.side in ("input", "output")
    for weights in REBUILT:
        at = rebuilt_moment(toy, 1, weights)
        assert place(toy, 2, at.layer, at.site).slot.site == ("z" if weights == "pattern" else "vision_z")
    layer = toy.layers[1]
    assert place(toy, 2, 1, "resid_mid").slot == MidSlot()
    assert place(toy, 2, 1, "mask").slot == MaskSlot(Argument("attention_mask", 2), True)
    heads = place(toy, 2, 1, "z")
    assert heads.envoy.path == layer.self_attn.o_proj.path
    assert heads.slot == HeadsSlot(toy.structure.z[1], 2)
    assert place(toy, 2, moment(toy, 1, "vision_mask").layer, "vision_mask").slot == TowerMaskSlot(
        "mask", Argument("attention_mask", 1), None
    )


def test_a_site_that_was_not_proved_is_refused_with_the_layers_that_have_it():
    vlm = load("qwen3_5")
    linear = next(layer for layer, kind in enumerate(vlm.structure.attention) if kind == "linear")
    with pytest.raises(
        interp.LayoutError, match=f"has no z that could be proved in layer {linear}: layers with one are 3"
    ):
        proved_place(vlm, linear, "z")
    with pytest.raises(
        interp.LayoutError, match=rf"layer {linear} of .* has no softmax attention \(linear\), so it has no"
    ):
        place(vlm, 1, linear, "mask")


def test_blocks_say_where_their_weights_are_or_why_not(toy):
    weights = tower_weights(toy, 0)
    assert isinstance(weights, TowerWeights)
    assert weights.visibility == "mask"
    with pytest.raises(
        interp.LayoutError, match="has no vision_q that could be proved: its attention returns the weights"
    ):
        place(toy, 1, moment(toy, 0, "vision_q").layer, "vision_q")


def test_arguments_are_found_by_name():
    class Packed:
        def forward(self, hidden_states, cu_seqlens, position_embeddings=None): ...

    class Masked:
        def forward(self, hidden_states, attention_mask=None, head_mask=None): ...

    class Plain:
        def forward(self, hidden_states): ...

    assert find_argument(Packed(), BOUNDS) == Argument("cu_seqlens", 1)
    assert find_argument(Packed(), ANGLES) == Argument("position_embeddings", 2)
    assert find_argument(Masked(), ".*mask") == Argument("attention_mask", 1)
    assert find_argument(Plain(), ".*mask") is None
    assert [visibility_of(each()) for each in (Packed, Masked, Plain)] == ["chunks", "mask", "all"]
    assert [takes_angles(each()) for each in (Packed, Masked, Plain)] == [True, False, False]
