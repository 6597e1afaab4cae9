"""Windows of layers against their definitions, written out."""

import pytest

import interp
from interp.patching.windows import centred, onward, sliding


@pytest.mark.parametrize(("layers", "width"), [(8, 1), (8, 3), (8, 4), (8, 9), (32, 9), (3, 20)])
def test_a_centred_window_is_what_lies_around_its_layer(layers, width):
    """As in the sources: from l - width // 2 to l + width // 2, one less at the end where the width is even."""
    for layer, window in enumerate(centred(layers, width)):
        reach = width // 2 - (width % 2 == 0)
        assert list(window) == [near for near in range(layer - width // 2, layer + reach + 1) if 0 <= near < layers]


def test_sliding_and_onward_windows():
    assert [list(window) for window in sliding(5, 3)] == [[0, 1, 2], [1, 2, 3], [2, 3, 4]]
    assert sliding(5, 5) == [range(5)]
    assert [list(window) for window in onward(3)] == [[0, 1, 2], [1, 2], [2]]


@pytest.mark.parametrize("width", [0, -1, 2.0, "3", None, True, [1]])
def test_what_is_no_width(width):
    for windows in (centred, sliding):
        with pytest.raises(interp.InputError, match="expected a number of layers, 1 or more"):
            windows(8, width)


def test_a_window_wider_than_the_model():
    with pytest.raises(interp.InputError, match="window=9: the model has 8 layers"):
        sliding(8, 9)
