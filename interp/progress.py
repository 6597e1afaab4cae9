"""Bars for runs that take long: how much is done, how fast, and the time that is left.

A bar stands on standard error of a terminal, or below the cell of a notebook, and goes away at the end. It appears after a
second, so a short run shows none. There is one at a time: a run within a run leaves the bar to the outer one. In a file
or a pipe there is none at all.

Calls that run long take `progress=False`. `quiet` turns all bars off within a block, and the environment variable
``INTERP_PROGRESS=0`` everywhere.

>>> import interp
>>> with interp.progress.quiet():
...     pass  # no bar here
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

from interp.arguments import checked_flag

# A run that takes less, in seconds, shows no bar.
PATIENCE = 1.0
# A bar changes so often, in seconds, at most.
_REDRAW = 0.1
# Whoever holds it has the only bar of this process.
_SHOWS = threading.Lock()
_QUIET = ContextVar("quiet", default=False)
Item = TypeVar("Item")
_OFF = ("0", "false", "no", "off")


@contextmanager
def quiet(on: bool = True) -> Iterator[None]:
    """No bars within this block; with `on=False` it changes nothing.

    >>> with quiet():
    ...     _switched_off()
    True
    """
    token = _QUIET.set(on or _QUIET.get())
    try:
        yield
    finally:
        _QUIET.reset(token)


def _switched_off() -> bool:
    return _QUIET.get() or os.environ.get("INTERP_PROGRESS", "").strip().lower() in _OFF


@contextmanager
def progress_bar(task: str, total: int | None, unit: str, visible: bool = True) -> Iterator[Bar]:
    """A bar for `total` units of a task, None where their number is not known; ``bar.advance()`` moves it.

    >>> with progress_bar("sweep", 3, "cells") as bar:
    ...     for _ in range(3):
    ...         bar.advance()
    >>> bar.done
    3

    Raises `InputError` for `visible` that is not True or False; callers pass their `progress` on.
    """
    bar = Bar(task, total, unit, checked_flag(visible, "progress") and not _switched_off())
    try:
        yield bar
    finally:
        bar.close()


class Bar:
    """One bar: `done` of `total` units. Nothing is drawn, and rich is not imported, before it has taken a second."""

    def __init__(self, task: str, total: int | None, unit: str, visible: bool) -> None:
        self.task, self.total, self.unit, self.visible = task, total, unit, visible
        self.done, self.start = 0, time.monotonic()
        self._drawn = -_REDRAW
        self._progress: Any = None
        self._in_notebook, self._cell = False, None

    def advance(self, units: int = 1, remark: str = "") -> None:
        """So many units more are done. The remark stands at the end of the bar."""
        self.reach(self.done + units, remark)

    def each(self, items: Iterable[Item]) -> Iterator[Item]:
        """These items; the bar advances after each."""
        for item in items:
            yield item
            self.advance()

    def reach(self, done: int, remark: str = "") -> None:
        """So many units are done in all."""
        self.done = done
        if not self.visible:
            return
        now = time.monotonic()
        if now - self._drawn < _REDRAW or (self._progress is None and not self._opens(now)):
            return
        self._drawn = now
        rate = f"{self.done / max(now - self.start, 1e-6):.3g}"
        self._progress.update(self._progress.task_ids[0], completed=self.done, rate=rate, remark=remark)
        if self._in_notebook:
            self._show_in_cell()
        else:
            self._progress.start()  # which changes nothing where it stands already

    def _opens(self, now: float) -> bool:
        """Whether the bar appears now: the run is long, not at its end, there is no other bar, and a place to show it."""
        at_end = self.total is not None and self.done >= self.total
        if at_end or now - self.start < PATIENCE or not _SHOWS.acquire(blocking=False):
            return False
        try:
            self.visible = self._open()
        finally:
            if self._progress is None:
                _SHOWS.release()
        return self.visible

    def _open(self) -> bool:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        console = Console(stderr=True)
        if not (console.is_jupyter or (console.is_interactive and sys.stderr.isatty())):
            return False  # in a file or a pipe it would leave its lines
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[unit]}, {task.fields[rate]}/s", markup=False),
            TimeRemainingColumn(),
            TextColumn("{task.fields[remark]}", markup=False),
        )
        bar = Progress(
            *columns,
            console=console,
            transient=True,
            # Rich would print on standard error what is printed, even where that goes to a file.
            redirect_stdout=sys.stdout.isatty(),
            # A unit may take minutes.
            speed_estimate_period=3600,
            # The bar is made late; rich takes the rate from the first moment on.
            get_time=lambda: self.start if self._progress is None else time.monotonic(),
        )
        task = bar.add_task(self.task, total=self.total, unit=self.unit, rate="", remark="")
        bar.update(task, completed=1e-9)
        self._progress, self._in_notebook = bar, console.is_jupyter
        return True

    def _show_in_cell(self) -> None:
        """Rich's own bars in notebooks need widgets, and these leave a stain in a page that is made of the notebook."""
        from IPython.display import display

        if self._cell is None:
            self._cell = display(self._progress, display_id=True)
        else:
            self._cell.update(self._progress)

    def close(self) -> None:
        """Take the bar away."""
        progress, self._progress = self._progress, None
        if progress is None:
            return
        try:
            if not self._in_notebook:
                progress.stop()
            elif self._cell is not None:
                from IPython.display import HTML

                self._cell.update(HTML(""))
        finally:
            _SHOWS.release()
