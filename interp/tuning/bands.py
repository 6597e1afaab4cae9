"""Bands: which layers of a model are trained, and which others are their controls.

A band does well when it is trained. That alone says nothing of where it lies: on the tasks of one study the last layers of
LLaVA did as well as the middle ones on pictures, and damaged text. So a band is compared with others of equal size:

- *full*: all layers, which the others are a share of;
- *early*, *middle*, *late*: adjacent layers at the start, in the middle and at the end;
- *uniform*: layers spread evenly from the first one on, ``0, n / size, 2 n / size, ...`` (Wang et al. 2024 train 8 of 32 so);
- *random*: as many layers, drawn from all;
- *connector*: the connector alone, without any layer of the language model.

The backward pass ends below the lowest layer of a band. So a uniform or a random band saves less time than a late one of its
size.

A band may also come from a measurement, see `band_of`.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from interp.arguments import as_ints, checked_flag, checked_int, checked_seed
from interp.displays import Display
from interp.errors import InputError, InputTypeError, shown
from interp.geometry import AlignmentMatrix
from interp.patching import SweepResult
from interp.patching.metrics import DIVERGENCE
from interp.results import StoredValue


def bands(n_layers: int, size: int | None = None, seed: int = 0) -> dict[str, Band]:
    """The bands of `size` layers above, by name: of a model of `n_layers`, half of them if `size` is None.

    >>> for name, band in bands(8).items():
    ...     print(name, *band.layers)
    full 0 1 2 3 4 5 6 7
    early 0 1 2 3
    middle 2 3 4 5
    late 4 5 6 7
    uniform 0 2 4 6
    random 0 3 6 7
    connector

    The *random* band is drawn with `seed`. One draw says little of any other, so `compare_bands` draws one for each of its
    seeds.

    Raises `InputError` for a size that is not below the number of layers.
    """
    n_layers = checked_int(n_layers, "n_layers", least=2)
    size = n_layers // 2 if size is None else checked_int(size, "size", least=1, most=n_layers - 1)
    start = (n_layers - size) // 2
    return {
        "full": Band(range(n_layers)),
        "early": Band(range(size)),
        "middle": Band(range(start, start + size)),
        "late": Band(range(n_layers - size, n_layers)),
        "uniform": Band([step * n_layers // size for step in range(size)]),
        "random": Band(random.Random(checked_seed(seed)).sample(range(n_layers), size)),
        "connector": Band((), connector=True),
    }


def band_of(measurement: Any, n_layers: int, size: int | None = None) -> Band:
    """The band that a measurement points at, in a model of `n_layers`.

    `measurement` is one of

    - an `AlignmentMatrix`, or the range that its `phase()` gives: the layers that work on these states. State l enters layer
      l, and the last state enters none. With a `size`, as many layers about the middle of the phase;
    - what `layer_contribution` gives: the `size` layers (half of them if None) that contribute most.

    >>> band_of(range(2, 5), n_layers=8).layers, band_of(range(2, 5), n_layers=8, size=4).layers
    ((2, 3, 4), (2, 3, 4, 5))

    Measure on other data than those on which bands are compared: a band that is chosen by the questions is not tested by them.

    Raises `InputError` for a matrix without a phase, a measurement of another number of layers, and a sweep that is no
    contribution of single layers; `InputTypeError` for anything else.
    """
    n_layers = checked_int(n_layers, "n_layers", least=1)
    if size is not None:
        size = checked_int(size, "size", least=1, most=n_layers)
    if isinstance(measurement, SweepResult):
        return _most_contributing(measurement, n_layers, n_layers // 2 if size is None else size)
    if isinstance(measurement, AlignmentMatrix):
        count = measurement.values.shape[0]
        if count != n_layers + 1:
            raise InputError(
                f"the matrix is of {count} states: expected {n_layers + 1}, from what enters layer 0 to what leaves the last of "
                f"{n_layers} layers"
            )
        measurement = measurement.phase()
    if measurement is None:
        raise InputError(
            "measurement=None: the matrix has no phase, no state at which picture and text are alike beyond chance; name the "
            "layers yourself, Band(range(6, 16))"
        )
    if not isinstance(measurement, range):
        raise InputTypeError(
            f"measurement={shown(measurement)}: expected an AlignmentMatrix, its phase(), or what layer_contribution gives"
        )
    return _layers_of_states(measurement, n_layers, size)


def _layers_of_states(states: range, n_layers: int, size: int | None) -> Band:
    layers = [state for state in states if 0 <= state < n_layers]
    if len(states) - len(layers) > (n_layers in states) or not layers:
        raise InputError(
            f"measurement={shown(states)}: expected states of a model of {n_layers} layers, of which one enters a layer"
        )
    if size is None:
        return Band(layers)
    start = round((layers[0] + layers[-1] + 1 - size) / 2)
    start = min(max(start, 0), n_layers - size)
    return Band(range(start, start + size))


def _most_contributing(sweep: SweepResult, n_layers: int, size: int) -> Band:
    single = all(len(window) == 1 for window in sweep.windows)
    if sweep.metric != DIVERGENCE or not single or len(sweep.windows) != n_layers:
        raise InputError(
            f"a sweep of {sweep.metric} in {len(sweep.windows)} windows: expected what layer_contribution gives for each of "
            f"{n_layers} layers on its own"
        )
    return Band(sweep.ranking()[n_layers - size :])


def checked_bands(given: Any) -> dict[str, Band]:
    """The bands of a mapping from names to a `Band`, or to layers as ints.

    >>> checked_bands({"lower": range(2)})
    {'lower': Band(layers=(0, 1), connector=None, vision=None, head=None)}

    Raises `InputTypeError` for anything else, `InputError` for no band and for a name that is no text.
    """
    if not isinstance(given, Mapping) or not all(isinstance(name, str) and name.strip() for name in given):
        raise InputTypeError(
            f"bands={shown(given)}: expected a dict of bands by name, {{'middle': range(6, 16)}}, or a function that gives it "
            "for a seed"
        )
    if not given:
        raise InputError("bands={}: expected one band at least, {'middle': range(6, 16)}")
    return {name: band if isinstance(band, Band) else Band(band) for name, band in given.items()}


@dataclass(frozen=True)
class Band(StoredValue, Display):
    """What is trained: `layers`, sorted, and whether the `connector`, the image tower (`vision`) and the final norm with the
    language head (`head`) are; None for these says: as in the whole comparison.

    >>> Band(range(2, 4)).layers
    (2, 3)

    Raises `InputError` for layers that are no ints from 0 on, or repeat, and for a flag that is not True, False or None.
    """

    layers: Collection[int]
    connector: bool | None = None
    vision: bool | None = None
    head: bool | None = None

    _broken = False

    def __post_init__(self) -> None:
        given = list(self.layers) if isinstance(self.layers, Iterable) and not isinstance(self.layers, str) else None
        layers = None if given is None else as_ints(given)
        if layers is None or len(set(layers)) < len(layers) or min(layers, default=0) < 0:
            seen = self.layers if given is None else given
            raise InputError(f"layers={shown(seen)}: expected ints from 0 on, each once, as in range(6, 16)")
        object.__setattr__(self, "layers", tuple(sorted(layers)))
        for name in ("connector", "vision", "head"):
            if getattr(self, name) is not None:
                checked_flag(getattr(self, name), name)

    def resolved(self, connector: bool, head: bool) -> Band:
        """This band with what the comparison says where it says nothing itself; the image tower stays frozen."""
        given = (self.connector, connector), (self.vision, False), (self.head, head)
        return Band(self.layers, *(default if own is None else own for own, default in given))
