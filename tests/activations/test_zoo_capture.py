"""Every architecture through `interp.capture`: all of its sites in one call, alone, and added up."""

import functools
from contextlib import nullcontext

import pytest
import torch

import interp
import zoo
from interp.interventions import Ablate, Knockout
from interp.models.architectures import architectures, language_models
from interp.models.layout.patches import patches_of
from interp.models.running.attention import eager
from interp.models.running.places import HEADED
from zoo.table import batch, load, report

TABLE = {row.name: row for row in (*architectures(), *language_models())}
SUPPORTED = [name for name, row in TABLE.items() if row.verdict == "supported"]
# Sites of which layers differ in the number of heads or in their width: these have no stack over all layers.
UNEVEN = {
    "dots3_note": ("q", "v", "z", "pattern"),
    "gemma4": ("q", "z"),
    "gemma4_unified": ("q", "k", "v", "z"),
    "step3p7": ("q", "z", "pattern"),
}
# Something stands between the mean of the values and z: a gate, a convolution.
BETWEEN = ("inkling_mm_model", "muse_glimmer", "muse_spark")


def capture(name, sites, **options):
    options = {"positions": "all", "reduce": "none", "progress": False, **options}
    return interp.capture(known(name), [batch(name)], sites, **options)


@functools.cache
def known(name):
    """The tiny model; a batch with pictures is known to it where it does not run on text alone."""
    if not TABLE[name].text_alone:
        report(name)
    return load(name)


def in_all_layers(name):
    row = TABLE[name]
    whole = [site for site, count in row.sites.items() if count == row.layers and site not in UNEVEN.get(name, ())]
    return ["resid", "resid_pre", "resid_post", *whole]


@functools.cache
def together(name):
    return capture(name, in_all_layers(name))


def close(ours, theirs):
    near = 1e-5 * float(theirs.abs().max())
    torch.testing.assert_close(ours, theirs, rtol=0, atol=near)


@pytest.mark.parametrize("name", SUPPORTED)
def test_all_sites_in_one_call_are_what_each_is_alone(name):
    """Bit for bit with the attention that the pattern needs, nearly with the model's own."""
    acts = together(name)
    without = [site for site in acts if site != "pattern"]
    with eager(known(name)) if "pattern" in acts else nullcontext():
        for site in acts:
            assert torch.equal(acts[site], capture(name, site)[site]), site
    own = capture(name, without)
    for site in without:
        close(acts[site], own[site])


