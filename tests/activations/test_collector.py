"""Captured activations against transformers' own, pooled in every way, whatever the batches."""

import pytest
import torch

import interp
from interp.interventions import Ablate


@pytest.fixture(scope="module")
def scenes():
    return interp.toy.scenes(7, seed=21)


def hidden(vlm, pairs):
    """The states of these rows by transformers alone, row by row without padding: all but the last, which it has normed."""
    images = [image for image, _ in pairs if image is not None]
    inputs = vlm.processor(
        text=[text for _, text in pairs], images=images or None, return_tensors="pt", padding=True, padding_side="left"
    )
    mask = inputs["attention_mask"]
    if not mask.all():
        inputs["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0)  # as transformers' own generate() has it
    with torch.no_grad():
        states = torch.stack(vlm.model(**inputs, output_hidden_states=True).hidden_states[:-1])
    return [states[:, row, mask.bool()] for row, mask in enumerate(inputs["attention_mask"])]


@pytest.mark.parametrize("batch_size", [1, 3, 8])
@pytest.mark.parametrize("modality", ["image", "text"])
def test_resid_is_transformers_hidden_states(toy, scenes, batch_size, modality):
    data = scenes if modality == "image" else scenes.captions()
    acts = interp.capture(toy, data, positions="all", reduce="none", batch_size=batch_size, progress=False)
    assert acts["resid"].shape[0] == toy.structure.n_layers + 1
    pairs = data.pairs()
    starts = range(0, len(pairs), batch_size)
    expected = [states for start in starts for states in hidden(toy, pairs[start : start + batch_size])]
    for row, states in enumerate(expected):
        torch.testing.assert_close(acts["resid"][:-1, acts.rows == row], states, atol=1e-6, rtol=0)
    alone = hidden(toy, pairs[3:4])[0]  # the padding of a batch moves the last digits of float32, nothing more
    torch.testing.assert_close(acts["resid"][:-1, acts.rows == 3], alone, atol=1e-4, rtol=0)


def test_reductions_agree_with_each_other(toy, scenes):
    def take(**options):
        return interp.capture(toy, scenes.captions(), positions="text", batch_size=3, progress=False, **options)

    each, mean, last, sample = (take(reduce=reduce) for reduce in ("none", "mean", "last", "sample"))
    for row in range(len(scenes)):
        own = each["resid"][:, each.rows == row]
        torch.testing.assert_close(mean["resid"][:, row], own.mean(dim=1), atol=1e-5, rtol=0)
        assert (last["resid"][:, row] == own[:, -1]).all()
        column = (each.columns[each.rows == row] == sample.columns[row]).nonzero().item()
        assert (sample["resid"][:, row] == own[:, column]).all()
    assert mean.columns.tolist() == [-1] * 7
    assert not torch.equal(take(reduce="sample", seed=1).columns, sample.columns)
    assert torch.equal(take(reduce="sample").columns, sample.columns)


def test_sites_and_their_shapes(toy, scenes):
    sites = ("resid", "resid_pre", "resid_post", "attn_out", "mlp_out")
    acts = interp.capture(toy, scenes, sites=sites, progress=False)
    assert {site: tuple(acts[site].shape) for site in acts} == {
        site: (9 if site == "resid" else 8, 7, 128) for site in sites
    }
    assert (acts["resid"][:-1] == acts["resid_pre"]).all()
    assert (acts["resid"][1:] == acts["resid_post"]).all()
    total = acts["resid_pre"] + acts["attn_out"] + acts["mlp_out"]
    torch.testing.assert_close(total, acts["resid_post"], atol=1e-5, rtol=0)
    with pytest.raises(interp.InputError, match="'z' was not captured"):
        acts["z"]


def test_data_comes_in_three_forms(toy, scenes):
    as_pairs = interp.capture(toy, [(scene.image, "<image>") for scene in scenes], progress=False)
    without_text = interp.capture(toy, [(scene.image, None) for scene in scenes], progress=False)
    as_batches = interp.capture(toy, [toy.prepare(["<image>"], [scene.image]) for scene in scenes], progress=False)
    expected = interp.capture(toy, scenes, progress=False)
    for acts in (as_pairs, without_text, as_batches):
        torch.testing.assert_close(acts["resid"], expected["resid"], atol=1e-5, rtol=0)
    assert expected.ids == tuple(scenes.ids)
    assert expected.labels == scenes.labels
    assert as_pairs.manifest["data"] == expected.manifest["data"]
    assert as_pairs.manifest["data"] != interp.capture(toy, scenes[1:], progress=False).manifest["data"]


def test_an_encoding_in_half_precision_has_a_name_too(toy, scenes):
    batch = toy.prepare(["<image>"], [scenes[0].image])
    half = toy.prepare(encoding={**batch.inputs, "pixel_values": batch.inputs["pixel_values"].bfloat16()})
    names = {interp.capture(toy, [each], progress=False).manifest["data"] for each in (batch, half)}
    assert len(names) == 2


def test_interventions_and_dtype(toy, scenes):
    cut = [Ablate(site="resid_pre", layers=3, positions="image")]
    acts = interp.capture(toy, scenes, interventions=cut, dtype=torch.float16, progress=False)
    assert acts["resid"].dtype == torch.float16
    assert (acts["resid"][3] == 0).all()
    assert (acts["resid"][2] != 0).any()


def test_progress_is_shown_and_goes_away(toy, scenes, capsys):
    interp.capture(toy, scenes)
    assert "Traceback" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"sites": "hook"}, "site='hook' is unknown"),
        ({"reduce": "max"}, "reduce='max' is unknown"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"data": []}, "data is empty"),
        ({"data": "scenes"}, "data is a str"),
        ({"data": [("<image>",)]}, "row 0 of the data"),
        ({"data": [(None, "a red 3 at top .")]}, "selects no position of row 0"),
    ],
)
def test_what_cannot_be_captured(toy, scenes, arguments, words):
    with pytest.raises(interp.InterpError, match=words):
        interp.capture(toy, **{"data": scenes, "progress": False, **arguments})
