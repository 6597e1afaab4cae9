"""Captures count the rows in which attention sinks are among the positions, in memory and in folders, whole or resumed."""

import json

import pytest
import torch

import interp
from interp.activations.sink_counts import add_counts
from interp.interventions import Steer
from sinks import planted, planted_in

TEXTS = ["a red 3 at top .", "a blue 7 at bottom .", "a red 3 at top and a blue 7 at bottom .", "red", "top"]
PLANTED = 3  # rows with "top"


@pytest.fixture(scope="module")
def vlm():
    return planted()


def note(acts):
    return [line for line in acts.provenance.notes if "sinks" in line]


@pytest.mark.parametrize("reduce", ["mean", "none"])
@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_rows_with_sinks_are_counted(vlm, reduce, batch_size):
    acts = interp.capture(vlm, TEXTS, positions="text", reduce=reduce, batch_size=batch_size, progress=False)
    count = acts.manifest["sinks"]
    assert (count["rows"], count["without"]) == (PLANTED, ["content"])
    (line,) = note(acts)
    assert f"in {PLANTED} of {len(TEXTS)} rows" in line
    assert 'positions="content"' in line


def test_the_largest_ratio_is_that_of_the_states(vlm):
    acts = interp.capture(vlm, TEXTS, positions="text", reduce="none", progress=False)
    ratios = acts["resid"].norm(dim=-1) / torch.tensor(vlm.trait("usual_norms"))[:, None]
    count = acts.manifest["sinks"]
    assert count["ratio"] == pytest.approx(ratios.max().item(), abs=0.06)
    assert count["state"] == int(ratios.amax(dim=1).argmax())


@pytest.mark.parametrize("sites", ["z", "attn_out", "resid_post", ("mlp_out", "resid")])
def test_sites_of_layers_count_them_too(vlm, sites):
    acts = interp.capture(vlm, TEXTS, sites=sites, positions="text", layers=[2, 4], progress=False)
    assert acts.manifest["sinks"]["rows"] == PLANTED


def test_image_tokens_have_a_name_of_their_own(vlm):
    scenes = interp.toy.scenes(5, seed=1)
    acts = interp.capture(vlm, scenes, positions="image", progress=False)
    assert acts.manifest["sinks"]["rows"] == 5
    assert 'positions="image_content"' in note(acts)[0]
    data = [(scene.image, "<image> what is at the top ?") for scene in scenes]
    both = interp.capture(vlm, data, positions="all", progress=False)
    assert both.manifest["sinks"]["without"] == ["content", "image_content"]


def test_no_note_without_sinks(vlm, toy):
    words = [text for text in TEXTS if text != "top"]
    for acts in (
        interp.capture(vlm, words, positions="content", progress=False),
        interp.capture(vlm, words, positions="special", progress=False),
        interp.capture(vlm, interp.toy.scenes(3, seed=1), positions="image_content", progress=False),
        interp.capture(vlm, interp.toy.scenes(3, seed=1), sites=("vision", "projector"), progress=False),
        interp.capture(toy, TEXTS, positions="all", progress=False),
    ):
        assert acts.manifest["sinks"] is None
        assert note(acts) == []


def test_content_is_the_mean_without_sinks(vlm):
    every = interp.capture(vlm, TEXTS[:3], positions="text", reduce="none", batch_size=1, progress=False)
    content = interp.capture(vlm, TEXTS[:3], positions="content", batch_size=1, progress=False)
    for row in range(3):
        batch = vlm.prepare(texts=[TEXTS[row]])
        keep = ~planted_in(batch)[0][batch.positions["text"][0]]
        expected = every["resid"][:, every.rows == row][:, keep].mean(dim=1)
        torch.testing.assert_close(content["resid"][:, row], expected, rtol=1e-5, atol=1e-4)


def test_a_row_of_sinks_alone_has_no_content(vlm):
    with pytest.raises(interp.InputError, match="'content' selects no position of row 4"):
        interp.capture(vlm, TEXTS, positions="content", progress=False)


def test_folders_have_the_count_whole_and_resumed(vlm, tmp_path):
    texts = TEXTS * 8
    options = {"positions": "text", "batch_size": 2, "rows_per_shard": 8, "progress": False}
    memory = interp.capture(vlm, texts, **options)
    folder = interp.capture(vlm, texts, out=tmp_path / "acts", **options)
    assert folder.manifest["sinks"] == memory.manifest["sinks"]
    assert memory.manifest["sinks"]["rows"] == 8 * PLANTED
    assert interp.open_activations(tmp_path / "acts").provenance.notes == memory.provenance.notes
    (tmp_path / "acts" / "shard-00002.safetensors").unlink()
    resumed = interp.capture(vlm, texts, out=tmp_path / "acts", **options)
    assert resumed.manifest["sinks"] == memory.manifest["sinks"]
    stored = json.loads((tmp_path / "acts" / "manifest.json").read_text())
    assert sum(shard["sinks"]["rows"] for shard in stored["shards"] if shard["sinks"]) == 8 * PLANTED


def test_a_folder_without_counts_still_opens(vlm, tmp_path):
    interp.capture(vlm, TEXTS, positions="text", out=tmp_path / "acts", progress=False)
    path = tmp_path / "acts" / "manifest.json"
    manifest = json.loads(path.read_text())
    del manifest["sinks"]
    for shard in manifest["shards"]:
        del shard["sinks"]
    path.write_text(json.dumps(manifest))
    acts = interp.open_activations(tmp_path / "acts")
    assert note(acts) == []
    assert acts["resid"][...].shape[1] == len(TEXTS)


def test_parts_and_joined_captures_keep_their_notes(vlm):
    first = interp.capture(vlm, TEXTS, positions="text", progress=False)
    second = interp.capture(vlm, TEXTS[3:], positions="text", progress=False)
    assert note(first.select(rows=[0])) == note(first)
    assert note(first.concat(second)) == note(first) + note(second)


def test_counts_add_up():
    one = {"rows": 2, "ratio": 30.0, "state": 4, "without": ["content"]}
    two = {"rows": 1, "ratio": 90.0, "state": 7, "without": ["image_content"]}
    assert add_counts([one, None, two]) == {
        "rows": 3,
        "ratio": 90.0,
        "state": 7,
        "without": ["content", "image_content"],
    }
    assert add_counts([None, None]) is None


def test_what_an_intervention_writes_counts_as_it_is_in_the_run(toy):
    far = Steer(direction=torch.ones(128), layers=2, positions=[1], scale=1000.0)
    acts = interp.capture(toy, TEXTS[:3], positions="text", interventions=[far], progress=False)
    assert acts.manifest["sinks"]["rows"] == 3


def test_sinks_of_interventions_are_left_out_by_no_name(toy, vlm):
    """The names know the model as it is."""
    scenes = interp.toy.scenes(3, seed=1)
    push = Steer(direction=torch.ones(toy.structure.d_model), scale=5000.0, layers=[2], positions=[10])
    for positions in ("image", "image_content"):
        acts = interp.capture(toy, scenes, positions=positions, interventions=[push], progress=False)
        assert acts.manifest["sinks"]["without"] == []
        assert note(acts)[0].endswith("the interventions make them, so no name of positions leaves them out")
    # A sink of the model itself has its name also where something is changed.
    push = Steer(direction=torch.ones(vlm.structure.d_model), scale=0.1, layers=[2], positions=[10])
    acts = interp.capture(vlm, scenes, positions="image", interventions=[push], progress=False)
    assert acts.manifest["sinks"]["without"] == ["image_content"]
