# cython: annotation_typing=False
"""Pages and bells that the processes of a store share: words, a document that changes as a whole, and wake-ups.

Nothing here is a lock. Words are single atomic variables; who may publish a document, and what words mean together, is
guarded by locks of the kernel elsewhere. A process may die at any instruction: others find the page as it was before or
after, and bells are hints, as every sleep is short and its caller looks again.
"""

from errno import EEXIST, EBADF

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.exc cimport PyErr_CheckSignals
from libc.stdint cimport INT64_MIN, int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy, memset

from fastlog._native cimport oscalls as os_c
from fastlog._native.control cimport listen, ring, sleep_on
from fastlog._native.published cimport (
    full_fence, increment_bell, load_bell, load_version, load_word, put_shared, read_fence, store_version, store_word, take_shared,
    write_fence,
)

from fastlog._native import oscalls
from fastlog.errors import ClosedError, ForkedHandleError, RecordTooLargeError, StorageError, UnsupportedFormatError

cdef extern from *:
    """
    #define fastlog_glance(at) __atomic_load_n(at, __ATOMIC_RELAXED)
    #define fastlog_swap(at, value) __atomic_exchange_n(at, value, __ATOMIC_SEQ_CST)
    #define fastlog_add(at, delta) __atomic_add_fetch(at, delta, __ATOMIC_SEQ_CST)
    #define fastlog_join(at, bits) __atomic_fetch_or(at, bits, __ATOMIC_SEQ_CST)
    """
    uint64_t glance_mask "fastlog_glance"(const uint64_t* at) noexcept nogil
    uint64_t exchange_mask "fastlog_swap"(uint64_t* at, uint64_t value) noexcept nogil
    uint64_t join_mask "fastlog_join"(uint64_t* at, uint64_t bits) noexcept nogil
    uint64_t add_count "fastlog_add"(uint64_t* at, uint64_t delta) noexcept nogil
    int64_t exchange_word "fastlog_swap"(int64_t* at, int64_t value) noexcept nogil
    int64_t add_word "fastlog_add"(int64_t* at, int64_t delta) noexcept nogil

PAGE_MAGIC = b"fastlogp"
BELLS_MAGIC = b"fastlogb"

cdef enum:
    SLICE = 50_000_000              # nanoseconds that a sleeper loses when the one who should wake it dies first
    LOOK = 5_000_000                # nanoseconds between two looks of who may not write that it listens
    BLOCK = 4096                    # files are multiples of it
    MOST_WORDS = 1 << 24
    MOST_DOCUMENT = 1 << 30


cdef int64_t rounded(int64_t size, int64_t unit) noexcept:
    return (size + unit - 1) // unit * unit


cdef int64_t nanoseconds_of(object milliseconds) except -1:
    """At most a day: nobody notices, and nothing overflows."""
    return <int64_t>(min(max(float(milliseconds), 0.0), 86_400_000.0) * 1e6)


# --- files ---------------------------------------------------------------------------------------------------------------

cdef class Mapping:
    def __cinit__(self):
        self.address = NULL
        self.generation = os_c.fork_generation()

    def __dealloc__(self):
        # only here: C code without the GIL may be using it
        if self.address != NULL:
            os_c.os_unmap(self.address, self.size)

    cdef int require_usable(self) except -1:
        if self.generation != os_c.fork_generation():
            raise ForkedHandleError(f"{self.path} was mapped before fork and belongs to the parent: open it again in the child")
        if self.is_closed or self.address == NULL:
            raise ClosedError(f"{self.path} was closed: open it again")
        return 0

    cdef int require_writable(self) except -1:
        self.require_usable()
        if not self.writable:
            raise StorageError(f"{self.path} was opened for reading: open it with writable=True to change it", EBADF)
        return 0

    @property
    def closed(self) -> bool:
        """Whether ``close`` was called."""
        return self.is_closed


