# cython: annotation_typing=False
"""CRC-32C with hardware dispatch; the code is in ``crc32c.h``."""

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from libc.stdint cimport uint32_t, uint8_t

cdef extern from "crc32c.h":
    void fastlog_crc32c_setup() noexcept
    ChecksumFunction fastlog_crc32c_best
    ChecksumFunction fastlog_crc32c_software
    const char* fastlog_crc32c_name

fastlog_crc32c_setup()
crc32c_update = fastlog_crc32c_best

IMPLEMENTATION = fastlog_crc32c_name.decode()


def crc32c(data, value: int = 0) -> int:
    """CRC-32C of ``data``, continuing from ``value``."""
    cdef Py_buffer view
    PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
    cdef uint32_t crc = crc32c_extend(<uint32_t>value, <const uint8_t*>view.buf, view.len)
    PyBuffer_Release(&view)
    return crc


def crc32c_in_software(data, value: int = 0) -> int:
    """The same by tables: what machines without the instruction run."""
    cdef Py_buffer view
    PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
    cdef uint32_t crc = ~fastlog_crc32c_software(~<uint32_t>value, <const uint8_t*>view.buf, view.len)
    PyBuffer_Release(&view)
    return crc
