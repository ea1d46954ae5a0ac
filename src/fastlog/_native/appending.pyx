# cython: annotation_typing=False, nonecheck=True
"""The end of the log: writing, rolling, publishing, and taking over from the dead.

Whoever holds the writer lock may change the log. In an append:

    lock → whatever the last owner left undone → roll if needed → dirty → write → index entries → publish → not dirty → unlock → bell

Index entries are written before they are published: beyond the published counts they mean nothing, so that one publication
makes records and entries valid at once. An owner that dies leaves `dirty` behind; the next one cuts the files back to what was
published before it does anything else. A failed append does that itself.
"""

import logging
from _thread import interrupt_main

from libc.errno cimport EINTR, EIO, ENOMEM
from libc.stdint cimport INT64_MIN, int64_t
from libc.stdlib cimport free, malloc

from fastlog._native cimport oscalls as os_c
from fastlog._native.control cimport Control, ring
from fastlog._native.encoder cimport BatchShape, EncodedBatches, Encoder, OUT_OF_MEMORY
from fastlog._native.handle cimport AT_BATCH, Handle, SegmentList, wake_readers
from fastlog._native.layout cimport INDEX_ENTRY_SIZE, TIME_INDEX_ENTRY_SIZE
from fastlog._native.published cimport (
    ControlPage, Published, UNKNOWN_ENTRIES, load_word, publish, read_published, store_word,
)
from fastlog._native.producers cimport ACCEPTED, DUPLICATE, ProducerStates, Rejection, Verdict
from fastlog._native.segment cimport Segment
from fastlog._native.shared cimport SharedPage
from fastlog._native.validator cimport ValidatedBatches
from fastlog._native.syncing cimport keep_interval, poison, poisoned_error, sync_rolled_later

from fastlog._native import oscalls
from fastlog._native.checksum import crc32c
from fastlog.errors import FencedError, InvalidRecordError, StorageError
from fastlog._native.transactions import TransactionIndex
from fastlog.partition import files, recovery, snapshots

logger = logging.getLogger("fastlog.log")

ENTRY_SIZES = (INDEX_ENTRY_SIZE, TIME_INDEX_ENTRY_SIZE)
cdef int64_t MOST_RELATIVE_OFFSET = 0x7FFFFFFF
cdef int64_t NOT_ALLOCATED = 0x7FFFFFFFFFFFFFFF     # blocks cannot be had ahead here
cdef enum:
    VALUES_CHANGED = -100000    # below every -errno
    ALLOCATE_FROM = 1 << 20     # a segment of this size gets disk blocks ahead of its end, as many as it has,
    MOST_ALLOCATED = 8 << 20    # up to so many
    UNKNOWN_TIMESTAMP = -2
    FAR_BEHIND = 1 << 20        # bytes of batches that are read while others wait for the lock
NOTHING_ABORTED = 0             # checksum of a .txnindex that is not there


cdef int64_t append(Handle log, Append* request, Encoder encoder, EncodedBatches ready, int64_t* end_offset) except -1:
    """`append_if` without conditions on shared words."""
    return append_if(log, request, encoder, ready, None, end_offset)


