"""Captured activations against transformers' own, pooled in every way, whatever the batches."""

import json

import pytest
import torch

import interp
from interp import progress
from interp.interventions import Ablate
from interp.models.layout.patches import RowsNotApart


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
    for row, pair in enumerate(data.pairs()):
        alone = hidden(toy, [pair])[0]
        # One row alone is the same to the last bits; padding beside others moves them, of numbers up to 60.
        near = {"rtol": 0, "atol": 1e-6} if batch_size == 1 else {"rtol": 1e-5, "atol": 6e-5}
        torch.testing.assert_close(acts["resid"][:-1, acts.rows == row], alone, **near)
        assert acts.columns[acts.rows == row].tolist() == list(range(alone.shape[1]))


def test_rows_of_one_batch_are_what_transformers_gives_for_it(toy, scenes):
    pairs = scenes.captions().pairs()
    acts = interp.capture(toy, pairs, positions="all", reduce="none", batch_size=8, progress=False)
    for row, states in enumerate(hidden(toy, pairs)):
        torch.testing.assert_close(acts["resid"][:-1, acts.rows == row], states, atol=1e-6, rtol=0)


def texts(count):
    return [(None, "a red 3 at top . " * (1 + number % 4) + "where is the 3 ?") for number in range(count)]


@pytest.mark.parametrize("batch_size", [2, 3, 8])
def test_batches_and_their_padding_do_not_matter(toy, batch_size):
    """Thirteen rows of four lengths, in windows that sort them."""
    options = {"positions": "text", "progress": False}
    for reduce in ("mean", "mean:5", "last", "sample"):
        alone = interp.capture(toy, texts(13), reduce=reduce, batch_size=1, **options)
        acts = interp.capture(toy, texts(13), reduce=reduce, batch_size=batch_size, **options)
        torch.testing.assert_close(acts["resid"], alone["resid"], rtol=1e-5, atol=1e-5)
        assert torch.equal(acts.columns, alone.columns)
        assert acts.manifest["data"] == alone.manifest["data"]


def test_remote_is_local(toy, remote_toy, tmp_path):
    for sites in (("resid", "resid_mid"), ("attn_out", "mlp_out"), HEADS):
        options = {"sites": sites, "positions": "text", "batch_size": 4, "progress": False}
        here, there = (interp.capture(vlm, texts(9), **options) for vlm in (toy, remote_toy))
        for site in sites:
            torch.testing.assert_close(there[site], here[site], atol=1e-5, rtol=0)
    there = interp.capture(remote_toy, texts(9), out=tmp_path / "acts", batch_size=4, positions="last", progress=False)
    here = interp.capture(toy, texts(9), batch_size=4, positions="last", progress=False)
    torch.testing.assert_close(there["resid"][...], here["resid"], atol=1e-5, rtol=0)


HEADS = ("q", "k", "v", "z", "pattern")


@pytest.fixture(scope="module")
def heads(toy):
    """Every token of nine rows of four lengths, at all sites with heads and those beside them."""
    sites = ("resid_pre", *HEADS, "attn_out", "resid_mid")
    return interp.capture(toy, texts(9), sites, "all", "none", batch_size=4, progress=False)


def test_attention_adds_up(toy, heads):
    """A query's weights sum to one, take its head's values to z, and the output projection takes z to what is added."""
    longest = int(torch.bincount(heads.rows).max())
    assert heads["pattern"].shape == (8, len(heads.rows), 4, longest)
    for row in range(9):
        mine = heads.rows == row
        keys = int(mine.sum())
        pattern = heads["pattern"][:, mine]
        assert (pattern[..., keys:] == 0).all()
        torch.testing.assert_close(pattern.sum(dim=-1), torch.ones(8, keys, 4), atol=1e-5, rtol=0)
        made = torch.einsum("lqhk,lkhd->lqhd", pattern[..., :keys], heads["v"][:, mine])
        torch.testing.assert_close(made, heads["z"][:, mine], atol=1e-5, rtol=0)
    for layer, part in enumerate(toy.model.get_submodule(toy.structure.layers)):
        with torch.no_grad():
            added = part.self_attn.o_proj(heads["z"][layer].flatten(1))
        torch.testing.assert_close(added, heads["attn_out"][layer], atol=1e-5, rtol=0)
    torch.testing.assert_close(heads["resid_pre"] + heads["attn_out"], heads["resid_mid"], atol=1e-5, rtol=0)


