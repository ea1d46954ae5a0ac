"""The encoder of record batches, version 2.

An append that fits into one batch is encoded once, outside every lock, into the buffer of an ``Encoder``. A larger one
is planned first (sizes only), so that its total is known before the first byte is written, and then encoded batch by
batch through the same buffer: a buffer that stays in the cache beats one as large as the append.

With a codec every batch is encoded plain first and its records area is compressed behind a header made anew. How large
that gets cannot be planned, so all of it is done beforehand, outside every lock, into ``EncodedBatches``.

The base offset and the leader epoch are stamped last; the CRC does not cover them.
"""

from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.stdint cimport int16_t, int32_t, int64_t, uint32_t, uint8_t
from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memcpy

from fastlog._native cimport oscalls as os_c
from fastlog._native.checksum cimport crc32c_extend
from fastlog._native.codecs cimport compress, compressed_room
from fastlog._native.columns cimport (
    COLUMN_SPANS, Column, ColumnData, Span, Timestamps, make_column, make_header_column, make_timestamps, span_at,
)
from fastlog._native.layout cimport (
    ATTRIBUTES_AT, BASE_OFFSET_AT, BASE_SEQUENCE_AT, BASE_TIMESTAMP_AT, BATCH_HEADER_SIZE, BATCH_LENGTH_AT, CRC_AT,
    CRC_COVERS_FROM, LAST_OFFSET_DELTA_AT, LEADER_EPOCH_AT, LOG_OVERHEAD, MAGIC_AT, MAGIC_V2, MAX_TIMESTAMP_AT,
    PRODUCER_EPOCH_AT, PRODUCER_ID_AT, RECORDS_COUNT_AT, TRANSACTIONAL_BIT, load_int16, store_int16, store_int32, store_int64,
    store_uint32,
)
from fastlog._native.varint cimport varint_size, write_varint

from fastlog.config import CODECS
from fastlog.errors import ConfigError, InvalidRecordError, RecordTooLargeError

cdef enum:
    RECORD_OVERHEAD = 64        # more than the varints of one record can take
    LARGEST_BATCH = 0x7FFFFFFF  # bytes; the log that it is appended to allows less


cdef extern from *:
    """
    #include <stdint.h>
    #include <string.h>
    /* Most keys and values are short: sixteen bytes at a time in line beat a call. Reads and writes [0, size) only. */
    static inline void fastlog_copy(uint8_t *target, const uint8_t *source, int64_t size) {
        if (size > 256 || size < 16) {
            memcpy(target, source, (size_t)size);
            return;
        }
        int64_t at = 0;
        for (; at + 16 <= size; at += 16)
            memcpy(target + at, source + at, 16);
        memcpy(target + size - 16, source + size - 16, 16);
    }
    /* A varint of a non-negative number: one or two bytes for what most batches need. */
    static inline uint8_t *fastlog_write_size(uint8_t *at, int64_t value) {
        uint64_t z = (uint64_t)value << 1;
        while (z >= 0x80) {
            *at++ = (uint8_t)(z | 0x80);
            z >>= 7;
        }
        *at++ = (uint8_t)z;
        return at;
    }
    static inline int fastlog_size_of_size(int64_t value) {
        return value < 64 ? 1 : value < 8192 ? 2 : value < 1048576 ? 3 : value < 134217728 ? 4 : 5;
    }
    struct fastlog_span { const uint8_t *data; int64_t size; };
    /* Records with a value and nothing else, one timestamp for all: the plainest append, in one tight loop.
     * Stops before a null, a value of `large` bytes, the record that exceeds `limit`, or a full buffer (`room`). */
    static inline uint8_t *fastlog_encode_plain(uint8_t *at, const void *source, int64_t count, int64_t first_delta, int64_t large,
                                                int64_t limit, const uint8_t *room, int64_t *done, int64_t *size) {
        const struct fastlog_span *spans = (const struct fastlog_span *)source;
        int64_t total = *size, i;
        for (i = 0; i < count; i++) {
            const uint8_t *value = spans[i].data;
            int64_t value_size = spans[i].size, delta = first_delta + i;
            if (value == NULL || value_size >= large)
                break;
            /* attributes, timestamp delta, null key, no headers: one byte each */
            int64_t body = 4 + fastlog_size_of_size(delta) + fastlog_size_of_size(value_size) + value_size;
            int64_t record = fastlog_size_of_size(body) + body;
            if (total + record > limit || record + 16 > room - at)
                break;
            at = fastlog_write_size(at, body);
            at[0] = 0;
            at[1] = 0;
            at = fastlog_write_size(at + 2, delta);
            *at++ = 1;
            at = fastlog_write_size(at, value_size);
            fastlog_copy(at, value, value_size);
            at += value_size;
            *at++ = 0;
            total += record;
        }
        *done = i;
        *size = total;
        return at;
    }
    """
    uint8_t* encode_plain "fastlog_encode_plain"(
        uint8_t* at, const void* spans, int64_t count, int64_t first_delta, int64_t large, int64_t limit, const uint8_t* room,
        int64_t* done, int64_t* size,
    ) noexcept nogil
    void copy_bytes "fastlog_copy"(uint8_t* target, const uint8_t* source, int64_t size) noexcept nogil


