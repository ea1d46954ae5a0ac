# cython: annotation_typing=False, nonecheck=True
"""Reading: from an offset or a time to records, and waiting for them. Readers take no lock.

They copy the published tuple and look at nothing beyond it. A handle that reads durably and comes to the durable end joins the
group commit, so that it waits for a sync and never for a writer who does not sync. A reader that found nobody when it opened
the log has a view of its own; from time to time it looks whether somebody came.
"""

from bisect import bisect_right
from errno import ENOENT

from libc.stdint cimport int64_t, uint32_t, uint8_t
from libc.string cimport memset

from fastlog._native cimport oscalls as os_c
from fastlog._native.batch cimport RecordBatch
from fastlog._native.control cimport Control, listen, sleep_on
from fastlog._native.decoder cimport BatchHeader, FINE, NO_MEMORY, Problem, decode_batches
from fastlog._native.handle cimport Handle, SegmentList
from fastlog._native.layout cimport TIMESTAMP_TYPE_BIT, TRANSACTION_ENTRY_SIZE
from fastlog._native.memory cimport Block, block_release
from fastlog._native.published cimport Durable, Published, load_word, read_durable, read_published, store_word
from fastlog._native.segment cimport Place, Segment
from fastlog._native.syncing cimport keep_interval, sync_within
from fastlog._native.transactions cimport AbortedRanges, collect_entries, free_ranges, sort_ranges

from fastlog._native import oscalls
from fastlog._native.checksum import crc32c
from fastlog._native.transactions import TransactionIndex

from fastlog.errors import ConfigError, CorruptLogError, OffsetOutOfRangeError, StorageError
from fastlog.partition import files, snapshots

cdef enum:
    WAIT_SLICE = 50_000_000         # nanoseconds: a writer killed before its bell delays nobody for longer
    SYNC_PATIENCE = 100             # milliseconds that a reader waits for somebody else's sync
    POLL_SLICE = 5_000_000          # nanoseconds between two looks of a reader without company


cdef RecordBatch read_range(Handle log, int64_t offset, int64_t stop, int64_t max_bytes):
    """Read records in [offset, stop)."""
    cdef Published state, before
    cdef Segment segment
    cdef Place place
    cdef RecordBatch batch
    cdef SegmentList used
    cdef int64_t end = 0
    cdef int attempt = 0
    if log.is_closed or log.fork_generation != os_c.fork_generation():
        log.require_open()
    if max_bytes < 1:
        raise ConfigError(f"max_bytes={max_bytes}: expected at least 1 (a whole batch is returned in any case)")
    log.read_state(&state)
    if offset >= state.end_offset:
        catch_up(log, offset, &state)
    while True:
        if offset < state.start_offset or offset > state.end_offset:
            raise out_of_range(log, offset)
        batch = RecordBatch.__new__(RecordBatch)
        batch.topic = log.topic
        batch.partition = log.partition
        batch.base_offset = offset
        batch.next_offset = offset
        if offset == state.end_offset:
            return batch
        segment = None
        # of another list, the segment may have been the active one, and its size then means nothing
        if offset == log.cursor_offset and log.list_.generation == state.generation:
            segment = log.cursor_segment
            place.position = log.cursor_position
            place.expected_offset = offset
            end = log.end_of(segment, &state)
        before = state      # which follows the list of segments from here on
        used = log.list_
        try:
            return read_segments(log, batch, &state, segment, &place, end, offset, min(stop, state.end_offset), max_bytes)
        except StorageError as error:
            # the file of a segment that was removed or replaced meanwhile is no fault of the storage
            attempt += 1
            if error.errno != ENOENT or attempt > MOST_RETRIES or not log.has_moved(&before, used):
                raise
            log.read_state(&state)
        except CorruptLogError as error:
            attempt += 1
            if attempt <= MOST_RETRIES and log.has_moved(&before, used):
                log.read_state(&state)
                continue
            complete_damage(log, error, &state)
            raise


cdef int complete_damage(Handle log, error, const Published* state) except -1:
    """After damage up to the end of a segment reading can go on in the next one: let the error say so."""
    if error.next_offset is None and error.first_offset is not None:
        following = log.list_.bases[bisect_right(log.list_.bases, error.first_offset):]
        if following and following[0] <= state.active_base:
            error.next_offset = following[0]
    return 0


