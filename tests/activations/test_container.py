"""Parts of activations and their joins, in memory and in a folder."""

import numpy as np
import pytest
import torch

import interp
from interp.errors import InputTypeError


@pytest.fixture(scope="module", params=["memory", "folder"])
def acts(request, toy, tmp_path_factory):
    """Each text token of seven captions, and their mean states."""
    out = None if request.param == "memory" else tmp_path_factory.mktemp("acts") / "none"
    data = interp.toy.scenes(7, seed=21).captions()
    return interp.capture(
        toy, data, ("resid", "mlp_out"), "text", "none", batch_size=1, out=out, rows_per_shard=2, progress=False
    )


def test_rows_are_selected_in_any_order(acts):
    part = acts.select(rows=[5, 2])
    assert part.ids == (acts.ids[5], acts.ids[2])
    assert part.rows.unique_consecutive().tolist() == [0, 1]
    for row, was in enumerate((5, 2)):
        assert torch.equal(part["resid"][...][:, part.rows == row], acts["resid"][...][:, acts.rows == was])
        assert torch.equal(part.columns[part.rows == row], acts.columns[acts.rows == was])
        assert all(values[row] == acts.labels[name][was] for name, values in part.labels.items())
    mask = torch.tensor([row in (2, 5) for row in range(7)])
    for same in (acts.select(mask), acts.select(mask.numpy()), acts.select([acts.ids[2], acts.ids[5]])):
        assert torch.equal(same["resid"][...], acts.select(rows=[2, 5])["resid"][...])
    assert torch.equal(part.select(rows=1)["resid"][...], acts.select(rows=2)["resid"][...])


def test_rows_come_from_lists_arrays_and_frames(acts):
    frame = acts.to_frame().drop_duplicates("row")
    chosen = frame[frame["row"].isin([2, 5])]
    for rows in (
        [row in (2, 5) for row in range(7)],
        frame["row"].isin([2, 5]),
        chosen["row"],
        chosen["id"],
        np.array([acts.ids[2], acts.ids[5]]),
    ):
        assert acts.select(rows=rows).ids == (acts.ids[2], acts.ids[5])
    name = next(iter(acts.labels))
    values = list(set(acts.labels[name]))
    assert acts.select(where={name: np.array(values)}).ids == acts.ids


def test_a_site_that_was_not_captured_is_simply_not_there(acts):
    assert "resid" in acts
    assert "z" not in acts
    assert acts.get("z") is None
    assert acts.get("mlp_out") is acts["mlp_out"]


def test_rows_are_selected_by_label(acts):
    name = next(iter(acts.labels))
    value = acts.labels[name][0]
    part = acts.select(where={name: value})
    assert set(part.labels[name]) == {value}
    assert len(part.ids) == list(acts.labels[name]).count(value)
    assert acts.select(where={name: list(set(acts.labels[name]))}).ids == acts.ids


def test_layers_and_sites_are_selected(acts):
    part = acts.select(layers=[8, 3], sites="resid")
    assert part.layers == {"resid": (8, 3)}
    assert list(part) == ["resid"]
    assert torch.equal(part["resid"][...], acts["resid"][...][[8, 3]])
    assert torch.equal(part.select(layers=3)["resid"][...], acts["resid"][...][[3]])


def test_concat_undoes_select(acts):
    joined = acts.select(rows=range(3)).concat(acts.select(rows=[3]), acts.select(rows=[4, 5, 6]))
    assert joined.ids == acts.ids
    assert torch.equal(joined.rows, acts.rows)
    assert torch.equal(joined["mlp_out"][...], acts["mlp_out"][...])
    assert joined.labels == acts.labels
    assert len(joined.manifest["parts"]) == 3


def test_joined_parts_say_where_all_of_them_came_from(acts, toy):
    cut = [interp.interventions.Ablate(site="resid_pre", layers=1, positions="text")]
    data = interp.toy.scenes(2, seed=4).captions()
    other = interp.capture(
        toy, data, ("resid", "mlp_out"), "text", "none", batch_size=1, interventions=cut, progress=False
    )
    joined = acts.concat(other, acts).provenance
    assert joined.data == f"{acts.provenance.data} + {other.provenance.data}"
    assert joined.interventions == other.provenance.interventions


def test_the_frame_names_each_example(acts):
    frame = acts.to_frame()
    assert len(frame) == acts["resid"].shape[1]
    assert frame["id"].tolist() == [acts.ids[row] for row in acts.rows]
    assert set(acts.labels) <= set(frame.columns)


def test_provenance_is_that_of_the_run(acts):
    assert (acts.provenance.model, acts.provenance.seed) == ("toy", 0)
    assert acts.provenance.data == acts.manifest["data"]
    assert acts.provenance.versions["torch"] == torch.__version__


def test_it_is_shown_in_one_line(acts):
    assert repr(acts).count("\n") == 0
    assert "7 rows of 'toy'" in repr(acts)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"rows": [7]}, r"rows=\[7\]: expected numbers from 0 to 6"),
        ({"rows": ["nobody"]}, "row 'nobody' is unknown: ids are"),
        ({"rows": []}, "selects none of 7 rows"),
        ({"rows": torch.ones(3, dtype=torch.bool)}, r"shape \(3,\)"),
        ({"where": {"size": 1}}, "label 'size' is unknown"),
        ({"where": {"count": "many"}}, "no row has 'many' as its label 'count'"),
        ({"rows": [True, False]}, r"shape \(2,\)"),
        ({"layers": []}, r"layers=\[\] of 'resid'"),
        ({"sites": []}, r"sites=\[\] selects none"),
        ({"layers": 9}, "layers=9 of 'resid': expected some of 0, 1"),
        ({"sites": "resid_pre"}, "'resid_pre' was not captured"),
    ],
)
def test_what_cannot_be_selected(acts, arguments, words):
    with pytest.raises(interp.InputError, match=words):
        acts.select(**arguments)


def test_what_cannot_be_joined(acts, toy):
    other = interp.capture(toy, [(None, "a red 3")], "resid", "text", "none", progress=False)
    with pytest.raises(interp.InputError, match="sites are"):
        acts.concat(other)
    with pytest.raises(interp.InputError, match="layers are"):
        acts.select(layers=[1, 2]).concat(acts)
    with pytest.raises(interp.InputTypeError, match="list is joined"):
        acts.concat([acts])


@pytest.mark.usefixtures("unchecked")
def test_what_is_no_site_is_refused_with_the_sites_there_are(toy, few):
    acts = interp.capture(toy, few, progress=False)
    for key, seen in [
        (..., r"acts\[\.\.\.\]"),
        (0, r"acts\[0\]"),
        (slice(3), r"acts\[slice.*\]"),
        (("resid", 3), r"acts\[\('resid', 3\)\]"),
    ]:
        with pytest.raises(
            InputTypeError, match=seen + r": expected the name of a site .*acts\['resid'\]\[\.\.\.\]; these have resid"
        ):
            acts[key]
    for make in (np.asarray, torch.as_tensor, torch.tensor, torch.from_dlpack):
        with pytest.raises(InputTypeError, match=r"activations are not an array.*acts\['resid'\]\[\.\.\.\]"):
            make(acts)
    assert ("resid" in acts, ... in acts, [] in acts, list(acts), len(acts)) == (True, False, False, ["resid"], 1)
