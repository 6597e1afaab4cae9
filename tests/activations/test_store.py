"""The folder: whole or refused, readable without this package, and every damage named."""

import errno
import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

import interp
from interp.activations import store as store_module


def run(toy, out, data=None, **options):
    data = interp.toy.scenes(12, seed=3) if data is None else data
    options = {"batch_size": 1, "rows_per_shard": 4, "progress": False, **options}
    return interp.capture(toy, data, out=out, **options)


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.name != "manifest.json"}


def manifest_of(folder):
    return json.loads((folder / "manifest.json").read_text())


@pytest.fixture(scope="module")
def written(toy, tmp_path_factory):
    out = tmp_path_factory.mktemp("store") / "acts"
    run(toy, out)
    return out


@pytest.fixture
def copied(written, tmp_path):
    shutil.copytree(written, tmp_path / "acts")
    return tmp_path / "acts"


def test_a_folder_holds_what_memory_would(toy, written):
    drawn = {"reduce": "sample", "dtype": "float16", "seed": 4}
    for options in ({}, {"reduce": "none"}, drawn, {"reduce": "mean:2", "seed": 4}):
        kept = run(toy, None, **options)
        out = written.parent / f"other-{len(options)}-{options.get('reduce')}"
        found = run(toy, out, **options)
        assert torch.equal(found["resid"][...], kept["resid"])
        assert found["resid"].dtype == kept["resid"].dtype
        assert torch.equal(found.rows, kept.rows)
        assert torch.equal(found.columns, kept.columns)
        assert (found.ids, found.labels) == (kept.ids, kept.labels)
        assert found.manifest["data"] == kept.manifest["data"]
        assert found.pooled("resid") == kept.pooled("resid")


def test_safetensors_alone_reads_it(written):
    """What docs/store.md says, and nothing of this package."""
    manifest = manifest_of(written)
    shards = [load_file(written / entry["file"]) for entry in manifest["shards"]]
    whole = torch.cat([shard["resid"] for shard in shards], dim=1)
    assert torch.equal(whole, interp.open_activations(written)["resid"][...])
    for shard, entry in zip(shards, manifest["shards"], strict=True):
        offsets = shard["tokens.offsets"]
        assert len(offsets) == entry["rows"] + 1
        for row in range(entry["rows"]):
            assert (shard["tokens.rows"][offsets[row] : offsets[row + 1]] == row).all()
    assert len(manifest["ids"]) == manifest["rows"] == 12
    assert all(len(values) == 12 for values in manifest["labels"].values())


def test_the_same_run_again_changes_nothing(toy, written, monkeypatch):
    before = contents(written), manifest_of(written)
    monkeypatch.setattr(interp.activations.capturing, "extract", None)  # nothing is run
    run(toy, written)
    assert (contents(written), manifest_of(written)) == before


@pytest.mark.parametrize("shard", range(3))
def test_one_flipped_bit_is_found_and_only_its_shard_is_made_again(toy, copied, written, shard):
    path = copied / f"shard-0000{shard}.safetensors"
    data = bytearray(path.read_bytes())
    data[(len(data) * (2 * shard + 1)) // 7] ^= 1
    path.write_bytes(data)
    acts = interp.open_activations(copied)
    with pytest.raises(interp.InputError, match=f"shard-0000{shard}.safetensors' is damaged"):
        acts["resid"][0]
    others = [other for other in range(3) if other != shard]
    for other in others:
        assert acts["resid"][0, 4 * other].shape == (128,)
    written_at = {other: (copied / f"shard-0000{other}.safetensors").stat().st_mtime_ns for other in others}
    again = run(toy, copied)
    assert contents(copied) == contents(written)
    assert torch.equal(again["resid"][...], interp.open_activations(written)["resid"][...])
    assert manifest_of(copied) == manifest_of(written) | {"run": manifest_of(copied)["run"]}
    for other in others:
        assert (copied / f"shard-0000{other}.safetensors").stat().st_mtime_ns == written_at[other]


def test_a_checksum_is_compared_once(copied, monkeypatch):
    counted = []
    own = store_module._checksum
    monkeypatch.setattr(store_module, "_checksum", lambda path: counted.append(path.name) or own(path))
    acts = interp.open_activations(copied)
    assert counted == []
    for _ in range(3):
        acts["resid"][0, 5]
    assert counted == ["shard-00001.safetensors"]


def test_a_shard_that_is_cut_or_missing(toy, copied, written):
    path = copied / "shard-00001.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(interp.InputError, match=r"shard-00001.safetensors' is damaged"):
        interp.open_activations(copied)
    path.unlink()
    with pytest.raises(interp.InputError, match="it is missing"):
        interp.open_activations(copied)
    run(toy, copied)
    assert contents(copied) == contents(written)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"sites": "resid_pre"}, "sites="),
        ({"positions": "all"}, "positions='image'"),
        ({"reduce": "last"}, "reduce='mean'"),
        ({"layers": [1]}, "sites="),
        ({"dtype": "float16"}, "dtype=None"),
        ({"batch_size": 2}, "batch_size=1"),
        ({"seed": 1}, "seed=0"),
        ({"prompt": "<image> what ?"}, "prompt=None"),
        ({"data": interp.toy.scenes(13, seed=3)}, "size=12"),
        ({"data": interp.toy.scenes(12, seed=4)}, "the rows of .*shard-00000"),
        ({"resume": False}, "holds activations already"),
        (
            {"interventions": [interp.interventions.Ablate(site="resid_pre", layers=1, positions="image")]},
            "interventions=",
        ),
    ],
)
def test_a_folder_of_another_run_is_refused(toy, written, change, words):
    before = contents(written)
    with pytest.raises(interp.InputError, match=words):
        run(toy, written, **change)
    assert contents(written) == before


