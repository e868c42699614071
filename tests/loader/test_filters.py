"""Filters of rows: what they select, and what a wrong one says."""

from __future__ import annotations

import pyarrow as pa
import pytest

from pipeline.loader.filters import WhereError, parse_where

TABLE = pa.table({"t": [1, 5, 15], "score": [None, 4.5, 6.0], "key": ["a", "b", "it's"], "ok": [True, False, True]})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("t >= 5", [5, 15]),
        ("t > 1 and score > 5", [15]),
        ("score < 5 or t == 1", [1, 5]),
        ("not t == 5", [1, 15]),
        ("score is None", [1]),
        ("score is not None and t != 5", [15]),
        ("key in ('a', \"it's\")", [1, 15]),
        ("key not in ['a']", [5, 15]),
        ("1 < t <= 5", [5]),
        ("t * 2 - 1 > score + 8", [15]),
        ("-t < -4", [5, 15]),
        ("ok", [1, 15]),
    ],
)
def test_rows_are_filtered(text: str, expected: list[int]) -> None:
    assert TABLE.filter(parse_where(text, TABLE.schema).expression)["t"].to_pylist() == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("aesthetic > 5", "no column 'aesthetic'; there are t, score, key, ok"),
        ("t >", "does not parse"),
        ("t > 'x'", "does not fit the columns' types"),
        ("t + 1", "does not fit the columns' types"),
        ("__import__('os').system('true')", "is not supported"),
        ("t > 1 if ok else t", "is not supported"),
        ("1 == 1", "constant"),
    ],
)
def test_a_wrong_filter_says_what_is_wrong(text: str, message: str) -> None:
    with pytest.raises(WhereError, match=message):
        parse_where(text, TABLE.schema)


def test_a_filter_lists_the_columns_that_it_reads() -> None:
    assert parse_where("score > 1 and not (t == 1 or score is None)", TABLE.schema).columns == ["t", "score"]
