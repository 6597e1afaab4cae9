"""What Patch and Ablate write, at every site and for some heads: plain hooks write the same, and what does not fit is
refused."""

import functools
from types import SimpleNamespace

import pytest
import torch

import interp
from interp.interventions import Ablate, Patch
from interp.interventions.replacement import derangement
from interp.models.running.places import HEADED, STATES
from interp.models.running.slots import MidSlot, OutputSlot
from interp.models.running.steps import Read, whole
from interp.models.running.trace import run_forward
from patterned import BOTH, attention_modules, batch_of, load

# Grouped keys; queries with a norm; a prefix; chunks; a gate beside each query, one layer of four with heads.
HEADS = ("llava", "gemma3", "paligemma", "llama4", "qwen3_5")


def captured(vlm, batch, site, reduce="none", positions="all", **options):
    return interp.capture(vlm, [batch], sites=(site,), positions=positions, reduce=reduce, progress=False, **options)


def read(vlm, batch, site, layer, *interventions):
    edits = vlm.edits_of(batch, interventions)
    return run_forward(vlm, batch, edits, [Read(0, site, layer, whole)], logits=None)[0]


def with_hooks(vlm, batch, hooks):
    """The logits `[batch, vocab]` of a plain run; `hooks` are pairs of a module and what to make of its output."""
    handles = [
        module.register_forward_hook(lambda module, given, out, change=change: change(out)) for module, change in hooks
    ]
    try:
        with torch.no_grad():
            return vlm.model(**vlm.inputs_of(batch)).logits[:, -1]
    finally:
        for handle in handles:
            handle.remove()


# Its own states ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("site", [*STATES, *HEADED])
def test_a_run_patched_with_its_own_states_is_the_same_to_the_bit(toy, mixed, site):
    acts = captured(toy, mixed, site)
    plain = toy.logits(mixed)
    for value in (acts, acts[site][...]):
        assert (toy.logits(mixed, [Patch(site=site, layers="all", positions="all", value=value)]) == plain).all()
    row = mixed.row(0)
    same = Patch(site=site, layers=[1, 6], positions="image", value=row)
    assert (toy.logits(row, [same]) == toy.logits(row)).all()
    other = Patch(site=site, layers=[1, 6], positions="image", value=torch.zeros(1))
    assert not torch.allclose(toy.logits(row, [other]), toy.logits(row))


@pytest.mark.parametrize(("name", "how"), [*((name, "eager") for name in HEADS), *((name, "sdpa") for name in BOTH)])
def test_its_own_states_on_other_architectures(name, how):
    """At every site of every layer that has it."""
    vlm, batch = load(name, how), batch_of(name, padded=True)
    plain, real = vlm.logits(batch, positions="all"), batch.positions["all"]
    traits = {"resid_mid": "mid"}
    for site in (*STATES, *HEADED):
        there = [True] * 4 if site in ("resid_pre", "resid_post") else vlm.trait(traits.get(site, site))
        for layer in (layer for layer, place in enumerate(there) if place):
            same = Patch(site=site, layers=layer, positions="all", value=read(vlm, batch, site, layer)[real])
            assert (vlm.logits(batch, [same], positions="all") == plain).all(), (site, layer)


