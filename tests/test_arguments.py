"""Checks of arguments take a value in every form that is unambiguous, and refuse others in one line that holds the value."""

import math
import re

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from interp.arguments import (
    as_int,
    as_ints,
    as_number,
    checked_choice,
    checked_flag,
    checked_int,
    checked_number,
    checked_seed,
    checked_share,
)
from interp.errors import InputError, shown

INT_TYPES = (int, np.int64, np.array, torch.tensor)
FLOAT_TYPES = (float, np.float64, np.array, lambda value: torch.tensor(value, dtype=torch.float64))
NO_INTS = (None, "3", 3.0, np.float32(3), torch.tensor(3.0), True, np.True_, torch.tensor(True), [3], torch.ones(2))
NO_NUMBERS = (None, "3", True, np.False_, torch.tensor(True), [3.0], torch.ones(2), np.ones(2), 10**400, 1j)
anything = st.one_of(st.none(), st.text(), st.floats(), st.lists(st.integers()), st.booleans(), st.binary())


def refusal(check, *arguments, **options):
    """The message of a refusal, which must be one line."""
    with pytest.raises(InputError) as caught:
        check(*arguments, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


@given(st.integers(-(2**40), 2**40), st.sampled_from(INT_TYPES))
def test_an_int_may_come_from_numpy_or_torch(number, kind):
    value = kind(number)
    for result in (as_int(value), checked_int(value, "n", least=-(2**40))):
        assert type(result) is int
        assert result == number


@given(st.lists(st.integers(-100, 100), max_size=5))
def test_several_ints_come_in_any_container(numbers):
    tensor = torch.tensor(numbers, dtype=torch.long)
    for values in (numbers, tuple(numbers), np.array(numbers, dtype=int), tensor, list(tensor), iter(numbers)):
        assert as_ints(values) == numbers
    assert [as_ints(value) for value in numbers] == [[number] for number in numbers]
    assert as_ints([*numbers, 2.0]) is None
    assert as_ints([*numbers, True]) is None
    assert as_ints(np.array([*numbers, 0.5])) is None


@pytest.mark.parametrize("value", NO_INTS, ids=repr)
def test_no_float_no_bool_and_no_text_is_an_int(value):
    assert as_int(value) is None
    message = refusal(checked_int, value, "k", least=1)
    assert message == f"k={shown(value)}: expected an int of 1 or more"


@given(st.integers(-10, 10), st.integers(-10, 10), st.integers(-10, 10))
def test_an_int_stays_within_its_bounds(value, least, most):
    if least <= value <= most:
        assert checked_int(value, "k", least, most) == value
    else:
        expected = f"k={value}: expected a layer from {least} to {most}"
        assert refusal(checked_int, value, "k", least, most, "a layer") == expected
    if value < least:
        assert refusal(checked_int, value, "k", least) == f"k={value}: expected an int of {least} or more"


@given(st.floats(-1e38, 1e38), st.sampled_from(FLOAT_TYPES))
def test_a_number_may_come_from_numpy_or_torch(number, kind):
    value = kind(number)
    for result in (as_number(value), checked_number(value, "scale")):
        assert type(result) is float
        assert result == number


@pytest.mark.parametrize("value", NO_NUMBERS, ids=lambda value: shown(value)[:20])
def test_what_is_not_one_real_number(value):
    assert as_number(value) is None
    message = refusal(checked_number, value, "scale")
    assert message == f"scale={shown(value)}: expected a finite number in the range of float32"


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e39, np.float64(-1e300), torch.tensor(math.nan)])
def test_a_number_is_finite_as_float32(value):
    assert refusal(checked_number, value, "scale").startswith(f"scale={shown(value)}: expected a finite number")
    assert isinstance(as_number(value), float)


@given(st.text(max_size=5))
def test_a_choice_is_one_of_the_choices(value):
    choices = ("mean", "last", "")
    if value in choices:
        assert checked_choice(value, "reduce", choices) == value
    else:
        message = refusal(checked_choice, value, "reduce", choices)
        assert message == f"reduce={shown(value)} is unknown: use one of mean, last, "


def test_a_choice_has_the_type_of_the_choice():
    assert checked_choice(None, "strata", (None, "labels")) is None
    assert checked_choice(1, "k", (1, 2)) == 1
    for value in (True, 1.0, np.int64(1), "1", ["mean"], np.ones(2)):
        assert refusal(checked_choice, value, "k", (1, 2)) == f"k={shown(value)} is unknown: use one of 1, 2"


@pytest.mark.parametrize("value", [1, 0, "True", "no", None, np.True_, torch.tensor(True)], ids=repr)
def test_a_flag_is_true_or_false(value):
    assert checked_flag(True, "resume") is True
    assert checked_flag(False, "resume") is False
    assert refusal(checked_flag, value, "resume") == f"resume={shown(value)}: expected True or False"


@given(st.integers(0, 2**32 - 1), st.sampled_from(INT_TYPES))
def test_a_seed_is_an_int_that_all_generators_take(seed, kind):
    result = checked_seed(kind(seed))
    assert type(result) is int
    assert result == seed
    np.random.default_rng(result)
    np.random.RandomState(result)
    torch.Generator().manual_seed(result)


@pytest.mark.parametrize("value", [*NO_INTS, -1, 2**32, float("nan")], ids=repr)
def test_other_seeds_are_refused(value):
    assert refusal(checked_seed, value) == f"seed={shown(value)}: expected an int of 0 or more, below 2**32"


@given(anything)
def test_a_refusal_is_one_line_that_holds_name_and_value(value):
    for check in (checked_int, checked_number, checked_flag):
        if isinstance(value, bool) and check is checked_flag:
            continue
        if isinstance(value, float) and check is checked_number and abs(value) < 2.0**128 - 2.0**103:
            continue
        assert re.match(r"[^\n]*: expected [^\n]+$", refusal(check, value, "name"))
        assert refusal(check, value, "name").startswith(f"name={shown(value)}: ")


def test_a_share_is_between_its_bounds():
    assert [checked_share(value, "size") for value in (0.3, np.float32(0.5), torch.tensor(0.25))] == [0.3, 0.5, 0.25]
    for wrong in (0, 1, 1.0, -0.1, True, "0.3", None, float("nan")):
        with pytest.raises(InputError, match=r"^size=[^\n]*: expected a share between 0 and 1$"):
            checked_share(wrong, "size")
    with pytest.raises(InputError, match=r"^size=0.6: expected a share between 0 and 0.6$"):
        checked_share(0.6, "size", below=0.6)


def test_a_choice_may_be_a_string_of_numpy_and_comes_back_plain():
    chosen = checked_choice(np.array(["q", "k"])[0], "site", ("q", "k"))
    assert (type(chosen), chosen) == (str, "q")
    with pytest.raises(InputError, match="depth=True is unknown: use one of 0, 1"):
        checked_choice(True, "depth", (0, 1))


def test_ints_come_in_any_container():
    class Counted:
        def __len__(self):
            return 2

        def __getitem__(self, index):
            return [4, 5][index]

    assert as_ints(torch.ones(3, dtype=torch.bool).nonzero()) == [0, 1, 2]
    assert as_ints(Counted()) == [4, 5]
    assert as_ints(torch.tensor(3)) == [3]


def test_the_largest_number_of_float32_is_taken_as_it_is_usually_written():
    assert checked_number(3.4028235e38, "factor") == 3.4028235e38
    with pytest.raises(InputError, match=r"factor=3\.4028236e"):
        checked_number(3.4028236e38, "factor")
