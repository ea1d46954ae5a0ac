"""One log shared: one record per call, group commit, several processes, waking a reader, taking over from the dead."""

from __future__ import annotations

from collections.abc import Callable

from benchmarks import peers, sharing
from benchmarks.contest import Contestant, contest

_ONE = "takes a list of one bytes object"


@contest(
    "append-one",
    "Append one 100 B record per call",
    Contestant("shared", _ONE, sharing.append_single()),
    Contestant("exclusive", _ONE, sharing.append_single(exclusive=True)),
    Contestant("bare os.write", "takes bytes, as many as such a batch has", peers.file_append_single()),
)
def bench_append_one_record(play: Callable[[], None]) -> None:
    play()


@contest(
    "append-durable",
    "Append one 100 B record per call, durable when it returns",
    Contestant("group, 8 threads", _ONE, sharing.append_durable("group", 8)),
    Contestant("group, 1 thread", _ONE, sharing.append_durable("group", 1)),
    Contestant("batch, 1 thread", _ONE, sharing.append_durable("batch", 1)),
    Contestant("SQLite FULL, 1 thread", "takes a tuple of one bytes object", peers.sqlite_append_durable(1)),
    Contestant("SQLite FULL, 8 threads", "the same, a connection each", peers.sqlite_append_durable(8)),
    Contestant(
        "SQLite FULL, 8 threads, one connection",
        "the same, one connection behind a lock",
        peers.sqlite_append_durable(8, one_connection=True),
    ),
)
def bench_append_durable(play: Callable[[], None]) -> None:
    play()


@contest(
    "append-shared",
    "Append 100 x 100 B per call, in processes of their own",
    Contestant("one process", "takes a list of bytes", sharing.append_from_processes(1)),
    Contestant("two processes", "takes a list of bytes", sharing.append_from_processes(2)),
)
def bench_append_from_processes(play: Callable[[], None]) -> None:
    play()


@contest(
    "wake-up",
    "Wake a waiting process",
    Contestant("waiting reader", "none", sharing.wake_by_append()),
    Contestant("pipe", "a bytes object", sharing.wake_by_pipe()),
    unit="wake-ups",
)
def bench_wake_up(play: Callable[[], None]) -> None:
    play()


@contest(
    "takeover",
    "Append after kill -9 of a writer inside the lock",
    Contestant("next append", _ONE, sharing.take_over_from_the_dead()),
    Contestant("append that waits", _ONE, sharing.take_over_while_waiting()),
    unit="takeovers",
)
def bench_take_over(play: Callable[[], None]) -> None:
    play()
