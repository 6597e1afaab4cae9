"""A row that is at fault by itself is skipped, or named as the data names it; what is no row's fault stops the run at once."""

import json

import pytest
import torch
from PIL import Image

import interp
from interp.activations import capturing
from interp.interventions import Ablate, Knockout, Skip, Steer
from models.test_families import family, picture

GOOD = [(picture(seed=1), "<image> a"), (picture(seed=2), "<image> what colour is it ?"), (picture(seed=3), "<image>")]
TEXT = (None, "a red 3 at top .")
WIDE = (Image.new("RGB", (4000, 4)), "<image> wide")  # Qwen's processor takes no picture of more than 200 : 1


def run(vlm, data, **options):
    options = {"on_error": "skip", "layers": [0, 1], "progress": False, **options}
    return interp.capture(vlm, data, **options)


def skipped(acts):
    return [each["row"] for each in acts.manifest["skipped"]]


def among(rows, *places):
    """The good rows, with these rows at these places."""
    data = list(GOOD)
    for place, row in zip(places, rows, strict=True):
        data.insert(place, row)
    return data


@pytest.mark.parametrize("batch_size", [1, 2, 8])
@pytest.mark.parametrize("places", [(0,), (1,), (3,), (0, 1, 4)])
def test_rows_without_a_selected_position_are_left_out(toy, batch_size, places):
    """The others are what they are without them: to the last digits, for they share their batches with others."""
    data = among([TEXT] * len(places), *places)
    acts = run(toy, data, batch_size=batch_size)
    assert skipped(acts) == list(places)
    kept = [str(row) for row in range(len(data)) if row not in places]
    assert list(acts.ids) == kept
    alone = interp.capture(toy, GOOD, layers=[0, 1], batch_size=batch_size, progress=False)
    torch.testing.assert_close(acts["resid"][:], alone["resid"][:], rtol=1e-5, atol=1e-5)
    for each in acts.manifest["skipped"]:
        assert each["id"] == str(each["row"])
        assert f"selects no position of row {each['row']} ('{each['row']}')" in each["error"]


@pytest.mark.parametrize(
    ("options", "faulty"),
    [
        ({"sites": "vision"}, [3, 4]),
        ({"sites": "projector", "reduce": "none"}, [3, 4]),
        ({"sites": ("resid", "vision"), "positions": "all"}, [3, 4]),
        ({"reduce": "none"}, [3, 4]),
        ({"reduce": "sample"}, [3, 4]),
        ({"positions": [6]}, [4]),
        ({"positions": "image_0"}, [3, 4]),
        ({"positions": "last_image"}, [3, 4]),
        ({"positions": "all", "interventions": [Ablate(site="resid_pre", layers=0, positions=[6])]}, [4]),
    ],
    ids=str,
)
def test_what_a_row_lacks_depends_on_what_is_asked_for(toy, options, faulty):
    data = [*GOOD, TEXT, (None, "a red 3")]
    options = {"layers": {"resid": [0], "vision": [0], "projector": [0]}, **options}
    names = [options.get("sites", "resid")] if isinstance(options.get("sites", ""), str) else options["sites"]
    options["layers"] = {site: [0] for site in (names if names != [""] else ["resid"])}
    assert skipped(run(toy, data, **options)) == faulty


def test_rows_without_a_second_image(toy):
    two = [[picture(seed=4), picture(seed=5)], picture(seed=6)]
    data = [(GOOD[0][0], "<image>"), (two[0], "<image> <image>"), TEXT]
    for batch_size in (1, 8):
        assert skipped(run(toy, data, positions="image_1", batch_size=batch_size)) == [0, 2]


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_a_picture_that_the_processor_refuses(batch_size):
    vlm = family("qwen2_vl")
    acts = run(vlm, among([WIDE, WIDE], 0, 2), batch_size=batch_size)
    assert skipped(acts) == [0, 2]
    assert "row 2 ('2'): the processor refuses" in acts.manifest["skipped"][1]["error"]
    items = [
        {"id": f"photo {number}", "image": image, "text": text} for number, (image, text) in enumerate([*GOOD, WIDE])
    ]
    with pytest.raises(interp.InputError, match=r"^row 3 \('photo 3'\): the processor refuses .*aspect ratio"):
        run(vlm, items, batch_size=batch_size, on_error="raise")
    with pytest.raises(interp.InputError, match=r"^row 1: the processor refuses"):
        vlm.prepare(["<image>", "<image>", "<image>"], [GOOD[0][0], WIDE[0], GOOD[0][0]])