cdef RecordBatch read_segments(
    Handle log, RecordBatch batch, Published* state, Segment segment, Place* place, int64_t end, int64_t offset, int64_t stop,
    int64_t max_bytes,
):
    """Find the batch of `offset`, unless `segment` and `place` name it, and decode from there on."""
    cdef BatchHeader header
    cdef Block* block
    cdef Problem problem
    cdef AbortedRanges aborted
    cdef int64_t shift = 0, next_offset = offset, next_position = 0, size
    if segment is None or place.position >= end:
        segment = find_batch(log, state, offset, stop, place, &end)
        if segment is None:
            batch.next_offset = stop
            return batch
        if segment.is_growing and segment.tracker is not None and load_word(&segment.tracker.offsets.lost) and log.control.is_writable:
            store_word(&log.control.page.has_lost_entries, 1)
    elif end > segment.validated:
        segment.validate(end)
    size = end - place.position
    if not segment.maps:
        if segment.peek(place.position, end, &header) == FINE:
            size = min(size, max(max_bytes, header.size))
    block = segment.fetch(place.position, size, &shift)
    memset(&aborted, 0, sizeof(aborted))
    try:
        if log.reads_committed and state.last_producer_offset >= 0:
            collect_aborted(log, state, segment, offset, stop, &aborted)
        with nogil:
            problem = decode_batches(
                block, place.position - shift, place.position - shift + size, offset, stop, place.expected_offset,
                segment.gaps, segment.epoch, load_word(&segment.limit), max_bytes, segment.max_decompressed_bytes, aborted.ranges, aborted.count,
                &batch.columns, &header, &next_offset,
                &next_position,
            )
    finally:
        block_release(block)
        free_ranges(&aborted)
    if problem == NO_MEMORY:
        raise MemoryError(f"no memory left to decode a batch of {segment.path}")
    if problem != FINE:
        raise segment.damage(problem, header.position + shift, place.expected_offset, end)
    batch.is_append_time = header.attributes & TIMESTAMP_TYPE_BIT
    batch.next_offset = min(next_offset, stop)
    if next_offset <= stop:
        # dropping the last reference to a removed segment may give other threads a turn: not in the middle of this
        _previous = log.cursor_segment
        log.cursor_offset = next_offset
        log.cursor_position = next_position + shift
        log.cursor_segment = segment
    return batch


cdef Segment find_batch(Handle log, Published* state, int64_t offset, int64_t stop, Place* place, int64_t* end):
    """The segment with the batch that holds `offset`, or with the first one behind it where gaps are legal; None when that begins
    at `stop` or behind. `place` is where it lies, `end` how many bytes of its segment may be looked at."""
    cdef Segment segment
    cdef Py_ssize_t i
    # the list as it is now: others may come to take its place
    cdef SegmentList found = log.segments_at(state)
    i = bisect_right(found.bases, offset) - 1
    if i < 0:
        raise lost_offsets(log, offset, found.segments[0])
    segment = found.segments[i]
    while True:
        log.prepare(segment, state)
        end[0] = log.end_of(segment, state)
        if segment.locate(offset, end[0], place):
            return segment
        # behind the last batch of its segment: a hole that is legal, or lost records
        i = bisect_right(found.bases, segment.base_offset)
        if i >= len(found.segments) or segment.base_offset >= state.active_base:
            raise lost_offsets(log, offset, segment)
        if not segment.gaps and place.expected_offset != (<Segment>found.segments[i]).base_offset:
            raise lost_offsets(log, place.expected_offset, found.segments[i])
        segment = found.segments[i]
        if segment.base_offset >= stop:
            return None


