"""Which lines of fastlog the tests reach: ``scripts/coverage`` builds and runs, this marks, adds up and judges.

=============  ========================================================================================================
``marking``    what ``setup.py`` does to the generated C when ``FASTLOG_COVERAGE`` is set: each line leaves a mark
``judging``    what was reached, against the goals and against ``reasons.toml``
=============  ========================================================================================================
"""