cdef int64_t map_file(Mapping mapping, bytes magic, int64_t header_size) except -1:
    """Map the file at ``mapping.path`` and check how it begins; returns its inode number. No descriptor stays open."""
    cdef void* address = NULL
    cdef int64_t size, result
    fd = oscalls.open_file(mapping.path, writable=mapping.writable)
    try:
        inode = oscalls.inode_of(fd)
        size = os_c.os_file_size(fd)
        if size < 0:
            raise os_c.storage_error("examine", mapping.path, size)
        if size < header_size:
            raise foreign(mapping.path, f"has {size} bytes, expected at least {header_size}")
        result = os_c.os_map_shared(fd, size, mapping.writable, &address)
    finally:
        oscalls.close_file(fd)
    if result < 0:
        raise os_c.storage_error("map", mapping.path, result)
    mapping.address, mapping.size = address, size
    # all headers begin with these two
    cdef PageHeader* header = <PageHeader*>address
    if memcmp(header.magic, <const char*>magic, 8) != 0:
        raise foreign(mapping.path, "does not begin as it should")
    if header.layout != SHARED_LAYOUT:
        raise foreign(mapping.path, f"has layout {header.layout}, this fastlog knows {SHARED_LAYOUT}: let all processes use one version")
    return inode


cdef object foreign(str path, str what):
    return UnsupportedFormatError(f"{path} {what}; close the store in every process, then open it again: the file is made anew")


cdef object write_aside(str path, bytes content):
    """A new file beside ``path`` that holds ``content``: its name.

    Every byte is written, as a hole in a mapped file turns a full disk into a signal.
    """
    temporary = f"{path}.{oscalls.random_bytes(4).hex()}.tmp"
    fd = oscalls.open_file(temporary, writable=True, new=True)
    try:
        oscalls.write_at(fd, content, 0, temporary)
    except BaseException:
        oscalls.remove(temporary)
        raise
    finally:
        oscalls.close_file(fd)
    return temporary


cdef int install(str temporary, str path, bint replaces) except -1:
    """Give a filled file its name; when it may replace none and somebody was faster, theirs stays."""
    try:
        if replaces:
            oscalls.rename(temporary, path)
            return 0
        try:
            oscalls.link(temporary, path)
        except StorageError as error:
            if error.errno != EEXIST:
                raise
    except BaseException:
        oscalls.remove(temporary)
        raise
    oscalls.remove(temporary)
    return 0


# --- pages ---------------------------------------------------------------------------------------------------------------

