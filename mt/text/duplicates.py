"""64-bit keys of sentence pairs, and which of very many keys came before."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

_KEYS_PER_PART = 5_000_000  # compared together, which takes 28 bytes of memory each


def pair_keys(srcs: Sequence[str], tgts: Sequence[str]) -> npt.NDArray[np.uint64]:
    """Return a 64-bit key of each pair, the same in every process and on every machine.

    Equal pairs have equal keys. Among n different pairs, some two have the same key with a chance of n² / 2^65: 0.03%
    for 100 million pairs, 3% for a billion. Then one pair is taken for a repetition of the other.
    """
    # With the length of the source, ("a b", "c") is not ("a", "b c").
    digests = [
        hashlib.blake2b(f"{len(src)} {src}{tgt}".encode("utf-8", "surrogatepass"), digest_size=8).digest()
        for src, tgt in zip(srcs, tgts, strict=True)
    ]
    return np.frombuffer(b"".join(digests), dtype="<u8").astype(np.uint64, copy=False)


def repeated(key_files: Sequence[Path], keys_per_part: int = _KEYS_PER_PART) -> list[npt.NDArray[np.bool_]]:
    """Return for each file which of its keys came before: in an earlier file, or earlier in the same one.

    The files are read once for each part of the keys, so that memory does not grow with their number, but for a byte a
    key. It does grow where many keys are the same.

    Args:
        key_files: uint64 keys as `tofile` writes them, spread evenly, as hashes are.
    """
    sizes = [path.stat().st_size // 8 for path in key_files]
    is_repeated = np.zeros(sum(sizes), dtype=np.bool_)
    n_parts = -(-len(is_repeated) // keys_per_part)
    ends = np.cumsum(sizes, dtype=np.intp)
    for part in range(n_parts):
        parts, places = [], []
        for path, end, size in zip(key_files, ends, sizes, strict=True):
            keys = np.fromfile(path, dtype=np.uint64)
            of_part = np.flatnonzero(keys % np.uint64(n_parts) == part)
            parts.append(keys[of_part])
            places.append(of_part + (end - size))
        keys = np.concatenate(parts)
        order = np.argsort(keys, kind="stable")
        keys = keys[order]
        is_repeated[np.concatenate(places)[order[1:][keys[1:] == keys[:-1]]]] = True
    return np.split(is_repeated, ends[:-1]) if sizes else []
