# Export of decoded batches through the Arrow C data interface; import lives in arrow_import.

from fastlog._native.memory cimport ColumnarBatch


cdef object export_schema()                                            # "arrow_schema" capsule
cdef object export_schema_of(tuple names)                              # the same of chosen columns
cdef tuple export_array(ColumnarBatch batch, object requested_schema)  # "arrow_schema" and "arrow_array" capsules
cdef object export_stream(object batches, object requested_schema, tuple names=*)  # "arrow_array_stream", of ColumnarBatch objects
cdef void drain_graveyard() noexcept                                   # drop what released streams left; needs the GIL
