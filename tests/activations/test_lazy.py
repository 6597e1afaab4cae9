"""A tensor in parts is indexed as torch indexes the whole of it, and reads no more than it must."""

import itertools
import time

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import interp
from interp.activations.lazy import LazyTensor, Part

WHOLE = torch.arange(5 * 11 * 3.0).reshape(5, 11, 3)
CUTS = (0, 4, 4, 5, 11)


def stored(reads=None):
    def part(start, stop):
        def read(states, examples):
            if reads is not None:
                reads.append((start, states, examples))
            return WHOLE[:, start:stop][states, examples]

        return Part(read, stop - start)

    return LazyTensor([part(*cut) for cut in itertools.pairwise(CUTS)], WHOLE.shape, WHOLE.dtype)


def axis(size):
    number = st.integers(-size, size - 1)
    numbers = st.lists(number, max_size=6)
    return st.one_of(number, numbers, st.slices(size).filter(lambda s: (s.step or 1) > 0))


@given(axis(5), axis(11))
def test_indexing_is_torchs(states, examples):
    outer = isinstance(states, list) and isinstance(examples, list)  # which torch would take as pairs
    wanted = WHOLE[states][:, examples] if outer else WHOLE[states, examples]
    assert torch.equal(stored()[states, examples], wanted)


@pytest.mark.parametrize(
    "key", [..., 2, (..., 1), (0, ..., 1), (1, 2, 0), (slice(None), slice(2, 9), slice(0, 2)), np.array([1, 0])]
)
def test_what_is_behind_the_examples_is_indexed_too(key):
    assert torch.equal(stored()[key], WHOLE[torch.as_tensor(key) if isinstance(key, np.ndarray) else key])


def test_an_index_may_be_a_number_of_numpy():
    assert torch.equal(stored()[np.int64(3), np.int32(6)], WHOLE[3, 6])


def test_a_mask_of_examples():
    mask = torch.arange(11) % 3 == 0
    assert torch.equal(stored()[:, mask], WHOLE[:, mask])


def test_only_what_is_needed_is_read():
    reads = []
    stored(reads)[3, 6:8]
    assert reads == [(5, slice(3, 4), slice(1, 3))]


def test_many_parts_cost_what_is_read_of_them():
    """Twenty thousand shards: one vector reads one of them, a state each of them once."""
    reads = []
    parts = [Part(lambda s, e, n=n: reads.append(n) or torch.full((1, 4), n)[s, e], 4) for n in range(20_000)]
    site = LazyTensor(parts, (1, 80_000), torch.int64)
    start = time.perf_counter()
    assert site[0, 41].item() == 10
    assert reads == [10]
    assert torch.equal(site[0], torch.arange(20_000).repeat_interleave(4))
    assert len(reads) == 20_001
    assert time.perf_counter() - start < 2


def test_views_and_joins_are_unread_until_they_are_indexed():
    reads = []
    view = stored(reads).narrowed([4, 0], torch.tensor([10, 2, 2]))
    both = view.joined(view.narrowed(None, torch.tensor([0])))
    assert reads == []
    assert both.shape == (2, 4, 3)
    wanted = WHOLE[[4, 0]][:, [10, 2, 2]]
    assert torch.equal(view[...], wanted)
    assert torch.equal(both[...], torch.cat([wanted, wanted[:, :1]], dim=1))
    with pytest.raises(interp.InputError, match="cannot be joined"):
        view.joined(stored())


def test_a_later_axis_that_differs_is_filled_up_with_zeros():
    parts = [Part(lambda s, e, n=n: torch.ones(2, 3, n)[s, e], 3) for n in (2, 4)]
    site = LazyTensor(parts, (2, 6, 4), torch.float32)
    assert site[0].sum(dim=1).tolist() == [2, 2, 2, 4, 4, 4]


def test_as_an_array_and_state_by_state():
    assert (np.asarray(stored()) == WHOLE.numpy()).all()
    assert all(torch.equal(state, wanted) for state, wanted in zip(stored(), WHOLE, strict=True))
    half = LazyTensor([Part(lambda s, e: WHOLE.bfloat16()[s, e], 11)], WHOLE.shape, torch.bfloat16)
    assert np.asarray(half).dtype == np.float32


@pytest.mark.parametrize(
    ("key", "words"),
    [(5, "state index 5"), ((0, 11), "example index 11"), ((0, 0, 0, 0), "does not fit"), ("a", "state")],
)
def test_what_does_not_fit(key, words):
    with pytest.raises(interp.InputError, match=words):
        stored()[key]


def test_torch_takes_it_as_one_tensor():
    for make in (torch.as_tensor, torch.tensor, torch.from_dlpack):
        assert torch.equal(make(stored()), WHOLE)
    half = LazyTensor([Part(lambda s, e: WHOLE[s, e].bfloat16(), WHOLE.shape[1])], WHOLE.shape, torch.bfloat16)
    assert torch.equal(torch.as_tensor(half), WHOLE.bfloat16())
