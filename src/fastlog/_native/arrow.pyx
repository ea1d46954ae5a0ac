from fastlog._native.memory cimport ColumnarBatch
cdef object export_schema(): raise NotImplementedError
cdef tuple export_array(ColumnarBatch batch, object requested_schema): raise NotImplementedError
cdef object export_stream(object batches, object requested_schema): raise NotImplementedError