@pytest.mark.parametrize("name", SUPPORTED)
def test_sites_add_up(name):
    acts = together(name)
    if "resid_mid" in acts:
        close(acts["resid_pre"] + acts["attn_out"], acts["resid_mid"])
    if {"resid_mid", "mlp_out"} <= {*acts}:
        close(acts["resid_mid"] + acts["mlp_out"], acts["resid_post"])
    if {"attn_out", "mlp_out"} <= {*acts}:
        close(acts["resid_pre"] + acts["attn_out"] + acts["mlp_out"], acts["resid_post"])
    if "pattern" in acts:
        close(acts["pattern"].sum(dim=-1), torch.ones(acts["pattern"].shape[:3]))
    if {"pattern", "v", "z"} <= {*acts} and name not in BETWEEN:
        for row in acts.rows.unique():
            pattern, v, z = (acts[site][:, acts.rows == row] for site in ("pattern", "v", "z"))
            each = v.repeat_interleave(z.shape[2] // v.shape[2], dim=2)
            close(torch.einsum("lqhk,lkhd->lqhd", pattern[..., : v.shape[1]], each), z)


@pytest.mark.parametrize("name", SUPPORTED)
def test_patches_beside_the_stream(name):
    """The tower's states and the projector's output in one call with `resid`: a mean is that of a row's own patches."""
    vlm, rows = known(name), batch(name)
    sites = ["resid", *(site for site in ("vision", "projector") if has(name, site))]
    positions = "image" if vlm.takes_images else "text"
    each, mean = (capture(name, sites, positions=positions, reduce=reduce) for reduce in ("none", "mean"))
    for site in sites:
        assert each.places(site).rows.unique().tolist() == [0, 1]
        for row in (0, 1):
            close(mean[site][:, row], each[site][:, each.places(site).rows == row].mean(dim=1))
        if site != "resid":
            assert torch.equal(each.places(site).rows, patches_of(vlm, rows, site).rows)
            assert torch.equal(each[site], capture(name, site)[site])


def has(name, site):
    try:
        patches_of(known(name), batch(name), site)
    except interp.LayoutError:
        return False
    return True


@pytest.mark.parametrize("name", [name for name in SUPPORTED if "pattern" in TABLE[name].sites])
def test_a_cut_edge_has_no_weight(name):
    """Image (of a language model alone: two tokens) to last, in the last layer with a pattern; what other queries see stays
    as it was."""
    vlm, rows = known(name), batch(name)
    layer = max(layer for layer, place in enumerate(vlm.trait("pattern")) if place)
    source = "image" if vlm.takes_images else [1, 3]
    cut = Knockout(source=source, target="last", layers=layer)
    before, after = (capture(name, "pattern", layers=layer, interventions=edits) for edits in ([], [cut]))
    for row, real in enumerate(rows.positions["all"]):
        old, new = (acts["pattern"][0, acts.rows == row] for acts in (before, after))
        image = rows.positions.select(source)[row][real].nonzero().flatten()
        assert (old[-1][:, image] != 0).any()
        assert (new[-1][:, image] == 0).all()
        close(new[-1].sum(dim=-1), torch.ones(new.shape[1]))
        assert torch.equal(new[:-1], old[:-1])


@pytest.mark.parametrize("name", ["llava", "fuyu", "qwen3_5", "lfm2_vl", "gemma3"])
def test_an_ablated_state_shows_in_the_heads_from_its_layer_on(name):
    layers = [layer for layer, place in enumerate(known(name).trait("q")) if place]
    gone = Ablate(site="resid_pre", layers=layers[-1], positions="all")
    before, after = (capture(name, HEADED, layers=layers, interventions=edits) for edits in ([], [gone]))
    for site in HEADED:
        moved = (before[site] != after[site]).flatten(1).any(dim=1).tolist()
        assert moved == [layer == layers[-1] for layer in layers], site


def test_on_which_side_rows_are_padded_does_not_matter():
    """Keys are a row's real tokens from 0 on, and zero behind them, wherever its padding stands."""
    right = known("llava").prepare(encoding=zoo.encode("llava", side="right"))
    acts = interp.capture(known("llava"), [right], "pattern", "all", "none", progress=False)
    close(acts["pattern"], together("llava")["pattern"])
    assert torch.equal(acts.columns, together("llava").columns)


# What is refused, and what to do -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", UNEVEN)
def test_layers_of_more_than_one_shape_are_named(name):
    """As the message says it, they can be had."""
    for site in UNEVEN[name]:
        with pytest.raises(interp.InputError, match=f"'{site}' of .* more than one shape, .* in layers 0") as caught:
            capture(name, site)
        alike = str(caught.value).rpartition(f"'{site}': ")[2].rstrip("}")
        layers = [int(layer) for layer in alike.strip("[]").split(",")]
        assert len(capture(name, site, layers={site: layers})[site]) == len(layers)


def test_rows_that_must_be_run_alone_and_cannot_be_cut_out():
    """An encoding does not say whose the packed pixels are; a batch of one row needs no cut."""
    with pytest.raises(
        interp.InputError, match=r"runs its projector 2 times .*: run the rows one by one; .* no row axis"
    ):
        capture("hunyuan_vl", "projector")
    vlm = known("hunyuan_vl")
    alone = vlm.prepare(encoding=zoo.encode("hunyuan_vl", rows=((3, 6),)))
    assert interp.capture(vlm, [alone], "projector", reduce="none", progress=False)["projector"].shape[:2] == (1, 6)
