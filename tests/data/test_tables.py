"""Data sets of the `datasets` package, at hand and streamed, against what the package itself decodes."""

import io
import json
import sys
import tarfile
from itertools import chain, pairwise

import datasets
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import interp
from interp.data.rows import open_row
from interp.data.sources import source_of


def as_png(value):
    held = io.BytesIO()
    Image.new("RGB", (5, 4), (value, 2 * value, 0)).save(held, "PNG")
    return held.getvalue()


FEATURES = datasets.Features(
    {
        "image": datasets.Image(),
        "text": datasets.Value("string"),
        "kind": datasets.ClassLabel(names=["cat", "dog"]),
        "share": datasets.Value("float32"),
        "box": datasets.List(datasets.Value("int32")),
        "when": datasets.Value("timestamp[s]"),
        "many": datasets.List(datasets.Image()),
        "grid": datasets.Array2D((1, 2), "int32"),
    }
)


def cells(n):
    return {
        "image": [{"bytes": as_png(index), "path": None} for index in range(n)],
        "text": [f"<image> number {index} ?" for index in range(n)],
        "kind": [index % 2 for index in range(n)],
        "share": [index / 2 for index in range(n)],
        "box": [[1, 2]] * n,
        "when": [0] * n,
        "many": [[{"bytes": as_png(index), "path": None}] * (index % 3) for index in range(n)],
        "grid": [[[1, 2]]] * n,
    }


@pytest.fixture(scope="module")
def table():
    return datasets.Dataset.from_dict(cells(7), features=FEATURES)


@pytest.fixture(params=["at hand", "shuffled", "streamed", "formatted"])
def same(request, table):
    """The same rows in several ways, and the data set that decodes them."""
    if request.param == "shuffled":
        return (mixed := table.shuffle(seed=1)), mixed
    return {
        "at hand": table,
        "streamed": table.to_iterable_dataset(num_shards=3),
        "formatted": table.with_format("numpy"),
    }[request.param], table


def test_rows_are_what_the_package_decodes(same):
    data, decoded = same
    rows = source_of(data, columns={"label": "kind"}).read(0, 100)
    assert len(rows) == 7
    for index, (row, expected) in enumerate(zip(rows, decoded, strict=True)):
        assert (row.index, row.id, row.text) == (index, str(index), expected["text"])
        assert row.labels == {"label": ["cat", "dog"][expected["kind"]], "share": expected["share"]}
        assert [image.tobytes() for image in open_row(row)] == [expected["image"].tobytes()]


def test_several_images_and_prompts(same):
    data, decoded = same
    columns = {"image": "many", "id": "text"}
    rows = source_of(data, columns=columns, prompt="<image> {kind} of {share}").read(0, 1)
    assert rows[0].text == f"<image> {['cat', 'dog'][decoded[0]['kind']]} of {decoded[0]['share']}"
    data, decoded = data.remove_columns("text"), list(decoded)
    for row, expected in zip(source_of(data, columns={"image": "many"}).read(0, 7), decoded, strict=True):
        held = [image.tobytes() for image in expected["many"]]
        if held:
            assert [image.tobytes() for image in open_row(row)] == held
        else:
            assert row.image is None


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 12), st.lists(st.integers(0, 15), max_size=5), st.booleans())
def test_any_parts_are_the_whole(size, cuts, streamed):
    table = datasets.Dataset.from_dict({"text": [f"t{index}" for index in range(size)], "n": list(range(size))})
    rows = source_of(table.to_iterable_dataset() if streamed else table)
    edges = [0, *sorted(cuts), size + 20]
    parts = list(chain(*(rows.read(a, b) for a, b in pairwise(edges))))
    assert [row.labels["n"] for row in parts] == list(range(size))
    assert [row.index for row in parts] == list(range(size))
    assert rows.size == (None if streamed else size)