cdef int64_t append_if(
    Handle log, Append* request, Encoder encoder, EncodedBatches ready, Conditions conditions, int64_t* end_offset
) except -1:
    """Put batches at the end of the log and publish them: the one in the encoder, planned ones (`shapes`), or `ready` ones; the base offset."""
    cdef Published state
    cdef Control control = log.control
    cdef int64_t result, base_offset
    cdef ValidatedBatches given = ready if isinstance(ready, ValidatedBatches) else None
    cdef Verdict verdict
    cdef Rejection rejection
    cdef int64_t duplicate = -1
    cdef ProducerStates known = None
    if given is not None and given.has_producer:
        known = look_back(log)
    else:
        given = None
    control.lock_writer()
    try:
        begin_change(log, &state)
        if conditions is not None:
            # before duplicates are looked for: who was replaced gets no answer from the past either
            require(log, conditions)
        if request.expected_end_offset >= 0 and request.expected_end_offset != state.end_offset:
            raise fenced(log, state.end_offset, request.expected_end_offset)
        if ready is not None:
            # rolling moves no offset
            ready.stamp(state.end_offset, log.epoch)
        if given is not None:
            know_producers(log, known, &state)
            with nogil:
                verdict = log.producers.check(given.data, given.size, True, &duplicate, &rejection)
            if verdict == DUPLICATE:
                # there already, but perhaps not yet durable: whoever wrote it may have died before that
                end_offset[0] = state.end_offset
                return duplicate
            if verdict != ACCEPTED:
                raise log.producers.rejected(verdict, &rejection)
        if must_roll(log, &state, request):
            roll(log, &state)
        base_offset = state.end_offset
        with nogil:
            result = write_batches(log, request, encoder, ready, given, &state)
        if result < 0:
            if load_word(&control.page.poisoned):
                poison(log, os_c.storage_error("append to", log.active.path, result if result > VALUES_CHANGED else -EIO))
            if result == VALUES_CHANGED:
                raise InvalidRecordError("the values were changed by another thread while they were appended: nothing was written")
            if result == -ENOMEM:
                raise MemoryError(f"no memory left to encode {request.offsets} records; nothing was written")
            raise os_c.storage_error("append to", log.active.path, result)
        end_offset[0] = state.end_offset
    finally:
        control.unlock_writer()
    os_c.reach(os_c.APPEND_UNLOCKED)
    wake_readers(log, control)
    return base_offset


cdef object fenced(Handle log, int64_t found, int64_t expected):
    return FencedError(
        f"the end offset of {log.path} is {found}, expected {expected}: somebody else has appended; nothing was written",
        expected, found,
    )


# --- conditions --------------------------------------------------------------------------------------------------------

cdef class Conditions:
    def __cinit__(self):
        self.items = self.few
        self.count = 0

    def __dealloc__(self):
        if self.items != self.few:
            free(self.items)


cdef Conditions make_conditions(object given, bint is_written):
    """What a caller passed as ``conditions``, or as words to store (`is_written`); None when that is nothing.

    Raises InvalidRecordError for anything else, ClosedError and ForkedHandleError for a page that cannot be used.
    """
    cdef Conditions made
    cdef SharedPage page
    cdef Py_ssize_t i, count
    cdef int64_t value
    if not given:
        return None
    role = "stores" if is_written else "conditions"
    if not isinstance(given, (list, tuple)):
        given = list(given)
    count = len(given)
    made = Conditions.__new__(Conditions)
    made.pages, made.indexes = [], []
    if count > FEW_CONDITIONS:
        made.items = <Condition*>malloc(count * sizeof(Condition))
        if made.items == NULL:
            made.items = made.few
            raise MemoryError()
    for i in range(count):
        one = given[i]
        if not isinstance(one, (tuple, list)) or len(one) != 3 or not isinstance(one[0], SharedPage):
            raise InvalidRecordError(f"{role}[{i}] is {one!r}: expected (SharedPage, word index, value); nothing was written")
        page, index, value = one
        if value == INT64_MIN:
            raise InvalidRecordError(f"{role}[{i}] has the value of the words of retired pages, {INT64_MIN}; nothing was written")
        if is_written:
            page.require_writable()
        made.items[i].word = page.word_at(index)
        made.items[i].value = value
        made.pages.append(page)
        made.indexes.append(index)
        made.count += 1
    return made


cdef int require(Handle log, Conditions conditions) except -1:
    """Compare every word; the writer lock is held, under which alone such words change. Raises FencedError."""
    cdef Py_ssize_t i
    for i in range(conditions.count):
        if load_word(conditions.items[i].word) != conditions.items[i].value:
            raise overtaken(log, conditions, i)
    return 0


cdef object overtaken(Handle log, Conditions conditions, Py_ssize_t i):
    cdef int64_t found = load_word(conditions.items[i].word)
    page = conditions.pages[i].path
    what = f"the page {page} was replaced" if found == INT64_MIN else (
        f"word {conditions.indexes[i]} of {page} is {found}, expected {conditions.items[i].value}"
    )
    return FencedError(f"{what}: somebody else was there first; nothing was written to {log.path}", condition=i)


