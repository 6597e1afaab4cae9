"""``interp demo``: a report about the bundled toy, or about one question to a model of your own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from interp.cli.application import app
from interp.cli.options import Debug, Device
from interp.cli.terminal import print_table, task_bar
from interp.errors import InputError


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="The HTML file to write.")] = Path("interp-demo.html"),
    model: Annotated[str | None, typer.Option(help="A hub repository or a folder. Default: the bundled toy.")] = None,
    image: Annotated[Path | None, typer.Option(help="Your own picture; needs --question.")] = None,
    question: Annotated[str | None, typer.Option(help="A question about the picture; needs --image.")] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**31 - 1, help="The seed for the toy's scenes.")] = 0,
    toys: Annotated[int, typer.Option(min=1, help="How many toys, of as many seeds, are looked at.")] = 1,
    device: Device = "auto",
    debug: Debug = False,
) -> None:
    """Look inside the bundled toy, or inside your own model with --model, --image and --question, and write a report."""
    from interp.reports.page import check_writable

    one_prompt = image is not None or question is not None or model is not None
    if one_prompt and (image is None or question is None):
        missing = " and ".join(name for name, value in (("--image", image), ("--question", question)) if value is None)
        raise InputError(f"missing {missing}: expected --image PICTURE and --question 'WORDS' together")
    if one_prompt and toys > 1:
        raise InputError(
            f"--toys {toys}: expected it without --model, --image and --question, for the bundled toys alone"
        )
    target = check_writable(out)
    if one_prompt:
        _demo_prompt(target, model or "toy", image, question or "", device)
    else:
        _demo_toy(target, seed, toys, device)


def _demo_toy(target: Path, seed: int, toys: int, device: str) -> None:
    with task_bar() as advance:
        advance("loading", 7 + toys)
        import interp
        from interp.reports import demo as analyses
        from interp.reports import replication
        from interp.reports.demo_page import demo_page, summarise_demo
        from interp.reports.replication_page import summarise_replication

        others = interp.toy.tuned_toys(toys)[1:]
        steps = len(analyses.STEPS) + len(others) + 2
        stage1, tuned, *more = (interp.load(name, device=device) for name in (analyses.STAGE1, analyses.TUNED, *others))
        results = analyses.analyse(stage1, tuned, seed=seed, step=lambda name: advance(name, steps))
        over_toys = replication.replicate(results, more, step=lambda name: advance(name, steps)) if more else None
        advance("writing", steps)
        demo_page(results, over_toys).write(target)
    print_table("interp demo", ["", analyses.STAGE1, analyses.TUNED], summarise_demo(results))
    if over_toys:
        print_table(f"over {toys} toys", ["", "mean (95 %)", "next toy (95 %)"], summarise_replication(over_toys))
    print(f"report: {target}")


def _demo_prompt(target: Path, model: str, image: Any, question: str, device: str) -> None:
    from interp.models.batches.images import open_image
    from interp.reports import one_prompt

    picture = open_image(image)
    one_prompt.as_prompt(question)  # refuses an empty question before the model is loaded
    with task_bar() as advance:
        steps = len(one_prompt.STEPS) + 2
        advance("loading", steps)
        import interp

        vlm = interp.load(model, device=device)
        results = one_prompt.analyse_prompt(vlm, picture, question, step=lambda name: advance(name, steps))
        advance("writing", steps)
        one_prompt.prompt_page(results).write(target)
    print_table(f"interp demo: {results.model}", ["", "value"], one_prompt.summarise_prompt(results))
    print(f"report: {target}")
