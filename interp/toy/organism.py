"""A planted organism: a model in which the truth is known, because somebody put it there.

A detector is trusted once it shows what is in a model, and does not show what is not. A trained model cannot tell: nobody
knows what is in it. In an organism the truth is written into the weights, and stated beside them as plain values, so that a
test can compare what a detector says with what is there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from interp.displays import Display
from interp.models import VLM


@dataclass(frozen=True)
class Truth(Display):
    """What is planted in an organism, as plain values; what a truth does not speak of stays empty.

    `statement` is the truth in one sentence. `layers` are layers, or states where the statement says so, `positions` are names or
    columns of positions, `heads` are (layer, head), and `effects` are, by name, what a detector has to find: numbers, or tables
    of them. docs/organisms.md explains each.
    """

    name: str
    statement: str
    layers: tuple[int, ...] = ()
    positions: tuple[str | int, ...] = ()
    heads: tuple[tuple[int, int], ...] = ()
    effects: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Organism(Display):
    """A model with a planted truth: `vlm` runs on the toy's scenes and questions, `truth` says what is in it.

    Two seeds of one name are different weights with the same truth.
    """

    name: str
    seed: int
    vlm: VLM
    truth: Truth
