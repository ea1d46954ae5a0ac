# cython: annotation_typing=False, nonecheck=True
"""What applications hold of a producer: records are collected, flushed, and belong to transactions.

``send`` encodes a record straight into the buffer of its partition and returns a ``Delivery``, a small object that knows
its place in there. The drain takes what was collected since it last looked; while it is busy the next batches grow, so load
makes the batches.

Everything in here is guarded by the GIL, which ``send`` holds from choosing a place to having written there; nothing in
between runs Python code. The drain lets go of it where it takes its time; ``send_many`` while it hashes and encodes into a
buffer that nobody else knows yet.
"""

import logging
import threading
import weakref
from operator import index

from cpython.exc cimport PyErr_CheckSignals
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc, realloc
from libc.string cimport memcpy

from fastlog._native cimport oscalls as os_c
from fastlog._native.columns cimport (
    COLUMN_SPANS, Column, ColumnData, Span, Timestamps, make_column, make_header_column, make_single_column, make_timestamps,
    span_at,
)
from fastlog._native.deliveries cimport BatchDelivery, Delivery, again, call_after, deadline_of, new_delivery, undecided
from fastlog._native.drain cimport Drain, random_number, random_producer_id
from fastlog._native.encoder cimport Encoder, OUT_OF_MEMORY, RecordSource
from fastlog._native.layout cimport BATCH_HEADER_SIZE
from fastlog._native.partitioning cimport RECORD_ROOM, partition_of, split
from fastlog._native.pending cimport (
    ENCODER_SLACK, MOST_BATCHES, NO_DEADLINE, PENDING, PartitionTarget, PendingAppend, SLICE, TopicTarget, add_record, body_size,
    encode_at, null_span,
)
from fastlog._native.varint cimport varint_size

from fastlog._native.drain import ringer, run_drain
from fastlog.errors import (
    BufferFullError, ClosedError, Error, ForkedHandleError, InvalidRecordError, RecordTooLargeError, TransactionError,
)

logger = logging.getLogger("fastlog.producer")

cdef extern from "Python.h":
    bint is_bytes "PyBytes_CheckExact"(object item) noexcept
    const uint8_t* bytes_data "(const uint8_t*)PyBytes_AS_STRING"(object item) noexcept
    Py_ssize_t bytes_size "PyBytes_GET_SIZE"(object item) noexcept
    bint is_exact_int "PyLong_CheckExact"(object item) noexcept
    long long PyLong_AsLongLongAndOverflow(object item, int* overflow) except? -1

cdef enum:
    LEAST_CAPACITY = 512            # bytes of a new buffer
    MOST_ENCODERS = 4
    SMALL_ENCODE = 1 << 18          # bytes of records to encode that are not worth letting go of the GIL for
    FEW = 10_000                    # likewise, records to look at