def test_the_pattern_is_transformers_own(toy, heads):
    eager = interp.load("toy", device="cpu", attn_implementation="eager")
    for row in (0, 3):
        inputs = toy.processor(text=[texts(9)[row][1]], return_tensors="pt")
        with torch.no_grad():
            theirs = eager.model(**inputs, output_attentions=True).attentions
        keys = inputs["input_ids"].shape[1]
        ours = heads["pattern"][:, heads.rows == row][..., :keys]
        torch.testing.assert_close(ours.transpose(1, 2), torch.cat(theirs), atol=1e-5, rtol=0)


def test_the_pattern_needs_eager_attention_for_its_run_alone(toy, heads):
    assert heads.manifest["attention"] == "eager"
    assert interp.capture(toy, texts(2), "z", "all", progress=False).manifest["attention"] == "sdpa"
    batch = toy.prepare(texts=["a red 3"])
    with torch.no_grad():
        assert not toy.model(**batch.inputs, output_attentions=True).attentions  # sdpa gives none


@pytest.mark.parametrize("reduce", ["mean", "last", "sample"])
def test_sites_with_heads_are_reduced_like_others(toy, heads, reduce):
    acts = interp.capture(toy, texts(9), HEADS, "all", reduce, batch_size=2, progress=False)
    for site in HEADS:
        for row in range(9):
            own = heads[site][:, heads.rows == row]
            wanted = own.mean(dim=1) if reduce == "mean" else own[:, acts.columns[row]]
            torch.testing.assert_close(acts[site][:, row], wanted, atol=1e-5, rtol=0)


def test_patches_are_examples_of_the_tower(toy, scenes):
    """Its states against plain hooks, and the projector's output against what it becomes in the stream."""
    seen = []
    blocks = toy.model.get_submodule(toy.structure.blocks)
    handles = [block.register_forward_hook(lambda _, given, gave: seen.append(gave)) for block in blocks]
    acts = interp.capture(
        toy, scenes, ("vision", "projector", "resid"), "image", "none", layers={"resid": 0}, progress=False
    )
    for handle in handles:
        handle.remove()
    states = torch.stack([state[:, -36:] for state in seen[-len(blocks) :]])
    assert torch.equal(acts["vision"][1:], states.flatten(1, 2))
    assert torch.equal(acts["projector"], acts["resid"])
    for site in ("vision", "projector"):
        places = acts.places(site)
        assert torch.equal(places.rows, torch.arange(7).repeat_interleave(36))
        assert torch.equal(places.columns, torch.arange(36).repeat(7))
    mean = interp.capture(toy, scenes, ("vision", "projector"), batch_size=2, progress=False)
    for site in ("vision", "projector"):
        wanted = acts[site].unflatten(1, (7, 36)).mean(dim=2)
        torch.testing.assert_close(mean[site], wanted, atol=1e-5, rtol=0)
    last = interp.capture(toy, scenes, "vision", reduce="last", layers=[4, 0], progress=False)
    assert torch.equal(last["vision"], acts["vision"][[4, 0]][:, 35::36])


def test_patches_that_only_rows_alone_tell_apart(toy, monkeypatch, scenes):
    wanted = interp.capture(toy, scenes, ("vision", "resid"), progress=False)
    own = interp.activations.extraction.patches_of

    def refuse(vlm, batch, site):
        if len(batch) > 1:
            raise RowsNotApart("which row is whose?")
        return own(vlm, batch, site)

    monkeypatch.setattr(interp.activations.extraction, "patches_of", refuse)
    found = interp.capture(toy, scenes, ("vision", "resid"), progress=False)
    for site in ("vision", "resid"):
        torch.testing.assert_close(found[site], wanted[site], atol=1e-5, rtol=1e-5)


def test_a_model_in_several_places(toy, scenes, tmp_path):
    """As a model too large for one device is loaded: some layers lie on the disk until they are run."""
    names = [name for name, _ in toy.model.named_modules() if name.count(".") == 1 or name == "lm_head"]
    places = {name: "cpu" for name in names if name != "model.language_model"}
    places |= {f"model.language_model.{name}": "cpu" for name in ("embed_tokens", "norm", "rotary_emb")}
    places |= {f"model.language_model.layers.{layer}": "cpu" if layer < 5 else "disk" for layer in range(8)}
    spread = interp.load("toy", device_map=places, offload_folder=str(tmp_path))
    for site in ("resid", "z", "vision"):
        options = {"sites": site, "progress": False}
        assert torch.equal(
            interp.capture(spread, scenes, **options)[site], interp.capture(toy, scenes, **options)[site]
        )


