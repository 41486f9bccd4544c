"""64-bit keys of sentence pairs, and which of very many keys came before."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

_Keys = npt.NDArray[np.uint64]
_Flags = npt.NDArray[np.bool_]

_MEMORY_BYTES = 256 << 20
_BYTES_PER_KEY = 64  # of memory while keys are compared: the keys twice, their order, and what sorting takes
_MAX_PART_BITS = 16


def pair_keys(srcs: Sequence[str], tgts: Sequence[str]) -> _Keys:
    """A 64-bit key of each pair, the same in every process and on every machine.

    Equal pairs have equal keys. Among n different pairs, some two have the same key with a chance of n² / 2^65: 0.03%
    for 100 million pairs, 3% for a billion. Then one pair is taken for a repetition of the other.
    """
    # With the length of the source, ("a b", "c") is not ("a", "b c").
    digests = [
        hashlib.blake2b(f"{len(src)} {src}{tgt}".encode("utf-8", "surrogatepass"), digest_size=8).digest()
        for src, tgt in zip(srcs, tgts, strict=True)
    ]
    return np.frombuffer(b"".join(digests), dtype="<u8").astype(np.uint64, copy=False)


def repeated(key_files: Sequence[Path], memory_bytes: int = _MEMORY_BYTES) -> Iterator[_Flags]:
    """Of each file in turn, which of its keys came before: in an earlier file, or earlier in the same one.

    Where `memory_bytes` do not hold all keys, they are copied into parts by their first bits, beside the first file:
    8 bytes a key, which are freed before the first flags come.

    Args:
        key_files: uint64 keys as `tofile` writes them, spread evenly, as hashes are.
        memory_bytes: taken to compare keys, whatever their number; a bit a key comes on top. More is taken where one
            file alone needs more.
    """
    max_keys = max(1, memory_bytes // _BYTES_PER_KEY)
    n_keys = sum(path.stat().st_size for path in key_files) // 8
    if n_keys <= max_keys:
        for keys, ends in _groups(key_files, max_keys):
            yield from np.split(next(_repeated_in([keys])), ends[:-1])
        return
    # Parts of a quarter to half of what fits: they are not all of one size.
    n_bits = min(_MAX_PART_BITS, (2 * n_keys // max_keys).bit_length())
    with tempfile.TemporaryDirectory(prefix="keys-", dir=key_files[0].parent) as folder:
        parts = [Path(folder) / str(i) for i in range(1 << n_bits)]
        _write_parts(key_files, parts, max_keys)
        flags_of_parts = [_repeated_in_part(part, max_keys) for part in parts]
    yield from _flags_of_files(key_files, flags_of_parts, max_keys)


def _groups(key_files: Sequence[Path], max_keys: int) -> Iterator[tuple[_Keys, npt.NDArray[np.intp]]]:
    """Keys of some files in a row, up to `max_keys` or of one file, and where each file ends."""
    group: list[_Keys] = []
    n_keys = 0
    for path in key_files:
        keys = np.fromfile(path, dtype=np.uint64)
        if group and n_keys + len(keys) > max_keys:
            yield np.concatenate(group), np.cumsum([len(keys) for keys in group])
            group, n_keys = [], 0
        group.append(keys)
        n_keys += len(keys)
    if group:
        yield np.concatenate(group), np.cumsum([len(keys) for keys in group])


def _by_part(keys: _Keys, n_parts: int) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """An order that puts the keys of each part together, first come first, and the number of keys of each part."""
    n_bits = (n_parts - 1).bit_length()
    part = (keys >> np.uint64(64 - n_bits)).astype(np.uint16)
    return np.argsort(part, kind="stable"), np.bincount(part, minlength=n_parts)


def _write_parts(key_files: Sequence[Path], parts: Sequence[Path], max_keys: int) -> None:
    for path in parts:
        path.touch()
    for keys, _ in _groups(key_files, max_keys):
        order, n_of_parts = _by_part(keys, len(parts))
        of_parts = np.split(keys[order], np.cumsum(n_of_parts)[:-1])
        for path, of_part in zip(parts, of_parts, strict=True):
            if len(of_part):
                with path.open("ab") as stream:
                    of_part.tofile(stream)


def _repeated_in_part(part: Path, max_keys: int) -> npt.NDArray[np.uint8]:
    """Flags of the keys of a part, in bits."""
    n_keys = part.stat().st_size // 8
    # A part holds more than fits where a key is repeated very often.
    blocks = (np.fromfile(part, np.uint64, max_keys, offset=8 * first) for first in range(0, n_keys, max_keys))
    bits = np.packbits(np.concatenate([np.empty(0, dtype=np.bool_), *_repeated_in(blocks)]))
    part.unlink()
    return bits


def _repeated_in(blocks: Iterable[_Keys]) -> Iterator[_Flags]:
    """Of each block, which of its keys came before. Only the different keys of the blocks before are kept."""
    seen = new = np.empty(0, dtype=np.uint64)
    for keys in blocks:
        if len(new):
            seen = np.sort(np.concatenate([seen, new]))
        order = np.argsort(keys)
        in_order = keys[order]
        starts = np.flatnonzero(np.concatenate([[True], in_order[1:] != in_order[:-1]])[: len(keys)])
        distinct = in_order[starts]
        is_known = _is_among(distinct, seen)
        new = distinct[~is_known]
        flags = np.ones(len(keys), dtype=np.bool_)
        if len(starts):
            flags[np.minimum.reduceat(order, starts)] = is_known
        yield flags


def _is_among(keys: _Keys, in_order: _Keys) -> _Flags:
    if not len(in_order):
        return np.zeros(len(keys), dtype=np.bool_)
    places = np.minimum(np.searchsorted(in_order, keys), len(in_order) - 1)
    return np.equal(in_order[places], keys)


def _flags_of_files(
    key_files: Sequence[Path], bits_of_parts: Sequence[npt.NDArray[np.uint8]], max_keys: int
) -> Iterator[_Flags]:
    """The flags of each part, put back where its keys stand in the files."""
    n_done = np.zeros(len(bits_of_parts), dtype=np.intp)
    for keys, ends in _groups(key_files, max_keys):
        order, n_of_parts = _by_part(keys, len(bits_of_parts))
        spans = zip(bits_of_parts, n_done.tolist(), (n_done + n_of_parts).tolist(), strict=True)
        flags = np.empty(len(keys), dtype=np.bool_)
        flags[order] = np.concatenate([_flags_between(bits, first, end) for bits, first, end in spans])
        n_done += n_of_parts
        yield from np.split(flags, ends[:-1])


def _flags_between(bits: npt.NDArray[np.uint8], first: int, end: int) -> _Flags:
    return np.unpackbits(bits[first // 8 : -(-end // 8)])[first % 8 :][: end - first].astype(np.bool_)
