"""Planted organisms by name: models in which what a detector looks for is known to be there, or known not to be.

Each is built by one file, which explains it. All take the toy's scenes and questions, and all pass the proofs of
`interp.load`, so every tool of the package runs on them. docs/organisms.md says what each detector shows on each of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from interp.arguments import checked_choice, checked_seed
from interp.models import load
from interp.toy.organism import Organism, Truth

if TYPE_CHECKING:
    from transformers import LlavaForConditionalGeneration

    Builder = Callable[[int], tuple[LlavaForConditionalGeneration, Truth]]


def planted(name: str, seed: int = 0) -> Organism:
    """The organism of this name: `.vlm`, a model with a truth that is known by construction, and `.truth`, that truth.

    >>> organism = planted("late")
    >>> organism.truth.layers, organism.vlm.structure.n_layers
    ((0, 1, 2, 3), 12)

    Another `seed` gives other weights with the same truth. The model is in float32 on the CPU, where a truth holds to the bit.

    Raises `InputError` for an unknown name, and for a `seed` that is not an int of 0 or more.
    """
    from interp.toy.model import build_processor

    seed, table = checked_seed(seed), builders()
    build, default = table[checked_choice(name, "name", tuple(table))], torch.get_default_dtype()
    # transformers draws weights that are then replaced: neither the user's random state nor the default type takes part.
    with torch.random.fork_rng(devices=[]):
        torch.set_default_dtype(torch.float32)
        try:
            model, truth = build(seed)
        finally:
            torch.set_default_dtype(default)
    vlm = load(model=model.eval(), processor=build_processor())
    vlm.name = f"planted:{name}@{seed}"
    return Organism(name, seed, vlm, truth)


def builders() -> dict[str, Builder]:
    """The function that builds each organism from a seed: a model in float32, and its truth."""
    # transformers' models take seconds to import, so they are imported where one is built.
    from interp.toy.bypass_organisms import bypass, no_bypass
    from interp.toy.circuit_organism import circuit, no_circuit
    from interp.toy.late_organism import late
    from interp.toy.sink_organism import sink
    from interp.toy.unmixed_organism import unmixed

    table: dict[str, Builder] = {"bypass": bypass, "no_bypass": no_bypass, "late": late}
    return {**table, "circuit": circuit, "no_circuit": no_circuit, "sink": sink, "unmixed": unmixed}
