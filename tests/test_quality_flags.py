from __future__ import annotations

import pytest

from mt.decode.quality_flags import has_repetition_loop, is_too_long, min_plausible_length, repeated_tokens


@pytest.mark.parametrize(
    ("ids", "n_repeated"),
    [
        ([], 0),
        ([5, 6, 7, 8], 0),
        ([5, 5, 5, 5], 0),  # only three tokens repeat the previous one
        ([5, 5, 5, 5, 5], 4),
        ([5, 6, 5, 6], 0),  # two copies are not a loop
        ([5, 6, 5, 6, 5, 6], 4),
        ([1, 5, 6, 7, 5, 6, 7, 5, 6, 7, 2], 6),
        ([1, 5, 6, 7, 5, 6, 7, 5, 6, 2], 0),  # the third copy is incomplete
        (list(range(40)) * 3, 0),  # longer than the longest loop
        (list(range(32)) * 3, 64),
        ([5, 9, 5, 8, 5, 7, 5, 6, 5, 4], 0),
    ],
)
def test_three_copies_in_a_row_are_a_loop(ids: list[int], n_repeated: int):
    assert repeated_tokens(ids) == n_repeated


def test_a_loop_in_the_source_or_prefix_is_not_counted():
    loop = [5, 6] * 5
    assert has_repetition_loop(loop, [1, 2, 3])
    assert not has_repetition_loop(loop, [7, 8] * 5)
    assert not has_repetition_loop(loop, [1, 2, 3], [7, 8] * 5)
    assert has_repetition_loop([5, 6] * 20, [7, 8] * 5)


def test_implausible_lengths_are_recognised():
    assert [is_too_long(10, n) for n in (35, 36)] == [False, True]
    assert [min_plausible_length(n) for n in (1, 9, 12, 13, 30)] == [1, 1, 1, 2, 7]
