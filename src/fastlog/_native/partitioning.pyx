# cython: annotation_typing=False, nonecheck=True
"""Partitions of keys: the hash, and records sorted by the partitions that they go to."""

from libc.stdint cimport int32_t, int64_t

from fastlog._native.columns cimport Column, Span, make_single_column, span_at
from fastlog._native.encoder cimport RecordSource

from fastlog.errors import ConfigError, InvalidRecordError


def murmur2(key: bytes) -> int:
    """The hash that Kafka's Java client takes of a key: a signed 32-bit number."""
    cdef Column column
    cdef Span span
    if key is None:
        raise InvalidRecordError("key is None: only bytes have a hash")
    column = make_single_column(key, "key")
    span = span_at(&column.data, 0)
    return murmur2_of(span.data, span.size)


def partition_for_key(key: bytes, partitions: int) -> int:
    """The partition, from 0 to ``partitions`` - 1, that records with this key go to, as Kafka's Java client chooses it."""
    if partitions < 1:
        raise ConfigError(f"partitions={partitions!r}: expected at least 1")
    return (murmur2(key) & 0x7FFFFFFF) % partitions


cdef void split(
    const RecordSource* source, int32_t partitions, int32_t sticky, int32_t* chosen, int64_t* starts, int64_t* sizes,
    int64_t* order, Span* spans, int64_t* stamps,
) noexcept nogil:
    """See the declaration."""
    cdef int64_t i, at, count = source.count
    cdef Span key, value, headers
    for i in range(count):
        key = span_at(source.keys, i)
        chosen[i] = sticky if key.data == NULL else partition_of(key.data, key.size, partitions)
        starts[chosen[i] + 2] += 1
    for i in range(2, partitions + 2):
        starts[i] += starts[i - 1]
    for i in range(count):
        # starts[p + 1] walks from the start of partition p to its end
        at = starts[chosen[i] + 1]
        starts[chosen[i] + 1] += 1
        order[at] = i
        value = span_at(source.values, i)
        key = span_at(source.keys, i)
        spans[at] = value
        spans[count + at] = key
        sizes[chosen[i]] += RECORD_ROOM + max(value.size, 0) + max(key.size, 0)
        if source.headers != NULL:
            headers = span_at(source.headers, i)
            spans[2 * count + at] = headers
            sizes[chosen[i]] += max(headers.size, 0)
        if stamps != NULL:
            stamps[at] = source.timestamps[i]