cdef inline int64_t record_body_size(Span key, Span value, Span headers, int64_t timestamp_delta, int64_t offset_delta) noexcept nogil:
    cdef int64_t size = 1 + varint_size(timestamp_delta) + varint_size(offset_delta)
    size += 1 if key.data == NULL else varint_size(key.size) + key.size
    size += 1 if value.data == NULL else varint_size(value.size) + value.size
    size += 1 if headers.data == NULL else headers.size
    return size


cdef inline Span null_span() noexcept nogil:
    cdef Span span
    span.data = NULL
    span.size = -1
    return span


cdef int64_t plan_batches(const RecordSource* source, int64_t limit, BatchShape** shapes, int64_t* total, int64_t* failed) noexcept nogil:
    """Split `source` into batches of at most `limit` bytes: their number, with `shapes` (to be freed) and `total` bytes.

    RECORD_TOO_LARGE names the record in `failed` and its batch's size in `total`.
    """
    cdef int64_t planned = 0, capacity = 0, i, body, record = 0, base_timestamp = 0, timestamp
    cdef BatchShape* plan = NULL
    cdef BatchShape* larger
    cdef BatchShape current
    cdef Span key = null_span(), value, headers = null_span()
    total[0] = 0
    current.first = 0
    current.count = 0
    current.size = BATCH_HEADER_SIZE
    for i in range(source.count + 1):
        if i < source.count:
            value = span_at(source.values, i)
            if source.keys != NULL:
                key = span_at(source.keys, i)
            if source.headers != NULL:
                headers = span_at(source.headers, i)
            timestamp = source.timestamps[i] if source.timestamps != NULL else source.timestamp
            if current.count == 0:
                base_timestamp = timestamp
            body = record_body_size(key, value, headers, timestamp - base_timestamp, current.count)
            record = varint_size(body) + body
            if current.size + record <= limit:
                current.count += 1
                current.size += record
                continue
        if current.count == 0:
            if i == source.count:
                break
            failed[0] = i
            total[0] = current.size + record
            free(plan)
            return RECORD_TOO_LARGE
        if planned == capacity:
            capacity = capacity * 2 if capacity else 16
            larger = <BatchShape*>realloc(plan, capacity * sizeof(BatchShape))
            if larger == NULL:
                free(plan)
                return OUT_OF_MEMORY
            plan = larger
        plan[planned] = current
        planned += 1
        total[0] += current.size
        current.first = i
        current.count = 0
        current.size = BATCH_HEADER_SIZE
        if i == source.count:
            break
        base_timestamp = timestamp
        body = record_body_size(key, value, headers, 0, 0)
        record = varint_size(body) + body
        if current.size + record > limit:
            failed[0] = i
            total[0] = current.size + record
            free(plan)
            return RECORD_TOO_LARGE
        current.count = 1
        current.size += record
    shapes[0] = plan
    return planned