cdef class Accumulator(Drain):
    """The compiled half of ``Producer``: see there."""

    def __cinit__(self):
        self.encoders = []
        self.is_closed = True

    def __init__(
        self, catalog: object, *, linger_ms: int, codec: int, batch_size: int, buffer_memory: int, max_block_ms: int,
        delivery_timeout_ms: int, key_serializer: object, value_serializer: object,
    ):
        self.catalog = catalog
        self.linger = <int64_t>linger_ms * 1_000_000
        self.codec = codec
        self.batch_size = batch_size
        self.buffer_memory = buffer_memory
        self.max_block = max_block_ms
        self.delivery_timeout = <int64_t>delivery_timeout_ms * 1_000_000
        self.key_serializer = key_serializer
        self.value_serializer = value_serializer
        self.topics_version = catalog.version()
        # never counted from 0: a broker that adopts the files hands out small ids, and takes a known one for a repetition
        self.producer_id = random_producer_id()
        self.random_state = random_number() | 1
        self.thread = threading.Thread(
            target=run_drain, args=(weakref.ref(self, ringer(self.signal)), self.signal, self.topics), name="fastlog-producer", daemon=True
        )
        self.is_closed = self.is_closing = self.has_ended = False
        self.thread.start()

    cdef int require_open(self) except -1:
        if self.signal.fork_generation != os_c.fork_generation():
            raise ForkedHandleError(
                "the producer was made before a fork and belongs to the parent process, which also sends what is in its buffer: "
                "make a new one after the fork"
            )
        if self.is_closing:
            raise ClosedError("the producer was closed: make a new one with store.producer()")
        if self.has_ended:
            raise ClosedError("the thread of this producer has ended by an error, see the log: make a new producer")
        return 0

    cdef int require_transaction(self) except -1:
        if self.transactional is not None and self.transaction == 0:
            raise TransactionError("the producer is transactional and no transaction is open: send inside of producer.transaction()")
        return 0

    # --- topics ------------------------------------------------------------------------------------------------------

    cdef TopicTarget topic_target(self, object topic):
        cdef TopicTarget found
        if not isinstance(topic, str):
            raise InvalidRecordError(f"topic is a {type(topic).__name__}: expected a str")
        found = self.topics.get(topic)
        while found is None:
            self.refresh_topics()
            version = self.topics_version
            described = self.described(topic)
            # another thread may have been here meanwhile: two targets would count the same sequence numbers twice
            found = self.topics.get(topic)
            if found is None and version == self.topics_version:
                found = self.topics[topic] = described
        return found

    cdef TopicTarget with_partition(self, TopicTarget topic, object partition, int32_t* number):
        """The topic, made anew if it was deleted and created again meanwhile; it has the partition, whose number is filled in."""
        if isinstance(partition, bool) or not hasattr(partition, "__index__"):
            raise InvalidRecordError(f"partition={partition!r} is a {type(partition).__name__}: expected an int, or None")
        wanted = index(partition)
        if not 0 <= wanted < topic.partitions:
            self.refresh_topics()
            if topic.is_gone:
                topic = self.topic_target(topic.name)
            if not 0 <= wanted < topic.partitions:
                raise InvalidRecordError(
                    f"partition={wanted}: topic {topic.name!r} has the partitions 0 to {topic.partitions - 1}; nothing was sent"
                )
        number[0] = wanted
        return topic

    cdef int32_t choose_sticky(self, TopicTarget topic, bint change) noexcept:
        """The partition for records without a key; another one (uniformly) at the first look, and when `change` asks for it."""
        cdef uint64_t x
        if change or topic.sticky < 0:
            x = <uint64_t>self.random_state
            x ^= x << 13
            x ^= x >> 7
            x ^= x << 17
            self.random_state = <int64_t>x
            topic.sticky = <int32_t>((x >> 33) % <uint64_t>topic.partitions)
        return topic.sticky

    # --- sending -----------------------------------------------------------------------------------------------------

    def send(
        self, topic: str, value: object, key: object = None, headers: object = None, timestamp: object = None,
        partition: int | None = None,
    ) -> Delivery:
        """Send one record; return its delivery. Never waits for the disk.

        Args:
            topic: name of an existing topic.
            value: bytes, another buffer, or None (a tombstone); with a ``value_serializer``, what that takes.
            key: the same, by ``key_serializer``. It decides the partition, as in Kafka's Java client; without one, records go
                to one partition until its batch is done, then to another.
            headers: a mapping, ``Headers``, or (str, bytes | None) pairs.
            timestamp: milliseconds since the epoch, or an aware datetime; None = now.
            partition: the number of a partition, in place of the one that the key decides.

        Guarantee: records of one partition are stored in the order in which one thread has sent them, each once, also when
        an append has to be repeated. What became of a record its delivery tells; ``flush`` and ``close`` raise the first
        failure that nobody has looked at.

        Blocks only while ``buffer_memory`` is full, at most for ``max_block``; Ctrl-C is let in within 100 ms.

        Raises:
            UnknownTopicError: there is no such topic; producers create none.
            InvalidRecordError: something is no record, the partition does not exist, the timestamp is over an hour ahead, or
                a compacted topic gets a record without a key.
            RecordTooLargeError: the record exceeds ``max.message.bytes`` of its topic, before compression.
            BufferFullError: ``buffer_memory`` was full for ``max_block``.
            ClosedError, ForkedHandleError: the producer was closed, or is the parent process'.
            TransactionError: the producer is transactional, and no transaction is open.
        """
        cdef TopicTarget known = self.last_topic
        cdef PartitionTarget target
        cdef PendingAppend pending
        cdef Delivery delivery
        cdef Column value_column, key_column, header_column
        cdef Span value_span, key_span = null_span(), header_span = null_span()
        cdef int64_t now, moment, body, record, deadline = 0
        cdef int32_t number = -1
        cdef bint has_chosen = False, changes = False, rings = self.linger == 0
        if self.is_closing or self.has_ended or self.signal.fork_generation != os_c.fork_generation():
            self.require_open()
        if known is None or topic is not known.name:
            known = self.topic_target(topic)
            self.last_topic = known
        if self.value_serializer is not None:
            value = self.value_serializer(value)
        if self.key_serializer is not None and key is not None:
            key = self.key_serializer(key)
        if is_bytes(value):
            value_span.data = bytes_data(value)
            value_span.size = bytes_size(value)
        elif value is None:
            value_span = null_span()
        else:
            value_column = make_single_column(value, "value")
            value_span = span_at(&value_column.data, 0)
        if key is not None:
            if is_bytes(key):
                key_span.data = bytes_data(key)
                key_span.size = bytes_size(key)
            else:
                key_column = make_single_column(key, "key")
                key_span = span_at(&key_column.data, 0)
        if headers is not None:
            header_column = make_header_column(headers, 1)
            header_span = span_at(&header_column.data, 0)
        now = moment = os_c.clock_milliseconds()
        if timestamp is not None:
            moment = moment_of(timestamp, now)
            if moment > now + known.timestamp_limit:
                raise InvalidRecordError(
                    f"timestamp {moment} lies {moment - now} ms ahead of the clock, more than the {known.timestamp_limit} that "
                    f"message.timestamp.after.max.ms of {topic} allows: timestamps are milliseconds since 1970; nothing was sent"
                )
        if known.needs_keys and key_span.data == NULL:
            raise InvalidRecordError(f"topic {topic!r} is compacted, so every record needs a key; nothing was sent")
        self.require_transaction()
        if partition is not None:
            known = self.last_topic = self.with_partition(known, partition, &number)
        record = body_size(key_span, value_span, header_span, 0, 0)
        record += varint_size(record) + BATCH_HEADER_SIZE
        if record > known.record_limit or record > self.buffer_memory:
            raise self.too_large(known, record)
        delivery = new_delivery()
        delivery.timestamp = moment

        # from here to the record in its place nothing runs Python code, but new_pending and the waits: after these, again
        while True:
            if partition is None:
                if key_span.data != NULL:
                    number = partition_of(key_span.data, key_span.size, known.partitions)
                else:
                    target = known.targets[known.sticky] if known.sticky >= 0 else None
                    if not has_chosen and (changes or target is None or target.open is None):
                        number = self.choose_sticky(known, True)
                        has_chosen = True
                    else:
                        number = self.choose_sticky(known, False)
            target = known.targets[number]
            if target is None:
                target = known.target(number)
            pending = target.open
            if pending is None:
                rings = True
                if self.new_pending(target) is None:
                    # the topic is another one now, or the number of its partitions
                    known = self.topic_target(topic)
                    if partition is not None:
                        known = self.with_partition(known, partition, &number)
                continue
            if pending.batch_start >= 0:
                body = body_size(key_span, value_span, header_span, moment - pending.batch_base_timestamp, pending.batch_count)
                record = varint_size(body) + body
                if pending.size - pending.batch_start + record > known.batch_limit and pending.batch_count:
                    # the batch is full
                    pending.close_batch()
                    if pending.batches == MOST_BATCHES:
                        self.seal(target)
                        rings = True
                    changes = True
                    continue
            else:
                body = body_size(key_span, value_span, header_span, 0, 0)
                record = varint_size(body) + body + BATCH_HEADER_SIZE
            if pending.size + record > known.append_limit and pending.size:
                self.seal(target)
                rings = True
                continue
            if pending.size + record > pending.capacity and not self.grow(pending, record):
                self.wait_for_memory(record, &deadline)
                if known.is_gone:
                    known = self.topic_target(topic)
                    if partition is not None:
                        known = self.with_partition(known, partition, &number)
                continue
            # a serializer, or another thread meanwhile, may have closed the producer or ended the transaction
            if self.is_closing or self.has_ended:
                self.require_open()
            if pending.transaction != self.transaction or self.transactional is not None and self.transaction == 0:
                self.require_transaction()
                self.seal(target)
                rings = True
                continue
            break
        if pending.batch_start < 0:
            pending.open_batch(moment)
        delivery.pending = pending
        delivery.index = pending.offsets + pending.batch_count
        add_record(pending, key_span, value_span, header_span, moment, body)
        pending.unseen += 1
        self.records += 1
        if rings and self.signal.is_asleep:
            self.signal.ring()
        return delivery

    cdef object too_large(self, TopicTarget topic, int64_t size):
        if size > topic.record_limit:
            return RecordTooLargeError(
                f"the record takes a batch of {size} bytes, more than the {topic.record_limit} that max.message.bytes "
                f"(or segment.bytes) of topic {topic.name!r} allows; nothing was sent"
            )
        return RecordTooLargeError(
            f"the record takes a batch of {size} bytes, more than buffer_memory={self.buffer_memory}; nothing was sent"
        )

    cdef PendingAppend new_pending(self, PartitionTarget target):
        """Begin a pending append; None when that found the topic changed, and everything has to be looked at again."""
        cdef PendingAppend pending
        self.refresh_topics()
        if target.topic.is_gone:
            return None
        pending = PendingAppend.__new__(PendingAppend)
        pending.target = target
        pending.signal = self.signal
        pending.created = os_c.steady_nanoseconds()
        pending.transaction = self.transaction
        if target.open is not None:
            return target.open
        target.open = pending
        self.list_target(target)
        return pending

    cdef int list_target(self, PartitionTarget target) except -1:
        if not target.is_listed:
            self.touched.append(target)
            target.is_listed = True
            self.signal.busy = self
        return 0

    cdef bint grow(self, PendingAppend pending, int64_t needed) except -1:
        """Make room for `needed` more bytes in a buffer; False when `buffer_memory` is used up."""
        cdef int64_t least = pending.size + needed
        cdef int64_t capacity = min(max(2 * pending.capacity, max(least, <int64_t>LEAST_CAPACITY)), max(least, pending.target.topic.append_limit))
        cdef uint8_t* larger
        if self.used + capacity - pending.capacity > self.buffer_memory:
            capacity = least
            if self.used + capacity - pending.capacity > self.buffer_memory:
                return False
        larger = <uint8_t*>realloc(pending.data, capacity)
        if larger == NULL:
            raise MemoryError(f"no memory left for {capacity} bytes of records; nothing was sent")
        self.used += capacity - pending.capacity
        pending.data = larger
        pending.capacity = capacity
        return True

    cdef int wait_for_memory(self, int64_t needed, int64_t* deadline) except -1:
        """Wait a while for buffers to be given back; `deadline` is kept from one call to the next (0 at first)."""
        cdef int64_t now = os_c.steady_nanoseconds()
        cdef uint32_t heard
        self.signal.refuse_own_thread("send while buffer_memory is full")
        if deadline[0] == 0:
            deadline[0] = now + self.max_block * <int64_t>1_000_000
        if now >= deadline[0] or self.never_waits():
            raise BufferFullError(
                f"buffer_memory={self.buffer_memory} was full for max_block={self.max_block / 1000.0:g} s ({self.used} bytes wait to be "
                f"appended): the disk is slower than the sender, or a log is locked; nothing was sent"
            )
        heard = self.memory_word
        self.memory_waiters += 1
        try:
            self.signal.ring()
            with nogil:
                os_c.os_wait(&self.memory_word, heard, min(<int64_t>SLICE, deadline[0] - now))
            PyErr_CheckSignals()
        finally:
            self.memory_waiters -= 1
        return self.require_open()

    cdef bint never_waits(self) noexcept:
        return self.loop_thread is not None and self.loop_thread == threading.get_ident()

    def _never_wait_in(self, thread: int) -> None:
        """Let ``send`` and ``send_many`` raise BufferFullError at once when this thread calls them: it runs an event loop.

        ``send_many`` then sends nothing, unless there is room for all of it.
        """
        self.loop_thread = thread

    def _when_room(self, fn: object) -> None:
        """Call ``fn()`` once, in the producer's thread, when memory has been given back; at once when nothing waits."""
        if not self.touched:
            fn()
            return
        self.room_callbacks.append(fn)
        self.memory_waiters += 1
        self.signal.ring()

    # --- columns -----------------------------------------------------------------------------------------------------

    def send_many(
        self, topic: str, values: object, keys: object = None, timestamps: object = None, headers: object = None,
        partition: int | None = None,
    ) -> BatchDelivery:
        """Send many records by one call; return one delivery for all of them.

        Args:
            topic: name of an existing topic.
            values, keys, timestamps, headers: as of ``PartitionLog.append``: lists, NumPy arrays or Arrow columns; no Python
                code runs per record, but the serializers, if there are any.
            partition: the number of a partition for all; None = by each record's key. Records without a key go to one
                partition together.

        Guarantee and errors as of ``send``; a record that cannot be sent is told of before any is sent. While ``buffer_memory``
        is full it blocks; when that takes longer than ``max_block``, a part has been sent already (the error has a note).
        """
        cdef TopicTarget known
        cdef Column value_column, key_column = None, header_column = None
        cdef Timestamps stamps
        cdef RecordSource source
        cdef BatchDelivery delivery = BatchDelivery.__new__(BatchDelivery)
        cdef int64_t count, now, largest_record = 0, total = 0
        cdef int32_t number = -1
        self.require_open()
        known = self.topic_target(topic)
        self.refresh_topics()
        known = self.topic_target(topic)
        if self.value_serializer is not None:
            values = [self.value_serializer(value) for value in values]
        if self.key_serializer is not None and keys is not None:
            keys = [None if key is None else self.key_serializer(key) for key in keys]
        value_column = make_column(values, "values")
        count = value_column.data.length
        source.values = &value_column.data
        source.keys = source.headers = NULL
        source.count = count
        if keys is not None:
            key_column = make_column(keys, "keys")
            if key_column.data.length != count:
                raise InvalidRecordError(f"{count} values but {key_column.data.length} keys: expected as many, nothing was sent")
            source.keys = &key_column.data
        if headers is not None:
            header_column = make_header_column(headers, count)
            source.headers = &header_column.data
        now = os_c.clock_milliseconds()
        stamps = make_timestamps(timestamps, count, now)
        if count and stamps.largest > now + known.timestamp_limit:
            raise InvalidRecordError(
                f"timestamp {stamps.largest} lies {stamps.largest - now} ms ahead of the clock, more than the {known.timestamp_limit} "
                f"that message.timestamp.after.max.ms of {topic} allows: timestamps are milliseconds since 1970; nothing was sent"
            )
        source.timestamps = stamps.values
        source.timestamp = stamps.constant
        self.require_transaction()
        if partition is not None:
            known = self.with_partition(known, partition, &number)
        if count < FEW:
            measure(&source, &total, &largest_record)
        else:
            with nogil:
                measure(&source, &total, &largest_record)
        if known.needs_keys and count and lacks_keys(source.keys, count):
            raise InvalidRecordError(f"topic {topic!r} is compacted, so every record needs a key; nothing was sent")
        if largest_record + BATCH_HEADER_SIZE > min(known.record_limit, self.buffer_memory):
            self.find_too_large(known, &source)
        if count and self.never_waits():
            # whole or not at all: of a part that was sent already nobody could be told
            needed = total + (ENCODER_SLACK * 2 + BATCH_HEADER_SIZE * MOST_BATCHES) * min(count, known.partitions)
            if self.used + needed > self.buffer_memory:
                raise BufferFullError(f"no room for {needed} bytes in buffer_memory={self.buffer_memory} now; nothing was sent")
        delivery.topic = known.name
        delivery.parts = []
        delivery.count = count
        delivery.timestamps = constant_or_values(stamps)
        if count == 0:
            return delivery
        try:
            if partition is None and source.keys != NULL:
                delivery.order = self.scatter(known, &source, delivery.parts)
            else:
                if partition is None:
                    number = self.choose_sticky(known, True)
                self.write_source(known.target(number), &source, 0, count, total, delivery.parts)
        except (BufferFullError, ClosedError, TransactionError, KeyboardInterrupt) as error:
            sent = sum(records for _, records in delivery.parts)
            error.add_note(f"{sent} of {count} records had been sent before")
            raise
        return delivery

    cdef int find_too_large(self, TopicTarget topic, const RecordSource* source) except -1:
        """Name the record that does not fit; the estimate may have been too large, and then none does."""
        cdef int64_t i, size
        cdef Span key = null_span(), value, headers = null_span()
        for i in range(source.count):
            value = span_at(source.values, i)
            if source.keys != NULL:
                key = span_at(source.keys, i)
            if source.headers != NULL:
                headers = span_at(source.headers, i)
            size = body_size(key, value, headers, 0, 0)
            size += varint_size(size) + BATCH_HEADER_SIZE
            if size > min(topic.record_limit, self.buffer_memory):
                error = self.too_large(topic, size)
                raise RecordTooLargeError(f"record {i}: {error}")
        return 0

    cdef object scatter(self, TopicTarget topic, const RecordSource* source, list parts):
        """Send each record to the partition of its key; the indexes of the records in the order of `parts`."""
        import numpy
        cdef int32_t partitions = topic.partitions, number, sticky = self.choose_sticky(topic, True)
        cdef int64_t count = source.count, at
        cdef RecordSource gathered
        cdef ColumnData values, keys, headers
        order = numpy.empty(count, dtype=numpy.int64)
        cdef int64_t[::1] order_ = order
        cdef int64_t* where = &order_[0]
        cdef Span* spans = <Span*>malloc(<size_t>count * 3 * sizeof(Span))
        cdef int64_t* stamps = <int64_t*>malloc(<size_t>count * sizeof(int64_t)) if source.timestamps != NULL else NULL
        cdef int32_t* chosen = <int32_t*>malloc(<size_t>count * sizeof(int32_t))
        cdef int64_t* starts = <int64_t*>calloc(<size_t>partitions + 2, sizeof(int64_t))
        cdef int64_t* sizes = <int64_t*>calloc(<size_t>partitions + 1, sizeof(int64_t))
        try:
            if spans == NULL or chosen == NULL or starts == NULL or sizes == NULL or (stamps == NULL and source.timestamps != NULL):
                raise MemoryError(f"no memory left to sort {count} records by partition; nothing was sent")
            if count < FEW:
                split(source, partitions, sticky, chosen, starts, sizes, where, spans, stamps)
            else:
                with nogil:
                    split(source, partitions, sticky, chosen, starts, sizes, where, spans, stamps)
            values = source.values[0]
            values.kind = COLUMN_SPANS
            values.spans = spans
            gathered.values = &values
            keys = values
            keys.spans = spans + count
            gathered.keys = &keys
            gathered.headers = NULL
            if source.headers != NULL:
                headers = values
                headers.spans = spans + 2 * count
                gathered.headers = &headers
            gathered.timestamps = stamps
            gathered.timestamp = source.timestamp
            at = 0
            for number in range(partitions):
                if starts[number + 1] > at:
                    gathered.count = starts[number + 1]
                    self.write_source(topic.target(number), &gathered, at, starts[number + 1] - at, sizes[number], parts)
                    at = starts[number + 1]
        finally:
            free(spans)
            free(stamps)
            free(chosen)
            free(starts)
            free(sizes)
        return order

    cdef int32_t write_source(
        self, PartitionTarget target, const RecordSource* source, int64_t first, int64_t count, int64_t estimate, list parts
    ) except -1:
        """Encode records `first` to `first` + `count` of a source into pending appends of their own, and queue these."""
        cdef PendingAppend pending
        cdef Encoder encoder = self.encoders.pop() if self.encoders else Encoder()
        cdef TopicTarget topic = target.topic
        cdef RecordSource part = source[0]
        cdef int64_t stop = first + count, room, encoded = 0, deadline = 0, begun
        part.count = stop
        try:
            while first < stop:
                begun = first
                room = min(estimate + ENCODER_SLACK + BATCH_HEADER_SIZE * MOST_BATCHES, topic.append_limit)
                room = max(min(room, self.buffer_memory // 2), min(topic.record_limit, self.buffer_memory))
                room = min(room, estimate + ENCODER_SLACK + BATCH_HEADER_SIZE * MOST_BATCHES)
                pending = PendingAppend.__new__(PendingAppend)
                pending.target = target
                pending.signal = self.signal
                pending.transaction = self.transaction
                while not self.grow_to(pending, room + ENCODER_SLACK):
                    self.wait_for_memory(room, &deadline)
                deadline = 0
                try:
                    if room < SMALL_ENCODE:
                        encoded = encode_at(encoder, &part, &first, topic.batch_limit, topic.record_limit, room, pending)
                    else:
                        with nogil:
                            encoded = encode_at(encoder, &part, &first, topic.batch_limit, topic.record_limit, room, pending)
                    if encoded < 0:
                        if encoded == OUT_OF_MEMORY:
                            raise MemoryError(f"no memory left to encode {count} records")
                        raise InvalidRecordError("the values were changed by another thread while they were sent")
                    self.require_open()
                    if pending.transaction != self.transaction:
                        raise TransactionError("the transaction was ended by another thread while records were sent in it")
                except BaseException:
                    self.give_back(pending.capacity)
                    raise
                estimate = max(estimate - pending.size, (stop - first) * RECORD_ROOM)
                if first < stop:
                    estimate = max(estimate, room)
                pending.created = os_c.steady_nanoseconds()
                pending.unseen = 1
                self.seal(target)
                target.push(pending)
                self.list_target(target)
                self.records += first - begun
                parts.append((pending, first - begun))
                if self.signal.is_asleep:
                    self.signal.ring()
        finally:
            if len(self.encoders) < MOST_ENCODERS:
                self.encoders.append(encoder)
        return 0

    cdef bint grow_to(self, PendingAppend pending, int64_t capacity) except -1:
        """A first buffer of `capacity` bytes; a larger one than there is memory for only when nothing else is buffered."""
        if self.used and self.used + capacity > self.buffer_memory:
            return False
        pending.data = <uint8_t*>malloc(capacity)
        if pending.data == NULL:
            raise MemoryError(f"no memory left for {capacity} bytes of records")
        pending.capacity = capacity
        self.used += capacity
        return True

    # --- flush and close ---------------------------------------------------------------------------------------------

    cdef list unfinished(self):
        """Every pending append that is not done, open ones too."""
        cdef PartitionTarget target
        cdef PendingAppend pending
        found = []
        for target in self.touched:
            pending = target.head
            while pending is not None:
                found.append(pending)
                pending = pending.next
            if target.open is not None and (target.open.batches or target.open.batch_start >= 0):
                found.append(target.open)
        return found

    def wait_until_sent(self, timeout: object = None) -> bool:
        """Have everything that was sent so far written now, and wait until it is done; False when the timeout was first."""
        cdef PendingAppend pending
        cdef int64_t deadline = deadline_of(timeout)
        self.signal.refuse_own_thread("flush")
        self.flushing += 1
        try:
            self.signal.ring()
            for pending in self.unfinished():
                if not pending.wait(deadline):
                    return False
        finally:
            self.flushing -= 1
        return True

    cdef int raise_failure(self) except -1:
        """Raise the first failure that nobody has looked at, and forget all of them."""
        cdef PendingAppend failed
        failures, self.failures = self.failures, []
        unseen = [failed for failed in failures if (<PendingAppend>failed).unseen > 0]
        if not unseen:
            return 0
        failed = unseen[0]
        error = again(failed.error)
        if len(unseen) > 1:
            error.add_note(f"{len(unseen) - 1} more appends failed, the last one by {(<PendingAppend>unseen[-1]).error!r}")
        raise error

    def _when_sent(self, fn: object) -> None:
        """Have everything that was sent so far written now; call ``fn()`` once when it is done: in the producer's thread, or
        at once when nothing waits. The failures among it are ``_raise_failure``'s to tell."""
        self.require_open()
        waiting = self.unfinished()
        if not waiting:
            fn()
            return
        self.flushing += 1

        def all_done(_):
            self.flushing -= 1
            fn()

        call_after(waiting, all_done, None)
        self.signal.ring()

    def _raise_failure(self) -> None:
        """Raise the first failure that nobody has looked at, and forget all of them."""
        self.raise_failure()

    def flush(self, timeout: object = None) -> None:
        """Wait until every record sent so far is delivered, or has failed; ``linger`` does not hold for them.

        Args:
            timeout: seconds, a ``timedelta`` or a string such as ``"5s"``; None = until everything is decided.

        Raises the first failure that nobody has looked at (by ``result``, ``exception`` or a callback), once; and
        DeliveryTimeoutError when the timeout is over first: everything is still on its way then.
        """
        self.require_open()
        if not self.wait_until_sent(timeout):
            raise undecided(timeout)
        self.raise_failure()

    def close(self, timeout: object = None) -> None:
        """Deliver what was sent, then let go of everything. Idempotent; any thread may call it, and it ends blocked sends.

        Args:
            timeout: how long to wait; what is not delivered by then fails with ClosedError. None = until everything is decided,
                which takes at most ``delivery_timeout``.

        Raises the first failure that nobody has looked at, once. In a forked child it only lets go of the handle.
        """
        if self.signal.fork_generation != os_c.fork_generation() or self.catalog is None:
            self.is_closed = self.is_closing = True
            return
        cdef int64_t deadline = deadline_of(timeout)
        self.is_closing = True
        self.signal.ring()
        self.memory_word += 1
        os_c.os_wake(&self.memory_word)
        if self.signal.thread == threading.get_ident():
            return
        while self.thread.is_alive():
            self.thread.join(0.05 if deadline == NO_DEADLINE else max(0, min(0.05, (deadline - os_c.steady_nanoseconds()) / 1e9)))
            if os_c.steady_nanoseconds() >= deadline and self.thread.is_alive():
                self.give_up(timeout)
                break
        self.is_closed = True
        self.raise_failure()

    cdef int give_up(self, timeout) except -1:
        """Fail what waits; an append that is under way ends by itself."""
        cdef PartitionTarget target
        cdef PendingAppend pending
        self.has_given_up = True
        error = ClosedError(f"the producer was closed, and the record not appended within timeout={timeout!r}: it was not sent")
        for target in list(self.touched):
            self.seal(target)
            waiting = []
            pending = target.head
            while pending is not None:
                if pending.state == PENDING:
                    waiting.append(pending)
                pending = pending.next
            for pending in waiting:
                self.finish(target, pending, error)
        return 0

    @property
    def closed(self) -> bool:
        """Whether ``close`` was called."""
        return self.is_closing

    @property
    def buffered_bytes(self) -> int:
        """Bytes of ``buffer_memory`` in use."""
        return self.used

    def counts(self) -> dict[str, int]:
        """Numbers since the producer was made: ``records`` sent, ``appends`` done, ``failures`` not told of yet."""
        return {"records": self.records, "appends": self.appends, "failures": len(self.failures)}

    def __enter__(self):
        self.require_open()
        return self

    def __exit__(self, exception_type: object, exception: object, traceback: object) -> None:
        try:
            self.close()
        except Error as error:
            if exception_type is None:
                raise
            # what is on its way to the caller says more
            logger.warning("a delivery failed while the producer was closed by %r: %s", exception, error)

    # --- transactions ------------------------------------------------------------------------------------------------

    def set_transactional(self, transactional: object) -> None:
        """Whose producer id, epoch and transactions the batches carry from now on."""
        self.transactional = transactional

    def begin_transactional(self) -> None:
        """From here on records belong to a transaction."""
        self.require_open()
        if self.transaction:
            raise TransactionError("a transaction of this producer is open already: end it first")
        self.transactions += 1
        self.transaction_error = None
        self.transaction = self.transactions

    def drain_transaction(self, timeout: object = None) -> None:
        """Deliver everything that the transaction has sent; raises the first failure, whether somebody has looked at it or not."""
        if not self.wait_until_sent(timeout):
            raise undecided(timeout)
        if self.transaction_error is not None:
            self.forget_failures_of(self.transaction)
            raise again(self.transaction_error)

    cdef int forget_failures_of(self, int64_t number) except -1:
        """They are told of by the outcome of the transaction."""
        cdef PendingAppend failed
        self.failures = [failed for failed in self.failures if (<PendingAppend>failed).transaction != number]
        return 0

    def discard_transaction(self) -> None:
        """Before an abort: what the transaction has sent and nobody has appended yet fails; what is being appended is waited for."""
        number, self.transaction = self.transaction, 0
        # the drain finds that the transaction is over
        self.wait_until_sent()
        self.forget_failures_of(number)

    def end_transactional(self) -> None:
        """Records belong to no transaction any more; those of the last one were drained or discarded before."""
        self.transaction = 0


cdef int64_t moment_of(object timestamp, int64_t now) except? -2:
    """Milliseconds from what a caller passed as the timestamp of one record."""
    cdef int overflow = 0
    cdef int64_t value
    cdef Timestamps stamps
    if is_exact_int(timestamp):
        value = PyLong_AsLongLongAndOverflow(timestamp, &overflow)
        if not overflow and value >= -1:
            return value
    stamps = make_timestamps((timestamp,), 1, now)
    return stamps.values[0]


cdef object constant_or_values(Timestamps stamps):
    if stamps.values == NULL:
        return stamps.constant
    import numpy
    result = numpy.empty(stamps.length, dtype=numpy.int64)
    cdef int64_t[::1] view = result
    if stamps.length:
        memcpy(&view[0], stamps.values, stamps.length * sizeof(int64_t))
    result.flags.writeable = False
    return result


cdef void measure(const RecordSource* source, int64_t* total, int64_t* largest) noexcept nogil:
    """More than the bytes that all records take in batches, but for headers of batches; and more than the largest takes."""
    cdef int64_t i, size
    for i in range(source.count):
        size = RECORD_ROOM + max(span_at(source.values, i).size, 0)
        if source.keys != NULL:
            size += max(span_at(source.keys, i).size, 0)
        if source.headers != NULL:
            size += max(span_at(source.headers, i).size, 0)
        total[0] += size
        largest[0] = max(largest[0], size)


cdef bint lacks_keys(const ColumnData* keys, int64_t count) noexcept nogil:
    cdef int64_t i
    if keys == NULL:
        return True
    for i in range(count):
        if span_at(keys, i).data == NULL:
            return True
    return False