cdef int exchange(Handle log, Conditions conditions, Conditions stores) except -1:
    """Compare words, then set words: no append with conditions is under way meanwhile. The log itself stays as it is."""
    cdef Py_ssize_t i
    log.require_writable()
    log.control.lock_writer()
    try:
        log.require_writable()
        if conditions is not None:
            require(log, conditions)
        if stores is not None:
            for i in range(stores.count):
                if load_word(stores.items[i].word) == INT64_MIN:
                    raise overtaken(log, stores, i)
            os_c.reach(os_c.EXCHANGE_COMPARED)
            for i in range(stores.count):
                store_word(stores.items[i].word, stores.items[i].value)
        os_c.reach(os_c.EXCHANGE_STORED)
    finally:
        log.control.unlock_writer()
    return 0


cdef int64_t write_batches(Handle log, Append* request, Encoder encoder, EncodedBatches ready, ValidatedBatches given, Published* state) noexcept nogil:
    """Write every batch behind the published end, then publish; `ready` ones are stamped. A negative result: the files are as they were."""
    cdef ControlPage* page = log.control.page
    cdef int fd = log.active.fd
    cdef BatchShape* shapes = request.shapes
    cdef int64_t i, result = 0, encoded, begin = state.end_position, position = begin, offset = state.end_offset
    os_c.reach(os_c.APPEND_LOCKED)
    store_word(&page.dirty, 1)
    os_c.reach(os_c.APPEND_DIRTY)
    if position + request.size > page.allocated and position >= ALLOCATE_FROM:
        allocate(log, position, request.size)
    if ready is not None:
        result = os_c.os_pwrite(fd, ready.data, ready.size, position)
        position += ready.size
        offset += ready.offsets
    for i in range(request.batches if ready is None else 0):
        if shapes != NULL:
            encoded = encoder.encode(request.source, shapes[i].first, log.max_message_bytes)
            if encoded != shapes[i].count or encoder.size != shapes[i].size:
                result = -ENOMEM if encoded == OUT_OF_MEMORY else VALUES_CHANGED
                break
            shapes[i].max_timestamp = encoder.max_timestamp
        encoder.stamp(offset, log.epoch)
        offset += encoder.count
        if encoder.vector_count == 1:
            result = os_c.os_pwrite(fd, encoder.buffer, encoder.size, position)
        else:
            result = os_c.os_pwritev(fd, encoder.vectors, encoder.vector_count, position)
        if result < 0:
            break
        position += result
        os_c.reach(os_c.APPEND_BATCH_WRITTEN)
    if result < 0:
        # durably: power loss must not bring back the end of this behind what comes next. Else the next owner cuts
        cut_back(page, fd, begin)
        return result
    os_c.reach(os_c.APPEND_WRITTEN)
    if given is not None:
        result = log.producers.apply(given.data, given.size, os_c.clock_milliseconds())
        if result >= 0 and log.producers.aborted_count:
            # a reader that sees the marker must know what it aborted: unlike other indexes this one may not fail
            with gil:
                result = index_aborted(log, state)
            if result == 0:
                result = -EINTR
        if result < 0:
            with gil:
                log.producers = None
            cut_back(page, fd, begin)
            return result
        state.first_unstable_offset = log.producers.first_unstable()
        state.last_producer_offset = log.producers.last_producer_offset
    if begin == 0:
        state.first_timestamp = encoder.max_timestamp if shapes == NULL else shapes[0].max_timestamp
    if shapes == NULL and ready is None:
        log.tracker.track(begin, encoder.size, offset - 1, encoder.max_timestamp)
    else:
        position = begin
        offset = state.end_offset
        for i in range(request.batches):
            offset += shapes[i].count
            log.tracker.track(position, shapes[i].size, offset - 1, shapes[i].max_timestamp)
            position += shapes[i].size
    if log.tracker.offsets.write_pending() < 0:
        store_word(&page.has_lost_entries, 1)
    if log.tracker.times.write_pending() < 0:
        store_word(&page.has_lost_entries, 1)
    log.tracker.tell(state)
    os_c.reach(os_c.APPEND_INDEXED)
    state.end_position = position
    state.end_offset = offset
    publish(page, state)
    log.seen_version = page.version
    os_c.reach(os_c.APPEND_PUBLISHED)
    store_word(&page.dirty, 0)
    return 0


cdef void cut_back(ControlPage* page, int fd, int64_t size) noexcept nogil:
    """Undo a failed append, durably. Where the cut fails the next owner tries; where its sync fails the log stops."""
    if os_c.os_ftruncate(fd, size) != 0:
        return
    if os_c.os_fdatasync(fd) == 0:
        store_word(&page.dirty, 0)
    else:
        store_word(&page.poisoned, 1)


