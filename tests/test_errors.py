"""Errors can be caught as errors of this package and as those that a caller expects, and name a value in one line."""

import copy
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import interp
from interp.errors import RowError, for_each_row, is_out_of_memory, reason_of, shown


def test_every_error_is_an_interp_error():
    assert issubclass(interp.InputError, interp.InterpError)
    assert issubclass(interp.InputError, ValueError)
    assert issubclass(interp.InputTypeError, interp.InterpError)
    assert issubclass(interp.InputTypeError, TypeError)
    assert issubclass(interp.LayoutError, interp.InterpError)


def test_an_error_of_rows_names_each_as_its_batch_or_its_data_does():
    error = RowError({2: ("position 9: ", " has 5 real tokens"), 4: ("", " has no image")})
    assert issubclass(RowError, interp.InputError)
    for each in (error, pickle.loads(pickle.dumps(error)), copy.deepcopy(error)):
        assert str(each) == "position 9: row 2 has 5 real tokens"
        assert each.messages("abcde") == {2: "position 9: c has 5 real tokens", 4: "e has no image"}


@pytest.mark.parametrize(
    ("error", "memory"),
    [
        (MemoryError(), True),
        (torch.OutOfMemoryError("CUDA"), True),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), True),
        (RuntimeError("broken"), False),
        (ValueError(), False),
    ],
    ids=repr,
)
def test_an_error_of_memory_is_known(error, memory):
    assert is_out_of_memory(error) == memory


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (torch.ones(2, 3), "Tensor of shape (2, 3)"),
        (np.ones(4), "ndarray of shape (4,)"),
        (torch.tensor(3), "tensor(3)"),
        ("a\nb", r"'a\nb'"),
        (None, "None"),
        ("x" * 200, "'" + "x" * 116 + "..."),
    ],
    ids=lambda value: str(value)[:10],
)
def test_a_value_is_shown_in_one_line(value, text):
    assert shown(value) == text


@given(st.one_of(st.text(), st.binary(), st.lists(st.text()), st.dictionaries(st.text(), st.floats())))
def test_no_value_takes_more_than_one_short_line(value):
    assert len(shown(value)) <= 120
    assert len(shown(value).splitlines()) == 1


def test_the_faults_of_all_rows_are_gathered():
    def halved(row):
        if row % 2:
            raise RowError({row: ("", " is odd")})
        return row // 2

    assert for_each_row(halved, 1) == [0]
    with pytest.raises(RowError, match=r"^row 1 is odd$") as caught:
        for_each_row(halved, 4)
    assert list(caught.value.faults) == [1, 3]


def test_an_error_of_another_package_becomes_a_part_of_a_line():
    assert reason_of(KeyError("a")) == "KeyError: 'a'"
    assert reason_of(OSError("so\n\tmany  words"), 14) == "OSError: so ma"
