"""Locks between processes: held by one at a time, released by the system if that one is killed."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}  # of a file system


@contextmanager
def locked(path: Path, on_busy: Callable[[], object]) -> Iterator[None]:
    """Hold a lock file inside the block; on a file system without locks, nothing is held.

    Args:
        on_busy: called once if another process holds the lock; raises, or else this process waits.
    Raises:
        OSError: the file cannot be made.
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
        if lock.is_locked:  # removed while it is held: FileLock sees that what it has opened is not there any more
            path.unlink(missing_ok=True)
        lock.release()
