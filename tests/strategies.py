"""What hypothesis draws: records as the reference model knows them."""

from __future__ import annotations

from hypothesis import strategies as st

from tests.reference.batch import Record

SOME_TIME = 1_700_000_000_000  # milliseconds; a day in 2023, so that it never lies in the future

content = st.one_of(
    st.none(),
    st.just(b""),
    st.binary(max_size=20),
    st.binary(max_size=300),
    st.integers(0, 3000).map(lambda size: bytes(i * 7 % 251 for i in range(size))),
)
headers = st.one_of(
    st.just(()),
    st.lists(st.tuples(st.sampled_from(["a", "a", "trace-id", "", "ключ", "日本", "x" * 70]), content), max_size=4).map(
        tuple
    ),
    st.lists(st.tuples(st.text(max_size=10), st.none() | st.binary(max_size=5)), max_size=3).map(tuple),
)
timestamps = st.one_of(
    st.integers(SOME_TIME - 1000, SOME_TIME + 1000),
    st.sampled_from([SOME_TIME, SOME_TIME + 1, 0, 1]),
    st.integers(0, SOME_TIME),
)


@st.composite
def records(draw: st.DrawFn, min_size: int = 1, max_size: int = 12, first_offset: int = 0) -> list[Record]:
    """Consecutive records from ``first_offset`` on."""
    count = draw(st.integers(min_size, max_size))
    return [
        Record(first_offset + i, draw(timestamps), draw(content), draw(content), draw(headers)) for i in range(count)
    ]
