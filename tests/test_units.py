"""Bytes, durations and counts in readable units."""

import pytest

from mt.units import format_bytes, format_count, format_duration


@pytest.mark.parametrize(
    ("n", "expected"),
    [
        (0, "0.0 MiB"),
        (300 * 2**10, "0.3 MiB"),
        (100 * 2**20, "100.0 MiB"),
        (103 * 2**20, "0.1 GiB"),
        (1.5 * 2**30, "1.5 GiB"),
        (2000 * 2**30, "2,000.0 GiB"),
    ],
)
def test_bytes_are_shown_in_gib_from_a_tenth_of_a_gib(n: float, expected: str) -> None:
    assert format_bytes(n) == expected


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (0.4, "0 s"),
        (42, "42 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (125, "2 min 05 s"),
        (3599.5, "1 h 00 min"),
        (11_259, "3 h 07 min"),
        (100 * 3600, "100 h 00 min"),
    ],
)
def test_durations_are_shown_in_their_two_largest_units(seconds: float, expected: str) -> None:
    assert format_duration(seconds) == expected


@pytest.mark.parametrize(
    ("n", "expected"), [(7, "7"), (36_320, "36,320"), (999_999, "999,999"), (63_082_496, "63.1 M")]
)
def test_counts_are_shown_in_millions_from_one_million(n: int, expected: str) -> None:
    assert format_count(n) == expected