def test_a_stream_goes_forward_only(table):
    rows = source_of(table.to_iterable_dataset())
    assert [row.index for row in rows.read(2, 4)] == [2, 3]
    assert rows.read(5, 6)[0].text == "<image> number 5 ?"
    with pytest.raises(interp.InputError, match="row 3 of a stream that is at row 6: a stream is only read forward"):
        rows.read(3, 4)
    assert [row.index for row in rows.read(6, 60)] == [6]
    assert rows.read(60, 70) == []


def test_a_generator_of_unknown_columns_is_read_once():
    made = []

    def make():
        for index in range(4):
            made.append(index)
            yield {"image": Image.new("RGB", (2, 2), (index, 0, 0)), "n": index, "box": [1], "text": None}

    rows = source_of(datasets.IterableDataset.from_generator(make))
    taken = rows.read(0, 2)
    assert max(made) < 3
    assert [row.labels for row in taken] == [{"n": 0}, {"n": 1}]
    assert [row.text for row in taken] == ["<image>"] * 2
    assert open_row(rows.read(3, 4)[0])[0].getpixel((0, 0)) == (3, 0, 0)


def test_a_generator_keeps_to_the_columns_of_its_first_row():
    rows = source_of(
        datasets.IterableDataset.from_generator(lambda: iter([{"text": "a", "n": 1}, {"text": "b", "n": []}]))
    )
    first, second = rows.read(0, 2)
    assert (first.text, first.labels, open_row(first)) == ("a", {"n": 1}, [])
    with pytest.raises(interp.InputError, match=r"row 1 \('1'\): column 'n' holds"):
        open_row(second)


def test_no_picture_is_decoded_and_a_bad_one_is_its_rows_alone(monkeypatch):
    held = cells(3)
    held["image"][1] = {"bytes": b"no picture", "path": "bad.png"}
    table = datasets.Dataset.from_dict(held, features=FEATURES)
    monkeypatch.setattr(datasets.Image, "decode_example", lambda *_, **__: pytest.fail("a picture was decoded"))
    for data in (table, table.to_iterable_dataset()):
        rows = source_of(data).read(0, 3)
        with pytest.raises(interp.InputError, match=r"row 1 \('1'\): the image 'bad.png' is not an image"):
            open_row(rows[1])
        assert open_row(rows[2])


def test_pictures_inside_an_archive_are_streamed(tmp_path):
    import zipfile

    path = tmp_path / "pictures.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.png", as_png(3))
    data = datasets.load_dataset(
        "imagefolder", data_files=str(path), split="train", streaming=True, cache_dir=str(tmp_path)
    )
    (row,) = source_of(data).read(0, 9)
    assert "zip://" in row.image["path"]
    assert open_row(row)[0].getpixel((0, 0)) == (3, 6, 0)
    path.unlink()
    with pytest.raises(interp.InputError, match=r"row 0 \('0'\): .*cannot be read"):
        open_row(row)


def test_unknown_classes_and_empty_cells():
    features = datasets.Features({"text": datasets.Value("string"), "kind": datasets.ClassLabel(names=["cat"])})
    table = datasets.Dataset.from_dict({"text": ["a", None, "c"], "kind": [0, -1, None]}, features=features)
    rows = source_of(table).read(0, 3)
    assert [row.labels["kind"] for row in rows] == ["cat", None, None]
    assert rows[1].text == ""


def test_what_is_refused(table):
    split = datasets.DatasetDict({"train": table, "test": table})
    cases = [
        (split, {}, "with the splits train, test"),
        (datasets.IterableDatasetDict({"one": table.to_iterable_dataset()}), {}, "with the splits one"),
        (table.select([]), {}, "data is empty"),
        (datasets.IterableDataset.from_generator(lambda: iter([])), {}, "data is empty"),
        (table.with_transform(lambda cells: cells), {}, "data has a transform"),
        (table, {"columns": {"text": "question"}}, "'question' for text: .* text, kind, share"),
        (table, {"columns": {"label": "box"}}, "'box' for label: the data has the columns of plain values text, kind"),
        (table, {"columns": {"image": "picture"}}, "'picture' for image: the data has the columns image, text"),
        (table, {"prompt": "{box}"}, "unknown field 'box'"),
        (table, {"columns": {"id": "kind"}}, "rows 0 and 2 have the same id 'cat'"),
        (table.remove_columns(["image", "text"]), {}, "none is named image or text"),
    ]
    for data, options, words in cases:
        with pytest.raises(interp.InputError, match=words):
            source_of(data, **options)
    with pytest.raises(interp.InputError, match="has no <image>"):
        open_row(source_of(table, columns={"text": "kind"}).read(0, 1)[0])


