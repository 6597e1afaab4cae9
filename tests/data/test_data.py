"""`Data`: whatever takes data takes such a value, and does with it what it says."""

import json
from pathlib import Path

import pytest
import torch

import interp
from interp.data.data import as_data
from interp.data.rows import open_row
from interp.data.sources import source_of


@pytest.fixture
def folder(tmp_path):
    """Four scenes with captions, and a fifth picture that is broken."""
    rows = []
    for number, scene in enumerate(interp.toy.scenes(4, seed=3)):
        scene.image.save(tmp_path / f"{number}.png")
        rows.append({"file_name": f"{number}.png", "caption": scene.caption, "kind": "x"})
    (tmp_path / "4.png").write_bytes(b"no picture")
    rows.append({"file_name": "4.png", "caption": "a red 3", "kind": "y"})
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return tmp_path


def test_capture_takes_it(toy, folder):
    said = {"columns": {"label": "kind"}, "prompt": "<image> {caption}", "on_error": "skip"}
    data = interp.Data(folder, **said)
    acts = interp.capture(toy, data, progress=False)
    wanted = interp.capture(toy, folder, progress=False, **said)
    assert torch.equal(acts["resid"], wanted["resid"])
    assert (acts.ids, acts.labels) == (wanted.ids, wanted.labels)
    assert acts.labels["label"] == ["x"] * 4
    assert [row["row"] for row in acts.manifest["skipped"]] == [4]
    changes = {name: value for name, value in acts.manifest.items() if value != wanted.manifest[name]}
    assert changes.keys() <= {"run"}
    assert (acts.manifest["columns"], acts.manifest["prompt"]) == (said["columns"], said["prompt"])
    with pytest.raises(interp.InputError, match=r"row 4 \('4'\)"):
        interp.capture(toy, interp.Data(folder, prompt="<image> {caption}"), progress=False)


def test_capture_honours_its_chat(toy):
    for options in ({"data": interp.Data([(None, "a")], chat=True)}, {"data": [(None, "a")], "chat": True}):
        with pytest.raises(interp.InputError, match="no chat template"):
            interp.capture(toy, positions="all", progress=False, **options)


def test_keywords_fill_in_what_it_does_not_say(toy, folder):
    data = interp.Data(folder, prompt="<image> {caption}")
    acts = interp.capture(toy, data, on_error="skip", columns={"id": "caption"}, progress=False)
    assert acts.ids == tuple(scene.caption for scene in interp.toy.scenes(4, seed=3))


@pytest.mark.parametrize(
    ("said", "beside"),
    [
        ({"columns": {"text": "a"}}, {"columns": {"text": "b"}}),
        ({"prompt": "{a}"}, {"prompt": "{a}"}),
        ({"chat": True}, {"chat": True}),
        ({"on_error": "skip"}, {"on_error": "skip"}),
    ],
)
def test_a_keyword_beside_a_data_that_says_it_is_refused(toy, said, beside):
    (name,) = said
    with pytest.raises(
        interp.InputError, match=f"{name}=.* stands beside a Data with {name}=.*: say it once"
    ) as caught:
        interp.capture(toy, interp.Data([(None, "a")], **said), progress=False, **beside)
    assert repr(beside[name]) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("said", "error", "words"),
    [
        ({"source": interp.Data([])}, interp.InputTypeError, "is a Data already"),
        ({"columns": ["text"]}, interp.InputTypeError, r"columns=\['text'\]: expected a dict"),
        ({"columns": {"picture": "a"}}, interp.InputError, "the role 'picture': use image, text, id, label, group"),
        ({"prompt": 5}, interp.InputTypeError, "prompt=5: expected a text"),
        ({"chat": "yes"}, interp.InputError, "chat='yes': expected True or False"),
        ({"on_error": "hide"}, interp.InputError, "on_error='hide' is unknown: use one of raise, skip"),
        ({"root": 5}, interp.InputTypeError, "root=5: expected the path of a folder"),
    ],
)
def test_what_it_refuses(said, error, words):
    with pytest.raises(error, match=words) as caught:
        interp.Data(**{"source": [(None, "a")], **said})
    assert "\n" not in str(caught.value)


def test_it_is_a_value_that_stays_as_it_is():
    data = interp.Data([(None, "a")], prompt="{text} ?")
    assert data == interp.Data([(None, "a")], prompt="{text} ?")
    assert as_data(data) is not None
    assert as_data(data, chat=True) == interp.Data([(None, "a")], prompt="{text} ?", chat=True)
    assert not data.chat
    with pytest.raises(AttributeError):
        data.prompt = None


