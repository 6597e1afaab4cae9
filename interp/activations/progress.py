"""The progress of a capture on the terminal or in a notebook: rows, rows a second, time left, bytes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Advance = Callable[[int, int], None]  # rows, bytes


@contextmanager
def shown_progress(total: int | None, wanted: bool) -> Iterator[Advance]:
    """A bar over the rows; `advance(rows, bytes)` moves it on. It goes away when all is done."""
    if not wanted:
        yield lambda rows, size: None
        return
    from rich.console import Console
    from rich.filesize import decimal
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("capture"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("rows"),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[size]}"),
    )
    console = Console(stderr=True)
    # Into a file or a pipe it would leave its lines behind.
    hidden = not (console.is_terminal or console.is_jupyter)
    with Progress(*columns, console=console, transient=True, disable=hidden) as bar:
        task = bar.add_task("capture", total=total, rate="", size="")
        started, captured, held = time.monotonic(), 0, 0

        def advance(rows: int, size: int) -> None:
            nonlocal captured, held
            captured, held = captured + rows, held + size
            rate = captured / max(time.monotonic() - started, 1e-6)
            bar.update(task, advance=rows, rate=f"{rate:.1f} rows/s", size=decimal(held))

        yield advance
