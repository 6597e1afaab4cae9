"""Which rows go together depends on the data alone; a batch that does not fit in memory is halved."""

import warnings
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import interp
from interp.activations.portions import WINDOW, Halving, Piece, pieces, portions, shard_rows
from interp.data.sources import source_of


def texts(count):
    return [(None, "a red 3 at top . " * (1 + number % 5) + "where is the 3 ?") for number in range(count)]


def composed(toy, data, batch_size, size, only=None):
    """The rows of each batch, shard by shard."""
    made = []
    for index, read in enumerate(portions(source_of(data), size)):
        if only is None or index in only:
            made.append([piece.numbers for piece, *_ in pieces(toy, read(), batch_size, False, None)])
    return made


@given(st.integers(1, 70), st.booleans(), st.one_of(st.none(), st.integers(1, 500)))
def test_a_shard_is_whole_windows(batch_size, pooled, wanted):
    size = shard_rows(batch_size, pooled, wanted)
    assert size % (WINDOW * batch_size) == 0
    assert size >= (wanted or 1)


def test_rows_of_like_length_share_a_batch(toy):
    (shard,) = composed(toy, texts(10), batch_size=2, size=16)
    assert sorted(number for batch in shard for number in batch) == list(range(10))
    assert all(number < 8 for batch in shard[:4] for number in batch)  # the first window
    # of equal rows the first come first
    assert shard[:4] == [(0, 5), (1, 6), (2, 7), (3, 4)]


def test_a_shard_is_the_same_whichever_process_makes_it(toy):
    whole = composed(toy, texts(37), batch_size=2, size=8)
    assert len(whole) == 5
    for index in range(5):
        assert composed(toy, texts(37), batch_size=2, size=8, only={index}) == [whole[index]]


def test_batches_in_hand_stay_as_they_are(toy):
    batches = [toy.prepare(texts=[text for _, text in texts(rows)]) for rows in (3, 1, 2, 5, 4)]
    made = [read() for read in portions(source_of(batches), size=5)]
    assert [(portion.first, len(portion.batches), portion.ids[0]) for portion in made] == [(0, 4, "0"), (11, 1, "11")]
    found = [piece for portion in made for piece, *_ in pieces(toy, portion, 1, False, None)]
    assert [piece.batch for piece in found] == batches
    assert [number for piece in found for number in piece.numbers] == list(range(15))


def test_a_picture_counts_for_its_size(toy, few):
    alone = toy.length_of("where ?")
    assert toy.length_of("<image> where ?", [few[0].image]) >= alone + 36


# Memory ------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def cramped(toy):
    """The toy on a device that holds few rows at a time: `cramped(limit)`."""
    handles = []

    def cramp(limit):
        def refuse(_, arguments, named):
            held = (arguments[0] if arguments else named["hidden_states"]).shape[0]
            if held > limit:
                raise torch.OutOfMemoryError(f"CUDA out of memory. Tried to allocate {held} rows.")

        layer = toy.model.get_submodule(f"{toy.structure.layers}.3")
        handles.append(layer.register_forward_pre_hook(refuse, with_kwargs=True))

    yield cramp
    for handle in handles:
        handle.remove()


@pytest.mark.parametrize("kind", ["texts", "scenes", "batches", "mask"])
def test_batches_are_halved_until_they_fit_with_one_warning(toy, cramped, kind, tmp_path):
    scenes = interp.toy.scenes(11, seed=2)
    batch = toy.prepare(texts=[text for _, text in texts(11)])
    data = {"texts": texts(11), "scenes": scenes}.get(kind, [batch])
    positions = batch.positions["question"] if kind == "mask" else "all"
    options = {"positions": positions, "batch_size": 8, "reduce": "none", "progress": False}
    wanted = interp.capture(toy, data, **options)
    cramped(3)
    with pytest.warns(UserWarning, match="rows do not fit in memory .CUDA out of memory") as caught:
        acts = interp.capture(toy, data, out=tmp_path / "acts", **options)
    assert len(caught) == 1
    assert acts.manifest["run"]["batches_halved_to"] in (2, 3)
    assert torch.equal(acts.rows, wanted.rows)
    assert torch.equal(acts.columns, wanted.columns)
    torch.testing.assert_close(acts["resid"][...], wanted["resid"], rtol=1e-5, atol=1e-4)


def test_one_row_that_does_not_fit(toy, cramped):
    cramped(0)
    with (
        pytest.warns(UserWarning, match="do not fit"),
        pytest.raises(interp.InputError, match="row 0 alone does not fit"),
    ):
        interp.capture(toy, texts(4), positions="all", progress=False)


def test_another_error_is_not_taken_for_a_lack_of_memory(toy):
    def fail(piece):
        raise RuntimeError("a kernel failed")

    piece = Piece(toy.prepare(texts=["a", "b"]), (0, 1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(RuntimeError, match="a kernel failed"):
            Halving(warnings.warn).run(piece, fail)


def test_what_fits_is_known_from_then_on(toy):
    seen = []

    def run(limit, piece):
        seen.append(len(piece.numbers))
        if len(piece.numbers) > limit:
            raise MemoryError
        return piece.numbers

    piece = Piece(toy.prepare(texts=[text for _, text in texts(8)]), tuple(range(8)))
    halving = Halving(lambda said: None)
    for _ in range(2):
        assert [number for part in halving.run(piece, partial(run, 2)) for number in part] == list(range(8))
    assert seen == [8, 4, 2, 2, 2, 2, 2, 2, 2, 2]
