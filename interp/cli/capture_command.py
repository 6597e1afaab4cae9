"""``interp capture``: activations of a data set, written to a folder."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from interp.cli.application import app
from interp.cli.options import Debug, Device, name_or_numbers, role_and_name, source_named
from interp.cli.terminal import print_table
from interp.displays import dtype_name


@app.command()
def capture(
    model: Annotated[str, typer.Argument(help="A toy's name, a folder or a hub repository.")],
    data: Annotated[str, typer.Argument(help="A folder or a file of data; or scenes:200, captions:200 of the toy.")],
    out: Annotated[Path, typer.Option(help="The folder to write, or to go on with.")],
    site: Annotated[list[str], typer.Option(help="What is captured; may be given several times.")] = ["resid"],  # noqa: B006
    layers: Annotated[str, typer.Option(help="all, or numbers: 0,4,8.")] = "all",
    positions: Annotated[str, typer.Option(help="A name, or numbers that count a row's tokens: 0,-1.")] = "image",
    reduce: Annotated[str, typer.Option(help="What becomes of them: mean, mean:4, last, sample, none.")] = "mean",
    dtype: Annotated[str | None, typer.Option(help="float16 and the like; the model's own if left out.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Rows that are run together.")] = 8,
    rows_per_shard: Annotated[int | None, typer.Option(min=1, help="Rows of one file.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Which positions are drawn.")] = 0,
    prompt: Annotated[str | None, typer.Option(help="Every row's text: '<image> {question}'.")] = None,
    chat: Annotated[bool, typer.Option("--chat", help="Put each text into the model's chat template.")] = False,
    column: Annotated[
        list[str], typer.Option(help="ROLE=NAME, of the roles image, text, id, label, group; several times.")
    ] = [],  # noqa: B006
    root: Annotated[Path | None, typer.Option(help="The folder that pictures are relative to.")] = None,
    on_error: Annotated[str, typer.Option(help="raise, or skip rows that cannot be read.")] = "raise",
    resume: Annotated[bool, typer.Option(help="Go on with a folder that was begun.")] = True,
    revision: Annotated[str | None, typer.Option(help="Of a hub repository.")] = None,
    device: Device = "auto",
    debug: Debug = False,
) -> None:
    """Capture activations of a data set into a folder; stopped at any moment, the same command goes on."""
    columns = dict(role_and_name(each) for each in column)
    layer_numbers, token_positions = name_or_numbers("--layers", layers), name_or_numbers("--positions", positions)
    source = source_named(data)
    import interp

    vlm = interp.load(model, device=device, revision=revision)
    acts = interp.capture(
        vlm,
        interp.Data(source, columns=columns, prompt=prompt, chat=chat, on_error=on_error, root=root),
        sites=site,
        positions=token_positions,
        reduce=reduce,
        batch_size=batch_size,
        dtype=dtype,
        seed=seed,
        out=out,
        resume=resume,
        layers=layer_numbers,
        rows_per_shard=rows_per_shard,
    )
    if os.environ.get("RANK", "0") != "0":  # only one of several processes prints
        return
    table = [(name, str(list(acts[name].shape)), dtype_name(acts[name])) for name in acts]
    skipped = acts.manifest["skipped"]
    print_table(f"{len(acts.ids)} rows, {len(skipped)} skipped", ["site", "shape", "dtype"], table)
    for each in skipped[:10]:
        print(f"skipped: {' '.join(each['error'].split())}", file=sys.stderr)
    print(f"activations: {out}")