def test_a_captured_data_set_is_that_of_its_scenes(toy):
    scenes = interp.toy.scenes(3, seed=4)
    table = datasets.Dataset.from_list([{"image": scene.image, "id": scene.id, **{"n": 1}} for scene in scenes])
    acts, expected = (interp.capture(toy, data, progress=False) for data in (table, scenes))
    assert (acts["resid"] == expected["resid"]).all()
    assert acts.ids == expected.ids
    assert acts.labels == {"n": [1, 1, 1]}


# Files -------------------------------------------------------------------------------------------------------------------


def test_parquet_files_are_streamed(table, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.Image, "decode_example", lambda *_, **__: pytest.fail("a picture was decoded"))
    table.to_parquet(tmp_path / "one.parquet")
    rows = source_of(tmp_path / "one.parquet", columns={"label": "kind"}, prompt="<image> {share}").read(0, 9)
    assert [row.text for row in rows] == [f"<image> {index / 2}" for index in range(7)]
    assert [row.labels["label"] for row in rows] == ["cat", "dog"] * 3 + ["cat"]
    assert [open_row(row)[0].getpixel((0, 0))[0] for row in rows] == list(range(7))
    (tmp_path / "data").mkdir()
    for number in (10, 9, 1):
        table.select([number % 7]).to_parquet(tmp_path / "data" / f"part-{number}.parquet")
    assert [row.text for row in source_of(tmp_path / "data").read(0, 9)] == [f"<image> number {n} ?" for n in (1, 2, 3)]


def write_tar(path, count, first=0):
    with tarfile.open(path, "w") as archive:
        for number in range(first, first + count):
            for ending, content in (("txt", f"cat {number}".encode()), ("png", as_png(number)), ("json", b'{"a": 1}')):
                entry = tarfile.TarInfo(f"{number:03d}.{ending}")
                entry.size = len(content)
                archive.addfile(entry, io.BytesIO(content))


def test_tars_of_webdataset_are_streamed(toy, tmp_path):
    write_tar(tmp_path / "a-2.tar", 7)
    write_tar(tmp_path / "a-10.tar", 2, first=7)
    rows = source_of(tmp_path, prompt="<image> {txt} ?").read(0, 20)
    assert [row.id for row in rows] == [f"{number:03d}" for number in range(9)]
    assert [(row.text, row.labels) for row in rows] == [(f"<image> cat {n} ?", {"txt": f"cat {n}"}) for n in range(9)]
    assert [open_row(row)[0].getpixel((0, 0))[0] for row in rows] == list(range(9))
    file = interp.Data(tmp_path / "a-2.tar", columns={"id": "txt"})
    assert [row.id for row in source_of(file).read(5, 20)] == ["cat 5", "cat 6"]
    acts = interp.capture(toy, file, progress=False)
    assert acts.ids == tuple(f"cat {number}" for number in range(7))


def add_to_tar(archive, name, content):
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    archive.addfile(entry, io.BytesIO(content))


def test_a_bad_picture_of_a_tar_is_its_rows_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.Image, "decode_example", lambda *_, **__: pytest.fail("a picture was decoded"))
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n"
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for number, content in enumerate((as_png(1), b"garbage", eps, as_png(2))):
            add_to_tar(archive, f"{number}.png", content)
    rows = source_of(tmp_path / "a.tar").read(0, 9)
    assert [open_row(rows[number])[0].getpixel((0, 0))[0] for number in (0, 3)] == [1, 2]
    for number in (1, 2):
        with pytest.raises(
            interp.InputError, match=rf"row {number} \('{number}'\): the image '{number}.png' is not an image"
        ):
            open_row(rows[number])


