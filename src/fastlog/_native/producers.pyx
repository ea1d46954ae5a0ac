# cython: annotation_typing=False
"""Producer state: what makes an idempotent append idempotent, and what keeps open transactions out of sight.

A batch may carry a producer id, an epoch and a sequence number. Of each producer the partition remembers its epoch, its
last five batches, and where its open transaction begins. All of that follows from the log: ``observe`` is the one place
where a batch changes it, for what this handle appends, for what others appended, and for replay after a crash.

``check`` judges batches before they are written, all of them before the first: against a copy of the states they touch,
which every accepted batch changes as it would change the log. It reserves all the memory that ``apply`` takes after the
write, so that nothing can fail between the two. Neither allocates anything for batches without a producer id.

Nothing here locks: whoever uses a ``ProducerStates`` holds the writer lock.
"""

import logging

from libc.stdint cimport int32_t, int64_t, uint64_t, uint8_t
from libc.stdlib cimport free, malloc, qsort, realloc
from libc.string cimport memmove, memset

from fastlog._native cimport oscalls as os_c
from fastlog._native.checksum cimport crc32c_extend
from fastlog._native.decoder cimport BatchHeader, END_OF_BYTES, FINE, NO_MEMORY, Problem, describe, parse_header
from fastlog._native.layout cimport (
    CONTROL_BIT, SNAPSHOT_COORDINATOR_EPOCH_AT, SNAPSHOT_COUNT_AT, SNAPSHOT_CRC_AT, SNAPSHOT_CRC_COVERS_FROM,
    SNAPSHOT_ENTRY_SIZE, SNAPSHOT_EPOCH_AT, SNAPSHOT_HEADER_SIZE, SNAPSHOT_LAST_OFFSET_AT, SNAPSHOT_LAST_SEQUENCE_AT,
    SNAPSHOT_OFFSET_DELTA_AT, SNAPSHOT_PRODUCER_ID_AT, SNAPSHOT_TIMESTAMP_AT, SNAPSHOT_TRANSACTION_OFFSET_AT,
    SNAPSHOT_VERSION, SNAPSHOT_VERSION_AT, TRANSACTIONAL_BIT, TRANSACTION_ENTRY_SIZE, load_int16, load_int32, load_int64,
    load_uint32, store_int16, store_int32, store_int64, store_uint32,
)
from fastlog._native.scanner cimport BatchReader
from fastlog._native.transactions cimport (
    ABORT_MARKER, AbortedTransaction, Marker, NO_MARKER, parse_marker, store_entry,
)

from fastlog.errors import (
    CorruptRecordError, FencedError, OutOfOrderSequenceError, ProducerFencedError, TransactionError,
)

logger = logging.getLogger("fastlog.producers")

LARGEST_OFFSET = 0x7FFFFFFFFFFFFFFF

cdef enum:
    MOST_SEQUENCE = 0x7FFFFFFF      # 0 follows
    MOST_PRODUCERS = 0x3FFFFFFF     # slots hold 32-bit indexes, and are twice as many
    KEPT_OVERLAY = 1024             # states; a larger overlay gives its memory back after use


cdef inline int32_t last_sequence_of(const BatchHeader* header) noexcept nogil:
    cdef int64_t last
    if header.base_sequence < 0:
        return -1
    last = header.base_sequence + (header.last_offset - header.base_offset)
    return <int32_t>(last - MOST_SEQUENCE - 1 if last > MOST_SEQUENCE else last)


cdef inline int32_t next_sequence(const ProducerState* state) noexcept nogil:
    """The sequence number that the log expects; 0 at the start of an epoch."""
    cdef int32_t last
    if state.batch_count == 0:
        return 0
    last = state.batches[state.batch_count - 1].last_sequence
    return 0 if last == MOST_SEQUENCE else last + 1


# --- the table ---------------------------------------------------------------------------------------------------------

cdef inline int64_t first_slot(const ProducerTable* table, int64_t producer_id) noexcept nogil:
    # ids come from files: a multiplier that nobody can plan for keeps chosen ones from piling up
    cdef uint64_t mixed = <uint64_t>producer_id ^ table.seed
    mixed = (mixed ^ (mixed >> 30)) * <uint64_t>0xBF58476D1CE4E5B9
    mixed = (mixed ^ (mixed >> 27)) * <uint64_t>0x94D049BB133111EB
    return <int64_t>((mixed ^ (mixed >> 31)) & <uint64_t>table.slot_mask)


