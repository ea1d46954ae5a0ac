"""Committed offsets: Kafka's bytes, replayed from ``__consumer_offsets``, and of one life of a topic."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastlog.errors import ConfigError, CorruptRecordError
from fastlog.groups import formats
from fastlog.groups.formats import OffsetAndMetadata, OffsetKey

SOME_ID = "8IYfv4G5QpqZrmC2cWrPuQ"
names = st.text(max_size=40)
positions = st.builds(
    OffsetAndMetadata,
    st.integers(0, 2**63 - 1),
    st.text(max_size=300),
    st.integers(-1, 2**31 - 1),
    st.integers(0, 2**62),
)


# --- bytes ----------------------------------------------------------------------------------------------------------


@given(group=names, topic=names, partition=st.integers(0, 2**31 - 1))
def test_keys_come_back(group: str, topic: str, partition: int) -> None:
    assert formats.decode_key(formats.encode_key(group, topic, partition)) == OffsetKey(group, topic, partition)


@given(position=positions, topic_id=st.sampled_from([None, SOME_ID]))
def test_values_come_back(position: OffsetAndMetadata, topic_id: str | None) -> None:
    decoded = formats.decode_value(formats.encode_value(position, topic_id))
    assert decoded.position == position
    assert decoded.topic_id == topic_id


@given(position=positions, topic_id=st.sampled_from([None, SOME_ID]), data=st.data())
def test_a_value_that_was_cut_is_corrupt(
    position: OffsetAndMetadata, topic_id: str | None, data: st.DataObject
) -> None:
    value = formats.encode_value(position, topic_id)
    with pytest.raises(CorruptRecordError):
        formats.decode_value(value[: data.draw(st.integers(0, len(value) - 1))])


@given(st.binary(max_size=80))
def test_hostile_bytes_are_corrupt_or_read(data: bytes) -> None:
    for decode in (formats.decode_key, formats.decode_value):
        try:
            decode(data)
        except CorruptRecordError:
            pass


def test_older_values_are_read() -> None:
    note = b"\x00\x02hi"
    first = (7).to_bytes(8) + note + (11).to_bytes(8)
    for version, value in {
        0: b"\x00\x00" + first,
        1: b"\x00\x01" + first + (99).to_bytes(8),
        2: b"\x00\x02" + first,
        3: b"\x00\x03" + (7).to_bytes(8) + (5).to_bytes(4) + note + (11).to_bytes(8),
    }.items():
        epoch = 5 if version == 3 else -1
        assert formats.decode_value(value) == (OffsetAndMetadata(7, "hi", epoch, 11), None)


def test_unknown_tagged_fields_are_passed_over() -> None:
    value = formats.encode_value(OffsetAndMetadata(7), SOME_ID)
    tagged = value.replace(b"\x01\x00\x10", b"\x02\x05\x03abc\x00\x10")
    assert formats.decode_value(tagged) == formats.decode_value(value)


def test_keys_of_groups_are_something_else() -> None:
    assert formats.decode_key(b"\x00\x02\x00\x01g") is None
    assert formats.decode_key(b"\x00\x03\x02g\x00") is None


@pytest.mark.parametrize(
    ("name", "hashed"),
    [("", 0), ("a", 97), ("billing", -109829509), ("polygenelubricants", 0), ("grüße", 98768023), ("😀", 1772899)],
)
def test_groups_lie_where_kafka_looks_for_them(name: str, hashed: int) -> None:
    """``hashCode()`` of the JVM; "polygenelubricants" is the smallest int, which Kafka's abs makes 0."""
    assert formats.partition_for_name(name, 1 << 32) == abs(hashed)
    assert formats.partition_for_name(name) == abs(hashed) % 50


def test_what_cannot_be_committed_is_refused() -> None:
    with pytest.raises(ConfigError, match="0 or more, found -1"):
        formats.encode_value(OffsetAndMetadata(-1), SOME_ID)
    with pytest.raises(ConfigError, match="at most 4096 bytes, found 4098"):
        formats.encode_value(OffsetAndMetadata(1, "ü" * 2049), SOME_ID)
