# cython: annotation_typing=False, nonecheck=True
"""What one open handle of a partition knows: its options, the shared page, and the list of segments.

Appending, syncing and reading are rooms of their own on top of this one. The list of segments follows the published
generation: whoever changes it publishes a larger one, everybody else lists the folder again before the next look.
"""

from libc.stdint cimport int64_t

from fastlog._native cimport oscalls as os_c
from fastlog._native.control cimport Control
from fastlog._native.published cimport DELETED, Durable, Published, UNKNOWN_ENTRIES, load_word, read_durable, read_published, store_word
from fastlog._native.segment cimport Segment

from fastlog._native import oscalls
from fastlog.errors import ClosedError, ForkedHandleError, NotSupportedError, StorageError, UnknownTopicError
from fastlog.partition import files, recovery

cdef enum:
    MOST_LISTINGS = 1000        # of a folder that changes while it is listed


cdef class SegmentList:
    def __init__(self, list segments, generation: int):
        self.segments = segments
        cdef Segment segment
        cdef Py_ssize_t i
        self.bases = [(<Segment>segments[i]).base_offset for i in range(len(segments))]
        # while segments are being swapped, the new one reaches beyond the next one, whose records it has, too
        for i in range(0 if generation & 1 else len(segments) - 1):
            segment = segments[i]
            # a thread that decodes it may look at this without the GIL
            store_word(&segment.limit, self.bases[i + 1])
        self.generation = generation
        self.has_aborted = -1

    cdef Segment last(self):
        return self.segments[len(self.segments) - 1]


