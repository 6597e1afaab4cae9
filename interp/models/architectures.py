"""A committed table of the architectures of transformers: which of them this toolkit takes, and with which sites.

Every row was measured on a tiny random model of that architecture, built from its real config class. `python -m zoo.table`
in `tests/` makes the table again, and a test compares it with the zoo. The table says what to expect and decides nothing:
each model is taken or refused by its own proofs when it is loaded.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

TABLE = Path(__file__).with_name("architectures.json")
# A supported architecture may lack these sites in some layers.
SITES = ("attn_out", "resid_mid", "mlp_out", "q", "k", "v", "z", "pattern")
Verdict = Literal["supported", "refused", "untested"]


@dataclass(frozen=True)
class Architecture:
    """One architecture: the `model_type` of its config, its class, and the verdict with its reason `why`.

    >>> next(row.verdict for row in architectures() if row.name == "llava")
    'supported'

    The other fields are those of a supported one: whether it runs on `text_alone`, and the measured traits of its
    `Structure`. `images` says how image positions are known, by a "token" of their own or by the "effect" of the pixels.
    `sites` counts, for each site beside the states, in how many of the `layers` layers it was proved; a missing site
    was proved in none. `patches` has those of the sites "vision" and "projector" that exist, with "by row" where rows must
    run alone. `blocks` counts the blocks of the image tower, None without one, and `weighed` those whose attention weights
    can be replaced. `takes_images` is False for a language model alone.
    """

    name: str
    model: str
    verdict: Verdict
    why: str = ""
    proofs: tuple[str, ...] = ()
    text_alone: bool | None = None
    images: str | None = None
    readout: str | None = None
    attention: tuple[str, ...] = ()
    layers: int | None = None
    sites: Mapping[str, int] = field(default_factory=dict)
    patches: tuple[str, ...] = ()
    blocks: int | None = None
    weighed: int = 0
    continuous: bool | None = None
    bidirectional_images: bool | None = None
    takes_images: bool = True

    @property
    def lacks(self) -> list[str]:
        """The sites that are not in all layers, with the number of layers for those that are in some."""
        counts = {site: self.sites.get(site, 0) for site in SITES}
        partial = {site: count for site, count in counts.items() if count != self.layers}
        of_layers = [f"{site} {count}/{self.layers}" if count else site for site, count in partial.items()]
        if not self.takes_images:
            return of_layers
        patched = [site.split()[0] for site in self.patches]
        weights = [self.vision_pattern or "vision_pattern"] if self.weighed != self.blocks else []
        return [*of_layers, *(site for site in ("vision", "projector") if site not in patched), *weights]

    @property
    def vision_pattern(self) -> str:
        """The site of the tower's weights, with the number of blocks where only some have it; empty where none has it."""
        partial = f"vision_pattern {self.weighed}/{self.blocks}" if self.weighed else ""
        return "vision_pattern" if self.weighed == self.blocks else partial


def architectures() -> list[Architecture]:
    """The models that take images, and as untested every other image-text-to-text architecture of the installed transformers."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES as NAMES

    rows = _rows()
    others = NAMES.keys() - {row.name for row in rows}
    why = "not in the table: its proofs decide when it is loaded"
    untested = [Architecture(name, str(NAMES[name]), "untested", why) for name in sorted(others)]
    return [row for row in rows if row.takes_images] + untested


def language_models() -> list[Architecture]:
    """The language models alone, a spread of those that transformers has.

    >>> next(row.verdict for row in language_models() if row.name == "llama")
    'supported'
    """
    return [row for row in _rows() if not row.takes_images]


def _rows() -> list[Architecture]:
    return [Architecture(**row) for row in json.loads(TABLE.read_text(), object_hook=_with_tuples)]


def _with_tuples(fields: dict) -> dict:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}
