"""Files that hold secrets or that two runs may touch at once."""

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from shared.domain.errors import TransientError


def write_private(path: Path, text: str) -> None:
    """Write a file that only its owner can read; readers see the old text or the new one, never a part."""
    fresh = path.with_name(f".{path.name}.new")
    fresh.unlink(missing_ok=True)
    with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
    fresh.replace(path)


@contextmanager
def locked(path: Path, *, limit: float, waiting: Callable[[], None]) -> Iterator[None]:
    """Hold a lock between processes; it ends with the process, however that ends. Its holder may delete the file.

    Args:
        path: the lock file; it and its directory are created if missing.
        limit: seconds to wait for another holder.
        waiting: called twice a second while somebody else holds the lock.

    Raises:
        TransientError: the lock was not free within the limit.
    """
    end = time.monotonic() + limit
    while True:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with path.open("ab") as file:
            if _lock(file, path):
                yield
                return
        if time.monotonic() > end:
            message = (
                f"another kmmhub has held {path} for {limit:.0f} s: wait until it has finished, or end it"
            )
            raise TransientError(message, reason="Locked")
        waiting()
        time.sleep(0.5)


def _lock(file: BinaryIO, path: Path) -> bool:
    """Whether we hold the lock now, and the file is still the one that others would open."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return os.fstat(file.fileno()).st_ino == path.stat().st_ino
    except (BlockingIOError, FileNotFoundError):
        return False