cdef int collect_aborted(
    Handle log, Published* state, Segment first, int64_t offset, int64_t end_offset, AbortedRanges* found
) except -1:
    """Aborted transactions that reach into [offset, end_offset), from the `.txnindex` of this and later segments."""
    cdef Segment segment
    cdef SegmentList list_ = log.list_
    cdef bytes entries
    cdef Py_ssize_t i
    cdef int done = 0
    if list_.has_aborted < 0:
        # told at the end, and of all that is closed in this list: other threads believe it
        is_known = False
        refuse_lost_transactions(log, list_)
        for i in range(len(list_.segments) - 1):
            if aborted_entries(log, list_, i):
                is_known = True
        list_.has_aborted = is_known
    if not list_.has_aborted and not state.transaction_entries:
        return 0
    for i, segment in enumerate(list_.segments):
        if segment.base_offset < first.base_offset or segment.base_offset > state.active_base:
            continue
        if segment.base_offset == state.active_base:
            entries = active_entries(segment, state.transaction_entries)
        else:
            entries = aborted_entries(log, list_, i)
        if len(entries):
            done = collect_entries(
                <const uint8_t*><const char*>entries, len(entries) // TRANSACTION_ENTRY_SIZE, offset, end_offset, found
            )
            if done < 0:
                raise MemoryError()
            if done:
                break
    sort_ranges(found)
    return 0


cdef int refuse_lost_transactions(Handle log, SegmentList list_) except -1:
    """A segment that is gone said which transactions were aborted: without it some would seem committed. Its records are gone
    as well, which is told when they are read."""
    cdef Segment before
    for base in snapshots.stray_transaction_indexes(oscalls.list_directory(log.path), list_.bases):
        if list_.bases[0] < base < list_.bases[len(list_.bases) - 1]:
            before = list_.segments[bisect_right(list_.bases, base) - 1]
            if before.end_of_closed() > base:
                continue    # a swap of compaction is under way, or was cut short: its records have a new segment
            path = files.segment_path(log.path, base)
            raise CorruptLogError(
                f"{path} is missing, in which transactions were aborted: which records were taken back cannot be told. "
                f"`fastlog log verify` lists all damage; isolation=\"read_uncommitted\" shows what is left",
                path,
            )
    return 0


cdef bytes active_entries(Segment segment, int64_t count):
    """The published entries of the active segment."""
    if count == 0:
        return b""
    if segment.aborted is None:
        segment.aborted = TransactionIndex(files.transaction_index_path(segment.path), segment.base_offset)
    if isinstance(segment.aborted, bytes):
        return segment.aborted[:count * TRANSACTION_ENTRY_SIZE]
    return segment.aborted.entries(count)


cdef bytes aborted_entries(Handle log, SegmentList list_, Py_ssize_t i):
    """The entries of a closed segment: from its file when somebody vouches for that, else told by the log again."""
    cdef Segment segment = list_.segments[i]
    cdef Published latest
    cdef int64_t end
    if isinstance(segment.aborted, bytes):
        return segment.aborted
    end = list_.bases[i + 1]
    content = snapshots.read_transaction_index(segment.path, segment.base_offset, end)
    if content is not None and not (segment.is_trusted and segment.transaction_checksum is None):
        if segment.transaction_checksum != crc32c(content):
            content = None
    if content == b"":
        # no file means that nothing was aborted; but not where files are moved or removed meanwhile
        read_published(log.control.page, &latest)
        if latest.generation & 1 or latest.generation != list_.generation:
            content = None
    if content is None:
        sizes = [(other.base_offset, other.size) for other in list_.segments[:i + 1]]
        paths = {other.base_offset: other.path for other in list_.segments[:i + 1]}
        names = oscalls.list_directory(log.path)
        rebuilt = snapshots.rebuild(log.path, names, sizes, end, from_offset=segment.base_offset, paths=paths)
        if rebuilt.damages or not segment.gaps and rebuilt.last_end < end:
            raise CorruptLogError(
                f"{segment.path} is damaged, and nobody vouches for {files.transaction_index_path(segment.path)}: which records were "
                f"taken back cannot be told. `fastlog log verify` lists all damage; isolation=\"read_uncommitted\" shows them all",
                segment.path,
            )
        content = rebuilt.transactions.get(segment.base_offset, b"")
    segment.aborted = content
    segment.transaction_checksum = crc32c(content)
    return content


cdef object out_of_range(Handle log, offset):
    cdef Published state
    log.read_state(&state)
    hint = "the log is empty" if state.start_offset == state.end_offset else f"offsets {state.start_offset} to {state.end_offset - 1} can be read"
    return OffsetOutOfRangeError(
        f"offset {offset} is out of range: {hint}, and the next record gets {state.end_offset}",
        offset, state.start_offset, state.end_offset,
    )


