"""Writing a file so that a reader sees the old one or the new one, never half of it."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Gives a path beside the file to write to; it takes the file's place when the body ends well, and is removed when it does not.

    Args:
        path: The file, which may be there already; its folder must be.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.part")  # of this writer alone, whichever machines share the folder
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
