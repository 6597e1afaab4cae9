"""The command line: ``interp demo``, ``interp doctor`` and ``interp capture``.

Exit codes: 0 on success, 2 for wrong input or usage, 1 for any other error. An error is one line on standard error; with
``--debug`` it is a traceback. Importing this module imports neither torch nor plotly, so ``interp --help`` answers at once.
"""

from __future__ import annotations

import json
import math
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from interp.displays import dtype_name
from interp.errors import InputError, InterpError, LayoutError

if TYPE_CHECKING:
    from rich.console import Console

    from interp.models import VLM, CheckReport

app = typer.Typer(
    help="Mechanistic interpretability of vision-language models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
# The exit code that typer returns after Ctrl-C.
_INTERRUPTED = 130
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:1.")]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit with its code; the `interp` script calls this."""
    sys.exit(run(arguments))


def run(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        code = app(args=arguments, prog_name="interp", standalone_mode=False)
    except Exception as error:
        if "--debug" in arguments:
            raise
        return _report_error(error)
    if code == _INTERRUPTED:
        return _complain("interrupted", 1)
    return code if isinstance(code, int) else 0


def _report_error(error: Exception) -> int:
    if isinstance(error, InterpError):
        # A plain InterpError is not about the input: a full disk, another process that stopped.
        return _complain(str(error), 1 if type(error) is InterpError else 2)
    if hasattr(error, "format_message"):  # wrong usage, as typer reports it
        message = error.format_message().strip().rstrip(".")
        # Without any arguments typer has printed the help already.
        return _complain(f"{message}; see 'interp --help'", 2) if message else 2
    if isinstance(error, typer.Abort):
        return _complain("interrupted", 1)
    return _complain(f"{type(error).__name__}: {error}", 1)


def _complain(message: str, code: int) -> int:
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    return code


def _show_version(value: bool) -> None:
    if value:
        import interp

        print(f"interp {interp.__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
    debug: Debug = False,
) -> None:
    pass


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="The HTML file to write.")] = Path("interp-demo.html"),
    model: Annotated[str | None, typer.Option(help="A hub repository or a folder. Default: the bundled toy.")] = None,
    image: Annotated[Path | None, typer.Option(help="Your own picture; needs --question.")] = None,
    question: Annotated[str | None, typer.Option(help="A question about the picture; needs --image.")] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**31 - 1, help="The seed for the toy's scenes.")] = 0,
    device: Device = "auto",
    debug: Debug = False,
) -> None:
    """Look inside the bundled toy, or inside your own model with --model, --image and --question, and write a report."""
    from interp.reports.page import check_writable

    one_prompt = image is not None or question is not None or model is not None
    if one_prompt and (image is None or question is None):
        missing = " and ".join(name for name, value in (("--image", image), ("--question", question)) if value is None)
        raise InputError(f"missing {missing}: expected --image PICTURE and --question 'WORDS' together")
    target = check_writable(out)
    if one_prompt:
        _demo_prompt(target, model or "toy", image, question or "", device)
    else:
        _demo_toy(target, seed, device)


def _demo_toy(target: Path, seed: int, device: str) -> None:
    with _progress() as advance:
        advance("loading", 8)
        import interp
        from interp.reports import demo as analyses
        from interp.reports.demo_page import demo_page, summarise_demo

        steps = len(analyses.STEPS) + 2
        stage1, tuned = (interp.load(name, device=device) for name in (analyses.STAGE1, analyses.TUNED))
        results = analyses.analyse(stage1, tuned, seed=seed, step=lambda name: advance(name, steps))
        advance("writing", steps)
        demo_page(results).write(target)
    _print_table("interp demo", ["", analyses.STAGE1, analyses.TUNED], summarise_demo(results))
    print(f"report: {target}")


