"""Shares against transformers' own attention weights, and where attention is spread evenly or cut on purpose."""

import pytest
import torch

import interp
import zoo
from interp.interventions import Knockout, Reweight, Steer
from interp.lens import MassResult, ShareResult, attention_masses, attention_share
from interp.models.running.attention import eager
from interp.statistics import few_rows, mean_interval


@pytest.fixture(scope="module")
def weights(toy, mixed):
    """`[row, layer, head, query, key]`."""
    with torch.no_grad(), eager(toy):
        return torch.stack(toy.model(**toy.inputs_of(mixed), output_attentions=True).attentions, dim=1)


def test_a_share_is_what_the_models_own_weights_say(toy, mixed, weights):
    result = attention_share(toy, mixed)
    image, text = mixed.positions["image"], mixed.positions["text"]
    for row in (0, 2):
        mine = weights[row][:, :, text[row]]
        torch.testing.assert_close(result.per_row[row], mine[..., image[row]].sum(-1).mean(-1), atol=1e-5, rtol=0)
        each = mine.mean(dim=(1, 2)) * image[row]
        torch.testing.assert_close(result.by_position[row], each, atol=1e-5, rtol=0)
    assert result.per_row[1].isnan().all()  # no image
    torch.testing.assert_close(result.values, result.per_row[[0, 2]].mean(dim=0))
    assert ((result.low <= result.values) & (result.values <= result.high)).all()


def test_rows_without_queries_or_keys_are_noted(toy, mixed):
    note = "1 of 3 rows lack text or image and do not count"
    masses = attention_masses(toy, mixed, ("text", "image"))
    assert attention_share(toy, mixed).provenance.notes == (note, *few_rows(2))
    assert masses.provenance.notes == masses.shares[3].provenance.notes == (note, *few_rows(2))
    assert attention_share(toy, mixed, "last", "text").provenance.notes == few_rows(3)


@pytest.mark.parametrize("layer", [0, 5])
def test_weights_that_are_no_numbers_are_not_left_out(toy, mixed, layer):
    half = Steer(
        direction=torch.full((128,), 3e38),
        layers=layer,
        positions=mixed.positions["all"] & (torch.arange(3) == 2)[:, None],
        scale=1,
    )
    with pytest.raises(interp.InputError, match=rf"weights of row 2 in layer {layer} are not numbers[^\n]*$"):
        attention_share(toy, mixed, interventions=[half, half])


def test_chance_counts_the_keys_that_are_seen(toy, mixed):
    result = attention_share(toy, mixed, queries="text", keys="image")
    image, text, real = (mixed.positions[name] for name in ("image", "text", "all"))
    for row in (0, 2):
        seen = [real[row, : query + 1].sum() for query in text[row].nonzero().flatten()]
        images = [image[row, : query + 1].sum() for query in text[row].nonzero().flatten()]
        expected = torch.tensor([float(a / b) for a, b in zip(images, seen, strict=True)]).mean()
        torch.testing.assert_close(result.chance_rows[row], expected.expand(8), atol=1e-6, rtol=0)


def test_attention_that_is_spread_evenly_is_at_chance(toy, mixed):
    even = [Reweight(kind="uniform", layers="all")]
    result = attention_share(toy, mixed, interventions=even)
    torch.testing.assert_close(result.lift, torch.ones(8, 4), atol=1e-4, rtol=0)
    masses = attention_masses(toy, mixed, interventions=even)
    torch.testing.assert_close(masses.deficit[1], torch.zeros(8), atol=1e-4, rtol=0)
    assert masses.deficit[0].isnan().all()  # the image stands before the text


def test_a_cut_edge_has_no_share(toy, mixed):
    cut = Knockout(source="image", target="text", layers=[3], heads=[1])
    result = attention_share(toy, mixed, interventions=[cut])
    assert result.values[3, 1] == 0
    assert (result.values[3, [0, 2, 3]] > 0.1).all()
    assert result.provenance.interventions == (repr(cut),)


@pytest.mark.parametrize("name", ["llava", "gemma3", "qwen2_vl", "qwen3_5", "nemotron_h_omni", "llama4"])
def test_the_shares_of_all_keys_sum_to_one(name):
    vlm = interp.load(model=zoo.build(name), device="cpu", check=False)
    rows = vlm.prepare(encoding=zoo.encode(name))
    whole = sum(attention_share(vlm, rows, queries="last", keys=keys).per_row for keys in ("image", "text"))
    there = torch.tensor([place is not None for place in vlm.trait("pattern")])
    assert there.any()
    torch.testing.assert_close(whole[:, there], torch.ones_like(whole[:, there]), atol=1e-5, rtol=0)
    assert whole[:, ~there].isnan().all()


