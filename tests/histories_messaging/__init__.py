"""Several processes on one store: what producers, transactions, group members and readers did, and whether it can be.

The twin of ``tests.histories`` (one partition) for the public API above it; the nursery of processes is the same.
``notes`` is what a process writes down while it works; ``workers`` are the processes; ``mutants`` breaks the product
inside of one of them; ``driver`` runs a gang of them, kills, freezes and replaces them, and reads what the store holds
at the end; ``checker`` says what is wrong with it all.
"""