cdef class Handle:
    """Attributes of a ``PartitionLog``; see there."""

    cdef int require_open(self) except -1:
        if self.is_closed:
            raise ClosedError(f"{self.path} was closed: open it again with PartitionLog.open")
        if self.fork_generation != os_c.fork_generation():
            raise ForkedHandleError(
                f"{self.path} was opened before a fork and belongs to the parent process: open it after the fork instead"
            )
        return 0

    cdef int require_writable(self) except -1:
        self.require_open()
        if self.read_only:
            raise NotSupportedError(f"{self.path} was opened with read_only=True: open it without to change it")
        return 0

    cdef object deleted_error(self):
        return UnknownTopicError(
            f"{self.path} was deleted with its topic while it was open: close it; records that were read stay valid",
            self.topic, self.partition,
        )

    cdef object blamed(self, error):
        """What to raise for an error of a file: when the topic was deleted meanwhile, that."""
        return self.deleted_error() if load_word(&self.control.page.poisoned) == DELETED else error

    cdef int read_state(self, Published* state) except -1:
        """The published tuple, with `end_offset` lowered to what this handle may show."""
        cdef Control control = self.control
        cdef Durable durable
        cdef int64_t poisoned = load_word(&control.page.poisoned)
        # in this order: what is durable may be newer than what was published, never the other way round
        read_published(control.page, state)
        if self.reads_committed and state.first_unstable_offset >= 0:
            state.end_offset = min(state.end_offset, max(state.first_unstable_offset, state.start_offset))
        if poisoned == DELETED:
            raise self.deleted_error()
        if self.reads_durably or poisoned:
            read_durable(control.page, &durable)
            state.end_offset = min(state.end_offset, durable.last_stable_offset if self.reads_committed else durable.offset)
        return 0

    cdef SegmentList segments_at(self, Published* state):
        """The list of segments that agrees with a published tuple; with a newer one, which `state` becomes, when it moved."""
        cdef SegmentList found = self.list_
        if found.generation == state.generation:
            return found
        return self.list_segments(state)

    cdef SegmentList list_segments(self, Published* state):
        """List the folder; `state` becomes what was published then. Segments that are still the same file stay."""
        cdef Published listed
        cdef SegmentList found
        cdef Control control = self.control
        cdef int64_t attempt
        for attempt in range(MOST_LISTINGS):
            read_published(control.page, &listed)
            try:
                segments = self.look_at_segments(listed.active_base, listed.start_offset, listed.index_entries == UNKNOWN_ENTRIES)
            except StorageError as error:
                raise self.blamed(error)
            read_published(control.page, state)
            if segments is None or state.generation != listed.generation:
                continue
            found = self.list_
            if found.generation == state.generation and state.generation & 1:
                segments = known_to(found, segments)
            if found.generation < state.generation or (state.generation & 1 and segments != found.segments):
                found = SegmentList(segments, state.generation)
                found.last().is_growing = True
                self.list_ = found
                self.forget_cursor()
            # else another thread was faster: one file must not have two objects, of which one would not know what the other does
            if found.generation == state.generation:
                return found
        raise self.blamed(
            StorageError(f"{self.path} changed {MOST_LISTINGS} times while it was listed: something is wrong with its segments")
        )

    cdef list look_at_segments(self, int64_t active_base, int64_t start_offset, bint is_untouched):
        """Segment objects for what is in the folder now; None when that changed meanwhile.

        ``is_untouched``: nobody has appended to the active segment since the log was opened.
        """
        cdef Segment segment
        cdef SegmentList list_ = self.list_
        cdef int64_t trusted = self.control.page.trusted_base
        known = {segment.base_offset: segment for segment in list_.segments}
        bases = [base for base in files.segment_bases(oscalls.list_directory(self.path)) if base <= active_base]
        if not bases or bases[len(bases) - 1] != active_base:
            return None
        checksums = None
        found = []
        for base in files.bases_in_log(bases, start_offset):
            identity = oscalls.identity(files.segment_path(self.path, base))
            if identity is None:
                return None
            size, inode = identity
            segment = known.get(base)
            if segment is not None and is_same(segment, size, inode):
                if segment.is_growing and base < active_base:
                    segment.grown(size)
                found.append(segment)
                continue
            if checksums is None:
                checksums = files.read_index_checksums(self.path)
                self.meta = files.read_meta(self.path) or self.meta
            segment = recovery.new_segment(
                self.path, base, size, self.meta, self.config, stores=not self.read_only,
                # an entry names the size that it speaks of; of an active segment that was appended to it would be stale
                index_checksums=files.checksums_of(checksums, base, size) if base < active_base or is_untouched else None,
            )
            segment.inode = inode
            segment.is_trusted = trusted <= base < active_base
            found.append(segment)
        return found

    cdef bint has_moved(self, const Published* state, SegmentList used) except -1:
        """Whether the segments have changed since `state` was read and the list `used` was the one at hand.

        Raises UnknownTopicError when they are gone with their topic.
        """
        cdef Published latest
        if load_word(&self.control.page.poisoned) == DELETED:
            raise self.deleted_error()
        if self.read_only and not self.control.is_shared:
            # nobody tells a reader that was alone: it looks, at once
            self.looked_at = 0
            self.look_for_company()
            return self.list_ is not used
        read_published(self.control.page, &latest)
        if latest.generation != state.generation or latest.start_offset != state.start_offset:
            return True
        if latest.generation & 1:
            # segments are being swapped: files move, and the generation tells only at the end
            self.list_segments(&latest)
        return self.list_ is not used

    cdef list sizes_at(self, Published* state):
        """(base offset, published size) of every segment."""
        cdef Segment segment
        return [(segment.base_offset, self.end_of(segment, state)) for segment in self.segments_at(state).segments]

    cdef int64_t end_of(self, Segment segment, const Published* state) noexcept:
        """How many bytes of a segment may be looked at."""
        return state.end_position if segment.base_offset == state.active_base else segment.size

    cdef int prepare(self, Segment segment, const Published* state) except -1:
        """Before a segment is read: its file is as long as published, the indexes of the active one are up to date."""
        if segment.base_offset == state.active_base:
            segment.follow(state)
            segment.validate(state.end_position)
        else:
            segment.validate(segment.size)
        return 0

    cdef int forget_cursor(self) except -1:
        self.cursor_offset = -1
        self.cursor_segment = None
        return 0

    cdef int look_for_company(self) except -1:
        """A reader that was alone looks whether somebody has come, or has come and gone. ``PartitionLog`` knows how."""
        return 0


cdef bint is_same(Segment segment, int64_t size, int64_t inode) noexcept:
    """Whether a segment is of the file with this size and inode number; the number of a removed file is given out again."""
    return segment.inode == inode and (segment.is_growing or segment.size == size)


cdef list known_to(SegmentList list_, list segments):
    """The same segments; those whose file ``list_`` has too as the objects that it has."""
    cdef Segment segment, known
    by_base = {known.base_offset: known for known in list_.segments}
    found = []
    for segment in segments:
        known = by_base.get(segment.base_offset)
        found.append(known if known is not None and is_same(known, segment.size, segment.inode) else segment)
    return found
