# cython: annotation_typing=False, nonecheck=True
"""Upkeep of a log: raising its start, retention, compaction. What goes is decided in ``partition``; here it is done.

One process does it at a time, under the maintainer's lock, while others append and read. Deletion: the new start is durable
before a file goes. Compaction: no lock is held while segments are rewritten, since closed ones never change; each replacement
is put in place under the writer lock, between an odd and an even generation, in steps that the next owner can finish.
"""

from bisect import bisect_right

from libc.stdint cimport int64_t

from fastlog._native cimport oscalls as os_c
from fastlog._native.appending cimport begin_change, finish_compaction, roll
from fastlog._native.control cimport Control
from fastlog._native.handle cimport Handle, SegmentList
from fastlog._native.layout cimport INDEX_ENTRY_SIZE, TIME_INDEX_ENTRY_SIZE
from fastlog._native.published cimport Durable, Published, publish, publish_durable, read_durable, read_published
from fastlog._native.reading cimport aborted_entries, out_of_range
from fastlog._native.segment cimport Segment
from fastlog._native.syncing cimport lead, persist, sync_until

from fastlog._native import oscalls
from fastlog._native.syncing import write_meta
from fastlog._native.transactions import pack_entries, unpack_entries
from fastlog.partition import files, snapshots


# --- deleting ----------------------------------------------------------------------------------------------------------

cdef int64_t delete_until(Handle log, int64_t before) except -1:
    """Raise the log start offset to `before`, durably, and remove segments wholly below it; the start offset."""
    cdef Published state, visible
    cdef Durable durable
    cdef Control control = log.control
    cdef SegmentList list_
    cdef Segment segment
    log.require_writable()
    log.read_state(&visible)
    if before > visible.end_offset:
        raise out_of_range(log, before)
    # a start is durable only where power loss leaves as much: else the offsets below it would be given out again
    sync_until(log, before)
    control.lock_sync_owner()
    try:
        control.lock_writer()
        try:
            log.require_writable()
            log.read_state(&visible)
            before = max(before, visible.start_offset)
            if before == visible.start_offset and bisect_right(log.segments_at(&visible).bases, before) <= 1:
                return before
            begin_change(log, &state)
            list_ = log.segments_at(&state)
            first = max(bisect_right(list_.bases, before) - 1, 0)
            read_durable(control.page, &durable)
            meta = files.read_meta(log.path) or log.meta
            meta.start_offset = before
            if meta.recovery_segment < list_.bases[first]:
                # what is removed need not be synced any more; what is named instead has to be there after power loss
                oscalls.sync_directory(log.path)
                meta.recovery_segment = meta.recovery_point = list_.bases[first]
                meta.recovery_position = 0
            write_meta(log, meta)
            if durable.base < list_.bases[first]:
                durable.base = list_.bases[first]
                durable.offset = max(durable.offset, durable.base)
                durable.last_stable_offset = max(durable.last_stable_offset, durable.base)
                durable.position = 0
                publish_durable(control.page, &durable)
            removed = list_.segments[:first]
            state.start_offset = before
            if removed:
                state.generation += 2
            publish(control.page, &state)
            log.seen_version = control.page.version
            os_c.reach(os_c.DELETE_PUBLISHED)
            log.list_ = SegmentList(list_.segments[first:], state.generation)
            log.forget_cursor()
            for segment in removed:
                for path in (snapshots.snapshot_path(log.path, segment.base_offset), *files.segment_files(segment.path)):
                    oscalls.remove(path)
            os_c.reach(os_c.DELETE_REMOVED)
            if removed:
                oscalls.sync_directory(log.path)
            return before
        finally:
            control.unlock_writer()
    finally:
        control.unlock_sync_owner()