cdef ProducerState* table_find(const ProducerTable* table, int64_t producer_id) noexcept nogil:
    cdef int64_t slot
    if table.count == 0:
        return NULL
    slot = first_slot(table, producer_id)
    while table.slots[slot] >= 0:
        if table.states[table.slots[slot]].producer_id == producer_id:
            return &table.states[table.slots[slot]]
        slot = (slot + 1) & table.slot_mask
    return NULL


cdef void table_index(ProducerTable* table) noexcept nogil:
    """Fill the slots anew."""
    cdef int64_t i, slot
    memset(table.slots, 0xFF, (table.slot_mask + 1) * sizeof(int32_t))
    for i in range(table.count):
        slot = first_slot(table, table.states[i].producer_id)
        while table.slots[slot] >= 0:
            slot = (slot + 1) & table.slot_mask
        table.slots[slot] = <int32_t>i


cdef int table_reserve(ProducerTable* table, int64_t more) noexcept nogil:
    """Room for `more` producers; -1 when out of memory."""
    cdef int64_t capacity = max(<int64_t>8, table.capacity)
    cdef ProducerState* states
    cdef int32_t* slots
    if table.count + more <= table.capacity:
        return 0
    if more > MOST_PRODUCERS - table.count:
        return -1
    while capacity < table.count + more:
        capacity *= 2
    states = <ProducerState*>realloc(table.states, capacity * sizeof(ProducerState))
    if states == NULL:
        return -1
    table.states = states
    slots = <int32_t*>malloc(2 * capacity * sizeof(int32_t))
    if slots == NULL:
        return -1
    free(table.slots)
    table.slots = slots
    table.slot_mask = 2 * capacity - 1
    table.capacity = capacity
    table_index(table)
    return 0


cdef ProducerState* table_add(ProducerTable* table, int64_t producer_id) noexcept nogil:
    """A fresh state; room was reserved before, and the producer is not there."""
    cdef ProducerState* state = &table.states[table.count]
    cdef int64_t slot = first_slot(table, producer_id)
    while table.slots[slot] >= 0:
        slot = (slot + 1) & table.slot_mask
    table.slots[slot] = <int32_t>table.count
    table.count += 1
    memset(state, 0, sizeof(ProducerState))
    state.producer_id = producer_id
    state.epoch = -1
    state.coordinator_epoch = -1
    state.transaction_first_offset = -1
    state.last_timestamp = -1
    return state


cdef void table_clear(ProducerTable* table, int64_t kept_capacity) noexcept nogil:
    if table.capacity > kept_capacity:
        free(table.states)
        free(table.slots)
        table.states = NULL
        table.slots = NULL
        table.capacity = 0
    elif table.count:
        memset(table.slots, 0xFF, (table.slot_mask + 1) * sizeof(int32_t))
    table.count = 0


# --- what a batch does to a producer -----------------------------------------------------------------------------------

cdef Verdict judge(
    const ProducerState* state, const BatchHeader* header, const Marker* marker, bint verified, Rejection* rejection
) noexcept nogil:
    """Whether a batch may follow what is known of its producer (NULL: nothing)."""
    cdef int32_t last_sequence, i
    cdef bint transactional = header.attributes & TRANSACTIONAL_BIT
    if marker.type != NO_MARKER:
        if state != NULL:
            rejection.known_epoch = state.epoch
            rejection.known_coordinator_epoch = state.coordinator_epoch
            if header.producer_epoch < state.epoch:
                return STALE_EPOCH
            if marker.coordinator_epoch < state.coordinator_epoch:
                return STALE_COORDINATOR
        return ACCEPTED
    if state == NULL:
        # it may be new, or forgotten: any sequence number will do
        return UNVERIFIED_TRANSACTION if transactional and not verified else ACCEPTED
    rejection.known_epoch = state.epoch
    rejection.expected_sequence = next_sequence(state)
    if header.producer_epoch == state.epoch:
        last_sequence = last_sequence_of(header)
        for i in range(state.batch_count):
            if state.batches[i].first_sequence == header.base_sequence and state.batches[i].last_sequence == last_sequence:
                rejection.first_offset = state.batches[i].last_offset - state.batches[i].offset_delta
                return DUPLICATE
    rejection.first_offset = state.transaction_first_offset
    if transactional and not verified and (state.transaction_first_offset < 0 or header.producer_epoch != state.epoch):
        return UNVERIFIED_TRANSACTION
    if header.producer_epoch < state.epoch:
        return STALE_EPOCH
    if state.epoch >= 0:
        if header.producer_epoch != state.epoch:
            rejection.expected_sequence = 0
            if header.base_sequence != 0:
                return NEW_EPOCH_NOT_AT_ZERO
        elif header.base_sequence != rejection.expected_sequence:
            return OUT_OF_ORDER
    if state.transaction_first_offset >= 0 and not transactional:
        return OPEN_TRANSACTION
    return ACCEPTED


