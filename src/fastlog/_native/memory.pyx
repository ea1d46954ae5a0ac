"""Reference-counted memory blocks and the columns of a decoded batch (theory in ``memory.pxd``)."""

from libc.stdlib cimport free, malloc
from libc.string cimport memset

cdef extern from "<sys/mman.h>" nogil:
    int munmap(void* address, size_t size)

cdef extern from *:
    """
    #define fastlog_retain(counter) __atomic_add_fetch(counter, 1, __ATOMIC_RELAXED)
    #define fastlog_release(counter) __atomic_sub_fetch(counter, 1, __ATOMIC_ACQ_REL)
    """
    int atomic_retain "fastlog_retain"(int* counter) noexcept nogil
    int atomic_release "fastlog_release"(int* counter) noexcept nogil


cdef Block* block_allocate(size_t size) noexcept nogil:
    # one allocation: the bytes follow the head, 64-byte aligned enough for every consumer of columns
    cdef Block* block = <Block*>malloc(sizeof(Block) + 64 + size)
    if block == NULL:
        return NULL
    block.data = <uint8_t*>((<size_t>block + sizeof(Block) + 63) & ~<size_t>63)
    block.size = size
    block.is_mapping = False
    block.references = 1
    return block


cdef Block* block_adopt_mapping(void* address, size_t size) noexcept nogil:
    cdef Block* block = <Block*>malloc(sizeof(Block))
    if block == NULL:
        munmap(address, size)
        return NULL
    block.data = <uint8_t*>address
    block.size = size
    block.is_mapping = True
    block.references = 1
    return block


cdef void block_retain(Block* block) noexcept nogil:
    atomic_retain(&block.references)


cdef void block_release(Block* block) noexcept nogil:
    if block == NULL or atomic_release(&block.references) != 0:
        return
    if block.is_mapping:
        munmap(block.data, block.size)
    free(block)


cdef class ColumnarBatch:
    def __cinit__(self):
        memset(&self.columns, 0, sizeof(BatchColumns))

    def __dealloc__(self):
        block_release(self.columns.arrays)
        block_release(self.columns.bytes)
