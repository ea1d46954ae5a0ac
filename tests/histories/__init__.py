"""Several processes on one partition folder: what each of them did, and whether that can be true.

``events`` is what a process writes down while it works; ``checker`` says what is wrong with a history made of such
notes; ``workers`` are the processes, writers and readers; ``nursery`` starts, signals and buries them; ``driver`` runs
a crowd of workers on one folder and hands its history to the checker. ``puppet`` is a process that does what it is
told, line by line, for tests that need an exact order. ``toy`` is a small shared log with planted mistakes: what the
driver has to find.
"""