# --- producers ---------------------------------------------------------------------------------------------------------

cdef ProducerStates look_back(Handle log):
    """Before the lock is taken: producer state for a handle that lacks it, or is far behind. None when it has it."""
    cdef Published state
    read_published(log.control.page, &state)
    if state.last_producer_offset < 0:
        return None
    if log.producers is not None and (
        log.producers.end_offset > state.last_producer_offset
        or log.producers.segment_base == state.active_base and state.end_position - log.producers.position < FAR_BEHIND
    ):
        return None
    try:
        sizes = log.sizes_at(&state)
        return snapshots.rebuild(log.path, oscalls.list_directory(log.path), sizes, state.end_offset).states
    except StorageError as error:
        raise log.blamed(error)


cdef int know_producers(Handle log, ProducerStates known, Published* state) except -1:
    """Bring producer state to the published end; under the writer lock."""
    if known is not None and (log.producers is None or log.producers.end_offset < known.end_offset):
        log.producers = known
    if log.producers is None:
        log.producers = ProducerStates()
        if state.last_producer_offset >= 0:
            log.producers = snapshots.rebuild(
                log.path, oscalls.list_directory(log.path), log.sizes_at(state), state.end_offset
            ).states
    states = log.producers
    if states.end_offset != state.end_offset and not states.jump_to(
        state.last_producer_offset, state.end_offset, state.active_base, state.end_position
    ):
        snapshots.catch_up(log.path, states, log.sizes_at(state), state.end_offset, check_crc=False)
    # others have written these entries
    states.take_aborted()
    states.segment_base, states.position = state.active_base, state.end_position
    return 0


cdef list open_transactions(Handle log):
    """(producer id, epoch, first offset) of every transaction that is open in this partition, rising by first offset."""
    cdef Published state
    cdef ProducerStates known
    log.require_open()
    read_published(log.control.page, &state)
    if state.first_unstable_offset < 0:
        return []
    if log.read_only or load_word(&log.control.page.poisoned):
        return told_transactions(snapshots.rebuild(
            log.path, oscalls.list_directory(log.path), log.sizes_at(&state), state.end_offset
        ).states)
    known = look_back(log)
    log.control.lock_writer()
    try:
        begin_change(log, &state)
        know_producers(log, known, &state)
        return told_transactions(log.producers)
    finally:
        log.control.unlock_writer()


cdef list told_transactions(ProducerStates states):
    cdef int64_t i
    return [
        (
            states.open_transactions[i].producer_id, states.find(states.open_transactions[i].producer_id).epoch,
            states.open_transactions[i].first_offset,
        )
        for i in range(states.open_count)
    ]


cdef int64_t index_aborted(Handle log, Published* state) noexcept:
    """Write the entries of transactions that are aborted by what is being appended: 1; a negative result when that fails, 0 on Ctrl-C."""
    try:
        index = TransactionIndex(files.transaction_index_path(log.active.path), log.active.base_offset)
        state.transaction_entries = index.write(state.transaction_entries, log.producers.take_aborted())
        return 1
    except StorageError as error:
        return -(error.errno or EIO)
    except KeyboardInterrupt:
        # it comes once more, behind the append
        interrupt_main()
        return 0
    except Exception:
        logger.exception("aborted transactions of %s could not be indexed", log.path)
        return -EIO


cdef void allocate(Handle log, int64_t position, int64_t size) noexcept nogil:
    """Ask for disk blocks ahead of the end, once for many appends. Closing and rolling give back what is left."""
    cdef int64_t ahead = max(size, min(position, <int64_t>MOST_ALLOCATED))
    ahead = min(ahead, log.segment_bytes - position)
    if os_c.os_allocate(log.active.fd, position, ahead) == 0:
        log.control.page.allocated = position + ahead
    else:
        # no room, or no such file system: plain writes will tell
        log.control.page.allocated = NOT_ALLOCATED


# --- before a change ---------------------------------------------------------------------------------------------------