def test_layers_are_chosen_for_each_site(toy, scenes):
    layers = {"resid": [8, 0], "mlp_out": -1}
    acts = interp.capture(toy, scenes, ("resid", "mlp_out", "attn_out"), layers=layers, progress=False)
    assert acts.layers == {"resid": (8, 0), "mlp_out": (7,), "attn_out": tuple(range(8))}
    whole = interp.capture(toy, scenes, ("resid", "mlp_out"), progress=False)
    assert torch.equal(acts["resid"], whole["resid"][[8, 0]])
    assert torch.equal(acts["mlp_out"], whole["mlp_out"][[7]])


def test_a_row_that_cannot_be_read_is_skipped_and_listed(toy, scenes, tmp_path):
    for scene in scenes:
        scene.image.save(tmp_path / f"{scene.id}.png")
    names = sorted(path.name for path in tmp_path.iterdir())
    (tmp_path / names[3]).write_bytes((tmp_path / names[3]).read_bytes()[:200])
    with pytest.raises(interp.InputError, match=f"row 3 .'{names[3]}'"):
        interp.capture(toy, tmp_path, batch_size=2, progress=False)
    whole = interp.capture(toy, scenes, progress=False)
    for out in (None, tmp_path.with_name("acts")):
        acts = interp.capture(toy, tmp_path, batch_size=2, on_error="skip", out=out, progress=False)
        assert acts.ids == tuple(name for name in names if name != names[3])
        assert acts.rows.tolist() == list(range(6))
        (left_out,) = acts.manifest["skipped"]
        assert (left_out["row"], left_out["id"]) == (3, names[3])
        assert names[3] in left_out["error"]
        assert str(tmp_path) not in str(acts.manifest)
        kept = [row for row in range(7) if row != 3]
        torch.testing.assert_close(acts["resid"][...], whole["resid"][:, kept], atol=1e-5, rtol=1e-5)


def test_a_whole_shard_of_bad_rows(toy, scenes, tmp_path):
    data = [("nothing.png", "<image>")] * 4 + [(scene.image, "<image>") for scene in scenes[:3]]
    options = {"batch_size": 1, "rows_per_shard": 4, "on_error": "skip", "progress": False}
    acts = interp.capture(toy, data, out=tmp_path / "acts", **options)
    assert acts.ids == ("4", "5", "6")
    assert torch.equal(acts["resid"][...], interp.capture(toy, data, **options)["resid"])
    with pytest.raises(interp.InputError, match=r"none of 4 rows of the data could be read: .*row 0"):
        interp.capture(toy, data[:4], **options)


def test_a_mask_speaks_of_the_rows_of_one_batch(toy):
    """Rows that are put into batches here are sorted: a mask would meet other rows, without a word."""
    said = [text for _, text in texts(3)][::-1]
    batch = toy.prepare(texts=said)
    mask = batch.positions["last"]
    cut = [Ablate(site="resid_pre", layers=1, positions=mask)]
    interp.capture(toy, batch, positions=mask, interventions=cut, progress=False)
    pairs = [(None, text) for text in said]
    for options in ({"positions": mask}, {"positions": mask.numpy()}, {"positions": "all", "interventions": cut}):
        with pytest.raises(interp.InputError, match="is a Bool mask, and the rows of this data are sorted"):
            interp.capture(toy, pairs, progress=False, **options)
    ints = interp.capture(toy, pairs, positions=torch.tensor([0, -1]), reduce="none", progress=False)
    assert ints.columns.tolist()[::2] == [0, 0, 0]


def test_prompts_chat_and_columns(toy, tmp_path):
    import datasets

    rows = {"caption": ["a red 3", "a blue 7 at top"], "kind": ["x", "y"], "key": ["one", "two"]}
    data = datasets.Dataset.from_dict(rows)
    acts = interp.capture(
        toy, data, positions="all", columns={"text": "caption", "id": "key", "label": "kind"}, progress=False
    )
    assert (acts.ids, acts.labels["label"]) == (("one", "two"), ["x", "y"])
    assert torch.equal(
        acts["resid"], interp.capture(toy, [(None, t) for t in rows["caption"]], positions="all")["resid"]
    )
    asked = interp.capture(
        toy,
        data.to_iterable_dataset(),
        positions="all",
        prompt="{caption} . where ?",
        out=tmp_path / "a",
        progress=False,
    )
    wanted = interp.capture(toy, [(None, f"{text} . where ?") for text in rows["caption"]], positions="all")
    assert torch.equal(asked["resid"][...], wanted["resid"])


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


