"""Power loss without a disk: a recorder of what a program does to its files, and every disk that may be left of it.

================  ====================================================================================================
``recorder.c``    a library for LD_PRELOAD that writes down each change of a file or name, each sync, and the marks
                  that say what a caller was promised, in the order in which they happened
``recording.py``  compiles it, runs a workload under it, reads the record
``replayer.py``   the rules of what a sync keeps, and the disks that these rules allow at each moment
``checker.py``    what a log that is opened on such a disk has to hold
``workloads.py``  what is recorded: one function each
``running.py``    a workload recorded, and its disks checked one after the other
``__main__.py``   one disk of a failure again, by itself: ``python -m tests.crash <folder that the failure named>``
================  ====================================================================================================

``tests/test_crash_states.py`` puts them together.
"""
