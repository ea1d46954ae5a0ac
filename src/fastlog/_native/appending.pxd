# Changing the end of a log.

from libc.stdint cimport int64_t

from fastlog._native.encoder cimport BatchShape, EncodedBatches, Encoder, RecordSource
from fastlog._native.handle cimport Handle
from fastlog._native.published cimport Published
from fastlog._native.validator cimport ValidatedBatches

cdef struct Append:             # what the owner of the writer lock shall write
    const RecordSource* source
    BatchShape* shapes          # NULL: the encoder holds the one batch
    int64_t batches
    int64_t offsets             # that they take
    int64_t size                # bytes
    int64_t largest_timestamp
    int64_t expected_end_offset     # -1 = any

cdef struct Condition:          # a word that processes share, and what it is compared with, or set to
    int64_t* word
    int64_t value

cdef enum:
    FEW_CONDITIONS = 4          # up to so many need no allocation of their own

cdef class Conditions:
    """(SharedPage, index, value) triples, in C: looked at under the writer lock."""
    cdef list pages             # whose mappings hold the words
    cdef list indexes
    cdef Condition* items
    cdef Py_ssize_t count
    cdef Condition[FEW_CONDITIONS] few

cdef Conditions make_conditions(object given, bint is_written)
cdef int64_t append(Handle log, Append* request, Encoder encoder, EncodedBatches ready, int64_t* end_offset) except -1
cdef int64_t append_if(
    Handle log, Append* request, Encoder encoder, EncodedBatches ready, Conditions conditions, int64_t* end_offset
) except -1
cdef int exchange(Handle log, Conditions conditions, Conditions stores) except -1
cdef object fenced(Handle log, int64_t found, int64_t expected)
cdef int begin_change(Handle log, Published* state) except -1
cdef int finish_compaction(Handle log, Published* state) except -1
cdef int roll(Handle log, Published* state) except -1
cdef list open_transactions(Handle log)


cdef inline void request_ready(Append* request, ValidatedBatches batches, int64_t expected_end_offset) noexcept:
    """Ask for batches that lie ready, as they are."""
    request.source = NULL
    request.shapes = batches.shapes
    request.batches = batches.batches
    request.offsets = batches.offsets
    request.size = batches.size
    request.largest_timestamp = batches.max_timestamp
    request.expected_end_offset = expected_end_offset