def test_what_is_not_an_intervention_is_refused_before_anything_is_written(unchecked, toy, scenes, tmp_path):
    for interventions, words in (([3], "3 is not an intervention"), (Ablate, "expected a list of interventions")):
        with pytest.raises(interp.InputTypeError, match=words):
            interp.capture(toy, scenes, interventions=interventions, out=tmp_path / "acts", progress=False)
    assert not (tmp_path / "acts").exists()


def test_interventions_and_dtype(toy, scenes):
    cut = [Ablate(site="resid_pre", layers=3, positions="image")]
    acts = interp.capture(toy, scenes, interventions=cut, dtype=torch.float16, progress=False)
    assert acts["resid"].dtype == torch.float16
    assert (acts["resid"][3] == 0).all()
    assert (acts["resid"][2] != 0).any()


def test_progress_says_rows_and_their_bytes(toy, scenes, capfd, monkeypatch):
    said = []
    monkeypatch.setattr(progress.Bar, "advance", lambda bar, rows, remark="": said.append((bar.visible, rows, remark)))
    interp.capture(toy, scenes, batch_size=2)
    assert sum(rows for _, rows, _ in said) == 7
    assert said[-1][::2] == (
        True,
        f"{9 * 128 * 4 * 7 / 1e6:,.1f} MB",
    )  # nine states of 128 numbers of 4 bytes, seven rows
    said.clear()
    interp.capture(toy, scenes, progress=False)
    assert not any(visible for visible, *_ in said)
    assert capfd.readouterr().err == ""  # into a file or a pipe nothing


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"sites": "hook"}, "site='hook' is unknown"),
        ({"reduce": "max"}, "reduce='max' is unknown"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"out": ""}, "out='': expected the path of a folder"),
        ({"data": []}, "data is empty"),
        ({"data": "scenes"}, "'scenes'"),
        ({"layers": 9}, "layers=9: 'resid' of 'toy' has states 0 to 8"),
        ({"layers": {"resid_pre": 1}}, "names 'resid_pre'"),
        ({"sites": "mlp_out", "layers": [8]}, "'mlp_out' of 'toy' has layers 0 to 7"),
        ({"positions": "picture"}, "picture.*image"),
        ({"dtype": "int8"}, "dtype='int8'"),
        ({"on_error": "ignore"}, "on_error='ignore'"),
        ({"seed": -1}, "seed=-1"),
        ({"sites": ()}, "expected one or more"),
        ({"sites": "vision", "data": [(None, "a red 3")]}, r"row 0 \('0'\) has no image, so no vision"),
        ({"sites": "vision", "layers": [5]}, "'vision' of 'toy' has states 0 to 4"),
        ({"sites": "projector", "layers": [1]}, "'projector' of 'toy' has 0 alone: .* a dict by site"),
        ({"data": [("<image>",)]}, "row 0 of the data"),
        ({"data": [(None, "a red 3 at top .")]}, "selects no position of row 0"),
    ],
)
def test_what_cannot_be_captured(toy, scenes, arguments, words):
    with pytest.raises(interp.InterpError, match=words):
        interp.capture(toy, **{"data": scenes, "progress": False, **arguments})


def test_what_is_skipped_names_no_folder(toy, tmp_path):
    """A manifest may be published: it has the last part of a picture's path and not the folders of its owner."""
    rows = [
        {"image": "/home/somebody/private/a.png"},
        {"image": r"C:\Users\somebody\b.png"},
        {"image": None, "text": "a red 3"},
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    data = interp.Data(tmp_path / "rows.jsonl", on_error="skip")
    acts = interp.capture(toy, data, positions="text", progress=False)
    errors = [each["error"] for each in acts.manifest["skipped"]]
    assert len(errors) == 2
    assert all(name in error for name, error in zip(("a.png", "b.png"), errors, strict=True))
    assert not any("somebody" in error or str(tmp_path) in error for error in errors)
