"""Errors can be caught as errors of this package and as those that a caller expects, and name a value in one line."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import interp
from interp.errors import shown


def test_every_error_is_an_interp_error():
    assert issubclass(interp.InputError, interp.InterpError)
    assert issubclass(interp.InputError, ValueError)
    assert issubclass(interp.InputTypeError, interp.InterpError)
    assert issubclass(interp.InputTypeError, TypeError)
    assert issubclass(interp.LayoutError, interp.InterpError)


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
