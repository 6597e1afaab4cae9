"""What the zoo says of one architecture: what to change in its tiny config, and what one picture adds to a row."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Picture:
    """One image as an encoding has it.

    `ids` stand in the row where the image is (placeholders, and whatever the processor puts around and between them).
    `inputs` are the model's further inputs; those of several images are concatenated along their first axis.
    """

    ids: list[int]
    inputs: dict[str, Tensor]


def _nothing_more(config: Any, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    return inputs


@dataclass(frozen=True)
class Entry:
    """How one architecture is built tiny and fed.

    `changes` are merged into the tiny config. `picture(config, generator)` makes one image; None where the architecture
    is refused before an image matters. `finish(config, inputs)` adds what depends on the whole encoding (token types).
    """

    changes: dict[str, Any] = field(default_factory=dict)
    picture: Callable[[Any, torch.Generator], Picture] | None = None
    finish: Callable[[Any, dict[str, Tensor]], dict[str, Tensor]] = _nothing_more


def pixels(generator: torch.Generator, *shape: int) -> Tensor:
    """Random pixel values."""
    return torch.randn(*shape, generator=generator)
