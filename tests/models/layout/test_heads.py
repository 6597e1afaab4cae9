"""Sites with heads: on every architecture they are what plain PyTorch hooks see, and what is no head is not taken for one."""

import copy
import functools
from collections import Counter
from dataclasses import replace

import pytest
import torch
from torch import nn

import interp
import zoo
from interp.models.architectures import architectures, language_models
from interp.models.layout import heads
from interp.models.layout.heads import prove_heads
from interp.models.running.attention import eager, implementation
from interp.models.running.masks import PATTERNED
from interp.models.running.places import BEFORE_LAYERS, HEADED, SITES
from interp.models.running.steps import Edit, Read, whole
from interp.models.running.structure import resolve
from interp.models.running.trace import run_forward

TABLE = {row.name: row for row in (*architectures(), *language_models())}
SUPPORTED = [row.name for row in architectures() if row.verdict == "supported"]
TEXTS = [row.name for row in language_models() if row.sites.keys() >= {"z", "pattern"}]
SITES_OF_HEADS = (*HEADED, "pattern")


@functools.cache
def loaded(name):
    """The tiny model; a batch with pictures is known to it where it does not run on text alone."""
    vlm = interp.load(model=zoo.build(name), device="cpu", check=False)
    if not TABLE[name].text_alone:
        vlm.check(vlm.prepare(encoding=zoo.encode(name)))
    return vlm


@functools.cache
def batch(name):
    return loaded(name).prepare(encoding=zoo.encode(name))


def fresh(name):
    """The same tiny model once more, to be changed: a copy of one that was traced would keep what nnsight put into it."""
    return zoo.make(copy.deepcopy(zoo.build(name).config))


def softmax_layers(vlm):
    return [layer for layer, kind in enumerate(vlm.structure.attention) if kind in PATTERNED]


def read(vlm, rows, sites, edits=(), layers=None):
    layers = softmax_layers(vlm) if layers is None else layers
    reads = [
        Read((site, layer), site, layer, whole)
        for layer in layers
        for site in sites
        if site not in SITES_OF_HEADS or vlm.trait(site)[layer] is not None
    ]
    return run_forward(vlm, rows, edits, reads, logits=None)


def hooked(vlm, rows, paths):
    """What plain hooks see: for each dotted path from the root, the first input and the output."""
    seen = {}

    def keep(path, _, args, kwargs, out):
        seen[path] = (args[0] if args else next(iter(kwargs.values())), out)

    handles = [
        resolve(vlm.model, path).register_forward_hook(functools.partial(keep, path), with_kwargs=True)
        for path in paths
    ]
    try:
        with torch.no_grad():
            vlm.model(**vlm.inputs_of(rows))
    finally:
        for handle in handles:
            handle.remove()
    return seen


def in_layer(vlm, layer, module):
    return f"{vlm.structure.layers}.{layer}.{module}"


# Every architecture ------------------------------------------------------------------------------------------------------


def test_how_many_architectures_have_each_site():
    """In every layer with softmax attention. Not: a latent key that the heads share a part of, a layer that takes keys
    and values of another, a norm over all heads before the output projection; and no mean of values alone: a gate, a norm
    or a convolution on values."""
    whole_models = Counter()
    for name in SUPPORTED:
        vlm = loaded(name)
        for site in SITES_OF_HEADS:
            places = vlm.trait(site)
            assert not any(
                place is not None
                for place, kind in zip(places, vlm.structure.attention, strict=True)
                if kind not in PATTERNED
            )
            whole_models[site] += all(places[layer] is not None for layer in softmax_layers(vlm))
        whole_models["weighed"] += all(vlm.trait("weighed")[layer] for layer in softmax_layers(vlm))
    assert dict(whole_models) == {"q": 75, "k": 71, "v": 74, "z": 75, "pattern": 76, "weighed": 62}


