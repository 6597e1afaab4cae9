"""Which architectures of transformers this toolkit takes, and what was seen of each: a committed table.

Every row was measured on a tiny random model of that architecture, built from its real config class: found, proved by
effect, traced. `python -m zoo.table` in `tests/` makes the table again, and a test holds it against the zoo. It says
what to expect and decides nothing: a model is taken or refused by its own proofs when it is loaded.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

TABLE = Path(__file__).with_name("architectures.json")
Verdict = Literal["supported", "refused", "untested"]


@dataclass(frozen=True)
class Architecture:
    """One architecture: the `model_type` of its config, its class, and the verdict with the reason for it.

    For a supported one: whether it runs `text_alone`, and the traits of its `Structure` as they were measured. `images`
    says how image positions are known, by a "token" of their own or by the "effect" of the pixels. `sites` are the
    sites beside the stream's states whose sums were proved, in at least one layer.
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
    sites: tuple[str, ...] = ()
    continuous: bool | None = None
    bidirectional_images: bool | None = None


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
