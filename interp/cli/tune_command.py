"""``interp tune``: train some layers of a model on a data set, and write an ordinary checkpoint."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from interp.cli.application import app
from interp.cli.options import Debug, Device, role_and_name, source_named
from interp.cli.terminal import print_table
from interp.errors import InputError

if TYPE_CHECKING:
    from interp.tuning import TuneResult


@app.command("tune")
def tune_command(
    model: Annotated[str, typer.Argument(help="A toy's name, a folder or a hub repository.")],
    data: Annotated[str, typer.Argument(help="A folder or a file of data; or conversations:200 of the toy.")],
    out: Annotated[Path, typer.Option(help="The folder of the checkpoint.")],
    layers: Annotated[str, typer.Option(help="Which are trained: 6:16 (without 16), 0,4,8, all or none.")] = "all",
    connector: Annotated[bool, typer.Option("--connector", help="Train the connector too.")] = False,
    vision: Annotated[bool, typer.Option("--vision", help="Train the image tower too.")] = False,
    head: Annotated[bool, typer.Option("--head", help="Train the final norm and the language head too.")] = False,
    lora: Annotated[int | None, typer.Option(min=1, help="Train adapters of this rank in the layers instead.")] = None,
    option: Annotated[
        list[str], typer.Option("--set", help="NAME=VALUE, a field of transformers' TrainingArguments; several times.")
    ] = [],  # noqa: B006
    max_length: Annotated[int | None, typer.Option(min=1, help="Cut rows to this number of tokens.")] = None,
    patch_alignment: Annotated[float, typer.Option(min=0.0, help="The weight of the loss of patches and words.")] = 0.0,
    prompt: Annotated[str | None, typer.Option(help="What precedes each answer: '<image> {question}'.")] = None,
    column: Annotated[
        list[str], typer.Option(help="ROLE=NAME, of the roles image, text, answer, masks, id; several times.")
    ] = [],  # noqa: B006
    root: Annotated[Path | None, typer.Option(help="The folder that pictures are relative to.")] = None,
    on_error: Annotated[str, typer.Option(help="raise, or skip rows that cannot be read.")] = "raise",
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a run that was stopped.")] = False,
    dtype: Annotated[str, typer.Option(help="bfloat16 and the like; auto is the checkpoint's own.")] = "auto",
    revision: Annotated[str | None, typer.Option(help="Of a hub repository.")] = None,
    device: Device = "auto",
    debug: Debug = False,
) -> None:
    """Tune a band of layers and leave the rest as it is; from_pretrained and interp.load read what is written."""
    columns, band = dict(role_and_name(each) for each in column), layers_named(layers)
    arguments = dict(_name_and_value(each) for each in option)
    source = source_named(data)
    import interp

    vlm = interp.load(model, device=device, dtype=dtype, revision=revision)
    result = interp.tuning.tune(
        vlm,
        interp.Data(source, columns=columns, prompt=prompt, on_error=on_error, root=root),
        layers=band,
        connector=connector,
        vision=vision,
        head=head,
        lora=lora,
        arguments=arguments,
        max_length=max_length,
        patch_alignment=patch_alignment,
        out=out,
        resume=resume,
    )
    if os.environ.get("RANK", "0") == "0":  # only one of several processes prints
        print_table(f"interp tune: {vlm.name}", ["", "value"], _summary(result))
        print(f"checkpoint: {out}")


def layers_named(text: str) -> Any:
    """The layers that an option names: ``6:16`` a range, ``0,4,8`` a list, ``all``, ``none``.

    Raises `InputError` for anything else, and for a range that holds no layer.
    """
    if text in ("all", "none"):
        return "all" if text == "all" else ()
    try:
        if ":" not in text:
            return [int(each) for each in text.split(",")]
        start, stop = (int(each) for each in text.split(":"))
    except ValueError:
        raise InputError(f"--layers {text!r}: expected 6:16, 0,4,8, all or none") from None
    if not 0 <= start < stop:
        raise InputError(f"--layers {text!r}: expected the first layer and the one behind the last, as in 6:16")
    return range(start, stop)


def _name_and_value(text: str) -> tuple[str, Any]:
    """A number, true, false or a list where the value is JSON, else the text."""
    name, _, value = text.partition("=")
    if not name or not value:
        raise InputError(f"--set {text!r}: expected a name and a value, as in learning_rate=1e-4")
    try:
        return name, json.loads(value.lower() if value in ("True", "False") else value)
    except ValueError:
        return name, value


def _summary(result: TuneResult) -> list[tuple[str, str]]:
    forward, backward, optimiser = result.seconds.nanmedian(dim=0).values.tolist()
    seconds = f"forward {forward:.2f}, backward {backward:.2f}, optimiser {optimiser:.2f}"
    return [
        ("trained parameters", f"{result.trained_parameters:,}"),
        ("frozen parameters", f"{result.frozen_parameters:,}, {'un' if result.unchanged else ''}changed"),
        ("rows", f"{result.rows}, {result.cut_off} with an answer cut off, {result.skipped} skipped"),
        ("loss", f"{result.loss[0]:.3f} in the first of {len(result.loss)} steps, {result.loss[-1]:.3f} in the last"),
        ("seconds a step", seconds if forward >= 0 else "not timed, the first step is counted"),
        ("gradients and optimiser", f"{(result.gradient_bytes + result.optimizer_bytes) / 1e9:.3f} GB"),
    ]