@pytest.mark.parametrize("name", SUPPORTED + TEXTS)
def test_z_and_pattern_are_what_hooks_see(name):
    """z side by side goes into the output projection, whose weight sums it up over heads to what attention gives."""
    vlm, rows = loaded(name), batch(name)
    ours = read(vlm, rows, ("z", "pattern"))
    parts = {layer: in_layer(vlm, layer, vlm.structure.attn[layer]) for layer in softmax_layers(vlm)}
    with eager(vlm):
        theirs = hooked(vlm, rows, parts.values())
    for layer, part in parts.items():
        gave = theirs[part][1]
        torch.testing.assert_close(ours["pattern", layer], gave[1].transpose(1, 2), rtol=1e-5, atol=1e-6)
        if ("z", layer) in ours:
            z, projection = ours["z", layer], resolve(vlm.model, in_layer(vlm, layer, vlm.structure.z[layer].module))
            assert z.shape[2] == vlm.structure.heads[layer]
            # GPT-2's has its weights the other way round.
            weight = projection.weight.T if type(projection).__name__ == "Conv1D" else projection.weight
            each = torch.einsum("bphd,whd->bphw", z, weight.unflatten(1, z.shape[2:]))
            total = each.sum(dim=2) + (0 if projection.bias is None else projection.bias)
            torch.testing.assert_close(total.reshape(gave[0].shape), gave[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", SUPPORTED + TEXTS)
def test_all_sites_are_read_in_one_trace(name):
    """In whatever order the architecture computes them, and each is what it is when read alone."""
    vlm, rows = loaded(name), batch(name)
    plain = [site for site in SITES if site not in (*BEFORE_LAYERS, "attn_out", "resid_mid", "mlp_out")]
    together = read(vlm, rows, plain)
    with eager(vlm):
        for site in HEADED:
            for key, value in read(vlm, rows, [site]).items():
                assert torch.equal(value, together[key]), key
    layer = softmax_layers(vlm)[-1]
    traits = {"attn_out": "attn_out", "mlp_out": "mlp_out", "resid_mid": "mid"}
    there = [*plain, *(site for site, trait in traits.items() if vlm.trait(trait)[layer])]
    assert {site for site, _ in read(vlm, rows, there, layers=[layer])} >= {*there} - {*HEADED}


# What a projection gives -------------------------------------------------------------------------------------------------

# The site, the projection, and its heads as the architecture's own code cuts them out of what it gives.
CUT = {
    "llava": [("q", "q_proj", lambda x: x.unflatten(-1, (4, 16))), ("k", "k_proj", lambda x: x.unflatten(-1, (2, 16)))],
    "qwen2_vl": [
        ("q", "q_proj", lambda x: x.unflatten(-1, (4, 16))),
        ("v", "v_proj", lambda x: x.unflatten(-1, (2, 16))),
    ],
    "fuyu": [
        (site, "query_key_value", lambda x, at=at: x.unflatten(-1, (4, 3, 16))[..., at, :])
        for at, site in enumerate("qkv")
    ],
    "qwen3_5": [("q", "q_proj", lambda x: x.unflatten(-1, (4, 32)).chunk(2, dim=-1)[0])],
    "kimi_k25": [
        ("q", "q_b_proj", lambda x: x.unflatten(-1, (4, 24))),
        ("v", "kv_b_proj", lambda x: x[:, 0].unflatten(-1, (4, 32))[..., 16:]),
    ],
    "blip-2": [("v", "v_proj", lambda x: x.unflatten(-1, (4, 16)))],
}


@pytest.mark.parametrize("name", CUT)
def test_heads_are_cut_as_the_architecture_cuts_them(name):
    vlm, rows = loaded(name), batch(name)
    layer = softmax_layers(vlm)[-1]
    for site, part, cut in CUT[name]:
        path = in_layer(vlm, layer, f"{vlm.structure.attn[layer]}.{part}")
        theirs = cut(hooked(vlm, rows, [path])[path][1])
        assert torch.equal(read(vlm, rows, [site])[site, layer], theirs), site


def doubled(value):
    return value * 2


@pytest.mark.parametrize("site", ["q", "k", "v"])
def test_an_edit_writes_its_part_of_a_fused_projection_and_no_other(site):
    vlm, rows = loaded("fuyu"), batch("fuyu")
    place = ["q", "k", "v"].index(site)

    def hook(_, args, out):
        out = out.clone().unflatten(-1, (4, 3, 16))
        out[..., place, :] *= 2
        return out.flatten(2)

    ours = run_forward(vlm, rows, [Edit(site, 1, doubled)], logits="all")["logits"]
    handle = resolve(vlm.model, in_layer(vlm, 1, "self_attn.query_key_value")).register_forward_hook(hook)
    theirs = run_forward(vlm, rows, logits="all")["logits"]
    handle.remove()
    assert torch.equal(ours, theirs)
    assert not torch.equal(ours, run_forward(vlm, rows, logits="all")["logits"])


def without_head(value, head):
    value = value.clone()
    value[:, :, head] = 0
    return value


def test_edits_of_several_sites_of_one_layer(toy, mixed):
    edits = [Edit("v", 2, doubled), Edit("z", 2, without_head, (1,)), Edit("mask", 2, whole)]
    seen = read(toy, mixed, ("q", "v", "z", "pattern", "attn_out", "resid_mid"), edits, layers=[2])
    plain = read(toy, mixed, ("q", "v", "z", "pattern"), layers=[2])
    assert torch.equal(seen["q", 2], plain["q", 2])
    assert torch.equal(seen["v", 2], plain["v", 2] * 2)
    assert torch.equal(seen["pattern", 2], plain["pattern", 2])
    torch.testing.assert_close(seen["z", 2], without_head(plain["z", 2] * 2, 1))
    projection = resolve(toy.model, in_layer(toy, 2, toy.structure.z[2].module))
    with torch.no_grad():
        torch.testing.assert_close(projection(seen["z", 2].flatten(2)), seen["attn_out", 2])


def test_heads_that_hardly_matter_are_found_in_low_precision():
    """Scores near zero: another sign of a query moves z by less than bfloat16 can show."""
    model = fresh("llava").bfloat16()
    for layer in resolve(model, loaded("llava").structure.layers):
        layer.self_attn.q_proj.weight.data *= 0.02
    vlm = interp.load(model=model)
    for site in HEADED:
        assert all(vlm.trait(site)), site


# Other ways to lay heads out ---------------------------------------------------------------------------------------------


class Shared(nn.Module):
    """The first of three projections computes all of them as one, laid out as told, and each gives its part."""

    def __init__(self, kept, part, fused=None):
        super().__init__()
        self.kept, self.part = kept, part
        if fused is not None:
            self.qkv_proj = fused

    def forward(self, x):
        if hasattr(self, "qkv_proj"):
            self.kept["all"] = self.qkv_proj(x)
        return torch.cat([self.kept["all"][..., rows] for rows in self.part], dim=-1)


@pytest.mark.parametrize("grouped", [False, True])
def test_one_projection_for_all_three(grouped, monkeypatch):
    """llava's own weights in one map: q, k and v behind each other, or a group's queries with their key and value."""
    plain, rows = loaded("llava"), batch("llava")
    model, theirs = fresh("llava"), read(plain, rows, HEADED)
    size, n_heads, n_groups = 16, 4, 2
    for layer in resolve(model, plain.structure.layers):
        maps = [layer.self_attn.q_proj.weight, layer.self_attn.k_proj.weight, layer.self_attn.v_proj.weight]
        stacked = torch.cat([m.unflatten(0, (n_groups, -1)) for m in maps], dim=1) if grouped else torch.cat(maps)
        fused = nn.Linear(64, (n_heads + 2 * n_groups) * size, bias=False)
        fused.weight = nn.Parameter(stacked.flatten(0, 1) if grouped else stacked)
        numbers = torch.arange(len(fused.weight))
        widths = [2 * size, size, size] if grouped else [4 * size, 2 * size, 2 * size]
        parts = torch.split(numbers.unflatten(0, (n_groups, -1)) if grouped else numbers[None], widths, dim=-1)
        kept = {}
        for name, part in zip(("q_proj", "k_proj", "v_proj"), parts, strict=True):
            setattr(layer.self_attn, name, Shared(kept, list(part), fused if name == "q_proj" else None).eval())
    monkeypatch.setattr(heads, "NAMES", {**dict.fromkeys(heads.NAMES, ()), "qkv": ("qkv_proj",)})
    vlm = interp.load(model=model)
    ours = read(vlm, rows, HEADED)
    assert {vlm.structure.q[0].module} == {"self_attn.q_proj.qkv_proj"}
    assert vlm.structure.q[0].groups == (n_groups if grouped else 1)
    assert set(ours) == set(theirs)
    for key, value in theirs.items():
        torch.testing.assert_close(ours[key], value)


# What is refused ---------------------------------------------------------------------------------------------------------


def proved(name, **structure):
    vlm = interp.load(model=zoo.build(name), check=False)
    vlm.structure = replace(vlm.structure, **structure)
    found = prove_heads(vlm, vlm.prepare(encoding={"input_ids": torch.arange(20, 28)[None]}))
    return {site for site, places in found.items() if any(places)}


@pytest.mark.parametrize(("a", "b", "left"), [("k", "v", {"q", "z"}), ("q", "k", set()), ("q", "v", set())])
def test_a_site_taken_for_another_is_caught(monkeypatch, a, b, left):
    monkeypatch.setattr(heads, "NAMES", {**heads.NAMES, a: heads.NAMES[b], b: heads.NAMES[a]})
    assert proved("llava") == left


def test_a_gate_is_no_query(monkeypatch):
    monkeypatch.setattr(heads, "NAMES", {**heads.NAMES, "q": ("gate_proj",)})
    assert proved("muse_glimmer") == {"k", "v", "z"}


def test_a_key_that_is_a_value_too_is_no_key():
    model = fresh("gemma4")
    resolve(model, loaded("gemma4").structure.layers)[1].self_attn.v_proj = None  # as its larger checkpoints have it
    vlm = interp.load(model=model)
    assert {site for site in HEADED if vlm.trait(site)[0]} == {*HEADED}
    assert {site for site in HEADED if vlm.trait(site)[1]} == {"q", "z"}


@pytest.mark.parametrize("number", [1, 2, 8])
def test_a_wrong_number_of_heads_is_refused(number):
    assert proved("llava", heads=(4,) * 4) == {*HEADED}
    assert proved("llava", heads=(number,) * 4, n_heads=number) == set()


def test_a_projection_that_is_not_linear_has_no_z():
    model = fresh("llava")
    layers = resolve(model, loaded("llava").structure.layers)
    layers[1].self_attn.o_proj = nn.Sequential(nn.Tanh(), layers[1].self_attn.o_proj)
    vlm = interp.load(model=model)
    assert [place is not None for place in vlm.trait("z")] == [True, False, True, True]
    with pytest.raises(interp.LayoutError, match="no z that could be proved in layer 1: layers with one are 0, 2, 3"):
        read_one(vlm, batch("llava"), "z", 1)


@pytest.mark.parametrize(
    "changed",
    [
        lambda w: w.flip(1),
        lambda w: w / 2,
        lambda w: w.flip(3),
        lambda w: w.softmax(dim=-1),
        lambda w: 2 * w - w.flip(1),
    ],
    ids=["other heads", "half of it", "other keys", "keys behind", "below zero"],
)
@pytest.mark.parametrize("name", ["llava", "lfm3_vl"])
def test_weights_that_did_not_make_z_are_refused(name, changed):
    """A layer whose attention gives others, where nothing stands between and behind a gate."""
    model = fresh(name)
    layer = softmax_layers(loaded(name))[-1]
    attention = resolve(model, in_layer(loaded(name), layer, loaded(name).structure.attn[layer]))
    own = type(attention)

    @functools.wraps(own.forward)
    def forward(self, *args, **kwargs):
        out, weights = own.forward(self, *args, **kwargs)
        return out, None if weights is None else changed(weights)

    attention.__class__ = type(own.__name__, (own,), {"forward": forward})
    vlm = interp.load(model=model)
    assert [place is not None for place in vlm.trait("pattern")] == [
        index in softmax_layers(vlm) and index != layer for index in range(4)
    ]


def read_one(vlm, rows, site, layer):
    return run_forward(vlm, rows, reads=[Read(0, site, layer, whole)], logits=None)[0]


@pytest.mark.parametrize(
    ("name", "site", "layer", "others"),
    [
        ("kimi_k25", "k", 0, "no layer has one"),
        ("gemma4", "v", 3, "layers with one are 0, 1"),
        ("qwen3_5", "z", 0, "layers with one are 3"),
        ("nemotron_h_omni", "attn_out", 1, "layers with one are 0, 2"),
        ("gemma4", "mlp_out", 0, "no layer has one"),
        ("aya_vision", "resid_mid", 0, "no layer has one"),
    ],
)
def test_a_layer_without_a_site_is_named(name, site, layer, others):
    with pytest.raises(interp.LayoutError, match=f"no {site} that could be proved in layer {layer}: {others}$"):
        read_one(loaded(name), batch(name), site, layer)


def test_loading_measures_none():
    vlm = interp.load(model=zoo.build("llava"))
    assert all(getattr(vlm.structure, site) is None for site in SITES_OF_HEADS)
    assert all(vlm.trait(site) for site in SITES_OF_HEADS)
    with pytest.raises(interp.InputError, match="structure z="):
        interp.load(model=zoo.build("llava"), structure={"z": vlm.structure.z})


def test_what_runs_in_a_trace_carries_no_annotations():
    functions = (heads.as_first_row, heads.scale_halves, heads.weight_heads, heads.rows_from)
    assert not any(function.__annotations__ for function in functions)


# Eager attention ---------------------------------------------------------------------------------------------------------


def implementations(vlm):
    """Of every config that some module looks up, by its kind."""
    configs = [module.config for module in vlm.model.modules() if hasattr(module, "config")]
    return {type(config).__name__: config._attn_implementation for config in configs}


def fail(value):
    raise ZeroDivisionError


@pytest.mark.parametrize(
    ("name", "decoder"), [("llava", "LlamaConfig"), ("qwen2_vl", "Qwen2VLTextConfig"), ("chameleon", "ChameleonConfig")]
)
def test_a_pattern_leaves_the_implementation_as_it_was(name, decoder):
    """The decoder's own is switched, no tower's, and it is put back after an error too."""
    vlm, rows = loaded(name), batch(name)
    before = implementations(vlm)
    assert implementation(vlm) == before[decoder] == "sdpa"
    with eager(vlm):
        assert implementations(vlm) == {**before, decoder: "eager"}
    read_one(vlm, rows, "pattern", 1)
    assert implementations(vlm) == before
    with pytest.raises(ZeroDivisionError):
        run_forward(vlm, rows, [Edit("resid_pre", 0, fail)], [Read(0, "pattern", 0, whole)])
    assert implementations(vlm) == before


def test_a_model_that_cannot_be_switched_is_refused(monkeypatch):
    vlm = loaded("llava")
    monkeypatch.setattr(
        type(resolve(vlm.model, "model.language_model")), "_can_set_attn_implementation", lambda *_: False
    )
    with pytest.raises(interp.LayoutError, match="cannot switch its 'sdpa' attention"), eager(vlm):
        pass


def test_a_cut_edge_has_no_weight(toy, mixed):
    cut = interp.interventions.Knockout(source="image", target="last", layers=3)
    pattern = run_forward(toy, mixed, toy.edits_of(mixed, [cut]), [Read(0, "pattern", 3, whole)], logits=None)[0]
    image = mixed.positions["image"]
    weights = pattern[:, -1].transpose(1, 2)[image]
    assert (weights == 0).all()
    torch.testing.assert_close(pattern[:, -1].sum(dim=-1), torch.ones(pattern.shape[0], pattern.shape[2]))


def test_a_model_on_a_server_is_not_switched(toy, mixed):
    away = copy.copy(toy)
    away.remote = "https://example.org"
    with pytest.raises(interp.InputError, match="runs on a server, where attention is 'sdpa'"):
        run_forward(away, mixed, reads=[Read(0, "pattern", 0, whole)])


def test_the_simulation_of_a_server_gives_the_same(toy, remote_toy, mixed):
    for layer in (0, 5):
        theirs = read(remote_toy, mixed, SITES_OF_HEADS, layers=[layer])
        for key, value in read(toy, mixed, SITES_OF_HEADS, layers=[layer]).items():
            torch.testing.assert_close(theirs[key], value, rtol=0, atol=1e-6)
    assert remote_toy.structure.q == toy.structure.q
