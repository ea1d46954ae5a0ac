# Compaction of segments: which offset of each key is the latest, and segments rewritten without the others.

from libc.stdint cimport int32_t, int64_t, uint64_t, uint8_t

from fastlog._native.decoder cimport BatchHeader
from fastlog._native.index cimport IndexTracker
from fastlog._native.scanner cimport BatchReader


cdef struct KeyEntry:           # in memory, its key behind it
    int64_t offset
    int32_t size

cdef struct NumberMap:          # producer ids to numbers; zeroed memory is an empty one
    int64_t* keys
    int64_t* values
    uint8_t* used
    int64_t room                # a power of two
    int64_t count

cdef struct Aborted:            # a transaction that was taken back
    int64_t producer_id
    int64_t first_offset
    int64_t last_offset         # of its marker
    bint is_observed            # a batch of it was seen by this pass

cdef struct Transactions:       # what one pass over a log knows while it comes by
    int64_t next                # first aborted transaction not come by yet
    NumberMap aborted           # producers inside an aborted transaction, and which
    NumberMap committed         # producers inside another one

cdef struct KeptRecord:
    const uint8_t* start
    int64_t size                # its length included
    int64_t timestamp


cdef struct SeenRecord:
    const uint8_t* start
    const uint8_t* end
    const uint8_t* key
    int32_t key_size                # -1 = null
    bint is_tombstone
    int64_t offset
    int64_t timestamp_delta
    uint64_t hash
    int64_t slot                    # where looking for it in the map begins


cdef class OffsetMap:
    """Keys and the latest offset of each. Keys are compared as a whole: two of them never count as one."""
    cdef uint64_t* slots                # sixteen bits of the hash, and where the entry is in units of eight bytes, from 1; 0 = free
    cdef int64_t slot_count             # a power of two
    cdef uint8_t* entries
    cdef int64_t used
    cdef int64_t room
    cdef uint64_t seed
    cdef readonly int64_t memory        # bytes that slots and entries may take
    cdef readonly int64_t count         # keys
    cdef readonly int64_t start         # what is mapped begins here
    cdef readonly int64_t latest        # and ends with this offset; -1 = nothing
    cdef uint8_t* latest_bits           # of each offset from `start` to `latest`, whether it is the latest of its key; or NULL

    cdef KeyEntry* find(self, const uint8_t* key, int32_t size, uint64_t hash_, int64_t slot) noexcept nogil
    cdef int put(self, const SeenRecord* record) except -1 nogil
    cdef void fetch_slot(self, SeenRecord* record) noexcept nogil
    cdef void fetch_entry(self, SeenRecord* record) noexcept nogil
    cdef void mark_latest(self) noexcept nogil
    cdef bint is_latest(self, const SeenRecord* record) noexcept nogil
    cdef int grow(self) except -1 nogil
    cdef int add_records(self, const uint8_t* at, const uint8_t* end, const BatchHeader* header, int64_t start) except -1 nogil


cdef class Rewritten:
    """What became of a group of segments."""
    cdef readonly int64_t size                  # of the file written
    cdef readonly int64_t next_offset           # behind its last batch; the base offset when there is none
    cdef readonly int64_t max_timestamp         # of its records, -1 = none
    cdef readonly int64_t bytes_read
    cdef readonly int64_t records_read
    cdef readonly int64_t records_kept
    cdef readonly int64_t keyless               # records dropped because they have no key
    cdef readonly bint is_changed               # False: the bytes are those of the sources, one behind the other
    cdef readonly bytes offset_index
    cdef readonly bytes time_index
    cdef readonly bytes transaction_index


cdef class CleaningRound:
    """One pass of compaction: dirty segments are mapped first, then segments are rewritten, group by group, in order."""
    cdef readonly OffsetMap map
    cdef int64_t now
    cdef int64_t horizon
    cdef int64_t upper_bound
    cdef int64_t max_decompressed_bytes
    cdef bint keeps_times
    cdef Aborted* aborted
    cdef int64_t aborted_count
    cdef list entries                   # of .txnindex, beside `aborted`
    cdef Transactions mapping
    cdef Transactions rewriting
    cdef NumberMap producer_offsets     # last offset with data of each active producer, -1 = it has none
    cdef NumberMap producer_epochs
    # of the group being rewritten
    cdef Rewritten result
    cdef IndexTracker tracker
    cdef str target
    cdef int fd
    cdef int64_t expected               # offset that the next batch has to reach
    cdef uint8_t* buffer                # bytes not yet written
    cdef int64_t buffer_room
    cdef int64_t pending
    cdef KeptRecord* kept
    cdef int64_t kept_room
    cdef int64_t* ended                 # aborted transactions whose marker came by
    cdef int64_t ended_count
    cdef int64_t ended_room
    cdef uint8_t* content               # of a compressed batch, behind room for a header
    cdef int64_t content_room
    cdef uint8_t* content_kept          # what stays of it
    cdef int64_t content_kept_room

    cdef int next_batch(self, BatchReader reader, BatchHeader* header) except -1 nogil
    cdef int expand(self, BatchReader reader, const BatchHeader* header, const uint8_t** at, const uint8_t** end) except -1 nogil
    cdef int64_t decompress_content(self, BatchReader reader, const BatchHeader* header) except -1 with gil
    cdef int map_batches(self, BatchReader reader, int64_t start) except -1 nogil
    cdef int rewrite_batches(self, BatchReader reader, bint ends_the_group) except -1 nogil
    cdef int rewrite_batch(self, BatchReader reader, const BatchHeader* header, bint is_last) except -1 nogil
    cdef int64_t choose(self, const uint8_t* at, const uint8_t* end, const BatchHeader* header, bint* tombstones) except -1 nogil
    cdef int keep_record(self, int64_t number, const uint8_t* start, const uint8_t* end, int64_t timestamp) except -1 nogil
    cdef uint8_t* reserve(self, int64_t size) except NULL nogil
    cdef uint8_t* kept_content(self, int64_t size) except NULL nogil
    cdef int64_t compress_content(self, int codec, int64_t size) except -1 with gil
    cdef int flush(self) except -1 nogil
    cdef int finish_batch(self, const BatchHeader* header, int64_t size, int64_t records, int64_t max_timestamp) except -1 nogil
    cdef int write_verbatim(self, BatchReader reader, const BatchHeader* header) except -1 nogil
    cdef int write_empty(self, const BatchHeader* header) except -1 nogil
    cdef int write_rebuilt(self, const BatchHeader* header, int64_t count, bint sets_horizon) except -1 nogil
    cdef bint is_last_of_producer(self, const BatchHeader* header) noexcept nogil
    cdef int come_by(self, Transactions* seen, const BatchHeader* header) except -1 nogil
    cdef int begin_batch(self, Transactions* seen, const BatchHeader* header, bint observes) except -1 nogil
    cdef int end_transaction(self, Transactions* seen, const BatchHeader* header, int marker, bint observes) except -1 nogil
