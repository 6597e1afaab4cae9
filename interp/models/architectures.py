"""Which architectures of transformers this toolkit takes, and what was seen of each: a committed table.

Every row was measured on a tiny random model of that architecture, built from its real config class: found, proved by
effect, traced. `python -m zoo.table` in `tests/` makes the table again, and a test holds it against the zoo. It says
what to expect and decides nothing: a model is taken or refused by its own proofs when it is loaded.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

TABLE = Path(__file__).with_name("architectures.json")
# The sites that a supported architecture may lack in some layers.
SITES = ("attn_out", "resid_mid", "mlp_out", "q", "k", "v", "z", "pattern")
Verdict = Literal["supported", "refused", "untested"]


@dataclass(frozen=True)
class Architecture:
    """One architecture: the `model_type` of its config, its class, and the verdict with the reason for it.

    For a supported one: whether it runs `text_alone`, and the traits of its `Structure` as they were measured. `images`
    says how image positions are known, by a "token" of their own or by the "effect" of the pixels. `sites` are the
    sites beside the stream's states and in how many of its `layers` layers each was proved; in none where it is missing.
    `patches` are those of the sites "vision" and "projector" that it has, "by row" where several rows must be run alone.
    `blocks` are those of its image tower, None without one, in `weighed` of which other attention weights can be given.
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

    @property
    def lacks(self) -> list[str]:
        """The sites that it does not have in all layers, with the number of layers where it has them in some."""
        counts = {site: self.sites.get(site, 0) for site in SITES}
        some = [
            f"{site} {count}/{self.layers}" if count else site for site, count in counts.items() if count != self.layers
        ]
        had = [site.split()[0] for site in self.patches]
        weights = [self.vision_pattern or "vision_pattern"] if self.weighed != self.blocks else []
        return [*some, *(site for site in ("vision", "projector") if site not in had), *weights]

    @property
    def vision_pattern(self) -> str:
        """The site of the tower's weights, with the number of blocks where it is in some alone; nothing without."""
        some = f"vision_pattern {self.weighed}/{self.blocks}"
        return "vision_pattern" if self.weighed == self.blocks else some if self.weighed else ""


def architectures() -> list[Architecture]:
    """The table, with every further image-text-to-text architecture of the installed transformers as untested.

    >>> next(row.verdict for row in architectures() if row.name == "llava")
    'supported'
    """
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES as NAMES

    known = [Architecture(**_tuples(row)) for row in json.loads(TABLE.read_text())]
    named = {row.name for row in known}
    others = [(name, kind) for name, kind in NAMES.items() if name not in named]
    why = "not in the table: its proofs decide when it is loaded"
    return known + [Architecture(name, str(kind), "untested", why) for name, kind in sorted(others)]


def _tuples(row: dict) -> dict:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in row.items()}
