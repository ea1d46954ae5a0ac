"""The same engines on the stores that a Python program could use instead, and on fastlog itself.

``python -m tests.evidence peers PEER ENGINE --turns N --seed S`` fills one cell of the table: the same workload, the
same seeds and the same number of turns for everybody, each store configured as its own documentation recommends, or
left at its defaults where that is what people get. What a peer loses or gives back wrongly is counted, it fails no run.

===============  ======================================================================================================
``workload``     the records, and what may be found of them: the judge of all engines
``stores``       the peers that live in the process: one small adapter each, and how each is configured
``broker``       Kafka: a broker beside the writer
``server``       the process that forks whoever opens a store: a peer that crashes or hangs takes nobody with it
``forks``        the engines' side of it
``engines``      kills, power cuts, damage, recovery
``table``        JSON lines of such runs, as the tables of ``docs/evidence.md``
===============  ======================================================================================================
"""