cdef class SharedPage(Mapping):
    """Words of 64 bits and one document in a file that processes map together: ``create``, ``open`` or ``ensure`` it.

    Attributes:
        path: the file.
        writable: whether it was opened for changing.
        words: how many words it has.
        capacity: the largest document, bytes.
        version: of the document; grows with every ``publish``, and is cheap to compare.
        replaced: another page has taken its place under the same path: open that one.
        closed: whether ``close`` was called.

    Words are atomic each by itself: ``store`` is a release and ``load`` an acquire, ``exchange`` and ``add`` are both.
    The document changes as a whole; only who holds the lock that guards the page may ``publish`` or ``retire``. Every
    method may be called from any thread. ClosedError after ``close``, ForkedHandleError in a forked child.
    """

    @staticmethod
    def create(path: str, words: int, document_bytes: int, *, values=(), document: bytes = b"", version: int = 0) -> SharedPage:
        """Make a page and put it in the place of whatever is at ``path``, all at once.

        ``values`` are the first words (the rest is 0), ``document`` and ``version`` the first document. A page that takes
        the place of a smaller one gets a version above that one's. ValueError for more than 2**24
        words or 1 GiB, RecordTooLargeError when ``document`` does not fit, StorageError when the file cannot be made.
        """
        install(write_aside(path, blank_page(words, document_bytes, values, document, version)), path, True)
        return SharedPage.open(path)

    @staticmethod
    def ensure(path: str, words: int, document_bytes: int) -> SharedPage:
        """Open the page at ``path``; make an empty one when there is none, even if several processes do at once."""
        if oscalls.identity(path) is None:
            install(write_aside(path, blank_page(words, document_bytes, (), b"", 0)), path, False)
        return SharedPage.open(path)

    @staticmethod
    def open(path: str, writable: bool = True) -> SharedPage:
        """Map the page at ``path``. StorageError when there is none, UnsupportedFormatError when it is something else."""
        cdef SharedPage page = SharedPage.__new__(SharedPage)
        page.path = path
        page.writable = writable
        page.inode = map_file(page, PAGE_MAGIC, sizeof(PageHeader))
        page.header = <PageHeader*>page.address
        words, capacity = page.header.words, page.header.capacity
        if not (0 <= words <= MOST_WORDS and 0 <= capacity <= MOST_DOCUMENT) or page.size != page_size(words, capacity):
            raise foreign(path, f"has {page.size} bytes, which is not what {words} words and documents of {capacity} bytes take")
        page.first_word = <int64_t*>(<uint8_t*>page.address + sizeof(PageHeader))
        page.first_slot = <uint8_t*>page.first_word + rounded(8 * page.header.words, LINE)
        page.slot_stride = stride(page.header.capacity)
        return page

    @property
    def words(self) -> int:
        """How many words it has."""
        self.require_usable()
        return self.header.words

    @property
    def capacity(self) -> int:
        """The largest document, bytes."""
        self.require_usable()
        return self.header.capacity

    @property
    def version(self) -> int:
        """Of the document; grows with every ``publish``."""
        self.require_usable()
        return load_version(&self.header.version)

    @property
    def replaced(self) -> bool:
        """Whether another page has taken its place, as far as ``retire`` has said so."""
        self.require_usable()
        return load_word(&self.header.replaced) != 0

    def is_current(self) -> bool:
        """Whether the file at ``path`` is still this page. One system call.

        Whoever replaces a page puts the new one in place and then retires the old one, and may die in between. So
        who takes the lock that guards the page asks this; when it says False: ``retire`` this one, ``open`` the other.
        """
        self.require_usable()
        found = oscalls.identity(self.path)
        return found is not None and found[1] == self.inode

    # --- words -----------------------------------------------------------------------------------------------------------

    cdef int64_t* word_at(self, Py_ssize_t index) except NULL:
        """Address of a word; valid as long as this object lives, also after ``close``."""
        self.require_usable()
        if index < 0 or index >= self.header.words:
            raise IndexError(f"{self.path} has no word {index}: it has {self.header.words}")
        return self.first_word + index

    def load(self, i: int) -> int:
        """The value of a word. IndexError when there is no such word."""
        return load_word(self.word_at(i))

    def store(self, i: int, value: int) -> None:
        """Set a word."""
        self.require_writable()
        store_word(self.word_at(i), value)

    def exchange(self, i: int, value: int) -> int:
        """Set a word; returns what it was."""
        self.require_writable()
        return exchange_word(self.word_at(i), value)

    def add(self, i: int, delta: int) -> int:
        """Add to a word; returns what it is then."""
        self.require_writable()
        return add_word(self.word_at(i), delta)

    def load_many(self, first: int, count: int) -> list:
        """The values of ``count`` words from ``first`` on, each by itself: together they are no snapshot."""
        cdef Py_ssize_t start = first, index, size = count
        if size <= 0:
            return []
        self.word_at(start + size - 1)
        cdef int64_t* word = self.word_at(start)
        return [load_word(word + index) for index in range(size)]

    # --- the document ------------------------------------------------------------------------------------------------------

    cdef PageSlot* slot(self, uint64_t version) noexcept:
        return <PageSlot*>(self.first_slot + <int64_t>(version & 1) * self.slot_stride)

    def read(self) -> tuple:
        """(version, document), which belong together. Takes no lock; waits for nobody."""
        cdef uint64_t version
        cdef int64_t size
        cdef PageSlot* slot
        self.require_usable()
        while True:
            version = load_version(&self.header.version)
            slot = self.slot(version)
            size = load_word(&slot.size)
            if 0 <= size <= self.header.capacity:
                document = PyBytes_FromStringAndSize(NULL, size)
                take_shared(PyBytes_AS_STRING(document), <uint8_t*>slot + sizeof(PageSlot), size)
                read_fence()
                if load_version(&self.header.version) == version:
                    return version, document
            elif load_version(&self.header.version) == version:
                raise foreign(self.path, f"says that its document has {size} bytes, its largest is {self.header.capacity}")
            PyErr_CheckSignals()

    def publish(self, document: bytes) -> int:
        """Put another document in the place of the present one, all at once, and wake who waits; returns its version.

        Only who holds the lock that guards the page may call this. RecordTooLargeError when it does not fit; nothing
        is changed then, and the way out is a larger page: ``create`` it, then ``retire`` this one.
        """
        self.require_writable()
        cdef bytes content = document
        cdef int64_t size = len(content)
        if size > self.header.capacity:
            raise too_large(self.path, size, self.header.capacity)
        cdef uint64_t version = self.header.version + 1
        cdef PageSlot* slot = self.slot(version)
        cdef uint8_t* target = <uint8_t*>slot + sizeof(PageSlot)
        cdef const char* source = content
        cdef int64_t half = size // 2 // 8 * 8
        # the last version must be out before its other slot changes again
        write_fence()
        store_word(&slot.size, size)
        put_shared(target, source, half)
        os_c.reach(os_c.PAGE_FILLING)
        put_shared(target + half, source + half, size - half)
        os_c.reach(os_c.PAGE_FILLED)
        store_version(&self.header.version, version)
        os_c.reach(os_c.PAGE_PUBLISHED)
        ring(&self.header.bell)
        return version

    def wait(self, version: int, timeout_ms: float) -> bool:
        """Sleep until the document has another version or the page is replaced; False when that took ``timeout_ms``.

        Who publishes may die before it wakes anybody: noticed after 50 ms. Signals are let in.
        """
        cdef uint64_t seen = version
        cdef int64_t stop = os_c.steady_nanoseconds() + nanoseconds_of(timeout_ms), left
        cdef uint32_t heard = 0
        while True:
            self.require_usable()
            if self.writable:
                heard = listen(&self.header.bell)
                full_fence()
            if load_version(&self.header.version) != seen or load_word(&self.header.replaced) != 0:
                return True
            left = stop - os_c.steady_nanoseconds()
            if left <= 0:
                return False
            os_c.reach(os_c.PAGE_WAITING)
            if self.writable:
                sleep_on(&self.header.bell, heard, min(left, <int64_t>SLICE))
            else:
                with nogil:
                    os_c.os_nap(min(left, <int64_t>LOOK))
                PyErr_CheckSignals()

    def retire(self) -> None:
        """Mark a page that another one has taken the place of: every word becomes -2**63, so that no condition on it
        holds any more, ``replaced`` becomes true, and who waits is woken. May be repeated."""
        cdef int64_t index
        self.require_writable()
        for index in range(self.header.words):
            store_word(self.first_word + index, INT64_MIN)
        os_c.reach(os_c.PAGE_RETIRING)
        store_word(&self.header.replaced, 1)
        ring(&self.header.bell)

    def close(self) -> None:
        """Let nobody use this object any more; whoever waits on it is woken. The file stays. May be repeated."""
        if self.is_closed:
            return
        self.is_closed = True
        if self.writable and self.address != NULL and self.generation == os_c.fork_generation():
            ring(&self.header.bell)


