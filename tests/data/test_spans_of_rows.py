"""Spans as templates: columns of the data name parts of each row's text, whatever the data come from."""

import csv
import json

import pytest
import torch

import interp
from interp.data.batches import batches_of

SPANS = {"object": "{colour} {digit}", "asked": "the {digit}"}
ROWS = [
    {"text": f"a {colour} {digit} at top . where is the {digit} ?", "colour": colour, "digit": digit}
    for colour, digit in (("red", "3"), ("blue", "7"), ("green", "5"))
]


def said(batch, name):
    """The words of a span, row by row."""
    pairs = zip(batch.tokens, batch.positions[name], strict=True)
    return [" ".join(t for t, chosen in zip(tokens, mask, strict=True) if chosen) for tokens, mask in pairs]


def as_csv(folder):
    with open(folder / "rows.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, list(ROWS[0]))
        writer.writeheader()
        writer.writerows(ROWS)
    return folder / "rows.csv"


def as_jsonl(folder):
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, ROWS)))
    return folder / "rows.jsonl"


def as_table(folder):
    return pytest.importorskip("datasets").Dataset.from_list(ROWS)


def as_stream(folder):
    return as_table(folder).to_iterable_dataset()


@pytest.mark.parametrize("source", [lambda folder: ROWS, as_csv, as_jsonl, as_table, as_stream])
def test_a_template_is_filled_with_each_rows_columns(toy, tmp_path, source):
    (batch,) = batches_of(toy, interp.Data(source(tmp_path), spans=SPANS), 3)
    assert said(batch, "object") == ["red 3", "blue 7", "green 5"]
    assert said(batch, "asked") == ["the 3", "the 7", "the 5"]


def test_spans_refer_to_the_text_that_the_prompt_writes(toy):
    prompt = "is there a {colour} {digit} ? the {digit} is"
    (batch,) = batches_of(toy, interp.Data(ROWS, prompt=prompt, spans=SPANS), 3)
    assert said(batch, "object") == ["red 3", "blue 7", "green 5"]


def test_a_capture_reads_a_span_of_sorted_rows(toy, tmp_path):
    """Scenes have columns too. Rows are sorted by their lengths, and each keeps its own span."""
    scenes = interp.toy.scenes(12, seed=3).captions()
    data = interp.Data(scenes, spans={"first": "{colour} {digit}"})
    acts = interp.capture(toy, data, positions="first", batch_size=5, progress=False)
    for row, scene in enumerate(scenes):
        item = scene.objects[0]
        batch = toy.prepare([scene.caption], spans={"it": f"{item.colour} {item.digit}"})
        alone = interp.capture(toy, [batch], positions="it", progress=False)
        torch.testing.assert_close(acts["resid"][:, row], alone["resid"][:, 0], atol=1e-4, rtol=1e-4)
    written = interp.capture(toy, data, positions="first", batch_size=5, progress=False, out=tmp_path / "acts")
    assert written.manifest["spans"] == {"first": "{colour} {digit}"}
    torch.testing.assert_close(written["resid"][...], acts["resid"][...])
    other = interp.Data(scenes, spans={"first": "{digit}"})
    with pytest.raises(interp.InputError, match="spans"):
        interp.capture(toy, other, positions="first", batch_size=5, progress=False, out=tmp_path / "acts")


def test_a_row_in_which_a_column_is_empty_has_no_such_span(toy):
    rows = [ROWS[0], {**ROWS[1], "colour": None}]
    (batch,) = batches_of(toy, interp.Data(rows, spans=SPANS), 2)
    assert said(batch, "object") == ["red 3", ""]
    assert said(batch, "asked") == ["the 3", "the 7"]


@pytest.mark.parametrize(
    ("spans", "error", "message"),
    [
        ("object", interp.errors.InputTypeError, "spans='object': expected a dict"),
        ({"object": 3}, interp.errors.InputTypeError, r"spans has \('object', 3\): expected a name and a text"),
        ({"object": ""}, interp.errors.InputTypeError, "expected a name and a text"),
        ({"object": "{size}"}, interp.InputError, r"spans\['object'\]='{size}' has the unknown field 'size': use "),
        ({"object": "{colour.x}"}, interp.InputError, "expected the plain name of a column in braces"),
        ({"object": "{colour"}, interp.InputError, r"spans\['object'\]="),
        ({"image": "{colour}"}, interp.InputError, "span 'image' has the name of a kind of position"),
        ({"object": "{colour} 9"}, interp.InputError, "'red 9' occurs 0 times in row 0"),
    ],
)
def test_what_is_no_template(toy, spans, error, message):
    with pytest.raises(error, match=message) as caught:
        batches_of(toy, interp.Data(ROWS, spans=spans), 3)
    assert "\n" not in str(caught.value)


def test_batches_have_spans_of_their_own(toy):
    batch = toy.prepare(texts=["a red 3"], spans={"object": "3"})
    with pytest.raises(interp.InputError, match="data is made of batches: leave columns="):
        batches_of(toy, interp.Data([batch], spans=SPANS), 1)


def test_a_row_without_the_words_of_its_span_is_skipped(toy):
    """It is named as the data names it, also where rows are sorted into batches."""
    rows = [
        {"id": f"r{n}", **row} for n, row in enumerate([*ROWS, {**ROWS[0], "text": "a blue 3 at left . and the 3 ?"}])
    ]
    wrong = "span 'object': 'red 3' occurs 0 times in row 3 ('r3'), "
    with pytest.raises(interp.InputError) as caught:
        interp.capture(toy, interp.Data(rows, spans=SPANS), positions="object", batch_size=2, progress=False)
    assert str(caught.value).startswith(wrong)
    data = interp.Data(rows, spans=SPANS, on_error="skip")
    acts = interp.capture(toy, data, positions="object", batch_size=2, progress=False)
    assert list(acts.ids) == ["r0", "r1", "r2"]
    assert wrong in str(acts.manifest["skipped"])