cdef int begin_change(Handle log, Published* state) except -1:
    """Everything that must hold before the owner of the writer lock changes anything; `state` is what is published then."""
    cdef ControlPage* page = log.control.page
    log.require_writable()
    if load_word(&page.poisoned):
        raise poisoned_error(log)
    if load_word(&page.dirty):
        take_over(log)
    read_published(page, state)
    if state.generation & 1:
        finish_compaction(log, state)
    if page.has_clean_marker:
        remove_clean_marker(log)
    read_published(page, state)
    if log.active is None or log.active.base_offset != state.active_base or log.active.fd < 0:
        join_active(log, state)
    elif log.seen_version != page.version:
        if state.index_entries != UNKNOWN_ENTRIES:
            log.tracker.catch_up(state)
        log.seen_version = page.version
    if page.flush_interval and not log.keeps_interval:
        keep_interval(log)
    return 0


cdef int finish_compaction(Handle log, Published* state) except -1:
    """Somebody died, or failed, while it put compacted segments in the place of others: do the rest."""
    from fastlog.partition import compaction
    logger.warning("finishing an interrupted compaction of %s", log.path)
    if not state.generation & 1:
        # files move from here on: whoever comes after us, or reads meanwhile, has to know
        state.generation += 1
        publish(log.control.page, state)
    compaction.finish_swaps(log.path, oscalls.reach_failpoint)
    state.generation += 1
    publish(log.control.page, state)
    return 0


cdef int remove_clean_marker(Handle log) except -1:
    """The first change of a session: the clean marker goes first, durably."""
    oscalls.remove(f"{log.path}/{files.CLEAN}")
    oscalls.sync_directory(log.path)
    log.control.page.has_clean_marker = 0
    return 0


cdef int join_active(Handle log, Published* state) except -1:
    """Open the active segment for appending: others may have appended to it, or rolled to it."""
    cdef Segment previous = log.active, active = log.segments_at(state).last()
    log.active = None
    if previous is not None and previous is not active:
        previous.close_files()
    if state.index_entries == UNKNOWN_ENTRIES:
        # the first append since the log was opened cleanly
        active.size = state.end_position
        active.begin_appending()
        log.control.page.allocated = 0
    elif active.fd < 0 or not active.grows_tracker:
        active.join_appending(state)
        if active.tracker.offsets.lost:
            log.control.page.has_lost_entries = 1
    if log.level >= AT_BATCH:
        # a sync that finds no descriptor left would come too late
        active.reading_file()
    log.active = active
    log.tracker = active.tracker
    log.seen_version = 0
    if state.index_entries != UNKNOWN_ENTRIES:
        log.tracker.catch_up(state)
        log.seen_version = log.control.page.version
    return 0


cdef int take_over(Handle log) except -1:
    """The last owner of the writer lock died, or failed half-way: cut everything back to what was published."""
    cdef Published state
    cdef ControlPage* page = log.control.page
    cdef int64_t entries
    os_c.reach(os_c.TAKEOVER_BEGUN)
    read_published(page, &state)
    logger.warning("process %d ended while it changed %s: cut back to offset %d", page.owner_pid, log.path, state.end_offset)
    for base in files.segment_bases(oscalls.list_directory(log.path)):
        if base <= state.active_base:
            continue
        # a segment that a roll created and never published
        path = files.segment_path(log.path, base)
        if oscalls.file_size(path):
            oscalls.rename(path, recovery.side_file(path, 0))
        for name in files.segment_files(path):
            oscalls.remove(name)
    path = files.segment_path(log.path, state.active_base)
    cut_log(log, path, state.end_position)
    if state.last_producer_offset >= 0:
        TransactionIndex(files.transaction_index_path(path), state.active_base).truncate(state.transaction_entries)
    if state.index_entries != UNKNOWN_ENTRIES:
        for index, entries, size in zip(files.index_paths(path), (state.index_entries, state.time_index_entries), ENTRY_SIZES):
            cut_index(index, entries * size)
    os_c.reach(os_c.TAKEOVER_CUT)
    if log.active is not None and log.active.base_offset == state.active_base:
        # it may be our own step that failed, in the middle of finishing these indexes: join them anew
        log.active.forget_indexes()
        log.active = None
    page.allocated = 0
    store_word(&page.dirty, 0)
    os_c.reach(os_c.TAKEOVER_DONE)
    # whoever slept on a bell of the dead
    wake_readers(log, log.control)
    ring(&page.sync_bell)
    return 0


