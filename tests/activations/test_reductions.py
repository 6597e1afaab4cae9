"""Reductions: means of positions that are drawn, which depend on the seed and the row alone."""

import itertools

import pytest
import torch

import interp
from interp.activations.reductions import checked_reduction, draw_places

TEXTS = [(None, "a red 3 at top . " * (1 + number % 2)) for number in range(9)]
SITES = ("resid", "z", "attn_out")


def take(vlm, data=TEXTS, **options):
    return interp.capture(vlm, data, **{"positions": "text", "progress": False, **options})


def subset_of(mean, own, k):
    """The one set of k examples whose mean this is, at all states."""
    fits = [
        some
        for some in itertools.combinations(range(own.shape[1]), k)
        if torch.allclose(own[:, list(some)].mean(dim=1), mean, atol=2e-5)
    ]
    assert len(fits) == 1
    return fits[0]


@pytest.mark.parametrize("k", [1, 2, 3])
def test_a_mean_of_k_is_that_of_k_different_positions_the_same_at_all_sites_and_layers(toy, k):
    each, drawn = take(toy, sites=SITES, reduce="none"), take(toy, sites=SITES, reduce=f"mean:{k}")
    chosen = []
    for row in range(len(TEXTS)):
        sets = {site: subset_of(drawn[site][:, row], each[site][:, each.rows == row], k) for site in SITES}
        assert len(set(sets.values())) == 1
        chosen.append(sets["resid"])
    assert len(set(chosen)) > 3  # rows draw on their own
    assert drawn.columns.tolist() == [-1] * len(TEXTS)


def test_a_draw_depends_on_the_seed_and_the_row_alone(toy):
    whole = take(toy, reduce="mean:2", batch_size=4)
    part = take(toy, TEXTS[:5], reduce="mean:2", batch_size=1)
    torch.testing.assert_close(part["resid"], whole["resid"][:, :5], atol=1e-5, rtol=1e-5)
    assert torch.equal(take(toy, reduce="mean:2", batch_size=4)["resid"], whole["resid"])
    assert not torch.allclose(take(toy, reduce="mean:2", seed=1)["resid"], whole["resid"], atol=1e-2)


def test_every_set_of_positions_is_drawn_as_often():
    places = torch.arange(10, 15)
    sets = [tuple(draw_places(places, "mean:2", 0, number).tolist()) for number in range(5000)]
    counts = [sets.count(each) for each in itertools.combinations(range(10, 15), 2)]
    assert sum(counts) == 5000
    assert min(counts) > 420
    assert max(counts) < 580


def test_all_positions_of_a_row_are_its_mean(toy):
    texts = [TEXTS[0]] * 3
    n = int((take(toy, texts, reduce="none").rows == 0).sum())
    drawn, mean = take(toy, texts, reduce=f"mean:{n}"), take(toy, texts)
    assert torch.equal(drawn["resid"], mean["resid"])


@pytest.mark.parametrize("site", ["vision", "projector"])
def test_patches_are_drawn_too(toy, site):
    scenes = interp.toy.scenes(4, seed=3)
    each, drawn = (take(toy, scenes, sites=site, positions="image", reduce=reduce) for reduce in ("none", "mean:2"))
    sets = {subset_of(drawn[site][:, row], each[site][:, each.rows == row], 2) for row in range(4)}
    assert len(sets) > 1
    assert drawn.pooled(site) == {"least": 2, "most": 2, "mean": 2.0}


def test_a_row_with_fewer_positions_is_refused_by_name_or_skipped(toy, tmp_path):
    texts = [*TEXTS, (None, "red 3")]
    with pytest.raises(interp.InputError, match=r"draws 4 positions and positions='text' selects \d of row 9"):
        take(toy, texts, reduce="mean:4")
    for out in (None, tmp_path / "acts"):
        acts = take(toy, texts, reduce="mean:4", on_error="skip", out=out)
        assert [each["row"] for each in acts.manifest["skipped"]] == [9]
        assert acts["resid"].shape[1] == 9
    with pytest.raises(interp.InputError, match="draws 99 positions and site 'vision' has 36 of row 0"):
        take(toy, interp.toy.scenes(2, seed=0), sites="vision", reduce="mean:99")


def test_a_run_that_was_stopped_draws_the_same(toy, tmp_path):
    options = {"reduce": "mean:3", "batch_size": 1, "rows_per_shard": 4}
    whole = take(toy, out=tmp_path / "a", **options)["resid"][...]
    take(toy, out=tmp_path / "b", **options)
    (tmp_path / "b" / "shard-00001.safetensors").unlink()
    assert torch.equal(take(toy, out=tmp_path / "b", **options)["resid"][...], whole)
    with pytest.raises(interp.InputError, match="reduce='mean:3', this run has 'mean:2'"):
        take(toy, out=tmp_path / "b", **{**options, "reduce": "mean:2"})


def test_what_runs_in_a_trace_can_be_sent(toy, remote_toy):
    here, there = (take(vlm, reduce="mean:2") for vlm in (toy, remote_toy))
    torch.testing.assert_close(there["resid"], here["resid"], atol=1e-5, rtol=0)


def test_activations_know_how_many_positions_their_means_are_of(toy, tmp_path):
    counts = torch.bincount(take(toy, reduce="none").rows)
    known = {"least": int(counts.min()), "most": int(counts.max()), "mean": float(counts.double().mean())}
    for out in (None, tmp_path / "acts"):
        acts = take(toy, out=out, batch_size=2)
        assert acts.pooled("resid") == pytest.approx(known)
        assert acts.concat(acts).pooled("resid") == pytest.approx(known)
    assert take(toy, reduce="last").pooled("resid") == {"least": 1, "most": 1, "mean": 1.0}
    assert take(toy, reduce="mean:2").pooled("resid") == {"least": 2, "most": 2, "mean": 2.0}


@pytest.mark.parametrize("reduce", ["mean:0", "mean:", "mean:-1", "mean:2.0", "mean:02", "median", "mean:a", 4, None])
def test_what_is_no_reduction_is_refused(toy, reduce):
    with pytest.raises(interp.InputError, match="expected one of 'mean', 'last', 'none', 'sample', or 'mean:4'"):
        checked_reduction(reduce)
