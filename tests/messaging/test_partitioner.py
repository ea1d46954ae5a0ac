"""Keys to partitions, as Kafka's Java client chooses them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastlog._core import murmur2, partition_for_key
from fastlog.errors import ConfigError, InvalidRecordError

# org.apache.kafka.common.utils.UtilsTest.testMurmur2
VECTORS = {
    b"21": -973932308,
    b"foobar": -790332482,
    b"a-little-bit-long-string": -985981536,
    b"a-little-bit-longer-string": -1486304829,
    b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8": -58897971,
    b"abc": 479470107,
    b"": 275646681,
}


def reference(key: bytes) -> int:
    """MurmurHash2 by its definition, with numbers of any size."""
    mask, m = 0xFFFFFFFF, 0x5BD1E995
    h = 0x9747B28C ^ len(key)
    whole = len(key) // 4 * 4
    for at in range(0, whole, 4):
        k = int.from_bytes(key[at : at + 4], "little") * m & mask
        k = (k ^ k >> 24) * m & mask
        h = h * m & mask ^ k
    if rest := key[whole:]:
        h = (h ^ int.from_bytes(rest, "little")) * m & mask
    h = (h ^ h >> 13) * m & mask
    h ^= h >> 15
    return h - (1 << 32) if h >> 31 else h


@pytest.mark.parametrize(("key", "expected"), VECTORS.items())
def test_vectors_of_kafkas_own_test(key: bytes, expected: int) -> None:
    assert murmur2(key) == expected
    assert reference(key) == expected


@given(st.binary(max_size=40), st.integers(1, 1000))
def test_any_key(key: bytes, partitions: int) -> None:
    assert murmur2(key) == reference(key)
    assert partition_for_key(key, partitions) == (reference(key) & 0x7FFFFFFF) % partitions
    assert partition_for_key(bytearray(key), partitions) == partition_for_key(key, partitions)  # type: ignore[arg-type]


def test_what_has_no_partition() -> None:
    with pytest.raises(InvalidRecordError, match="key is None"):
        murmur2(None)  # type: ignore[arg-type]
    with pytest.raises(InvalidRecordError, match="str"):
        partition_for_key("text", 3)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="partitions=0"):
        partition_for_key(b"k", 0)