cdef class Encoder:
    def __cinit__(self):
        self.buffer = NULL
        self.capacity = 0
        self.vectors = NULL
        self.vector_capacity = 0
        self.vector_count = 0
        self.in_one_piece = False

    def __dealloc__(self):
        free(self.buffer)
        free(self.vectors)

    cdef int64_t encode(self, const RecordSource* source, int64_t first, int64_t limit) noexcept nogil:
        """Encode one batch of at most `limit` bytes from record `first` on; the number of records, or a failure.

        RECORD_TOO_LARGE: record `first` alone exceeds the limit; `size` says what it would have taken.
        """
        cdef int64_t count = 0, size = BATCH_HEADER_SIZE, body, record = 0, timestamp = source.timestamp, delta = 0
        cdef int64_t base_timestamp = 0, max_timestamp = -1
        cdef const ColumnData* values = source.values
        cdef const ColumnData* keys = source.keys
        cdef const ColumnData* header_column = source.headers
        cdef Span key = null_span(), value, headers = null_span()
        cdef uint8_t* at
        cdef uint8_t* piece             # start of the bytes not yet in a vector
        cdef bint in_place = values.is_stable and not self.in_one_piece
        cdef int64_t index = first
        cdef int64_t inline_size = BATCH_HEADER_SIZE
        cdef int64_t used, pending, done = 0
        cdef int64_t large = IN_PLACE_SIZE if in_place else 0x7FFFFFFF
        cdef bint is_plain = values.kind == COLUMN_SPANS and keys == NULL and header_column == NULL and source.timestamps == NULL
        cdef uint32_t crc
        cdef int i

        self.vector_count = 0
        if self.reserve(min(limit, 1 << 16), 0) < 0:
            return OUT_OF_MEMORY
        at = self.buffer + BATCH_HEADER_SIZE
        piece = self.buffer
        while index < source.count:
            if is_plain:
                at = encode_plain(
                    at, values.spans + index, source.count - index, count, large, limit, self.buffer + self.capacity, &done, &size
                )
                if done:
                    if count == 0:
                        base_timestamp = max_timestamp = timestamp
                    count += done
                    index += done
                    if index == source.count:
                        break
            value = span_at(values, index)
            if keys != NULL:
                key = span_at(keys, index)
            if header_column != NULL:
                headers = span_at(header_column, index)
            if source.timestamps != NULL:
                timestamp = source.timestamps[index]
            if count == 0:
                base_timestamp = timestamp
            delta = timestamp - base_timestamp
            body = record_body_size(key, value, headers, delta, count)
            record = varint_size(body) + body
            if size + record > limit:
                break
            inline_size = (at - self.buffer) + RECORD_OVERHEAD
            inline_size += max(key.size, 0) + max(headers.size, 0)
            if not in_place or value.size < IN_PLACE_SIZE:
                inline_size += max(value.size, 0)
            if inline_size > self.capacity:
                # a larger buffer moves: `at` and `piece` follow
                used = at - self.buffer
                pending = at - piece
                if self.reserve(max(inline_size, min(2 * self.capacity, limit + RECORD_OVERHEAD)), used) < 0:
                    return OUT_OF_MEMORY
                at = self.buffer + used
                piece = at - pending
            at = write_varint(at, body)
            at[0] = 0
            at = write_varint(at + 1, delta)
            at = write_varint(at, count)
            if key.data == NULL:
                at[0] = 1
                at += 1
            else:
                at = write_varint(at, key.size)
                copy_bytes(at, key.data, key.size)
                at += key.size
            if value.data == NULL:
                at[0] = 1
                at += 1
            else:
                at = write_varint(at, value.size)
                if in_place and value.size >= IN_PLACE_SIZE:
                    if self.add_vector(piece, at - piece) < 0 or self.add_vector(value.data, value.size) < 0:
                        return OUT_OF_MEMORY
                    piece = at
                else:
                    copy_bytes(at, value.data, value.size)
                    at += value.size
            if headers.data == NULL:
                at[0] = 0
                at += 1
            else:
                memcpy(at, headers.data, headers.size)
                at += headers.size
            if timestamp > max_timestamp:
                max_timestamp = timestamp
            size += record
            count += 1
            index += 1
        if count == 0:
            self.size = size + record
            return RECORD_TOO_LARGE
        if at > piece and self.add_vector(piece, at - piece) < 0:
            return OUT_OF_MEMORY

        store_int64(self.buffer + BASE_OFFSET_AT, 0)
        store_int32(self.buffer + BATCH_LENGTH_AT, <int32_t>(size - LOG_OVERHEAD))
        store_int32(self.buffer + LEADER_EPOCH_AT, -1)
        self.buffer[MAGIC_AT] = MAGIC_V2
        store_int16(self.buffer + ATTRIBUTES_AT, 0)
        store_int32(self.buffer + LAST_OFFSET_DELTA_AT, <int32_t>(count - 1))
        store_int64(self.buffer + BASE_TIMESTAMP_AT, base_timestamp)
        store_int64(self.buffer + MAX_TIMESTAMP_AT, max_timestamp)
        store_int64(self.buffer + PRODUCER_ID_AT, -1)
        store_int16(self.buffer + PRODUCER_EPOCH_AT, -1)
        store_int32(self.buffer + BASE_SEQUENCE_AT, -1)
        store_int32(self.buffer + RECORDS_COUNT_AT, <int32_t>count)
        if not self.in_one_piece:
            crc = crc32c_extend(0, <uint8_t*>self.vectors[0].iov_base + CRC_COVERS_FROM, self.vectors[0].iov_len - CRC_COVERS_FROM)
            for i in range(1, self.vector_count):
                crc = crc32c_extend(crc, <uint8_t*>self.vectors[i].iov_base, self.vectors[i].iov_len)
            store_uint32(self.buffer + CRC_AT, crc)
        self.size = size
        self.count = count
        self.max_timestamp = max_timestamp
        return count

    cdef void stamp(self, int64_t base_offset, int32_t leader_epoch) noexcept nogil:
        store_int64(self.buffer + BASE_OFFSET_AT, base_offset)
        store_int32(self.buffer + LEADER_EPOCH_AT, leader_epoch)

    cdef int reserve(self, int64_t capacity, int64_t used) noexcept nogil:
        """Make room for `capacity` bytes, keeping the first `used` ones and the vectors that point into them."""
        cdef uint8_t* larger
        cdef int i
        if capacity <= self.capacity:
            return 0
        larger = <uint8_t*>malloc(capacity)
        if larger == NULL:
            return -1
        if used > 0:
            memcpy(larger, self.buffer, used)
        for i in range(self.vector_count):
            if self.buffer <= <uint8_t*>self.vectors[i].iov_base < self.buffer + self.capacity:
                self.vectors[i].iov_base = larger + (<uint8_t*>self.vectors[i].iov_base - self.buffer)
        free(self.buffer)
        self.buffer = larger
        self.capacity = capacity
        return 0

    cdef int add_vector(self, const uint8_t* data, int64_t size) noexcept nogil:
        cdef iovec* larger
        cdef int capacity
        if self.vector_count == self.vector_capacity:
            capacity = max(16, 2 * self.vector_capacity)
            larger = <iovec*>realloc(self.vectors, capacity * sizeof(iovec))
            if larger == NULL:
                return -1
            self.vectors = larger
            self.vector_capacity = capacity
        self.vectors[self.vector_count].iov_base = <void*>data
        self.vectors[self.vector_count].iov_len = size
        self.vector_count += 1
        return 0