cdef int cut_log(Handle log, str path, int64_t size) except -1:
    """Cut a segment, durably. Where the cut fails the next owner tries; where its sync fails the log stops."""
    fd = oscalls.open_file(path, writable=True)
    try:
        # also frees blocks that were allocated ahead
        oscalls.truncate(fd, size, path)
        try:
            oscalls.sync_data(fd, path)
        except StorageError as error:
            poison(log, error)
            raise
    finally:
        oscalls.close_file(fd)
    return 0


def cut_index(path: str, size: int) -> None:
    """Cut an index file that is longer than ``size``."""
    found = oscalls.file_size(path)
    if found is None or found <= size:
        return
    fd = oscalls.open_file(path, writable=True)
    try:
        oscalls.truncate(fd, size, path)
    finally:
        oscalls.close_file(fd)


# --- rolling -----------------------------------------------------------------------------------------------------------

cdef bint must_roll(Handle log, const Published* state, const Append* request) except *:
    """Kafka's conditions for a new segment, asked before an append."""
    cdef int64_t first
    if state.end_position == 0:
        return False
    if state.end_position > log.segment_bytes - request.size or log.tracker.lacks_room(request.batches):
        return True
    if state.end_offset + request.offsets - 1 - state.active_base > MOST_RELATIVE_OFFSET:
        return True
    first = state.first_timestamp
    if first == UNKNOWN_TIMESTAMP:
        first = log.active.end_of_first_batch_time
        (<Published*>state).first_timestamp = first
    if first >= 0:
        return request.largest_timestamp - first > log.segment_ms
    return os_c.clock_milliseconds() - state.created > log.segment_ms


cdef int roll(Handle log, Published* state) except -1:
    """Begin a new segment at the end offset. A published step of its own; a failure leaves the old segment active."""
    cdef Segment old = log.active, fresh
    cdef ControlPage* page = log.control.page
    cdef SegmentList list_ = log.segments_at(state)
    path = files.segment_path(log.path, state.end_offset)
    if oscalls.file_size(path):
        raise StorageError(f"{path} is in the way of a new segment: move it out of the folder")
    store_word(&page.dirty, 1)
    os_c.reach(os_c.ROLL_BEGUN)
    fresh = recovery.new_segment(log.path, state.end_offset, 0, log.meta, log.config)
    try:
        fresh.begin_appending()
        if log.level >= AT_BATCH:
            fresh.reading_file()
    except BaseException:
        if fresh.discard():
            store_word(&page.dirty, 0)
        raise
    os_c.reach(os_c.ROLL_CREATED)
    old.size = state.end_position
    old.trim(state.end_position)
    if page.has_lost_entries:
        log.tracker.offsets.lost = True
    try:
        old.finish_indexes()
    except StorageError as error:
        # they are rebuilt when they are needed, at the latest when the log is closed
        logger.warning("the indexes of %s could not be completed: %s", old.path, error)
        old.tracker = None
        for index in files.index_paths(old.path):
            try:
                oscalls.remove(index)
            except StorageError:
                logger.warning("%s may be incomplete", index)
    if state.last_producer_offset >= 0:
        # what a dead writer has left behind the published entries
        index = TransactionIndex(files.transaction_index_path(old.path), old.base_offset)
        index.truncate(state.transaction_entries)
        # what opening said of them is stale, and would vouch for a file that power loss emptied
        old.transaction_checksum, old.aborted = crc32c(index.entries(state.transaction_entries)), None
    else:
        old.transaction_checksum, old.aborted = NOTHING_ABORTED, b""
    page.allocated = 0
    page.has_lost_entries = 0
    state.active_base = state.end_offset
    state.end_position = 0
    state.generation += 2
    state.first_timestamp = UNKNOWN_TIMESTAMP
    state.created = oscalls.wall_clock()
    state.transaction_entries = state.index_entries = state.time_index_entries = 0
    fresh.tracker.tell(state)
    publish(page, state)
    old.is_growing = False
    old.is_trusted = True
    if state.last_producer_offset >= 0:
        old.aborted = None
    log.list_ = SegmentList([*list_.segments, fresh], state.generation)
    log.active = fresh
    log.tracker = fresh.tracker
    log.seen_version = page.version
    os_c.reach(os_c.ROLL_PUBLISHED)
    store_word(&page.dirty, 0)
    sync_rolled_later(log)
    return 0