cdef object too_large(str path, int64_t size, int64_t capacity):
    return RecordTooLargeError(f"a document of {size} bytes does not fit into {path}, which takes {capacity}: make a larger page")


cdef int64_t stride(int64_t capacity) noexcept:
    """Bytes from one slot to the other."""
    return sizeof(PageSlot) + rounded(capacity, LINE)


def page_size(words: int, capacity: int) -> int:
    """Bytes of a page's file."""
    return rounded(sizeof(PageHeader) + rounded(8 * <int64_t>words, LINE) + 2 * stride(capacity), BLOCK)


cdef bytes blank_page(object words, object capacity, object values, bytes document, object version):
    cdef PageHeader header
    cdef PageSlot slot
    cdef int64_t value, written
    cdef Py_ssize_t index
    cdef bytes magic = PAGE_MAGIC
    if not (0 <= words <= MOST_WORDS and 0 <= capacity <= MOST_DOCUMENT):
        raise ValueError(f"a page has 0 to {MOST_WORDS} words and a document of 0 to {MOST_DOCUMENT} bytes, not {words} and {capacity}")
    if len(values) > words:
        raise ValueError(f"{len(values)} values do not fit into {words} words")
    if len(document) > capacity:
        raise too_large("a page", len(document), capacity)
    memset(&header, 0, sizeof(header))
    memset(&slot, 0, sizeof(slot))
    memcpy(header.magic, <const char*>magic, 8)
    header.layout = SHARED_LAYOUT
    header.words = words
    header.capacity = capacity
    header.version = version
    slot.size = len(document)
    content = bytearray(page_size(words, capacity))
    cdef uint8_t* data = content
    cdef uint8_t* first_slot = data + sizeof(PageHeader) + rounded(8 * header.words, LINE)
    memcpy(data, &header, sizeof(header))
    for index, value in enumerate(values):
        (<int64_t*>(data + sizeof(PageHeader)))[index] = value
    written = <int64_t>(first_slot - data) + <int64_t>(header.version & 1) * stride(header.capacity)
    memcpy(data + written, &slot, sizeof(slot))
    memcpy(data + written + sizeof(slot), <const char*>document, len(document))
    return bytes(content)


