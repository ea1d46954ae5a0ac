# CRC-32C over pieces of memory. `crc` is the finished checksum of what came before (0 at the start).

from libc.stddef cimport size_t
from libc.stdint cimport uint32_t, uint8_t

ctypedef uint32_t (*ChecksumFunction)(uint32_t crc, const uint8_t* data, size_t size) noexcept nogil

# One pointer for every room that imports this: the instruction is chosen once, at import.
cdef ChecksumFunction crc32c_update


cdef inline uint32_t crc32c_extend(uint32_t crc, const uint8_t* data, size_t size) noexcept nogil:
    return ~crc32c_update(~crc, data, size)