cdef class EncodedBatches:
    def __cinit__(self):
        self.data = NULL
        self.shapes = NULL
        self.max_timestamp = -1

    def __dealloc__(self):
        free(self.data)
        free(self.shapes)

    cdef void stamp(self, int64_t base_offset, int32_t leader_epoch) noexcept nogil:
        """Give every batch its place; the CRCs do not cover that."""
        cdef uint8_t* at = self.data
        cdef int64_t i
        for i in range(self.batches):
            store_int64(at + BASE_OFFSET_AT, base_offset + self.shapes[i].first)
            store_int32(at + LEADER_EPOCH_AT, leader_epoch)
            at += self.shapes[i].size

    cdef int reserve(self, int64_t more) except -1:
        """Make room for `more` bytes behind `size`."""
        cdef int64_t capacity = self.size + more
        cdef uint8_t* larger
        if capacity <= self.capacity:
            return 0
        if self.capacity:
            capacity = max(capacity, 2 * self.capacity)
        larger = <uint8_t*>realloc(self.data, capacity)
        if larger == NULL:
            raise MemoryError(f"no memory left for {capacity} bytes of encoded batches; nothing was written")
        self.data = larger
        self.capacity = capacity
        return 0

    cdef int add(self, int64_t size, int64_t offsets, int64_t max_timestamp) except -1:
        """Count the batch of `size` bytes that was put behind the others."""
        cdef BatchShape* larger
        cdef int64_t capacity
        if self.batches == self.shape_capacity:
            capacity = max(2 * self.shape_capacity, <int64_t>16)
            larger = <BatchShape*>realloc(self.shapes, capacity * sizeof(BatchShape))
            if larger == NULL:
                raise MemoryError(f"no memory left for {capacity} encoded batches; nothing was written")
            self.shapes = larger
            self.shape_capacity = capacity
        self.shapes[self.batches].first = self.offsets
        self.shapes[self.batches].count = offsets
        self.shapes[self.batches].size = size
        self.shapes[self.batches].max_timestamp = max_timestamp
        self.batches += 1
        self.size += size
        self.offsets += offsets
        self.max_timestamp = max(self.max_timestamp, max_timestamp)
        return 0


