"""``interp doctor``: the parts of a model, and the proofs that they are right."""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from interp.cli.application import app
from interp.cli.options import Debug, Device
from interp.cli.terminal import print_table
from interp.errors import InputError, LayoutError

if TYPE_CHECKING:
    from interp.models import VLM, CheckReport


@app.command()
def doctor(
    model: Annotated[str | None, typer.Argument(help="The name of a toy, a folder or a hub repository.")] = None,
    architectures: Annotated[bool, typer.Option("--architectures", help="List the supported architectures.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    device: Device = "auto",
    debug: Debug = False,
) -> None:
    """Load a model, show its parts and test them on the model itself; or list the supported architectures."""
    if architectures == (model is not None):
        raise InputError("expected either a model, as in 'interp doctor toy', or --architectures")
    if model is None:
        _show_architectures(as_json)
        return
    import interp

    vlm = interp.load(model, device=device, check=False)
    report = vlm.check()
    if as_json:
        print(json.dumps(_diagnosis(vlm, report), indent=2))
    else:
        unnamed = "none" if vlm.structure.image_token_id is None else "has no name without a tokenizer"
        rows = [("image_token", _image_token(vlm) or unnamed)]
        rows += [(name, _part(vlm, name, value)) for name, value in vlm.structure.to_dict().items()]
        print_table(f"{vlm.name}: {type(vlm.model).__name__}", ["part", "value"], rows)
        proofs = [(c.name, c.outcome, c.measured, c.bound, c.detail) for c in report.checks]
        print_table("proofs", ["proof", "outcome", "measured", "expected", "claim"], proofs)
    failed = [check for check in report.checks if check.outcome == "failed"]
    if failed:
        names = ", ".join(check.name for check in failed)
        raise LayoutError(f"{vlm.name!r} failed {names}: pass the right layout as structure= to interp.load")


def _part(vlm: VLM, name: str, value: Any) -> str:
    """A part or a trait of the structure as text, in words where there is none."""
    # Traits are those that a structure may be without until a run has told.
    is_trait = type(vlm.structure).__dataclass_fields__[name].default is None
    return _cell(value, *(("not measured yet", "not proved") if is_trait else ("none", "none")))


def _cell(value: Any, nothing: str = "none", nothing_inside: str = "none") -> str:
    """A value as text. A list with an entry for each layer becomes its distinct entries and their counts."""
    if value is None:
        return nothing
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        filled = {name: entry for name, entry in value.items() if entry not in (None, (), [], False)}
        return ", ".join(name if entry is True else f"{name} {_cell(entry)}" for name, entry in filled.items())
    if not isinstance(value, list | tuple):
        return str(value)
    counts = Counter(_cell(entry, nothing_inside) for entry in value)
    between = "; " if any("," in entry for entry in counts) else ", "
    return between.join(f"{count} x {entry}" for entry, count in counts.items()) or "none"


def _image_token(vlm: VLM) -> str | None:
    """The text of the image token, if the model has a tokenizer."""
    token = vlm.structure.image_token_id
    return None if token is None or vlm.tokenizer is None else str(vlm.tokenizer.convert_ids_to_tokens(token))


def _show_architectures(as_json: bool) -> None:
    from interp.models.architectures import architectures, language_models

    rows = [*architectures(), *language_models()]
    if as_json:
        print(json.dumps([asdict(row) for row in rows], indent=2))
        return
    table = []
    for row in rows:
        traits = [row.readout, ", ".join(row.attention), ", ".join(row.lacks)] if row.layers else [""] * 3
        table.append([row.name, row.verdict, *map(str, traits), row.why])
    counts = Counter(row.verdict for row in rows)
    title = "architectures: " + ", ".join(f"{count} {verdict}" for verdict, count in counts.items())
    print_table(title, ["architecture", "verdict", "readout", "attention", "sites it lacks", "why"], table)


def _diagnosis(vlm: VLM, report: CheckReport) -> dict[str, Any]:
    from interp.provenance import package_versions

    proofs = [asdict(check) for check in report.checks]
    for proof in proofs:
        proof["error"] = proof["error"] if math.isfinite(proof["error"]) else None
    return {
        "model": vlm.name,
        "architecture": type(vlm.model).__name__,
        "revision": vlm.revision,
        "image_token": _image_token(vlm),
        "structure": vlm.structure.to_dict(),
        "passed": report.passed,
        "checks": proofs,
        "versions": package_versions(),
    }