cdef object lost_offsets(Handle log, int64_t offset, Segment following):
    next_offset = following.base_offset if following.base_offset > offset else None
    until = f"to {next_offset - 1} are" if next_offset is not None else "and later are"
    return CorruptLogError(
        f"offsets {offset} {until} in no segment of {log.path}: a file is missing or was replaced. "
        f"`fastlog log verify` lists all damage",
        following.path, 0, offset, next_offset,
    )


cdef int64_t find_time(Handle log, int64_t timestamp) except -2:
    """The first readable offset whose timestamp is at or after `timestamp`, or -1."""
    cdef Published state
    cdef Segment segment, previous = None
    cdef int64_t end, readable, found
    cdef SegmentList list_
    cdef int attempt = 0
    while True:
        log.read_state(&state)
        readable = state.end_offset
        list_ = log.segments_at(&state)
        previous = None
        try:
            for segment in list_.segments:
                if segment.base_offset > state.active_base:
                    break
                if previous is None:
                    if segment.base_offset > state.start_offset:
                        raise lost_offsets(log, state.start_offset, segment)
                elif (
                    segment.base_offset > state.start_offset and not previous.gaps
                    and previous.end_of_closed() != segment.base_offset
                ):
                    raise lost_offsets(log, previous.end_of_closed(), segment)
                previous = segment
                end = log.end_of(segment, &state)
                if end == 0:
                    continue
                log.prepare(segment, &state)
                found = segment.find_time(timestamp, state.start_offset, end)
                if found >= 0:
                    return found if found < readable else -1
            return -1
        except (StorageError, CorruptLogError):
            attempt += 1
            if attempt > MOST_RETRIES or not log.has_moved(&state, list_):
                raise


# --- waiting -----------------------------------------------------------------------------------------------------------

cdef int64_t readable_end(Handle log) except -1:
    """Where reading ends, after joining the group commit."""
    cdef Published state
    log.read_state(&state)
    catch_up(log, state.end_offset, &state)
    return state.end_offset


cdef int catch_up(Handle log, int64_t offset, Published* state) except -1:
    """At the readable end: join the group commit if only that is missing, or look whether somebody came."""
    cdef Control control = log.control
    cdef Published latest
    cdef Durable durable
    if not control.is_shared:
        if log.read_only:
            log.look_for_company()
            log.read_state(state)
        control = log.control
    if not log.reads_durably or not control.is_writable or load_word(&control.page.poisoned):
        return 0
    read_published(control.page, &latest)
    read_durable(control.page, &durable)
    if log.reads_committed and 0 <= latest.first_unstable_offset <= offset:
        return 0        # an open transaction is in the way, not the disk
    if durable.offset < latest.end_offset:
        try:
            # a frozen sync owner stops nobody who reads
            sync_within(log, latest.end_offset, SYNC_PATIENCE)
        except StorageError:
            # whoever appends is told; reading ends at the durable offset
            pass
        log.read_state(state)
    return 0


cdef bint wait_for(Handle log, int64_t offset, int64_t milliseconds) except -1:
    """Whether the readable end came beyond `offset` within so many milliseconds; negative: wait for ever."""
    cdef Published state
    cdef Control control
    cdef uint32_t heard = 0
    cdef int64_t stop = os_c.steady_nanoseconds() + milliseconds * 1_000_000, left = WAIT_SLICE
    while True:
        log.require_open()
        control = log.control
        if control.is_writable:
            heard = listen(&control.page.append_bell)
        log.read_state(&state)
        if state.end_offset > offset:
            return True
        catch_up(log, offset, &state)
        if state.end_offset > offset:
            return True
        if milliseconds >= 0:
            left = stop - os_c.steady_nanoseconds()
            if left <= 0:
                return False
        if control is not log.control:
            continue
        if control.page.flush_interval and not log.keeps_interval and not log.read_only:
            keep_interval(log)
        if not control.is_shared:
            left = min(left, <int64_t>POLL_SLICE)
        elif not control.is_writable:
            left = min(left, <int64_t>POLL_SLICE)
            heard = control.page.append_bell.count
        sleep_on(&control.page.append_bell, heard, min(left, <int64_t>WAIT_SLICE))