# --- bells ---------------------------------------------------------------------------------------------------------------

def bell_of(topic: str, partition: int) -> int:
    """The bell of a partition, 0 to 63, the same in every process: neighbours of one topic have different ones."""
    cdef uint64_t hashed = 0xCBF29CE484222325, prime = 0x100000001B3
    cdef uint8_t byte
    for byte in topic.encode():
        hashed = (hashed ^ byte) * prime
    hashed ^= hashed >> 32
    return <int>((hashed + <uint64_t>partition) % BELL_COUNT)


cdef void ring_bell(Bells bells, int bell) noexcept nogil:
    """Wake every waiter that listens to this bell. What they wait for must have been stored before.

    One fence and one look when nobody listens. Does nothing for no bells, or a bell that there is not.
    """
    cdef uint64_t waiting
    cdef BellLine* line
    cdef uint32_t* word
    if bells is None or bells.lines == NULL or bell < 0 or bell >= BELL_COUNT:
        return
    line = &bells.lines[bell]
    full_fence()
    if glance_mask(&line.waiters) == 0:
        return
    waiting = exchange_mask(&line.waiters, 0)
    if waiting == 0:
        return
    # before the words: who is woken asks which bell it was
    increment_bell(&line.rings)
    while waiting != 0:
        word = &bells.words[trailing_zeros(waiting)].word
        increment_bell(word)
        os_c.os_wake(word)
        waiting &= waiting - 1


cdef extern from *:
    int trailing_zeros "__builtin_ctzll"(uint64_t mask) noexcept nogil


cdef class Bells(Mapping):
    """64 bells that all processes of a store share, each for many partitions: ``open`` them.

    Attributes:
        path: the file.
        closed: whether ``close`` was called.

    Ringing costs next to nothing while nobody listens. Every method may be called from any thread.
    """

    @staticmethod
    def open(path: str) -> Bells:
        """Map the bells at ``path``; they are made when there are none, even if several processes do so at once.

        StorageError when that fails, UnsupportedFormatError when the file is something else.
        """
        cdef Bells bells = Bells.__new__(Bells)
        cdef int64_t size = sizeof(BellsHeader) + BELL_COUNT * (sizeof(BellLine) + sizeof(WaiterLine))
        cdef BellsHeader header
        cdef bytes magic = BELLS_MAGIC
        bells.path = path
        bells.writable = True
        if oscalls.identity(path) is None:
            memset(&header, 0, sizeof(header))
            memcpy(header.magic, <const char*>magic, 8)
            header.layout = SHARED_LAYOUT
            content = (<const char*>&header)[:sizeof(header)]
            install(write_aside(path, content + bytes(rounded(size, BLOCK) - len(content))), path, False)
        map_file(bells, magic, sizeof(BellsHeader))
        if bells.size != rounded(size, BLOCK):
            raise foreign(path, f"has {bells.size} bytes, expected {rounded(size, BLOCK)}")
        bells.header = <BellsHeader*>bells.address
        bells.words = <WaiterLine*>(<uint8_t*>bells.address + sizeof(BellsHeader) + BELL_COUNT * sizeof(BellLine))
        bells.lines = <BellLine*>(<uint8_t*>bells.address + sizeof(BellsHeader))
        return bells

    def ring(self, bell: int) -> None:
        """Wake every waiter that listens to this bell. What they wait for must have been stored before."""
        self.require_usable()
        if not 0 <= bell < BELL_COUNT:
            raise IndexError(f"there is no bell {bell}: they are 0 to {BELL_COUNT - 1}")
        cdef int number = bell
        with nogil:
            ring_bell(self, number)

    def waiter(self) -> Waiter:
        """Something to sleep with. The 65th shares its word with the first: both wake when either is to."""
        cdef Waiter waiter = Waiter.__new__(Waiter)
        cdef int bell
        self.require_usable()
        waiter.bells = self
        waiter.number = <int>((add_count(&self.header.waiters, 1) - 1) % BELL_COUNT)
        for bell in range(BELL_COUNT):
            waiter.seen[bell] = load_bell(&self.lines[bell].rings)
        return waiter

    def close(self) -> None:
        """Let nobody use this object any more. May be repeated."""
        self.is_closed = True