def test_masses_are_four_shares_of_the_rows_with_both(toy, mixed):
    result = attention_masses(toy, mixed)
    rows = toy.prepare(encoding={key: value for key, value in mixed.inputs.items()})
    across = attention_share(toy, rows, "text", "image")
    torch.testing.assert_close(result.values[1, 0], across.values.mean(dim=1), atol=1e-6, rtol=0)
    within = attention_share(toy, mixed, "text", "text").per_row[[0, 2]].mean(dim=(0, 2))
    torch.testing.assert_close(result.values[1, 1], within, atol=1e-6, rtol=0)
    lift = result.values[1] / result.chance[1]
    torch.testing.assert_close(result.deficit[1], 1 - lift[0] / lift[1])


def planted(shares):
    """A result with these shares `[row, layer]`, in one head."""
    per_row = torch.tensor(shares)[..., None]
    rows, layers, _ = per_row.shape
    values = per_row.nanmean(dim=0)
    empty = torch.zeros(rows, layers, 5)
    return ShareResult(values, values, values, values[:, 0], per_row, per_row[..., 0], empty, "text", "image")


def test_decay_is_the_slope_over_the_layers_that_have_weights():
    nan = float("nan")
    slope, low, high = planted([[0.9, nan, 0.5, 0.3], [0.8, nan, 0.6, 0.5], [nan] * 4]).decay()
    assert slope == pytest.approx((-0.2 - 0.1) / 2)
    assert (low, high) == pytest.approx([float(bound) for bound in mean_interval(torch.tensor([-0.2, -0.1]))], abs=1e-5)
    with pytest.raises(interp.InputError, match="1 of 2 layers have a share"):
        planted([[0.9, nan]]).decay()


def test_a_simulated_server_with_eager_attention_gives_the_same(toy, remote_toy, mixed):
    ours, theirs = (attention_share(vlm, mixed) for vlm in (toy, remote_toy))
    torch.testing.assert_close(theirs.values, ours.values, atol=1e-5, rtol=0)
    torch.testing.assert_close(theirs.chance, ours.chance, atol=1e-5, rtol=0)


def test_results_are_kept_framed_and_drawn(toy, mixed, tmp_path):
    share, masses = attention_share(toy, mixed), attention_masses(toy, mixed)
    again = ShareResult.load(share.save(tmp_path / "share.safetensors"))
    assert (again.values == share.values).all()
    assert share.to_frame()["value"].to_numpy() == pytest.approx(share.values.flatten().numpy())
    kept = MassResult.load(masses.save(tmp_path / "masses.safetensors"))
    assert (kept.values == masses.values).all()
    assert len(masses.to_frame()) == 32
    drawn = share.plot().data[0]
    assert drawn.z[2][:4] == pytest.approx(share.values[2].tolist())
    assert drawn.z[2][4] == pytest.approx(float(share.chance[2]))
    lines = {trace.name: trace for trace in masses.plot().data}
    assert lines["text to image"].y == pytest.approx(masses.values[1, 0].tolist())
    assert lines["text to image, control"].y == pytest.approx(masses.chance[1, 0].tolist())


def test_what_has_no_share(toy, mixed):
    with pytest.raises(interp.InputError, match="no row of this batch has positions of both"):
        attention_share(toy, mixed.row(1))
    with pytest.raises(interp.InputError, match="'picture' is unknown"):
        attention_share(toy, mixed, keys="picture")
    with pytest.raises(interp.InputError, match="kinds='image': expected two different names"):
        attention_masses(toy, mixed, kinds="image")
    with pytest.raises(
        interp.InputError, match=r"kinds=\('image', 'image'\): expected two different names of positions"
    ):
        attention_masses(toy, mixed, kinds=("image", "image"))


def test_labels_say_what_holds_for_all_rows(toy, mixed):
    """A mask counts positions of a row, and only the rows that count are in the mean."""
    result = attention_share(toy, mixed, queries=mixed.positions["last"], keys="image")
    assert result.queries == "mask of 1 position a row"
    title = result.plot().layout.title.text.replace("<br>", " ")
    assert title == "Share of attention from mask of 1 position a row to image (mean of 2 rows)"
    assert "(mean of 2 rows; dashed" in attention_masses(toy, mixed).plot().layout.title.text
    assert "(1 row)" in attention_share(toy, mixed.row(0), [-1, -2]).plot().layout.title.text
    assert attention_share(toy, mixed.row(0), [-1, -2]).queries == "[-1, -2]"
