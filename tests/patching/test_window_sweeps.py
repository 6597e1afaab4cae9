"""Windows against their definitions, written out."""

import pytest

import interp
from interp.patching.window_sweeps import (
    as_batches,
    centred_windows,
    sliding_windows,
    windows_to_end,
)

# Windows ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("layers", "width"), [(8, 1), (8, 3), (8, 4), (8, 9), (32, 9), (3, 20)])
def test_a_centred_window_is_what_lies_around_its_layer(layers, width):
    """As in the sources: from l - width // 2 to l + width // 2, one less at the end where the width is even."""
    for layer, window in enumerate(centred_windows(layers, width)):
        reach = width // 2 - (width % 2 == 0)
        assert list(window) == [near for near in range(layer - width // 2, layer + reach + 1) if 0 <= near < layers]


def test_sliding_and_onward_windows():
    assert [list(window) for window in sliding_windows(5, 3)] == [[0, 1, 2], [1, 2, 3], [2, 3, 4]]
    assert sliding_windows(5, 5) == [range(5)]
    assert [list(window) for window in windows_to_end(3)] == [[0, 1, 2], [1, 2], [2]]


@pytest.mark.parametrize("width", [0, -1, 2.0, "3", None, True, [1]])
def test_what_is_no_width(width):
    for windows in (centred_windows, sliding_windows):
        with pytest.raises(interp.InputError, match="expected a number of layers of 1 or more"):
            windows(8, width)


def test_a_window_wider_than_the_model():
    with pytest.raises(interp.InputError, match="window=9: the model has 8 layers"):
        sliding_windows(8, 9)


# Batches ----------------------------------------------------------------------------------------------------------------


def test_what_is_no_data(mixed):
    for given in (["image"], "image", 3, None, (mixed, 3)):
        with pytest.raises(interp.errors.InputTypeError, match="expected a batch"):
            as_batches(given)
    with pytest.raises(interp.InputError, match="batch is an empty list"):
        as_batches([])
    assert as_batches(mixed) == as_batches((mixed,)) == [mixed]
