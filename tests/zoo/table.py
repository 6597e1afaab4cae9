"""The table of architectures, measured on the zoo: `python -m zoo.table`, run in `tests/`, writes it anew."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import torch
import transformers

import interp
import zoo
from interp.activations.extraction import PATCHED
from interp.errors import LayoutError
from interp.models import VLM, Batch, CheckReport
from interp.models.architectures import TABLE, Architecture
from interp.models.layout.patches import RowsNotApart, patches_of
from interp.models.running.places import HEADED
from interp.models.running.structure import TowerWeights
from zoo.odd import NEEDS_TIMM

PAGE = Path(__file__).parents[2] / "docs" / "architectures.md"
# The sites that a model may lack, and the trait that says in which layers each is.
_SITES = {"attn_out": "attn_out", "resid_mid": "mid", "mlp_out": "mlp_out"}
_SITES |= {site: site for site in (*HEADED, "pattern")}


@functools.cache
def load(name: str) -> VLM:
    """The tiny model of an architecture in hand, proved as far as it can be without a picture. Raises `LayoutError`."""
    return interp.load(model=zoo.build(name), device="cpu")


@functools.cache
def batch(name: str) -> Batch:
    return load(name).prepare(encoding=zoo.encode(name))


@functools.cache
def report(name: str) -> CheckReport:
    """Every proof, tried on rows with pictures."""
    return load(name).check(batch(name))


def measure(name: str) -> Architecture:
    """What is to be said of an architecture: the outcome of its proofs on text, then on rows with pictures."""
    kind = str(zoo.NAMES[name])
    if name in NEEDS_TIMM:
        return Architecture(name, kind, "untested", "its tower needs the package timm")
    try:
        vlm = interp.load(model=zoo.build(name), device="cpu", check=False)
    except interp.LayoutError as error:
        return Architecture(name, kind, "refused", _reason(str(error), kind))
    on_text = vlm.check().checks
    proofs = on_text
    if zoo.ENTRIES[name].picture and all(check.outcome != "failed" for check in on_text):
        proofs = vlm.check(vlm.prepare(encoding=zoo.encode(name))).checks
    failed = [check for check in proofs if check.outcome != "passed"]
    if failed:
        return Architecture(name, kind, "refused", f"{failed[0].name}: {failed[0].detail}")
    structure = vlm.structure
    return Architecture(
        name=name,
        model=kind,
        verdict="supported",
        proofs=tuple(check.name for check in proofs),
        text_alone=on_text[0].outcome == "passed",
        images="effect" if structure.image_token_id is None else "token",
        readout=structure.readout.kind + (", suppressed" if structure.readout.suppressed else ""),
        attention=tuple(sorted(set(structure.attention))),
        layers=structure.n_layers,
        sites=_sites(vlm),
        patches=tuple(_patches(vlm, name)),
        **_weighed(vlm),
        continuous=structure.continuous,
        bidirectional_images=structure.bidirectional_images,
    )


def _sites(vlm: VLM) -> dict[str, int]:
    """In how many layers each site is, for those that are in any."""
    places = {site: vlm.trait(trait) for site, trait in _SITES.items()}
    counts = {site: sum(place is not None and place is not False for place in of) for site, of in places.items()}
    return {site: count for site, count in counts.items() if count}


def _patches(vlm: VLM, name: str) -> Iterator[str]:
    """The sites whose examples are patches, for two rows at once or for one alone."""
    for site in PATCHED:
        for rows, said in ((zoo.encode(name), site), (zoo.encode(name, rows=((3, 6),)), f"{site} by row")):
            try:
                patches_of(vlm, vlm.prepare(encoding=rows), site)
            except RowsNotApart:
                continue
            except LayoutError:
                break
            yield said
            break


def _weighed(vlm: VLM) -> dict[str, int]:
    """How many blocks the tower has, and in how many of them it is known how they weigh."""
    found = vlm.trait("vision_weighed")
    return {"blocks": len(found), "weighed": sum(isinstance(each, TowerWeights) for each in found)} if found else {}


def _reason(message: str, kind: str) -> str:
    """The reason in a refusal, without the name of the class and what to do."""
    return message.partition(", expected")[0].removeprefix(kind).lstrip(": ")


def tabulate() -> list[Architecture]:
    return [measure(name) for name in sorted(zoo.NAMES)]


def as_page(rows: list[Architecture]) -> str:
    """The table for readers, as Markdown."""
    counts = ", ".join(
        f"{sum(row.verdict == kind for row in rows)} {kind}" for kind in ("supported", "refused", "untested")
    )
    head = [
        "# Architectures",
        "",
        f"The {len(rows)} image-text-to-text architectures of transformers {transformers.__version__}: {counts}. Each row was",
        "measured on a tiny random model built from the architecture's own config class; `docs/models.md` says what is proved.",
        "All have `resid`, `resid_pre` and `resid_post`. A site that is not in all layers has their number behind it; linear",
        "attention and convolutions have none with heads. `vision` and `projector` have patches as examples; by row: several",
        "rows must be run one by one, which needs texts and images, or an encoding each. `vision_pattern` are the attention",
        "weights of the image tower, which `Reweight` changes.",
        "Made by `python -m zoo.table` in `tests/`; `interp doctor --architectures` prints it.",
        "",
        "| architecture | verdict | text alone | images by | readout | attention | sites | traits or reason |",
        "|---|---|---|---|---|---|---|---|",
    ]
    return "\n".join([*head, *map(_line, rows)]) + "\n"


def _line(row: Architecture) -> str:
    traits = [
        name
        for name, there in (("DeepStack", row.continuous is False), ("images both ways", row.bidirectional_images))
        if there
    ]
    text = {True: "yes", False: "no", None: ""}[row.text_alone]
    cells = [f"`{row.name}`", row.verdict, text, row.images or "", row.readout or "", ", ".join(row.attention)]
    return "| " + " | ".join([*cells, _named(row), row.why or ", ".join(traits)]) + " |"


def _named(row: Architecture) -> str:
    """The sites in all layers, then those in some, with how many these are, then those of the tower."""
    whole = [site for site, count in row.sites.items() if count == row.layers]
    some = [f"{site} {count}/{row.layers}" for site, count in row.sites.items() if count != row.layers]
    return ", ".join([*whole, *some, *row.patches, *([row.vision_pattern] if row.vision_pattern else [])])


def as_json(rows: list[Architecture]) -> str:
    return "[\n" + ",\n".join(json.dumps(asdict(row)) for row in rows) + "\n]\n"


if __name__ == "__main__":
    torch.set_num_threads(1)
    rows = tabulate()
    TABLE.write_text(as_json(rows))
    PAGE.write_text(as_page(rows))
    for verdict in ("supported", "refused", "untested"):
        print(verdict, sum(row.verdict == verdict for row in rows))