cdef void advance(ProducerState* state, const BatchHeader* header, const Marker* marker, int64_t now) noexcept nogil:
    """What the batch makes of its producer. Checks nothing: the batch is in the log, or will be."""
    cdef RetainedBatch* batch
    if state.epoch != header.producer_epoch:
        state.epoch = header.producer_epoch
        state.batch_count = 0
    # a producer that writes records of last year is alive today
    state.last_timestamp = max(header.max_timestamp, now)
    if marker.type != NO_MARKER:
        state.coordinator_epoch = marker.coordinator_epoch
        state.transaction_first_offset = -1
        return
    if state.batch_count == RETAINED_BATCHES:
        memmove(&state.batches[0], &state.batches[1], (RETAINED_BATCHES - 1) * sizeof(RetainedBatch))
        state.batch_count -= 1
    batch = &state.batches[state.batch_count]
    batch.first_sequence = header.base_sequence
    batch.last_sequence = last_sequence_of(header)
    batch.last_offset = header.last_offset
    batch.offset_delta = <int32_t>(header.last_offset - header.base_offset)
    batch.timestamp = header.max_timestamp
    state.batch_count += 1
    if header.attributes & TRANSACTIONAL_BIT and state.transaction_first_offset < 0:
        state.transaction_first_offset = header.base_offset


cdef int compare_transactions(const void* left, const void* right) noexcept nogil:
    cdef int64_t a = (<const OpenTransaction*>left).first_offset, b = (<const OpenTransaction*>right).first_offset
    return (a > b) - (a < b)


cdef inline int64_t larger_capacity(int64_t capacity, int64_t needed) noexcept nogil:
    return max(max(<int64_t>16, 2 * capacity), needed)


