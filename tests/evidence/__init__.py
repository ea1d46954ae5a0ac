"""Evidence that anybody can make again: what fastlog survives, how often it was tried, and that the tries can fail.

``python -m tests.evidence ENGINE --budget 10m --seed N`` runs one engine (``list`` shows them); a run is many turns,
each with a seed of its own, and ends with one JSON line. ``ci`` and ``long`` run the engines up to the goals of their
tier, ``planted`` runs them against mistakes that were put into a build of their own, ``ledger`` adds JSON lines up into
``docs/evidence.md``.

=================  ====================================================================================================
``run``            a run and its turns: seeds, budget, counts, what a failure says, the JSON line
``engines``        the table of engines, with the goal of each per tier
``planted``        mistakes of the product in a build of their own, and the engines against them
``suite``          a test of the suite as an engine, for what no other can show
``ledger``         JSON lines kept and added up
``__main__``       the command line
=================  ====================================================================================================

An engine is a context manager that sets up what all its turns share and yields its ``Scenario`` objects.
"""
