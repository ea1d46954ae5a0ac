# Zigzag varints (protobuf's sint32 / sint64), low group first. Decoding never reads at or beyond `end`.

from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t, uint8_t


cdef inline uint64_t zigzag(int64_t value) noexcept nogil:
    return (<uint64_t>value << 1) ^ <uint64_t>(value >> 63)


cdef inline int varint_size(int64_t value) noexcept nogil:
    """Bytes that `value` takes: 1 to 10."""
    cdef uint64_t z = zigzag(value)
    cdef int size = 1
    while z >= 0x80:
        z >>= 7
        size += 1
    return size


cdef inline uint8_t* write_varint(uint8_t* at, int64_t value) noexcept nogil:
    """Write `value`, return the byte behind it. The caller provides ten bytes of room."""
    cdef uint64_t z = zigzag(value)
    while z >= 0x80:
        at[0] = <uint8_t>(z | 0x80)
        at += 1
        z >>= 7
    at[0] = <uint8_t>z
    return at + 1


cdef inline const uint8_t* read_varint(const uint8_t* at, const uint8_t* end, int32_t* value) noexcept nogil:
    """Read a 32-bit varint; NULL when it is cut off, longer than five bytes, or over 32 bits."""
    cdef uint32_t z, byte
    cdef int shift
    if at >= end:
        return NULL
    z = at[0]
    at += 1
    if z >= 0x80:
        z &= 0x7F
        shift = 7
        while True:
            if at >= end:
                return NULL
            byte = at[0]
            at += 1
            if shift == 28 and byte > 0x0F:
                return NULL
            z |= (byte & 0x7F) << shift
            if byte < 0x80:
                break
            shift += 7
    value[0] = <int32_t>((z >> 1) ^ -(z & 1))
    return at


cdef inline const uint8_t* read_varlong(const uint8_t* at, const uint8_t* end, int64_t* value) noexcept nogil:
    """Read a 64-bit varint; NULL when it is cut off, longer than ten bytes, or over 64 bits."""
    cdef uint64_t z, byte
    cdef int shift
    if at >= end:
        return NULL
    z = at[0]
    at += 1
    if z >= 0x80:
        z &= 0x7F
        shift = 7
        while True:
            if at >= end:
                return NULL
            byte = at[0]
            at += 1
            if shift == 63 and byte > 0x01:
                return NULL
            z |= (byte & 0x7F) << shift
            if byte < 0x80:
                break
            shift += 7
    value[0] = <int64_t>((z >> 1) ^ -(z & 1))
    return at