def test_a_text_that_the_processor_breaks():
    vlm = family("paligemma")
    data = [(GOOD[0][0], "<image> a"), (None, "just a question"), (None, "more"), (GOOD[1][0], "<image> b")]
    assert skipped(run(vlm, data, positions="text")) == [1, 2]
    with pytest.raises(interp.InputError, match=r"^row 1 \('1'\) has no image, and the processor breaks its text"):
        run(vlm, data, positions="text", on_error="raise")


def test_rows_that_are_none(toy):
    data = [GOOD[0], (GOOD[1][0], float("nan")), (GOOD[1][0],), [GOOD[1][0], "<image>"], None, 5, GOOD[2]]
    assert skipped(run(toy, data)) == [1, 2, 3, 4, 5]
    assert skipped(run(toy, iter(data))) == [1, 2, 3, 4, 5]
    assert skipped(run(toy, [{"image": GOOD[0][0]}, None, {"image": GOOD[1][0]}])) == [1]
    items = [{"id": name, "image": GOOD[0][0]} for name in ("x", None, "z")]
    assert skipped(run(toy, items)) == [1]
    with pytest.raises(interp.InputError, match="row 1 has no id"):
        run(toy, items, on_error="raise")
    # Objects have no addresses in a manifest: another run writes the same.
    assert [run(toy, data).manifest["skipped"] for _ in range(2)] == [run(toy, data).manifest["skipped"]] * 2


def test_all_rows_at_fault(toy):
    with pytest.raises(interp.InputError, match=r"none of 3 rows .* row 0 \('0'\)"):
        run(toy, [TEXT] * 3)
    with pytest.raises(interp.InputError, match=r"row 0 \('0'\)"):
        run(toy, [TEXT] * 3, on_error="raise")


def test_rows_of_batches(toy):
    texts, images = [text for _, text in [*GOOD, TEXT]], [image for image, _ in [*GOOD, TEXT]]
    batches = [toy.prepare(texts, images), toy.prepare(texts[::-1], images[::-1])]
    assert skipped(run(toy, batches)) == [3, 4]
    with pytest.raises(interp.InputError, match=r"row 3 \('3'\)"):
        run(toy, batches, on_error="raise")


def test_a_folder_is_the_same_wherever_a_run_was_stopped(toy, tmp_path):
    """Shards of which no row is left too; the hash of the data is that of the captured rows, whatever their batches."""
    data = [*GOOD, *[TEXT] * 20, *GOOD]
    options = {"rows_per_shard": 8, "batch_size": 2}
    whole = run(toy, data, out=tmp_path / "a", **options)
    assert skipped(whole) == list(range(3, 23))
    assert [each["rows"] for each in whole.manifest["shards"]] == [3, 0, 1, 2]
    (tmp_path / "a" / "shard-00000.safetensors").unlink()
    again = run(toy, data, out=tmp_path / "a", **options)
    memory = run(toy, data, batch_size=5)
    assert again.ids == whole.ids == memory.ids
    assert again.manifest["data"] == whole.manifest["data"] == memory.manifest["data"]
    manifest = json.loads((tmp_path / "a" / "manifest.json").read_text())
    assert [each["row"] for each in manifest["skipped"]] == list(range(3, 23))
    assert torch.equal(again["resid"][:], whole["resid"][:])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"positions": "nonsense"}, "positions='nonsense' is unknown"),
        ({"chat": True}, "has no chat template"),
        ({"positions": 1.5}, "positions=1.5: expected"),
        ({"interventions": [Ablate(site="resid_pre", layers=99, positions="all")]}, "99"),
    ],
    ids=str,
)
def test_what_is_no_fault_of_a_row_stops_at_once(toy, monkeypatch, options, words):
    opened = []
    prepare = type(toy).prepare
    monkeypatch.setattr(type(toy), "prepare", lambda *a, **k: (opened.append(1), prepare(*a, **k))[1])
    with pytest.raises(interp.InputError, match=words):
        run(toy, GOOD * 4, batch_size=2, **options)
    assert len(opened) <= 1


