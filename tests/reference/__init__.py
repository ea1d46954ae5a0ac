"""A slow, readable model of Kafka's log format and of a partition log, written from the format's description.

Nothing here shares code with the product: the property tests compare the two. Read in this order:

* ``varint``   zigzag numbers;
* ``codecs``   what a compressed batch holds;
* ``batch``    record batches, version 2;
* ``indexes``  the ``.index`` and ``.timeindex`` files;
* ``log``      a whole partition: append, roll, read, search by time, delete.
"""
