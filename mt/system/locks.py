"""Locks between processes: one process holds a lock at a time; the system releases it if the process is killed."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}  # errors of a file system without locks


@contextmanager
def locked(path: Path, on_busy: Callable[[], object]) -> Iterator[None]:
    """Hold a lock file inside the block; on a file system without locks, do nothing.

    Args:
        on_busy: called once if another process holds the lock. If it does not raise an error, this process waits.
    Raises:
        OSError: the lock file cannot be created.
    """
    lock = FileLock(path)
    try:
        try:
            lock.acquire(timeout=0)
        except Timeout:
            on_busy()
            lock.acquire(poll_interval=0.2)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
    try:
        yield
    finally:
        if (
            lock.is_locked
        ):  # remove it while it is held: FileLock notices that the file it opened does not exist any more
            path.unlink(missing_ok=True)
        lock.release()
