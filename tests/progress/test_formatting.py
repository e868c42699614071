"""Numbers formatted for people."""

from __future__ import annotations

import pytest

from pipeline.progress.formatting import byte_size, duration, elapsed


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (0, "0 s"),
        (0.03, "0 s"),
        (1.26, "1.3 s"),
        (75, "75 s"),
        (100, "1.7 min"),
        (3000, "50 min"),
        (9000, "2.5 h"),
        (4e6, "1,111 h"),
    ],
)
def test_durations_have_the_most_readable_unit(seconds: float, expected: str) -> None:
    assert duration(seconds) == expected


@pytest.mark.parametrize(
    ("num_bytes", "expected"),
    [(0, "0 bytes"), (999, "999 bytes"), (1500, "1.5 kB"), (123_456_789, "123 MB"), (5e15, "5,000 TB")],
)
def test_sizes_have_three_digits(num_bytes: float, expected: str) -> None:
    assert byte_size(num_bytes) == expected


def test_elapsed_time_of_two_days_or_more_is_in_days() -> None:
    assert [elapsed(s) for s in (3, 600, 9000, 400_000)] == ["3 s", "10 min", "2.5 h", "4.6 days"]