def test_no_memory_and_a_broken_model_are_no_fault_of_a_row(toy, monkeypatch):
    for error, expected in ((MemoryError(), "does not fit in memory"), (RuntimeError("broken"), "broken")):

        def fail(*_, error=error, **__):
            raise error

        monkeypatch.setattr(capturing, "extract", fail)
        with pytest.raises((interp.InputError, RuntimeError), match=expected):
            run(toy, GOOD, batch_size=1)


ACTS_ON_IMAGES = [
    Ablate(site="resid_pre", layers=0, positions="image"),
    Knockout(source="image", target="after_image", layers="all"),
    Skip(layers=1, positions="last_image"),
    Steer(direction=torch.ones(128), layers=0, positions="image_0", scale=9.0),
]


@pytest.mark.parametrize("edit", ACTS_ON_IMAGES, ids=lambda each: type(each).__name__)
@pytest.mark.parametrize("on_error", ["raise", "skip"])
def test_rows_that_an_intervention_does_not_reach_stay_as_they_are(toy, tmp_path, edit, on_error):
    """Whichever rows share a batch: alone, such a row is what it is without the intervention, and beside others too."""
    data, options = among([TEXT, TEXT], 1, 4), {"positions": "all", "layers": [3], "on_error": on_error}
    plain, alone, mixed, stored = (
        run(toy, data, **options, batch_size=size, interventions=edits, out=out)["resid"][:]
        for size, edits, out in ((1, [], None), (1, [edit], None), (8, [edit], None), (1, [edit], tmp_path / "acts"))
    )
    torch.testing.assert_close(alone, mixed, rtol=1e-5, atol=1e-5)
    assert torch.equal(alone, stored)
    assert torch.equal(alone[0, [1, 4]], plain[0, [1, 4]])
    assert not torch.isclose(alone[0, [0, 2]], plain[0, [0, 2]]).all(dim=1).any()


def test_an_intervention_that_reaches_no_row_at_all_is_refused(toy, tmp_path):
    """Also where the folder is opened again, or its shards were made one by one."""
    edits = [Skip(layers=1, positions="all"), *ACTS_ON_IMAGES[:1]]
    words = r"^Ablate\(.*positions='image'.*\) selects nothing in any row of the data"
    for options in ({}, {"out": tmp_path / "a"}, {"out": tmp_path / "a"}):
        with pytest.raises(interp.InputError, match=words):
            run(toy, [TEXT] * 5, positions="last", batch_size=1, rows_per_shard=4, interventions=edits, **options)
    data = [*[TEXT] * 5, GOOD[0]]  # the last shard has a row that it reaches
    assert len(run(toy, data, positions="last", batch_size=1, rows_per_shard=4, interventions=edits).ids) == 6
    with pytest.raises(interp.InputError, match="'image_1' selects nothing in this batch: no row has so many images"):
        toy.logits(toy.prepare(["<image>"], [GOOD[0][0]]), [Skip(layers=1, positions="image_1")])
    with pytest.raises(interp.InputError, match="is unknown"):
        run(toy, GOOD, interventions=[Skip(layers=1, positions="image_x")])


class Decoding:
    """A data set as torch has them: an item is made when it is read, and some cannot be made."""

    def __init__(self, items, faulty):
        self.items, self.faulty = items, faulty

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        if index in self.faulty:
            raise OSError(f"cannot decode '/data/own/{index}.png'")
        return self.items[index]


@pytest.mark.parametrize("faulty", [(0,), (1,), (0, 1, 3), (4,)])
@pytest.mark.parametrize("kind", [tuple, dict])
def test_items_that_a_data_set_cannot_make(toy, faulty, kind):
    items = [*GOOD, *GOOD[:2]]
    items = items if kind is tuple else [{"image": image, "text": text} for image, text in items]
    acts = run(toy, Decoding(items, faulty))
    assert skipped(acts) == list(faulty)
    assert acts.manifest["skipped"][0]["error"].startswith(
        f"row {faulty[0]} ('{faulty[0]}'): it cannot be read (OSError("
    )
    assert "/data/own" not in str(acts.manifest["skipped"])
    with pytest.raises(interp.InputError, match=f"row {faulty[0]} .*it cannot be read .*cannot decode"):
        run(toy, Decoding(items, faulty), on_error="raise")
    with pytest.raises(
        interp.InputError, match="none of 5 rows of the data can be read, of the first it cannot be read"
    ):
        run(toy, Decoding(items, range(5)))
