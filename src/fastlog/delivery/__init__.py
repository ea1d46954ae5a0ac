"""Handlers of records: tried again, put aside, in order, at once, and once per event.

What decides is pure and takes its time from outside; what reads, writes and calls handlers stands above it.
"""