cdef object retain(Handle log, clock, int64_t now):
    """Delete what is over its time or its size."""
    from fastlog.partition import retention
    from fastlog.reports import RetentionReport
    cdef Published state
    cdef Durable durable
    cdef Segment segment
    cdef SegmentList list_
    cdef Control control = log.control
    config = log.config
    read_published(control.page, &state)
    list_ = log.segments_at(&state)
    read_durable(control.page, &durable)
    candidates = []
    for segment, end in zip(list_.segments, [*list_.bases[1:], state.end_offset], strict=True):
        log.prepare(segment, &state)
        candidates.append(
            retention.Candidate(
                segment.base_offset, end, log.end_of(segment, &state), segment.max_timestamp, oscalls.modified_at(segment.path)
            )
        )
    keep_from = min(durable.offset, durable.last_stable_offset)
    decision = retention.decide(
        candidates, start_offset=state.start_offset, keep_from=keep_from, clock=clock, now=now, retention_ms=config.retention_ms,
        retention_bytes=config.retention_bytes, deletes=config.deletes,
    )
    if decision.segments:
        if decision.is_all:
            # the active segment goes too: an empty one takes its place first
            control.lock_writer()
            try:
                begin_change(log, &state)
                if state.end_offset != decision.start_offset:
                    return RetentionReport(0, 0, state.start_offset, decision.held_back)     # somebody has appended
                roll(log, &state)
            finally:
                control.unlock_writer()
        delete_until(log, decision.start_offset)
    return RetentionReport(decision.segments, decision.bytes, max(decision.start_offset, state.start_offset), decision.held_back)


# --- compacting --------------------------------------------------------------------------------------------------------

cdef object compact(Handle log, clock, int64_t now):
    """One round of compaction; None when none is due."""
    from fastlog.partition import compaction
    cdef Published state
    cdef Durable durable
    cdef Segment segment
    cdef SegmentList list_
    cdef Control control = log.control
    config = log.config
    read_published(control.page, &state)
    sync_until(log, state.end_offset)
    read_published(control.page, &state)
    list_ = log.segments_at(&state)
    read_durable(control.page, &durable)
    sources = []
    for segment in list_.segments:
        if segment.base_offset < state.active_base:
            log.prepare(segment, &state)
            sources.append(
                compaction.Source(
                    segment.base_offset, segment.size, segment.max_timestamp, segment.end_of_first_batch_time,
                    segment.index_entries * INDEX_ENTRY_SIZE, segment.time_index_entries * TIME_INDEX_ENTRY_SIZE,
                )
            )
    if not sources:
        return None
    meta = files.read_meta(log.path) or log.meta
    dirt = compaction.measure(
        sources, cleaned_offset=meta.cleaned_offset, start_offset=state.start_offset, active_base=state.active_base,
        end_offset=state.end_offset, limit=min(durable.last_stable_offset, durable.offset), now=clock.confirmed,
        min_ratio=config.min_cleanable_dirty_ratio, min_lag_ms=config.min_compaction_lag_ms,
        max_lag_ms=config.max_compaction_lag_ms,
    )
    if not dirt.is_due:
        return None
    aborted = sorted(transactions_of(log, list_, state.active_base), key=first_offset_of) if state.last_producer_offset >= 0 else []
    producers = active_producers(log, &state) if state.last_producer_offset >= 0 else []
    announce(log, list_, sources)
    report = compaction.compact(
        log.path, sources, dirt, swapper(log), segment_bytes=log.segment_bytes, index_bytes=config.segment_index_bytes,
        interval=config.index_interval_bytes, now=clock.confirmed,
        horizon=max(now, <int64_t>clock.confirmed) + <int64_t>config.delete_retention_ms, aborted=aborted, producers=producers,
        max_decompressed_bytes=log.max_decompressed_bytes, reach=oscalls.reach_failpoint,
    )
    control.lock_sync_owner()
    try:
        meta = files.read_meta(log.path) or log.meta
        meta.cleaned_offset = report.cleaned_offset
        write_meta(log, meta)
    finally:
        control.unlock_sync_owner()
    return report


def first_offset_of(transaction: tuple) -> int:
    return transaction[1]


def transactions_of(Handle log, SegmentList list_, active_base: int) -> list:
    """Aborted transactions of the closed segments, as compaction takes them."""
    cdef Py_ssize_t i
    found = []
    for i in range(len(list_.bases) - 1):
        for producer_id, first_offset, last_offset, stable in unpack_entries(aborted_entries(log, list_, i)):
            found.append((producer_id, first_offset, last_offset, pack_entries([(producer_id, first_offset, last_offset, stable)])))
    return found