def _demo_prompt(target: Path, model: str, image: Any, question: str, device: str) -> None:
    from interp.models.batches.images import open_image
    from interp.reports import one_prompt

    picture = open_image(image)
    one_prompt.as_prompt(question)  # refuses an empty question before the model is loaded
    with _progress() as advance:
        steps = len(one_prompt.STEPS) + 2
        advance("loading", steps)
        import interp

        vlm = interp.load(model, device=device)
        results = one_prompt.analyse_prompt(vlm, picture, question, step=lambda name: advance(name, steps))
        advance("writing", steps)
        one_prompt.prompt_page(results).write(target)
    _print_table(f"interp demo: {results.model}", ["", "value"], one_prompt.summarise_prompt(results))
    print(f"report: {target}")


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
        _print_table(f"{vlm.name}: {type(vlm.model).__name__}", ["part", "value"], rows)
        proofs = [(c.name, c.outcome, c.measured, c.bound, c.detail) for c in report.checks]
        _print_table("proofs", ["proof", "outcome", "measured", "expected", "claim"], proofs)
    failed = [check for check in report.checks if check.outcome == "failed"]
    if failed:
        names = ", ".join(check.name for check in failed)
        raise LayoutError(f"{vlm.name!r} failed {names}: pass the right layout as structure= to interp.load")


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
    columns = dict(_role_and_name(each) for each in column)
    layer_numbers, token_positions = _name_or_numbers("--layers", layers), _name_or_numbers("--positions", positions)
    source = _source(data)
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
    _print_table(f"{len(acts.ids)} rows, {len(skipped)} skipped", ["site", "shape", "dtype"], table)
    for each in skipped[:10]:
        print(f"skipped: {' '.join(each['error'].split())}", file=sys.stderr)
    print(f"activations: {out}")


def _role_and_name(text: str) -> tuple[str, str]:
    role, _, name = text.partition("=")
    if not role or not name:
        raise InputError(f"--column {text!r}: expected a role and a column's name, as in label=category")
    return role, name


def _name_or_numbers(option: str, text: str) -> Any:
    """A name as it is, numbers with commas as a list of ints."""
    if not any(each.isdigit() for each in text) or any(each.isalpha() for each in text):
        return text
    try:
        return [int(each) for each in text.split(",")]
    except ValueError:
        raise InputError(f"{option} {text!r}: expected a name, or numbers with commas between them, 0,4,8") from None


def _source(text: str) -> Any:
    """The data that an argument names: a number of the toy's scenes or of their captions, or a path."""
    kind, _, count = text.partition(":")
    if kind not in ("scenes", "captions") or Path(text).exists():
        return text
    if not count.isdecimal() or not int(count):
        raise InputError(f"{text!r}: expected how many, as in {kind}:200, or a folder")
    import interp

    scenes = interp.toy.scenes(int(count), seed=0)
    return scenes if kind == "scenes" else scenes.captions()


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
    _print_table(title, ["architecture", "verdict", "readout", "attention", "sites it lacks", "why"], table)


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


# On the terminal ---------------------------------------------------------------------------------------------------------


def _console(stderr: bool = False) -> Console:
    from rich.console import Console

    return Console(stderr=stderr, highlight=False)


@contextmanager
def _progress() -> Iterator[Callable[[str, int], None]]:
    """A progress bar on standard error: `advance(name, total)` begins the next of `total` steps."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    from interp.progress import quiet

    # Loading a model would show progress bars of its own and break this one.
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    columns = (TextColumn("{task.description:<20}"), BarColumn(), TimeElapsedColumn())
    console = _console(stderr=True)
    # In a file or a pipe the bar would leave empty lines.
    hidden = not console.is_terminal
    with quiet(), Progress(*columns, console=console, transient=True, disable=hidden) as bar:
        task = bar.add_task("starting", total=None)
        done = 0

        def advance(name: str, total: int) -> None:
            nonlocal done
            bar.update(task, description=name, completed=done, total=total)
            done += 1

        yield advance


def _print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(title), title_justify="left")
    for column in columns:
        table.add_column(Text(column), overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))  # Text, so that brackets are not read as markup
    _console().print(table)


if __name__ == "__main__":
    main()
