"""Files: written under another name, and renamed when they are whole.

So a file is there complete or not at all, whatever stops the program. It has the rights that the system gives to any new
file (the umask decides): writers of other packages make files that their user alone can read.
"""

from __future__ import annotations

import os
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