cdef list active_producers(Handle log, Published* state):
    """(producer id, epoch, offset of its last batch with data or -1) of every producer."""
    cdef Published current = state[0]
    states = snapshots.rebuild(log.path, oscalls.list_directory(log.path), log.sizes_at(&current), state.end_offset).states
    found = []
    for producer_id in states.producer_ids():
        known = states.state(producer_id)
        batches = known["batches"]
        found.append((producer_id, known["epoch"], batches[-1][3] if batches else -1))
    return found


cdef int announce(Handle log, SegmentList list_, list sources) except -1:
    """Before anything is replaced, durably: offsets may skip in these segments, and nobody vouches for their indexes."""
    cdef Published state
    cdef Durable durable
    cdef Control control = log.control
    last = sources[len(sources) - 1].base_offset
    control.lock_sync_owner()
    try:
        read_durable(control.page, &durable)
        if durable.base <= last:
            # behind a roll whose sync was never made: the recovery point must not name a segment that is replaced
            lead(log, True)
        persist(log, True)
        meta = files.read_meta(log.path) or log.meta
        meta.allow_gaps(sources[0].base_offset, last)
        write_meta(log, meta)
        control.lock_writer()
        try:
            begin_change(log, &state)
        finally:
            control.unlock_writer()
    finally:
        control.unlock_sync_owner()
    return 0


def swapper(Handle log):
    """What ``compaction.compact`` calls for each replacement that is ready."""
    def swap_in(replacement) -> bool:
        return put_in_place(log, replacement)
    return swap_in


cdef bint put_in_place(Handle log, replacement) except *:
    from fastlog.partition import compaction
    cdef Published state
    cdef Control control = log.control
    # what vouches for the new indexes names the new size: until the swap it vouches for nothing
    control.lock_sync_owner()
    try:
        entries = files.read_index_checksums(log.path)
        for base in replacement.sources:
            entries.pop(base, None)
        entries[replacement.base_offset] = (*replacement.index_checksums, replacement.size)
        files.write_index_checksums(log.path, entries)
    finally:
        control.unlock_sync_owner()
    control.lock_writer()
    try:
        begin_change(log, &state)
        bases = set(log.segments_at(&state).bases)
        if not bases.issuperset(replacement.sources):
            return False        # deleted meanwhile
        compaction.swap(replacement, generation_changer(log), oscalls.reach_failpoint)
        log.seen_version = 0
        return True
    finally:
        control.unlock_writer()


def generation_changer(Handle log):
    """Publishes the same log with the next generation."""
    def change() -> None:
        cdef Published state
        read_published(log.control.page, &state)
        state.generation += 1
        publish(log.control.page, &state)
    return change


# --- both --------------------------------------------------------------------------------------------------------------

cdef object maintain(Handle log):
    """Retention and compaction, unless somebody else is at it."""
    from fastlog.partition import compaction, retention
    from fastlog.reports import MaintenanceReport, RetentionReport
    cdef Published state
    cdef Control control = log.control
    log.require_writable()
    read_published(control.page, &state)
    if not control.try_maintenance():
        return MaintenanceReport(RetentionReport(0, 0, state.start_offset, None), None)
    try:
        if state.generation & 1 or compaction.unfinished(oscalls.list_directory(log.path)):
            # a predecessor died
            control.lock_writer()
            try:
                begin_change(log, &state)
                if compaction.unfinished(oscalls.list_directory(log.path)):
                    finish_compaction(log, &state)
                log.seen_version = 0
            finally:
                control.unlock_writer()
        now = oscalls.wall_clock()
        meta = files.read_meta(log.path) or log.meta
        before = retention.Clock(meta.clock_confirmed, meta.clock_seen)
        clock = retention.look(before, now, retention.grace_of(log.config.retention_ms))
        if clock != before:
            control.lock_sync_owner()
            try:
                meta = files.read_meta(log.path) or log.meta
                meta.clock_confirmed, meta.clock_seen = clock.confirmed, clock.seen
                write_meta(log, meta)
            finally:
                control.unlock_sync_owner()
        retained = retain(log, clock, now)
        return MaintenanceReport(retained, compact(log, clock, now) if log.config.compacts else None)
    finally:
        control.end_maintenance()
