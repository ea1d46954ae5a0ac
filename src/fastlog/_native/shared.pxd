# Words, a document and bells in files that processes map together.
#
# Both files have a fixed layout without pointers or sizes that differ between builds, a magic and a layout version. They
# are disposable: whoever is alone in the store removes them, so they survive no reboot and are never synced.
#
#   page     PageHeader | words, 8 bytes each | two slots for a document, each PageSlot and `capacity` bytes
#   bells    BellsHeader | one BellLine for each bell | one WaiterLine for each waiter's word
#
# The document changes as a whole, as in published.pxd: fill the idle slot, release the version; a reader copies the slot
# that the version names and looks again. Who dies while filling changes nothing.

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from fastlog._native.published cimport Bell


cdef enum:
    SHARED_LAYOUT = 1
    LINE = 64                       # bytes that processors keep coherent as one
    BELL_COUNT = 64                 # also that of waiters' words: a mask of either is one word


cdef struct PageHeader:
    char[8] magic
    int64_t layout
    int64_t words
    int64_t capacity                # largest document, bytes
    uint8_t[32] gap_a
    # changes while the page is used
    uint64_t version                # of the document
    int64_t replaced                # another page has taken its place: open the path again
    Bell bell                       # of the version
    uint8_t[40] gap_b


cdef struct PageSlot:
    int64_t size
    uint8_t[56] gap


cdef struct BellsHeader:
    char[8] magic
    int64_t layout
    uint64_t waiters                # handed out so far: says which word the next one takes
    uint8_t[40] gap


cdef struct BellLine:
    uint64_t waiters                # one bit each: their words are raised by the next ring
    uint32_t rings                  # that somebody listened to
    uint8_t[52] gap


cdef struct WaiterLine:
    uint32_t word                   # slept on
    uint8_t[60] gap


cdef class Mapping:
    """A whole file, mapped shared as long as this object lives."""
    cdef void* address
    cdef int64_t size
    cdef int generation             # of forks, when it was mapped
    cdef bint is_closed
    cdef readonly str path
    cdef readonly bint writable

    cdef int require_usable(self) except -1
    cdef int require_writable(self) except -1


cdef class SharedPage(Mapping):
    cdef PageHeader* header
    cdef int64_t* first_word
    cdef uint8_t* first_slot
    cdef int64_t slot_stride
    cdef int64_t inode

    cdef int64_t* word_at(self, Py_ssize_t index) except NULL
    cdef PageSlot* slot(self, uint64_t version) noexcept


cdef class Bells(Mapping):
    cdef BellsHeader* header
    cdef BellLine* lines
    cdef WaiterLine* words


cdef class Waiter:
    cdef readonly Bells bells
    cdef readonly int number        # of its word
    cdef uint32_t[BELL_COUNT] seen  # rings, when rung() last told of them


cdef void ring_bell(Bells bells, int bell) noexcept nogil