def test_a_file_names_pictures_of_its_own_folder_alone(tmp_path, monkeypatch):
    folder = tmp_path / "data"
    (folder / "in").mkdir(parents=True)
    for path in (folder / "in" / "a.png", tmp_path / "out.png"):
        path.write_bytes(as_png(7))
    names = [
        "in/a.png",
        "../out.png",
        str(tmp_path / "out.png"),
        f"file://{tmp_path}/out.png",
        "http://127.0.0.1:9/a.png",
    ]
    names.append(str(folder / "in" / "a.png"))
    features = datasets.Features({"image": datasets.Image()})
    cells = {"image": [{"bytes": None, "path": name} for name in names]}
    # to_parquet would put the pictures into the file.
    pq.write_table(datasets.Dataset.from_dict(cells, features=features).data.table, folder / "a.parquet")
    with tarfile.open(folder / "a.tar", "w") as archive:
        for number, name in enumerate(names):
            add_to_tar(archive, f"{number}.json", json.dumps({"bytes": 3, "path": name}).encode())
    monkeypatch.chdir(tmp_path)
    sources = {"data/a.parquet": {}, folder / "a.parquet": {}, folder / "a.tar": {"columns": {"image": "json"}}}
    for source, options in sources.items():
        for root in (None, folder):
            rows = source_of(interp.Data(source, root=root, **options)).read(0, 9)
            assert [open_row(rows[number])[0].getpixel((0, 0))[0] for number in (0, 5)] == [7, 7]
            for number, words in ((1, "leads out"), (2, "leads out"), (3, "and no URL"), (4, "and no URL")):
                with pytest.raises(interp.InputError, match=rf"row {number} .* names the picture .*{words}"):
                    open_row(rows[number])
    assert open_row(source_of(interp.Data(folder / "a.parquet", root=tmp_path)).read(2, 3)[0])


def test_names_of_files_are_no_patterns(tmp_path, table):
    for number, name in enumerate(("a[1].parquet", "a1.parquet", "b*.parquet", "bc.parquet")):
        table.select([number]).to_parquet(tmp_path / name)
    for number, name in ((0, "a[1].parquet"), (2, "b*.parquet")):
        assert [row.text for row in source_of(tmp_path / name).read(0, 9)] == [f"<image> number {number} ?"]


def test_a_parquet_file_without_rows_is_empty(tmp_path, table):
    table.select([]).to_parquet(tmp_path / "a.parquet")
    with pytest.raises(interp.InputError, match="data is empty"):
        source_of(tmp_path / "a.parquet")


def test_names_of_files_may_have_any_digits(tmp_path):
    for name in ("²1.tar", "10.tar", "2.tar"):
        write_tar(tmp_path / name, 1, first=int(name[0] == "1"))
    assert [row.id for row in source_of(tmp_path).read(0, 9)] == ["000", "001", "000"]


def test_files_that_cannot_be_read(tmp_path, table):
    for name in ("bad.parquet", "bad.tar"):
        (tmp_path / name).write_bytes(b"neither")
        with pytest.raises(
            interp.InputError, match=rf"{name}' cannot be read .*expected the format of (parquet|webdataset)"
        ) as caught:
            source_of(tmp_path / name)
        assert "\n" not in str(caught.value)
    write_tar(tmp_path / "whole.tar", 40)
    content = (tmp_path / "whole.tar").read_bytes()
    (tmp_path / "half.tar").write_bytes(content[: len(content) // 2 + 700])
    with pytest.raises(interp.InputError, match=r"half.tar' cannot be read to its end"):
        source_of(tmp_path / "half.tar").read(0, 40)


def test_files_need_the_package(tmp_path, monkeypatch):
    write_tar(tmp_path / "a.tar", 1)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(interp.InputError, match=r"a.tar' is read with the datasets package: pip install datasets"):
        source_of(tmp_path / "a.tar")
