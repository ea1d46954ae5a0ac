"""Transactions over several partitions: the coordinator's log, completion for the dead."""
