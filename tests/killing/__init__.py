"""Processes on a store that are killed and frozen while they do one thing, and what has to be true of the store then.

``lives`` starts them and says how they end; each of the other modules has the life of a process (a role of the
nursery), the names of the failpoints that it comes by, and the check.
"""
