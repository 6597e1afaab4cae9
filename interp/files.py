"""Files and folders: written under another name, and renamed when they are whole.

So a file is there complete or not at all, whatever stops the program, and a folder has the file that makes it one only when it
has all others. A file has the rights that the system gives to any new one (the umask decides): writers of other packages make
files that their user alone can read.
"""

from __future__ import annotations

import os
import shutil
import stat
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def whole_file(target: Path) -> Iterator[Path]:
    """A path to write to, which becomes the `target` at the end, also where that exists; an error leaves nothing behind.

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> with whole_file(folder / "a.txt") as path:
    ...     _ = path.write_text("whole")
    >>> [file.name for file in folder.iterdir()]
    ['a.txt']

    Raises `OSError` where the file cannot be written.
    """
    # A name is at most 255 bytes long, and no other thread or process has this one.
    partial = target.with_name(f".{target.name[:40]}.{uuid.uuid4().hex[:8]}.partial")
    try:
        partial.touch(exist_ok=False)
        # An empty file shows the rights of new files here. To ask for the umask one would have to change it.
        rights = stat.S_IMODE(partial.stat().st_mode)
        yield partial
        if stat.S_IMODE(partial.stat().st_mode) != rights:
            partial.chmod(rights)
        with partial.open("rb") as written:
            os.fsync(written.fileno())
        partial.replace(target)
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)


@contextmanager
def whole_folder(target: Path, last: str) -> Iterator[Path]:
    """A folder to write to, whose files move into the folder `target` at the end; an error leaves nothing behind.

    The file named `last` moves after all others, so that a folder which has it has all of them.

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> with whole_folder(folder, last="b") as partial:
    ...     _ = [(partial / name).write_text("whole") for name in "abc"]
    >>> sorted(file.name for file in folder.iterdir())
    ['a', 'b', 'c']

    Raises `OSError` where a file cannot be written.
    """
    partial = target / f".{uuid.uuid4().hex[:8]}.partial"
    partial.mkdir()
    try:
        yield partial
        files = sorted(path for path in partial.rglob("*") if path.is_file())
        for file in sorted(files, key=lambda path: path == partial / last):
            place = target / file.relative_to(partial)
            place.parent.mkdir(parents=True, exist_ok=True)
            with whole_file(place) as new:
                file.replace(new)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