cdef EncodedBatches encode_compressed(
    Encoder encoder, const RecordSource* source, int codec, int64_t max_message_bytes, int64_t max_decompressed_bytes
):
    """Encode and compress all records of `source`.

    A batch holds what takes `max_message_bytes` before compression, or one record that gets as small as that by it; the
    codec stays also where it saves nothing. Raises RecordTooLargeError for a record that does not fit.
    """
    cdef EncodedBatches batches = EncodedBatches()
    cdef int64_t first = 0, limit, encoded, size
    encoder.in_one_piece = True
    try:
        while first < source.count:
            limit = min(max_message_bytes, max_decompressed_bytes)
            while True:
                with nogil:
                    encoded = encoder.encode(source, first, limit)
                if encoded == RECORD_TOO_LARGE and limit < encoder.size <= max_decompressed_bytes:
                    limit = encoder.size        # alone it may get small enough
                    continue
                if encoded == RECORD_TOO_LARGE:
                    raise RecordTooLargeError(
                        f"record {first} takes a batch of {encoder.size} bytes, more than max_message_bytes={max_message_bytes} and, "
                        f"before compression, max_decompressed_bytes={max_decompressed_bytes} allow; nothing was written"
                    )
                if encoded == OUT_OF_MEMORY:
                    raise MemoryError(f"no memory left to encode {source.count} records; nothing was written")
                size = compress_batch(encoder, codec, batches)
                if size <= max_message_bytes:
                    break
                if encoded == 1:
                    raise RecordTooLargeError(
                        f"record {first} takes a batch of {size} bytes after compression, more than "
                        f"max_message_bytes={max_message_bytes}; nothing was written"
                    )
                # the codec has made it larger
                limit = encoder.size - (size - max_message_bytes) - 1
            batches.add(size, encoded, encoder.max_timestamp)
            first += encoded
    finally:
        encoder.in_one_piece = False
    return batches


cdef int64_t compress_batch(Encoder encoder, int codec, EncodedBatches batches) except -1:
    """Put the batch of `encoder` behind `batches`, compressed; the size."""
    cdef int64_t plain = encoder.size - BATCH_HEADER_SIZE, size
    cdef int64_t room = compressed_room(codec, plain)
    cdef uint8_t* batch
    batches.reserve(BATCH_HEADER_SIZE + room)
    batch = batches.data + batches.size
    memcpy(batch, encoder.buffer, BATCH_HEADER_SIZE)
    size = BATCH_HEADER_SIZE + compress(codec, encoder.buffer + BATCH_HEADER_SIZE, plain, batch + BATCH_HEADER_SIZE, room)
    store_int32(batch + BATCH_LENGTH_AT, <int32_t>(size - LOG_OVERHEAD))
    store_int16(batch + ATTRIBUTES_AT, codec)
    store_uint32(batch + CRC_AT, crc32c_extend(0, batch + CRC_COVERS_FROM, size - CRC_COVERS_FROM))
    return size


# --- one batch for append_batch ------------------------------------------------------------------------------------------

cdef void set_producer(
    uint8_t* batch, int64_t size, int64_t producer_id, int16_t producer_epoch, int32_t base_sequence, bint is_transactional
) noexcept nogil:
    """Give a whole batch, in one piece, to a producer; its CRC is computed anew."""
    store_int64(batch + PRODUCER_ID_AT, producer_id)
    store_int16(batch + PRODUCER_EPOCH_AT, producer_epoch)
    store_int32(batch + BASE_SEQUENCE_AT, base_sequence)
    if is_transactional:
        store_int16(batch + ATTRIBUTES_AT, load_int16(batch + ATTRIBUTES_AT) | TRANSACTIONAL_BIT)
    store_uint32(batch + CRC_AT, crc32c_extend(0, batch + CRC_COVERS_FROM, size - CRC_COVERS_FROM))