cdef class Waiter:
    """Sleeps until one of several bells rings. One for each thread, consumer or event loop: ``bells.waiter()``.

    Attributes:
        bells: whose waiter it is.
        number: of the word that it sleeps on, 0 to 63.

    The order that misses nothing: ``heard = listen(mask)``, look at what is waited for, ``sleep(heard, ...)``, and again.
    ``wake`` may be called from any thread; the rest belongs to the one that sleeps.
    """

    def listen(self, bells: int) -> int:
        """Say that this waiter will sleep, and until which bells ring (a mask: bit n is bell n).

        Returns what ``sleep`` wants. Whatever is published before a bell rings from now on ends that sleep, so look at
        what is waited for after this. Costs some nanoseconds for each bell.
        """
        cdef Bells all_bells = self.bells
        cdef uint64_t mask = bells, own = <uint64_t>1 << self.number
        cdef BellLine* line
        cdef uint32_t heard
        all_bells.require_usable()
        heard = load_bell(&all_bells.words[self.number].word)
        while mask != 0:
            line = &all_bells.lines[trailing_zeros(mask)]
            if not glance_mask(&line.waiters) & own:
                join_mask(&line.waiters, own)
            mask &= mask - 1
        full_fence()
        return heard

    def rung(self) -> int:
        """A mask of the bells that have rung since this was last asked, or since the waiter was made.

        For who waits for many partitions: after ``listen``, only those of these bells may have changed, if the sleep before
        ended because of a ring. After one that ran out, look at all.
        """
        cdef Bells all_bells = self.bells
        cdef uint64_t mask = 0
        cdef uint32_t rings
        cdef int bell
        all_bells.require_usable()
        for bell in range(BELL_COUNT):
            rings = load_bell(&all_bells.lines[bell].rings)
            if rings != self.seen[bell]:
                self.seen[bell] = rings
                mask |= <uint64_t>1 << bell
        return mask

    def sleep(self, heard: int, timeout_ms: float) -> bool:
        """Sleep until a bell rings or ``wake`` is called, at most ``timeout_ms`` and at most 50 ms: then look again, as
        who should have rung may be dead. Whether it was woken. The GIL is released; signals are let in."""
        cdef Bells all_bells = self.bells
        cdef uint32_t* word
        cdef uint32_t expected = heard
        cdef int64_t nanoseconds = min(nanoseconds_of(timeout_ms), <int64_t>SLICE)
        all_bells.require_usable()
        word = &all_bells.words[self.number].word
        if nanoseconds > 0 and load_bell(word) == expected:
            with nogil:
                os_c.os_wait(word, expected, nanoseconds)
        PyErr_CheckSignals()
        return load_bell(word) != expected

    def wake(self) -> None:
        """End the sleep of this waiter, or the next one that was listened for already. From any thread."""
        cdef Bells all_bells = self.bells
        if all_bells.generation != os_c.fork_generation():
            return
        increment_bell(&all_bells.words[self.number].word)
        os_c.os_wake(&all_bells.words[self.number].word)