def test_relative_names_start_from_the_root(tmp_path, monkeypatch):
    """Of every kind of data that can have them; without a root, from the working directory."""
    import datasets

    (tmp_path / "images").mkdir()
    for number, scene in enumerate(interp.toy.scenes(2, seed=3)):
        scene.image.save(tmp_path / "images" / f"{number}.png")
    names = ["0.png", "1.png"]
    (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps({"image": name}) for name in names))
    table = datasets.Dataset.from_dict({"image": names})
    kinds = {
        "pairs": [(name, None) for name in names],
        "paths": [(Path(name), None) for name in names],
        "dicts": [{"image": name} for name in names],
        "table": table,
        "stream": table.to_iterable_dataset(),
        "images": table.cast_column("image", datasets.Image()),
        "file": tmp_path / "rows.jsonl",
    }
    expected = [scene.image.tobytes() for scene in interp.toy.scenes(2, seed=3)]
    for kind, source in kinds.items():
        rows = source_of(interp.Data(source, root=tmp_path / "images")).read(0, 2)
        assert [open_row(row)[0].tobytes() for row in rows] == expected, kind
        if kind not in ("stream", "file"):
            with pytest.raises(interp.InputError, match=r"'0.png' is no file: .*Data\(\.\.\., root=FOLDER\)"):
                open_row(source_of(source).read(0, 1)[0])
    monkeypatch.chdir(tmp_path / "images")
    assert open_row(source_of(kinds["dicts"]).read(0, 1)[0])[0].tobytes() == expected[0]


@pytest.mark.parametrize("name", ["../0.png", "/etc/0.png", "a/../../0.png", "..\\0.png", "C:\\0.png"])
def test_a_name_that_leads_out_of_the_root_is_refused(tmp_path, name):
    import datasets

    table = datasets.Dataset.from_dict({"image": ["a.png", name]})
    for source in ([("a.png", None), (name, None)], [{"image": "a.png"}, {"image": name}], table):
        with pytest.raises(interp.InputError, match=r"row 1.* names the picture .* leads out of") as caught:
            open_row(source_of(interp.Data(source, root=tmp_path)).read(0, 2)[1])
        assert repr(name) in str(caught.value)


def test_an_absolute_name_inside_the_root_is_taken(tmp_path, monkeypatch):
    interp.toy.scenes(1, seed=3)[0].image.save(tmp_path / "0.png")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "rows.jsonl").write_text(json.dumps({"image": str(tmp_path / "0.png")}))
    with pytest.raises(interp.InputError, match="leads out of"):
        source_of(tmp_path / "in" / "rows.jsonl")
    assert open_row(source_of(interp.Data(tmp_path / "in" / "rows.jsonl", root=tmp_path)).read(0, 1)[0])
    (tmp_path / "rows.jsonl").write_text(json.dumps({"image": str(tmp_path / "0.png")}))
    for folder, file in ((tmp_path, "rows.jsonl"), (tmp_path / "in", "../rows.jsonl")):
        monkeypatch.chdir(folder)
        assert open_row(source_of(file).read(0, 1)[0])
    (tmp_path / "rows.jsonl").write_text(json.dumps({"image": f"{tmp_path}-other/0.png"}))
    with pytest.raises(interp.InputError, match="leads out of"):
        source_of("../rows.jsonl")


def test_a_role_may_be_played_by_no_column():
    items = [{"id": "x", "text": "a", "label": 1}, {"id": "x", "text": "b", "label": 2}]
    with pytest.raises(interp.InputError, match=r"or none with columns=\{'id': None\}"):
        source_of(items)
    rows = source_of(items, columns={"id": None, "label": None}).read(0, 2)
    assert [(row.id, row.text, row.labels) for row in rows] == [("0", "a", {"id": "x"}), ("1", "b", {"id": "x"})]
    pictures = [{"image": "nowhere.png", "text": "a"}]
    assert source_of(pictures, columns={"image": None}).read(0, 1)[0].image is None
    assert source_of(pictures, columns={"text": None}).read(0, 1)[0].text == "<image>"


def test_a_root_that_is_no_folder_or_has_no_meaning(toy, tmp_path):
    interp.toy.scenes(1, seed=3)[0].image.save(tmp_path / "0.png")
    with pytest.raises(interp.InputError, match="root='nowhere' is not a folder"):
        source_of(interp.Data([(None, "a")], root="nowhere"))
    with pytest.raises(interp.InputError, match="has its pictures itself, leave root out"):
        source_of(interp.Data(tmp_path, root=tmp_path))
    with pytest.raises(interp.InputError, match="and root="):
        source_of(interp.Data(toy.prepare(texts=["a"]), root=tmp_path))