def encode_batch(
    values, keys=None, timestamps=None, headers=None, *, producer_id: int = -1, producer_epoch: int = -1,
    base_sequence: int = -1, transactional: bool = False, compression: str | None = None,
) -> bytes:
    """One whole record batch, version 2, as ``PartitionLog.append_batch`` takes it; touches no log.

    Args:
        values, keys, timestamps, headers, compression: as of ``PartitionLog.append``; at least one record.
        producer_id, producer_epoch, base_sequence: of an idempotent producer: all of them from 0 on; -1: of none.
        transactional: part of the producer's transaction.

    Raises InvalidRecordError, RecordTooLargeError (more than one batch can hold) or ConfigError.
    """
    cdef Column value_column, key_column = None, header_column = None
    cdef Timestamps stamps = None
    cdef RecordSource source
    cdef Encoder encoder
    cdef EncodedBatches compressed
    cdef bytes batch
    cdef int64_t encoded, at = 0
    cdef int i
    has_producer = require_producer(producer_id, producer_epoch, base_sequence, transactional)
    if compression is not None and compression not in CODECS:
        raise ConfigError(f"compression={compression!r}: expected one of {', '.join(map(repr, CODECS))}")
    value_column = make_column(values, "values")
    source.values = &value_column.data
    source.keys = source.headers = NULL
    source.timestamps = NULL
    source.count = value_column.data.length
    if source.count == 0:
        raise InvalidRecordError("there is no value: a batch holds at least one record")
    if keys is not None:
        key_column = make_column(keys, "keys")
        if key_column.data.length != source.count:
            raise InvalidRecordError(f"{source.count} values but {key_column.data.length} keys: expected as many")
        source.keys = &key_column.data
    if headers is not None:
        header_column = make_header_column(headers, source.count)
        source.headers = &header_column.data
    source.timestamp = os_c.clock_milliseconds()
    if timestamps is not None:
        stamps = make_timestamps(timestamps, source.count, source.timestamp)
        source.timestamps = stamps.values
        source.timestamp = stamps.constant
    encoder = Encoder()
    if compression is not None and compression != "none":
        compressed = encode_compressed(encoder, &source, CODECS.index(compression), LARGEST_BATCH, LARGEST_BATCH)
        encoded = compressed.shapes[0].count
        batch = PyBytes_FromStringAndSize(<char*>compressed.data, compressed.shapes[0].size)
    else:
        with nogil:
            encoded = encoder.encode(&source, 0, LARGEST_BATCH)
        if encoded == OUT_OF_MEMORY:
            raise MemoryError(f"no memory left to encode {source.count} records")
        if encoded > 0:
            batch = PyBytes_FromStringAndSize(NULL, encoder.size)
            for i in range(encoder.vector_count):
                memcpy(<char*>batch + at, encoder.vectors[i].iov_base, encoder.vectors[i].iov_len)
                at += encoder.vectors[i].iov_len
    if encoded != source.count:
        raise RecordTooLargeError(f"{source.count} records take more than the {LARGEST_BATCH} bytes that one batch can hold")
    if has_producer:
        set_producer(<uint8_t*><char*>batch, len(batch), producer_id, producer_epoch, base_sequence, transactional)
    return batch


cdef bint require_producer(producer_id, producer_epoch, base_sequence, transactional) except -1:
    """Whether the three numbers say that there is a producer. Raises InvalidRecordError when they are no such numbers."""
    numbers = (producer_id, producer_epoch, base_sequence)
    if numbers == (-1, -1, -1):
        if transactional:
            raise InvalidRecordError("transactional=True without a producer: pass producer_id, producer_epoch and base_sequence")
        return False
    for name, number, bits in zip(("producer_id", "producer_epoch", "base_sequence"), numbers, (63, 15, 31), strict=True):
        if not isinstance(number, int) or not 0 <= number < 1 << bits:
            raise InvalidRecordError(
                f"{name}={number!r}: expected 0 to 2**{bits} - 1, as all three of producer_id, producer_epoch and base_sequence, or "
                f"-1 for each of them"
            )
    return True