def test_a_folder_of_another_model_is_refused(stage1, toy, written, monkeypatch):
    with pytest.raises(interp.InputError, match="model='toy', this run has 'toy:stage1'"):
        run(stage1, written)
    renamed = interp.load(model=stage1.model, processor=stage1.processor)
    renamed.name = "toy"
    with pytest.raises(interp.InputError, match="weights="):
        run(renamed, written)
    monkeypatch.setattr(toy, "revision", "main")
    with pytest.raises(interp.InputError, match="revision=None, this run has 'main'"):
        run(toy, written)


def test_a_patch_with_another_value_is_another_run(toy, tmp_path):
    def patch(value):
        return [
            interp.interventions.Patch(site="resid_pre", layers=1, positions="image", value=torch.full((128,), value))
        ]

    run(toy, tmp_path / "acts", interventions=patch(1.0))
    with pytest.raises(interp.InputError, match="interventions="):
        run(toy, tmp_path / "acts", interventions=patch(2.0))


def test_a_folder_with_something_else_is_left_alone(toy, tmp_path):
    (tmp_path / "thesis.tex").write_text("...")
    with pytest.raises(interp.InputError, match=r"holds 'thesis.tex' but no activations"):
        run(toy, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
    with pytest.raises(interp.InputError, match="is a file"):
        run(toy, tmp_path / "thesis.tex")


def test_bad_input_leaves_no_folder(toy, tmp_path):
    with pytest.raises(interp.InputError, match="positions='imag'"):
        run(toy, tmp_path / "acts", positions="imag")
    assert not (tmp_path / "acts").exists()
    with pytest.raises(interp.InputError, match="site='hook'"):
        run(toy, tmp_path / "other", sites="hook")
    assert not (tmp_path / "other").exists()


def rewrite(folder, **changes):
    (folder / "manifest.json").write_text(json.dumps({**manifest_of(folder), **changes}))


def test_manifests_that_are_none(toy, copied, tmp_path):
    with pytest.raises(interp.InputError, match="holds no activations"):
        interp.open_activations(tmp_path / "nowhere")
    rewrite(copied, complete=False)
    with pytest.raises(interp.InputError, match="is not finished"):
        interp.open_activations(copied)
    rewrite(copied, complete=True, format="other-2")
    with pytest.raises(interp.InputError, match="has the format 'other-2'"):
        interp.open_activations(copied)
    for change in ({"shards": 5}, {"shards": [{}]}, {"ids": None}, {"labels": None}):
        shutil.copytree(copied, tmp_path / str(change))
        rewrite(tmp_path / str(change), format="interp-activations-1", **change)
        with pytest.raises(interp.InputError, match="is not as capture writes it"):
            run(toy, tmp_path / str(change))
    rewrite(copied, format="interp-activations-1", sites=None)
    with pytest.raises(interp.InputError, match="is not as capture writes it"):
        interp.open_activations(copied)
    (copied / "manifest.json").write_text("{")
    with pytest.raises(interp.InputError, match="is not JSON"):
        interp.open_activations(copied)


def unfinished(toy, out, monkeypatch, **options):
    """A folder with all its shards and their entries, stopped before the manifest."""

    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(store_module, "merge", stop)
        with pytest.raises(KeyboardInterrupt):
            run(toy, out, **options)


@pytest.mark.parametrize("said", ["", "[]", "{}", '"x"', '{"sha256": 3}'])
def test_an_entry_that_is_none_counts_as_missing(toy, written, tmp_path, monkeypatch, said):
    unfinished(toy, tmp_path / "acts", monkeypatch)
    (tmp_path / "acts" / "shard-00001.json").write_text(said)
    assert run(toy, tmp_path / "acts").manifest["run"]["shards_found"] == 2
    assert contents(tmp_path / "acts") == contents(written)


class Rows:
    """Four rows of text with a label."""

    def __init__(self, values):
        self.labels = {"value": values}

    def pairs(self):
        return [(None, f"a red {number}") for number in range(4)]


def test_other_labels_are_other_data(toy, tmp_path):
    run(toy, tmp_path / "acts", Rows([1, None, float("nan"), "é\n中"]), positions="text")
    again = run(toy, tmp_path / "acts", Rows([1, None, float("nan"), "é\n中"]), positions="text")
    assert again.labels["value"][3] == "é\n中"
    with pytest.raises(interp.InputError, match="have other ids, texts or labels"):
        run(toy, tmp_path / "acts", Rows([2, None, float("nan"), "é\n中"]), positions="text")


def test_other_spans_are_other_data(toy, tmp_path):
    said = ["a red 3 at top", "a blue 7 at left"]
    first, second = (toy.prepare(texts=said, spans={"it": words}) for words in (["red", "blue"], ["top", "left"]))
    run(toy, tmp_path / "acts", first, positions="it")
    assert run(toy, tmp_path / "acts", first, positions="it").manifest["run"]
    with pytest.raises(interp.InputError, match=r"the rows of .*shard-00000.* have other ids, texts or labels"):
        run(toy, tmp_path / "acts", second, positions="it")


def test_a_name_that_is_no_text(toy, tmp_path):
    """A file's name may be any bytes; Python holds those that are no UTF-8 as halves of characters."""
    picture = tmp_path / "data" / os.fsdecode(b"b\xff.png")
    picture.parent.mkdir()
    interp.toy.scenes(1, seed=0)[0].image.save(picture)
    for _ in range(2):
        assert run(toy, tmp_path / "acts", tmp_path / "data").ids == (picture.name,)


def test_a_folder_is_meant_once(toy, tmp_path, monkeypatch):
    """What is given relative to the working directory, or to one's home, is found wherever one goes next."""
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    acts, home = run(toy, "acts"), run(toy, "~/home")
    monkeypatch.chdir("elsewhere")
    assert torch.equal(acts["resid"][0, 5], home["resid"][0, 5])
    assert interp.open_activations("~/acts").ids == acts.ids
    assert not list((tmp_path / "elsewhere").iterdir())


def test_rows_of_means_are_selected_unread(copied, monkeypatch):
    monkeypatch.setattr(store_module, "_checksum", None)
    acts = interp.open_activations(copied)
    assert acts.select(rows=[7, 2]).rows.tolist() == [0, 1]
    assert set(acts.to_frame()["column"]) == {-1}


def test_a_stream_that_is_empty_leaves_no_folder(toy, tmp_path):
    import datasets

    features = datasets.Features({"text": datasets.Value("string")})
    data = datasets.IterableDataset.from_generator(lambda: iter(()), features=features)
    with pytest.raises(interp.InputError, match="data is empty"):
        run(toy, tmp_path / "acts", data, positions="text")
    assert not (tmp_path / "acts").exists()


def test_a_stream_that_ends_at_the_edge_of_a_shard(toy, tmp_path):
    """As many rows as fill two shards; with four fewer the second would be left over, with four more it goes on."""
    import datasets

    def stream(rows):
        return datasets.Dataset.from_dict({"text": [f"a red {n % 9}" for n in range(rows)]}).to_iterable_dataset()

    for rows in (8, 8):
        assert len(run(toy, tmp_path / "acts", stream(rows), positions="text").ids) == rows
    with pytest.raises(interp.InputError, match=r"holds 'shard-00001.safetensors', but the data ends before it"):
        run(toy, tmp_path / "acts", stream(4), positions="text")
    assert len(run(toy, tmp_path / "acts", stream(12), positions="text").ids) == 12


def test_what_a_killed_run_left_half_written_is_cleared(toy, copied, written):
    (copied / ".shard-00009.safetensors.partial").write_bytes(b"half")
    run(toy, copied)
    assert sorted(path.name for path in copied.iterdir()) == sorted(path.name for path in written.iterdir())


def test_pictures_that_are_there_later(toy, tmp_path):
    """A shard of which no row could be read is tried again."""
    data = [(tmp_path / "late.png", "<image>")] * 4
    with pytest.raises(interp.InputError, match="none of 4 rows"):
        run(toy, tmp_path / "acts", data, on_error="skip")
    interp.toy.scenes(1, seed=0)[0].image.save(tmp_path / "late.png")
    assert len(run(toy, tmp_path / "acts", data, on_error="skip").ids) == 4


def test_one_run_at_a_time(toy, tmp_path, monkeypatch):
    """A second run would take away what the first is writing."""
    refused = []
    own = store_module.save_file

    def save(*arguments, **options):
        with pytest.raises(interp.InputError, match="is being written by another run") as said:
            run(toy, tmp_path / "acts")
        refused.append(said)
        own(*arguments, **options)

    monkeypatch.setattr(store_module, "save_file", save)
    run(toy, tmp_path / "acts")
    assert len(refused) == 3
    run(toy, tmp_path / "acts")


def test_a_folder_that_goes_away(toy, tmp_path, monkeypatch):
    own = store_module.save_file

    def save(tensors, path, **options):
        own(tensors, path, **options)
        shutil.rmtree(path.parent)

    monkeypatch.setattr(store_module, "save_file", save)
    with pytest.raises(interp.InterpError, match=r"shard-00000.safetensors' cannot be written .*No such file"):
        run(toy, tmp_path / "acts")


def test_a_manifest_reaches_no_file_outside(copied):
    shards = manifest_of(copied)["shards"]
    shards[0]["file"] = "../secret.safetensors"
    rewrite(copied, shards=shards)
    with pytest.raises(interp.InputError, match=r"names a shard '../secret.safetensors'"):
        interp.open_activations(copied)


# A run that is stopped at a bad moment -----------------------------------------------------------------------------------


def test_stopped_at_every_file_it_writes(toy, written, tmp_path, monkeypatch):
    """Each renaming in turn is the last thing that happens; the next run makes the store whole."""
    moments = 0
    own = type(tmp_path).replace

    class Stopped(BaseException):
        pass

    for stop in range(100):
        out = tmp_path / f"acts-{stop}"
        seen = []

        def replace(self, target, seen=seen, stop=stop):
            seen.append(target)
            if len(seen) > stop:
                raise Stopped
            return own(self, target)

        with monkeypatch.context() as patched:
            patched.setattr(type(tmp_path), "replace", replace)
            try:
                run(toy, out)
                break
            except Stopped:
                moments += 1
        run(toy, out)
        assert contents(out) == contents(written)
        assert manifest_of(out) == manifest_of(written) | {"run": manifest_of(out)["run"]}
    assert moments == 1 + 3 * 2 + 1  # the plan, three shards with their entries, the manifest


def test_a_full_disk_loses_no_finished_shard(toy, written, tmp_path, monkeypatch):
    out, saved = tmp_path / "acts", []
    own = store_module.save_file

    def save(tensors, path, **options):
        saved.append(path)
        if len(saved) == 3:
            path.write_bytes(b"half")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        own(tensors, path, **options)

    monkeypatch.setattr(store_module, "save_file", save)
    with pytest.raises(interp.InterpError, match=r"No space left on device.*2 finished shards stay"):
        run(toy, out)
    assert not list(out.glob("*.partial")) + list(out.glob(".*.partial"))
    assert (out / "shard-00001.safetensors").read_bytes() == (written / "shard-00001.safetensors").read_bytes()
    monkeypatch.setattr(store_module, "save_file", own)
    assert run(toy, out).manifest["run"]["shards_found"] == 2
    assert contents(out) == contents(written)


def test_a_file_that_may_not_grow(tmp_path):
    """The system's own limit, not a stand-in: every write above it fails in the middle."""
    code = (
        "import resource, sys, torch, interp; torch.set_num_threads(1); vlm = interp.load('toy', device='cpu'); "
        "data = interp.toy.scenes(8, seed=3); resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000))\n"
        f"try: interp.capture(vlm, data, batch_size=1, rows_per_shard=4, out={str(tmp_path / 'acts')!r}, progress=False)\n"
        "except interp.InterpError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "cannot be written" in done.stdout, done.stderr
    assert not (tmp_path / "acts").exists()