@pytest.mark.parametrize("slot", [MidSlot(OutputSlot()), OutputSlot(0.263), MidSlot(OutputSlot(0.263))])
def test_what_rounds_on_the_way_to_a_site_and_back_stays_to_the_bit(slot):
    """The state between attention and MLP is a sum, and some layers add a part of what their modules give."""
    entered, gave = (torch.randn(1, 50, 64, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    module = SimpleNamespace(output=gave)
    kept = {"resid_pre": entered}
    held, value = slot.take(module, kept)
    after = value.clone()
    after[0, 7] = 0
    slot.put(module, kept, held, value, after)
    others = torch.arange(50) != 7
    assert torch.equal(module.output[:, others], gave[:, others])
    torch.testing.assert_close(slot.take(module, kept)[1], after)


@pytest.mark.parametrize("site", HEADED)
@pytest.mark.parametrize("name", HEADS)
def test_heads_of_other_architectures(name, site):
    """One head is written, the other heads, positions and layers are as they were; then its own states come back."""
    vlm, batch = load(name, "eager"), batch_of(name, padded=True)
    layer = list(attention_modules(vlm))[-1]
    before, mask = read(vlm, batch, site, layer), batch.positions["text"]
    new = torch.randn(int(mask.sum()), 1, before.shape[-1], generator=torch.Generator().manual_seed(0))
    patch = Patch(site=site, layers=layer, positions="text", value=new, heads=-1)
    after = read(vlm, batch, site, layer, patch)
    expected = before.clone()
    expected[:, :, -1][mask] = new[:, 0]
    assert torch.equal(after, expected)
    assert not torch.allclose(vlm.logits(batch, [patch]), vlm.logits(batch))
    back = Patch(site=site, layers=layer, positions="text", value=before[mask][:, [-1]], heads=[-1])
    assert (vlm.logits(batch, [patch, back]) == vlm.logits(batch)).all()


# Against plain hooks -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("site", "part", "heads"), [("q", "q_proj", 4), ("k", "k_proj", 2), ("v", "v_proj", 2)])
def test_projections_are_written_as_a_hook_writes_them(site, part, heads):
    vlm, batch = load("llava"), batch_of("llava", padded=True)
    rows, columns = batch.positions["text"].nonzero(as_tuple=True)
    value = torch.randn(2, len(rows), 1, 16, generator=torch.Generator().manual_seed(1))

    def write(out, new):
        out = out.clone().unflatten(-1, (heads, 16))
        out[rows, columns, 1] = new[:, 0]
        return out.flatten(2)

    modules = attention_modules(vlm)
    hooks = [
        (getattr(modules[layer], part), functools.partial(write, new=new))
        for layer, new in zip((1, 3), value, strict=True)
    ]
    patch = Patch(site=site, layers=[1, 3], positions="text", value=value, heads=[1])
    assert torch.equal(vlm.logits(batch, [patch], positions="all")[:, -1], with_hooks(vlm, batch, hooks))


def test_a_value_broadcasts_over_layers_positions_and_heads(toy, mixed):
    for shape in [(1,), (32,), (4, 32), (1, 4, 32), (2, 1, 4, 32), (1, 3, 4, 1)]:
        value = torch.randn(shape, generator=torch.Generator().manual_seed(2))
        patch = Patch(site="z", layers=[2, 5], positions="last", value=value)
        for place, layer in enumerate((2, 5)):
            after = read(toy, mixed, "z", layer, patch)[:, -1]
            assert torch.equal(after, value.expand(2, 3, 4, 32)[place]), shape


def test_heads_in_the_order_in_which_they_are_named(toy, mixed):
    value = torch.stack([torch.full((32,), 1.0), torch.full((32,), 2.0)])
    after = read(toy, mixed, "z", 3, Patch(site="z", layers=3, positions=[0], value=value, heads=[3, 0]))
    first = after[mixed.positions.select([0])]
    assert (first[:, 3] == 1).all()
    assert (first[:, 0] == 2).all()


# Activations -------------------------------------------------------------------------------------------------------------


def test_pooled_activations_land_on_all_positions_of_their_row(toy, mixed):
    mask = mixed.positions["text"]
    pooled = captured(toy, mixed, "mlp_out", reduce="mean", positions="text")
    after = read(toy, mixed, "mlp_out", 4, Patch(site="mlp_out", layers=4, positions="text", value=pooled))
    one = pooled.select(rows=[1])
    of_one = read(toy, mixed, "mlp_out", 4, Patch(site="mlp_out", layers=4, positions="text", value=one))
    for row in range(3):
        assert (after[row][mask[row]] == pooled["mlp_out"][4][row]).all()
        assert (of_one[row][mask[row]] == pooled["mlp_out"][4][1]).all()


def test_examples_land_row_by_row_and_only_where_they_fit(toy, mixed):
    acts = captured(toy, mixed, "z").select(layers=[2, 4])
    patch = Patch(site="z", layers=[4], positions="all", value=acts, heads=[0, 2])
    assert (toy.logits(mixed, [patch]) == toy.logits(mixed)).all()
    turned = captured(toy, toy.prepare(list(mixed.texts[:1] + mixed.texts[2:] + mixed.texts[1:2]), _images(mixed)), "z")
    for value, options, words in [
        (acts, {"layers": 3}, "value has no z of layer 3: it has z of layers 2, 4"),
        (acts, {"site": "q"}, "value has no q of layer 2"),
        (acts, {"positions": "text"}, r"value has \[43, 12, 49\] examples in its rows and \[6, 11, 12\] positions"),
        (turned, {}, r"value has .* examples in its rows"),
    ]:
        patch = Patch(**{"site": "z", "layers": 2, "positions": "all", "value": value, **options})
        with pytest.raises(interp.InputError, match=words) as caught:
            toy.logits(mixed, [patch])
        assert "\n" not in str(caught.value)


def _images(mixed):
    return [mixed.images[0][0], mixed.images[2][0], None]


def test_activations_read_from_a_folder(toy, mixed, tmp_path):
    held = captured(toy, mixed, "v", out=str(tmp_path / "acts"))
    patch = Patch(site="v", layers="all", positions="all", value=held)
    assert (toy.logits(mixed, [patch]) == toy.logits(mixed)).all()


def test_the_mean_of_a_data_set(toy, mixed):
    acts = interp.capture(toy, interp.toy.scenes(5, seed=2), sites=("z", "resid_post"), progress=False)
    for site, heads in (("z", [1]), ("resid_post", None)):
        cut = Ablate(site=site, layers=[3, 6], positions="text", value=acts, heads=heads)
        after = read(toy, mixed, site, 6, cut)[mixed.positions["text"]]
        mean = acts[site][6].mean(dim=0)
        expected = mean if heads is None else mean[heads]
        found = after if heads is None else after[:, heads]
        torch.testing.assert_close(found, expected.expand_as(found))


# Ablations ---------------------------------------------------------------------------------------------------------------


def test_ablations_of_heads(toy, mixed):
    plain, mask = read(toy, mixed, "z", 2), mixed.positions["image"]
    for value, expected in [("zero", torch.zeros(32)), ("mean", plain[mask][:, 1].mean(dim=0))]:
        after = read(toy, mixed, "z", 2, Ablate(site="z", layers=2, positions="image", value=value, heads=1))
        torch.testing.assert_close(after[mask][:, 1], expected.expand(int(mask.sum()), -1))
        after[:, :, 1] = plain[:, :, 1]
        assert torch.equal(after, plain)


def test_resampling_takes_the_same_positions_of_another_row(toy):
    scenes = interp.toy.scenes(4, seed=3)
    batch = toy.prepare(["<image> what colour is the 3 ?"] * 4, [scene.image for scene in scenes])
    plain = read(toy, batch, "resid_pre", 5)
    image = batch.positions["image"]
    seen = set()
    for seed in range(6):
        cut = Ablate(site="resid_pre", layers=5, positions="image", value="resample", seed=seed)
        after = read(toy, batch, "resid_pre", 5, cut)
        assert torch.equal(after, read(toy, batch, "resid_pre", 5, cut))
        assert torch.equal(after[~image], plain[~image])
        donors = []
        for row in range(4):
            same = [other for other in range(4) if torch.equal(after[row][image[row]], plain[other][image[other]])]
            assert len(same) == 1
            assert same != [row]
            donors += same
        assert sorted(donors) == [0, 1, 2, 3]
        seen.add(tuple(donors))
    assert len(seen) > 1


@pytest.mark.parametrize("rows", [2, 3, 7])
def test_nobody_takes_its_own(rows):
    drawn = [derangement(rows, seed) for seed in range(20)]
    assert all(sorted(donors.tolist()) == list(range(rows)) for donors in drawn)
    assert not any((donors == torch.arange(rows)).any() for donors in drawn)


def test_what_cannot_be_resampled(toy, mixed):
    cut = Ablate(site="resid_pre", layers=0, positions="text", value="resample")
    with pytest.raises(
        interp.InputError, match=r"'text' selects \[6, 11, 12\] positions in the rows: expected as many"
    ):
        toy.logits(mixed, [cut])
    with pytest.raises(interp.InputError, match="expected a batch of two rows or more, got 1"):
        toy.logits(mixed.row(0), [cut])


# What is refused ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"site": "pattern"}, "site='pattern' is unknown: use one of resid_pre, .*, v, z"),
        ({"site": "resid_pre", "heads": [0]}, r"heads=\[0\]: resid_pre has no heads"),
        ({"heads": []}, r"heads=\[\] names no head"),
        ({"heads": 4}, "head 4: layer 0 of 'toy' has heads 0 to 3"),
        ({"layers": []}, r"layers=\[\] names no layer"),
        ({"layers": range(0)}, r"layers=range\(0, 0\) names no layer"),
        ({"value": torch.zeros(5, 32)}, r"\(5, 32\) does not fit \(1, 3, 4, 32\) \(layers, selected positions, heads"),
        ({"value": torch.zeros(2, 3, 4, 32)}, r"\(2, 3, 4, 32\) does not fit \(1, 3, 4, 32\)"),
        ({"value": {"z": 1}}, "value is a dict: expected a tensor, Activations or a one-row Batch"),
    ],
)
def test_what_does_not_fit(toy, mixed, wrong, words):
    patch = Patch(**{"site": "z", "layers": 0, "positions": "last", "value": torch.zeros(1), **wrong})
    with pytest.raises(interp.InterpError, match=words) as caught:
        toy.logits(mixed, [patch])
    assert "\n" not in str(caught.value)


def test_a_layer_without_heads():
    vlm, batch = load("qwen3_5"), batch_of("qwen3_5", padded=True)
    with pytest.raises(interp.LayoutError, match="no z that could be proved in layer 0"):
        vlm.logits(batch, [Ablate(site="z", layers="all", positions="last")])


@pytest.mark.parametrize("kind", [Patch, Ablate])
@pytest.mark.parametrize(
    ("site", "heads", "words"),
    [
        ("resid_pre", None, r"value has resid_pre of shape \(64,\) in layer 0, expected \(128,\)"),
        ("v", None, r"value has v of shape \(2, 16\) in layer 0, expected \(4, 32\)"),
        ("v", 3, r"value has v of shape \(2, 16\) in layer 0, expected heads \[3\] of width 32"),
    ],
)
def test_activations_of_a_model_of_other_sizes(toy, mixed, kind, site, heads, words):
    donor = captured(load("llava"), batch_of("llava", True), site, positions="last").select(rows=[0])
    change = kind(site=site, layers=0, positions="last", value=donor, heads=heads)
    with pytest.raises(interp.InputError, match=words) as caught:
        toy.logits(mixed, [change])
    assert "\n" not in str(caught.value)
