"""The table of architectures, measured on the zoo: `python -m zoo.table`, run in `tests/`, writes it again."""

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
# The sites that a model may lack, and the trait that says which layers have each.
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
    """The row of an architecture: the outcome of its proofs on text, then on rows with pictures."""
    kind = zoo.NAMES.get(name) or zoo.TEXTS[name]
    if name in NEEDS_TIMM:
        return Architecture(name, kind, "untested", "its tower needs the package timm")
    try:
        vlm = interp.load(model=zoo.build(name), device="cpu", check=False)
    except interp.LayoutError as error:
        return Architecture(name, kind, "refused", _reason(str(error), kind), takes_images=name in zoo.NAMES)
    on_text = vlm.check().checks
    proofs = on_text
    if (zoo.ENTRIES[name].picture or name in zoo.TEXTS) and all(check.outcome != "failed" for check in on_text):
        proofs = vlm.check(vlm.prepare(encoding=zoo.encode(name))).checks
    failed = [check for check in proofs if check.outcome != "passed"]
    if failed:
        why = f"{failed[0].name}: {failed[0].detail}"
        return Architecture(name, kind, "refused", why, takes_images=name in zoo.NAMES)
    structure = vlm.structure
    return Architecture(
        name=name,
        model=kind,
        verdict="supported",
        proofs=tuple(check.name for check in proofs),
        text_alone=on_text[0].outcome == "passed",
        images=None if not vlm.takes_images else "effect" if structure.image_token_id is None else "token",
        readout=structure.readout.kind + (", suppressed" if structure.readout.suppressed else ""),
        attention=tuple(sorted(set(structure.attention))),
        layers=structure.n_layers,
        sites=_sites(vlm),
        patches=tuple(_patches(vlm, name)),
        **_tower_weights(vlm),
        continuous=structure.continuous,
        bidirectional_images=structure.bidirectional_images,
        takes_images=vlm.takes_images,
    )


def _sites(vlm: VLM) -> dict[str, int]:
    """The number of layers that have each site, for the sites that some layer has."""
    counts: dict[str, int] = {}
    for site, trait in _SITES.items():
        try:
            counts[site] = sum(place is not None and place is not False for place in vlm.trait(trait))
        except LayoutError:  # the weights of attention that cannot be switched are not seen
            continue
    return {site: count for site, count in counts.items() if count}


def _patches(vlm: VLM, name: str) -> Iterator[str]:
    """The sites whose examples are patches, for two rows at once or for one alone."""
    for site in PATCHED if vlm.takes_images else ():
        for rows, words in ((zoo.encode(name), site), (zoo.encode(name, rows=((3, 6),)), f"{site} by row")):
            try:
                patches_of(vlm, vlm.prepare(encoding=rows), site)
            except RowsNotApart:
                continue
            except LayoutError:
                break
            yield words
            break


def _tower_weights(vlm: VLM) -> dict[str, int]:
    """The number of blocks of the tower, and of those whose attention weights are proved."""
    blocks = vlm.trait("vision_weighed") if vlm.takes_images else ()
    return {"blocks": len(blocks), "weighed": sum(isinstance(each, TowerWeights) for each in blocks)} if blocks else {}


def _reason(message: str, kind: str) -> str:
    """The reason in a refusal, without the name of the class and what to do."""
    return message.partition(", expected")[0].removeprefix(kind).lstrip(": ")


def tabulate() -> list[Architecture]:
    return [measure(name) for name in sorted({**zoo.NAMES, **zoo.TEXTS})]


def as_page(rows: list[Architecture]) -> str:
    """The table for readers, as Markdown."""
    texts = [row for row in rows if not row.takes_images]
    rows = [row for row in rows if row.takes_images]
    counts = ", ".join(
        f"{sum(row.verdict == kind for row in rows)} {kind}" for kind in ("supported", "refused", "untested")
    )
    head = [
        "# Architectures",
        "",
        f"{len(rows)} image-text-to-text architectures of transformers {transformers.__version__}: {counts}. Each row was",
        "measured on a tiny random model built from the architecture's own config class; `docs/models.md` lists the proofs.",
        "All have `resid`, `resid_pre` and `resid_post`. A site that only some layers have is followed by their number; linear",
        "attention and convolutions have no sites with heads. The examples of `vision` and `projector` are patches; by row means",
        "that several rows must run one by one, which needs texts and images, or an encoding for each. `vision_pattern` are the",
        "attention weights of the image tower, which `Reweight` changes.",
        "Made by `python -m zoo.table` in `tests/`; `interp doctor --architectures` prints it.",
        "",
        "| architecture | verdict | text alone | images by | readout | attention | sites | traits or reason |",
        "|---|---|---|---|---|---|---|---|",
    ]
    foot = [
        "",
        "## Language models alone",
        "",
        f"{len(texts)} of the language models of transformers, chosen for how they differ. Any other is taken or refused by its",
        "own proofs when it is loaded.",
        "",
        "| architecture | verdict | readout | attention | sites | reason |",
        "|---|---|---|---|---|---|",
    ]
    return "\n".join([*head, *map(_line, rows), *foot, *map(_line_of_text, texts)]) + "\n"


def _line_of_text(row: Architecture) -> str:
    cells = [f"`{row.name}`", row.verdict, row.readout or "", ", ".join(row.attention), _sites_of(row), row.why]
    return "| " + " | ".join(cells) + " |"


def _line(row: Architecture) -> str:
    traits = [
        name
        for name, there in (("DeepStack", row.continuous is False), ("images both ways", row.bidirectional_images))
        if there
    ]
    text = {True: "yes", False: "no", None: ""}[row.text_alone]
    cells = [f"`{row.name}`", row.verdict, text, row.images or "", row.readout or "", ", ".join(row.attention)]
    return "| " + " | ".join([*cells, _sites_of(row), row.why or ", ".join(traits)]) + " |"


def _sites_of(row: Architecture) -> str:
    """The sites in all layers, then those in some with the number of layers, then those of the tower."""
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