cdef class ProducerStates:
    def __cinit__(self):
        memset(&self.table, 0, sizeof(ProducerTable))
        memset(&self.overlay, 0, sizeof(ProducerTable))
        self.table.seed = self.overlay.seed = <uint64_t><size_t><void*>self * <uint64_t>0x9E3779B97F4A7C15
        self.last_producer_offset = -1

    def __dealloc__(self):
        table_clear(&self.table, -1)
        table_clear(&self.overlay, -1)
        free(self.open_transactions)
        free(self.aborted)

    cdef ProducerState* find(self, int64_t producer_id) noexcept nogil:
        """NULL when nothing is known. The pointer holds until the next change."""
        return table_find(&self.table, producer_id)

    cdef int64_t first_unstable(self) noexcept nogil:
        """First offset of the oldest open transaction, -1 when none is open."""
        return self.open_transactions[0].first_offset if self.open_count else -1

    cdef int reserve(self, int64_t producers, int64_t markers) noexcept nogil:
        """Make room for so many new producers (and open transactions) and markers; -1 when out of memory."""
        cdef int64_t capacity
        cdef OpenTransaction* transactions
        cdef uint8_t* aborted
        if table_reserve(&self.table, producers) < 0:
            return -1
        if self.open_count + producers > self.open_capacity:
            capacity = larger_capacity(self.open_capacity, self.open_count + producers)
            transactions = <OpenTransaction*>realloc(self.open_transactions, capacity * sizeof(OpenTransaction))
            if transactions == NULL:
                return -1
            self.open_transactions = transactions
            self.open_capacity = capacity
        if self.aborted_count + markers > self.aborted_capacity:
            capacity = larger_capacity(self.aborted_capacity, self.aborted_count + markers)
            aborted = <uint8_t*>realloc(self.aborted, capacity * TRANSACTION_ENTRY_SIZE)
            if aborted == NULL:
                return -1
            self.aborted = aborted
            self.aborted_capacity = capacity
        return 0

    cdef Verdict check(
        self, const uint8_t* bytes_, int64_t size, bint verified, int64_t* duplicate_offset, Rejection* rejection
    ) noexcept nogil:
        """Judge whole, stamped batches as one append: all of them, or none.

        ACCEPTED: they may be written, and `apply` after it cannot fail. DUPLICATE: every one was appended before, the
        first at `duplicate_offset`. Anything else is a reason, told by `rejected`. No state is changed.
        `verified` says that whoever coordinates transactions knows of the ones that begin here.
        """
        cdef BatchHeader* header = &rejection.header
        cdef ProducerState* state
        cdef ProducerState* copied
        cdef int64_t position = 0, index = 0, fresh = 0, duplicates = 0, producers = 0, markers = 0
        cdef bint single
        cdef Verdict verdict = ACCEPTED
        memset(rejection, 0, sizeof(Rejection))
        while position < size:
            rejection.batch = index
            rejection.position = position
            rejection.problem = parse_header(bytes_, position, size, header)
            if rejection.problem != FINE:
                verdict = NOT_A_BATCH
                break
            position += header.size
            index += 1
            if header.producer_id < 0:
                fresh += 1
                continue
            rejection.marker.type = NO_MARKER
            if header.attributes & CONTROL_BIT:
                rejection.problem = parse_marker(bytes_, header, &rejection.marker)
                if rejection.problem != FINE:
                    verdict = NOT_A_BATCH
                    break
                if rejection.marker.type == NO_MARKER:
                    fresh += 1
                    continue
                markers += 1
            single = header.size == size
            copied = table_find(&self.overlay, header.producer_id)
            state = copied if copied != NULL else self.find(header.producer_id)
            verdict = judge(state, header, &rejection.marker, verified, rejection)
            if verdict == DUPLICATE:
                if duplicates == 0:
                    duplicate_offset[0] = rejection.first_offset
                duplicates += 1
                if fresh:
                    verdict = PARTLY_DUPLICATE
                    break
                verdict = ACCEPTED
                continue
            if verdict != ACCEPTED:
                break
            fresh += 1
            if single:
                producers = 1
                break
            if copied == NULL:
                if table_reserve(&self.overlay, 1) < 0:
                    verdict = NO_ROOM
                    break
                copied = table_add(&self.overlay, header.producer_id)
                if state != NULL:
                    copied[0] = state[0]
                producers += 1
            advance(copied, header, &rejection.marker, -1)
        if verdict == ACCEPTED and duplicates:
            verdict = PARTLY_DUPLICATE if fresh else DUPLICATE
        if verdict == ACCEPTED and producers and self.reserve(producers, markers) < 0:
            verdict = NO_ROOM
        if self.overlay.count:
            table_clear(&self.overlay, KEPT_OVERLAY)
        return verdict

    cdef int apply(self, const uint8_t* bytes_, int64_t size, int64_t now) noexcept nogil:
        """Take notice of whole batches that were just written behind `end_offset`; -1 when out of memory.

        It cannot be when `check` accepted the same bytes and nothing came between. `now` in milliseconds.
        """
        cdef BatchHeader header
        cdef Marker marker
        cdef int64_t position = 0
        while position < size and parse_header(bytes_, position, size, &header) == FINE:
            position += header.size
            marker.type = NO_MARKER
            if header.attributes & CONTROL_BIT and header.producer_id >= 0:
                parse_marker(bytes_, &header, &marker)
            if self.observe(&header, &marker, now) < 0:
                return -1
        self.position += size
        return 0

    cdef bint jump(self, int64_t last_producer_offset, int64_t end_offset, int64_t segment_base, int64_t position) noexcept nogil:
        """Go to the end of the log when no batch on the way carries a producer id: True, and nothing has to be read.

        The arguments are the published ones: of the newest batch with a producer id, and where the log ends.
        """
        if last_producer_offset >= self.end_offset:
            return False
        self.end_offset = end_offset
        self.segment_base = segment_base
        self.position = position
        return True

    cdef int observe(self, const BatchHeader* header, const Marker* marker, int64_t now) noexcept nogil:
        """Take notice of the next batch in the log; -1, and nothing changed, when out of memory.

        Checks nothing, as Kafka's followers: what is in the log is so. `now` is when it was appended, in milliseconds,
        or -1 for the time in its records; producers expire by it.
        """
        cdef ProducerState* state
        cdef AbortedTransaction entry
        cdef int64_t i = 0
        if header.producer_id >= 0 and (marker.type != NO_MARKER or not header.attributes & CONTROL_BIT):
            if self.reserve(1, 1) < 0:
                return -1
            state = table_find(&self.table, header.producer_id)
            if state == NULL:
                state = table_add(&self.table, header.producer_id)
            entry.first_offset = state.transaction_first_offset
            advance(state, header, marker, now)
            if entry.first_offset < 0 and state.transaction_first_offset >= 0:
                # offsets rise, so the list stays in order
                self.open_transactions[self.open_count].first_offset = state.transaction_first_offset
                self.open_transactions[self.open_count].producer_id = state.producer_id
                self.open_count += 1
            elif entry.first_offset >= 0 and state.transaction_first_offset < 0:
                for i in range(self.open_count):
                    if self.open_transactions[i].producer_id == state.producer_id:
                        break
                self.open_count -= 1
                memmove(
                    &self.open_transactions[i], &self.open_transactions[i + 1], (self.open_count - i) * sizeof(OpenTransaction),
                )
                if marker.type == ABORT_MARKER:
                    entry.producer_id = state.producer_id
                    entry.last_offset = header.last_offset
                    entry.last_stable_offset = self.first_unstable()
                    if entry.last_stable_offset < 0:
                        entry.last_stable_offset = header.last_offset + 1
                    store_entry(self.aborted + self.aborted_count * TRANSACTION_ENTRY_SIZE, &entry)
                    self.aborted_count += 1
        if header.producer_id >= 0:
            self.last_producer_offset = header.last_offset
        self.end_offset = header.last_offset + 1
        return 0

    cdef int64_t snapshot_size(self) noexcept nogil:
        return SNAPSHOT_HEADER_SIZE + self.table.count * SNAPSHOT_ENTRY_SIZE

    cdef void store_snapshot(self, uint8_t* at) noexcept nogil:
        """The bytes of a `.snapshot` file; only the last batch of each producer goes into it, as Kafka has it."""
        cdef uint8_t* entry = at + SNAPSHOT_HEADER_SIZE
        cdef ProducerState* state
        cdef RetainedBatch* batch
        cdef int64_t i
        store_int16(at + SNAPSHOT_VERSION_AT, SNAPSHOT_VERSION)
        store_int32(at + SNAPSHOT_COUNT_AT, <int32_t>self.table.count)
        for i in range(self.table.count):
            state = &self.table.states[i]
            batch = &state.batches[state.batch_count - 1] if state.batch_count else NULL
            store_int64(entry + SNAPSHOT_PRODUCER_ID_AT, state.producer_id)
            store_int16(entry + SNAPSHOT_EPOCH_AT, state.epoch)
            store_int32(entry + SNAPSHOT_LAST_SEQUENCE_AT, batch.last_sequence if batch != NULL else -1)
            store_int64(entry + SNAPSHOT_LAST_OFFSET_AT, batch.last_offset if batch != NULL else -1)
            store_int32(entry + SNAPSHOT_OFFSET_DELTA_AT, batch.offset_delta if batch != NULL else 0)
            store_int64(entry + SNAPSHOT_TIMESTAMP_AT, state.last_timestamp)
            store_int32(entry + SNAPSHOT_COORDINATOR_EPOCH_AT, state.coordinator_epoch)
            store_int64(entry + SNAPSHOT_TRANSACTION_OFFSET_AT, state.transaction_first_offset)
            entry += SNAPSHOT_ENTRY_SIZE
        store_uint32(
            at + SNAPSHOT_CRC_AT,
            crc32c_extend(0, at + SNAPSHOT_CRC_COVERS_FROM, self.snapshot_size() - SNAPSHOT_CRC_COVERS_FROM),
        )

    cdef object rejected(self, Verdict verdict, const Rejection* rejection):
        """The exception for a verdict that is neither ACCEPTED nor DUPLICATE."""
        cdef const BatchHeader* header = &rejection.header
        producer = header.producer_id
        where = f"batch {rejection.batch} of the append (producer id {producer}, epoch {header.producer_epoch})"
        if verdict == NO_ROOM:
            return MemoryError()
        if verdict == NOT_A_BATCH:
            return CorruptRecordError(
                f"batch {rejection.batch} at position {rejection.position} of the append: {describe(rejection.problem)}; "
                f"nothing was written",
                None, rejection.position,
            )
        if verdict == STALE_EPOCH:
            return ProducerFencedError(
                f"{where}: the log has seen epoch {rejection.known_epoch} of this producer, so another instance has taken over; "
                f"nothing was written, stop this one", producer, header.producer_epoch, rejection.known_epoch,
            )
        if verdict == STALE_COORDINATOR:
            error = FencedError(
                f"{where}: its marker has coordinator epoch {rejection.marker.coordinator_epoch}, the log has seen "
                f"{rejection.known_coordinator_epoch}: another coordinator has taken over; nothing was written",
                coordinator_epoch=rejection.known_coordinator_epoch,
            )
            error.kafka_code = 52
            return error
        if verdict == OPEN_TRANSACTION:
            return TransactionError(
                f"{where} is not transactional, but its producer has a transaction open since offset {rejection.first_offset}: "
                f"nothing was written; commit or abort that first", producer,
            )
        if verdict == UNVERIFIED_TRANSACTION:
            return TransactionError(
                f"{where} is transactional, but no transaction of this producer and epoch is known: nothing was written; "
                f"begin one first", producer,
            )
        if verdict == NEW_EPOCH_NOT_AT_ZERO:
            found = (
                f"starts at sequence {header.base_sequence}, but a new epoch starts at 0 "
                f"(the log has seen epoch {rejection.known_epoch})"
            )
        elif verdict == PARTLY_DUPLICATE:
            found = (
                "and others of the same append differ in this: some were appended before, some were not. "
                "Append those alone that are missing"
            )
        else:
            found = (
                f"starts at sequence {header.base_sequence}, expected {rejection.expected_sequence}: a batch before it is missing, "
                f"or it was appended before the last {RETAINED_BATCHES}. Go on with a new epoch or producer id"
            )
        return OutOfOrderSequenceError(
            f"{where} {found}; nothing was written", producer, header.base_sequence, rejection.expected_sequence
        )

    # --- for cold code and tests ---

    def check_append(self, batches: bytes, verified: bool = True) -> int | None:
        """None when stamped, encoded ``batches`` may be written; the base offset they were appended at before; or raises."""
        cdef Rejection rejection
        cdef int64_t offset = -1, size = len(batches)
        cdef const uint8_t* data = batches
        cdef bint verified_ = verified
        cdef Verdict verdict
        with nogil:
            verdict = self.check(data, size, verified_, &offset, &rejection)
        if verdict == ACCEPTED:
            return None
        if verdict == DUPLICATE:
            return offset
        raise self.rejected(verdict, &rejection)

    def append(self, batches: bytes, now: int = -1) -> None:
        """Take notice of stamped, encoded batches that follow ``end_offset``."""
        if self.apply(<const uint8_t*>batches, len(batches), now) < 0:
            raise MemoryError()

    def replay(
        self, path: str, position: int, end_position: int, end_offset: int, now: int = -1, check_crc: bool = True
    ) -> int:
        """Take notice of the batches of a segment file from ``position`` on, from ``self.end_offset`` to below ``end_offset``.

        Damage is passed over and logged; the number of damaged stretches is returned. ``take_aborted`` has the entries
        for ``.txnindex`` afterwards, ``position`` is where it stopped. ``now``: see ``expire``.
        """
        cdef BatchReader reader = BatchReader(path, position, end_position)
        cdef BatchHeader header
        cdef Marker marker
        cdef Problem problem, marker_problem
        cdef int64_t failure = 0, end = end_offset, now_ = now, damages = 0
        cdef bint check = check_crc
        cdef int observed = 0
        while True:
            marker_problem = FINE
            with nogil:
                while True:
                    problem = reader.next(&header, check, &failure)
                    if problem != FINE or header.base_offset >= end:
                        break
                    if header.base_offset < self.end_offset:
                        continue
                    marker.type = NO_MARKER
                    if header.attributes & CONTROL_BIT and header.producer_id >= 0:
                        marker_problem = parse_marker(reader.base(), &header, &marker)
                    observed = self.observe(&header, &marker, now_)
                    if observed < 0 or marker_problem != FINE:
                        break
            if failure < 0:
                raise os_c.storage_error("read", path, failure)
            if observed < 0 or problem == NO_MEMORY:
                raise MemoryError()
            if marker_problem != FINE:
                damages += 1
                logger.warning("%s, position %d: %s; producers go on without it", path, header.position, describe(marker_problem))
                continue
            if problem == FINE or problem == END_OF_BYTES:
                # `next` has moved behind the first batch that is not wanted
                self.position = header.position if problem == FINE else reader.position
                return damages
            damages += 1
            logger.warning(
                "%s, position %d: %s; what it said of producers and transactions is not known",
                path, reader.position, describe(problem),
            )
            with nogil:
                failure = reader.resynchronise(reader.position + 1, self.end_offset, &header)
            if failure < 0:
                self.position = reader.end
                return damages

    def jump_to(self, last_producer_offset: int, end_offset: int, segment_base: int, position: int) -> bool:
        """``jump``, for cold code."""
        return self.jump(last_producer_offset, end_offset, segment_base, position)

    def take_aborted(self) -> bytes:
        """The entries for ``.txnindex`` that came up since the last call, encoded, in the order of their markers."""
        cdef bytes entries = self.aborted[:self.aborted_count * TRANSACTION_ENTRY_SIZE] if self.aborted_count else b""
        self.aborted_count = 0
        return entries

    def snapshot(self) -> bytes:
        """The content of the ``.snapshot`` file that is named by ``end_offset``."""
        content = bytearray(self.snapshot_size())
        self.store_snapshot(content)
        return bytes(content)

    def load(self, content: bytes, end_offset: int) -> str | None:
        """Replace everything by what a snapshot holds, or say what is wrong with it and change nothing."""
        cdef const uint8_t* at = content
        cdef const uint8_t* entry
        cdef int64_t size = len(content), end = end_offset, count, i, transaction
        cdef ProducerStates fresh
        cdef ProducerState* state
        cdef RetainedBatch batch
        if size < SNAPSHOT_HEADER_SIZE:
            return f"{size} bytes, expected at least {SNAPSHOT_HEADER_SIZE}"
        if load_int16(at + SNAPSHOT_VERSION_AT) != SNAPSHOT_VERSION:
            return f"version {load_int16(at + SNAPSHOT_VERSION_AT)}, expected {SNAPSHOT_VERSION}"
        if crc32c_extend(0, at + SNAPSHOT_CRC_COVERS_FROM, size - SNAPSHOT_CRC_COVERS_FROM) != load_uint32(at + SNAPSHOT_CRC_AT):
            return "the CRC-32C does not match"
        count = load_int32(at + SNAPSHOT_COUNT_AT)
        if count < 0 or count * SNAPSHOT_ENTRY_SIZE != size - SNAPSHOT_HEADER_SIZE:
            return f"{size} bytes do not hold {count} producers"
        fresh = ProducerStates()
        if fresh.reserve(count, 0) < 0:
            raise MemoryError()
        for i in range(count):
            entry = at + SNAPSHOT_HEADER_SIZE + i * SNAPSHOT_ENTRY_SIZE
            batch.last_sequence = load_int32(entry + SNAPSHOT_LAST_SEQUENCE_AT)
            batch.last_offset = load_int64(entry + SNAPSHOT_LAST_OFFSET_AT)
            batch.offset_delta = load_int32(entry + SNAPSHOT_OFFSET_DELTA_AT)
            batch.timestamp = load_int64(entry + SNAPSHOT_TIMESTAMP_AT)
            transaction = load_int64(entry + SNAPSHOT_TRANSACTION_OFFSET_AT)
            if (
                load_int64(entry + SNAPSHOT_PRODUCER_ID_AT) < 0
                or table_find(&fresh.table, load_int64(entry + SNAPSHOT_PRODUCER_ID_AT)) != NULL
                or not -1 <= batch.last_offset < end or not -1 <= transaction < end or batch.timestamp < -1
                or batch.last_sequence < -1 or not 0 <= batch.offset_delta <= max(batch.last_offset, <int64_t>0)
            ):
                return f"producer {i} of {count} is impossible in a log that ends at offset {end}"
            state = table_add(&fresh.table, load_int64(entry + SNAPSHOT_PRODUCER_ID_AT))
            state.epoch = load_int16(entry + SNAPSHOT_EPOCH_AT)
            state.coordinator_epoch = load_int32(entry + SNAPSHOT_COORDINATOR_EPOCH_AT)
            state.last_timestamp = batch.timestamp
            state.transaction_first_offset = transaction
            if batch.last_offset >= 0:
                # counted back over the wrap from 2147483647 to 0
                batch.first_sequence = batch.last_sequence
                if batch.last_sequence >= 0:
                    batch.first_sequence = <int32_t>((<int64_t>batch.last_sequence - batch.offset_delta) & MOST_SEQUENCE)
                state.batches[0] = batch
                state.batch_count = 1
                fresh.last_producer_offset = max(fresh.last_producer_offset, batch.last_offset)
            if transaction >= 0:
                fresh.open_transactions[fresh.open_count].first_offset = transaction
                fresh.open_transactions[fresh.open_count].producer_id = state.producer_id
                fresh.open_count += 1
        if fresh.open_count:
            qsort(fresh.open_transactions, fresh.open_count, sizeof(OpenTransaction), compare_transactions)
        self.clear(end)
        # take over what was built; `fresh` goes with the old arrays
        self.table, fresh.table = fresh.table, self.table
        self.open_transactions, fresh.open_transactions = fresh.open_transactions, self.open_transactions
        self.open_count = fresh.open_count
        self.open_capacity = fresh.open_capacity
        self.last_producer_offset = fresh.last_producer_offset
        return None

    def clear(self, end_offset: int = 0) -> None:
        """Forget every producer; the log ends at ``end_offset``."""
        table_clear(&self.table, -1)
        self.open_count = 0
        self.aborted_count = 0
        self.last_producer_offset = -1
        self.end_offset = end_offset
        self.segment_base = 0
        self.position = 0

    def expire(self, now: int, expiration_ms: int, below: int = LARGEST_OFFSET) -> int:
        """Forget producers idle for ``expiration_ms``, never one with an open transaction. Returns how many.

        Idle since the later of its newest record's timestamp and the ``now`` it was last noticed with. ``below``: only
        those whose last record lies below this offset.
        """
        cdef int64_t kept = 0, i, latest = <int64_t>now, limit = expiration_ms, below_ = below
        cdef ProducerState* state
        for i in range(self.table.count):
            state = &self.table.states[i]
            if (
                state.transaction_first_offset < 0 and latest - state.last_timestamp >= limit
                and (state.batch_count == 0 or state.batches[state.batch_count - 1].last_offset < below_)
            ):
                continue
            if kept != i:
                self.table.states[kept] = state[0]
            kept += 1
        cdef int64_t dropped = self.table.count - kept
        if dropped:
            self.table.count = kept
            table_index(&self.table)
        return dropped

    def last_stable_offset(self, end_offset: int, start_offset: int = 0) -> int:
        """Offset up to which every transaction is decided, in a log from ``start_offset`` to ``end_offset``."""
        first = self.first_unstable()
        return end_offset if first < 0 else min(max(first, start_offset), end_offset)

    def is_last_batch(self, producer_id: int, producer_epoch: int, last_offset: int, is_control: bool) -> bool:
        """Whether compaction has to keep this batch, though empty: what is known of its producer stands on it."""
        cdef const ProducerState* state = self.find(producer_id)
        if state == NULL:
            return False
        if state.batch_count:
            return state.batches[state.batch_count - 1].last_offset == last_offset
        return is_control and state.epoch == producer_epoch

    @property
    def first_unstable_offset(self):
        """First offset of the oldest open transaction, None when none is open."""
        first = self.first_unstable()
        return None if first < 0 else first

    @property
    def open_transactions_by_offset(self):
        """(first offset, producer id) of every open transaction, rising."""
        cdef int64_t i
        return [(self.open_transactions[i].first_offset, self.open_transactions[i].producer_id) for i in range(self.open_count)]

    def __len__(self):
        return self.table.count

    def state(self, producer_id: int) -> dict | None:
        """What is known of one producer; its batches as (first sequence, last sequence, first offset, last offset, timestamp)."""
        cdef const ProducerState* state = self.find(producer_id)
        cdef const RetainedBatch* batch
        cdef int i
        if state == NULL:
            return None
        batches = []
        for i in range(state.batch_count):
            batch = &state.batches[i]
            batches.append((
                batch.first_sequence, batch.last_sequence, batch.last_offset - batch.offset_delta, batch.last_offset,
                batch.timestamp,
            ))
        return {
            "producer_id": state.producer_id,
            "epoch": state.epoch,
            "coordinator_epoch": state.coordinator_epoch,
            "transaction_first_offset": state.transaction_first_offset,
            "last_timestamp": state.last_timestamp,
            "batches": batches,
        }

    def producer_ids(self) -> list:
        """Ids of all known producers, in the order of their first batch."""
        cdef int64_t i
        return [self.table.states[i].producer_id for i in range(self.table.count)]
