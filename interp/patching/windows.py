"""Windows of layers: the stretches over which an intervention is moved through a model's depth.

One layer on its own is often not missed, as its neighbours do the same work, so what is measured against depth is
a *window*: a few layers next to each other that are changed together. Windows are half-open ranges of layers. There
are three kinds:

- *centred* ones, one for each layer, cut off at the model's ends (Geva et al. 2023): a curve with a point a layer, in
  which the windows at the ends are narrower than the others;
- *sliding* ones of equal width, from ``range(0, width)`` to the one that ends with the last layer;
- *onward* ones, from each layer to the last, for what cannot be taken back once it is done, such as dropping tokens.
"""

from __future__ import annotations

from typing import Any

from interp.arguments import as_int
from interp.errors import InputError, shown


def centred(n_layers: int, width: Any) -> list[range]:
    """For each layer the `width` layers around it that there are; of an even width one more lies before than behind.

    >>> centred(4, 3)
    [range(0, 2), range(0, 3), range(1, 4), range(2, 4)]
    """
    width = _checked(width)
    before, behind = width // 2, (width + 1) // 2
    return [range(max(0, layer - before), min(n_layers, layer + behind)) for layer in range(n_layers)]


def sliding(n_layers: int, width: Any) -> list[range]:
    """Every `width` layers next to each other. Raises `InputError` where the model has fewer.

    >>> sliding(4, 2)
    [range(0, 2), range(1, 3), range(2, 4)]
    """
    width = _checked(width)
    if width > n_layers:
        raise InputError(f"window={width!r}: the model has {n_layers} layers, expected at most as many")
    return [range(start, start + width) for start in range(n_layers - width + 1)]


def onward(n_layers: int) -> list[range]:
    """From each layer to the last.

    >>> onward(3)
    [range(0, 3), range(1, 3), range(2, 3)]
    """
    return [range(start, n_layers) for start in range(n_layers)]


def _checked(width: Any) -> int:
    number = as_int(width)
    if number is None or number < 1:
        raise InputError(f"window={shown(width)}: expected a number of layers, 1 or more")
    return number
