"""What the figures are held against. One that falls short is shown like the others; ``shortfalls.toml`` says why."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum


class Kind(Enum):
    """How a goal is computed from the medians of a contest."""

    RATE = "times the rate of"
    COST = "times the cost of"
    MILLISECONDS = "ms"
    EXTRA_MILLISECONDS = "ms more than"
    PEAK_MEBIBYTES = "MiB at the peak"
    P99_MICROSECONDS = "µs at the 99th percentile"
    RECORDS_PER_SYNC = "records per sync"
    P99_COST = "times the 99th percentile of"
    MILLIONS_PER_SECOND = "million records per second"
    MICROSECONDS_EACH = "µs each"
    KIBIBYTES_EACH = "KiB each"
    PERCENT_OF_A_CORE = "% of a core"


@dataclass(frozen=True, slots=True)
class Goal:
    """``ours`` against the fastest of ``against``, contestants of one contest. No bound: shown, not judged."""

    key: str
    work: str
    contest: str
    ours: str
    against: tuple[str, ...]
    bound: float | None
    kind: Kind = Kind.RATE

    @property
    def is_least(self) -> bool:
        return self.kind in (Kind.RATE, Kind.RECORDS_PER_SYNC, Kind.MILLIONS_PER_SECOND)


_FASTLOG_16, _FASTLOG_1000 = "fastlog, batches of 16", "fastlog, batches of 1000"
_LISTS = ("list, one call", "list, 1000 per call")


def _append_goals() -> Iterator[Goal]:
    for peer, bound in (("LMDB", 6), ("RocksDB", 6), ("SQLite", 15), ("bare os.write", 0.9)):
        yield Goal(f"append-100-{peer}", "append 1000 x 100 B per call", "append-100", "fastlog", (peer,), bound)
    for peer, bound in (("bare os.write", 0.8), ("LMDB", 3)):
        yield Goal(f"append-1000-{peer}", "append 1000 x 1 KB per call", "append-1000", "fastlog", (peer,), bound)
    for column in ("Arrow binary", "NumPy S100"):
        yield Goal(f"append-column-{column}", f"append a column, {column}", "append-column", column, _LISTS, 1)


def _read_goals() -> Iterator[Goal]:
    columns, lists, records = "fastlog columns", "fastlog list[bytes]", "fastlog records"
    yield Goal("columns-LMDB", "read columns, CRC checked", "read", columns, ("LMDB cursor",), 5)
    yield Goal("columns-SQLite", "read columns, CRC checked", "read", columns, ("SQLite SELECT",), 12)
    yield Goal("lists-LMDB", "read into list[bytes]", "read", lists, ("LMDB cursor, values only",), 0.9)
    yield Goal("records-LMDB", "iterate Record objects", "read", records, ("LMDB cursor",), 0.4)
    for name, size, bound in ((_FASTLOG_16, 16, 0.5), (_FASTLOG_1000, 1000, None)):
        for what, contest in (("offset", "lookup-offset"), ("timestamp", "lookup-time")):
            work = f"look up by {what}, batches of {size}"
            yield Goal(f"{contest}-{size}", work, contest, name, ("LMDB get",), bound)


def _sharing_goals() -> Iterator[Goal]:
    one, group = "append one record per call", "one record per call at group"
    for name, bound in (("shared", 0.35), ("exclusive", 0.6)):
        yield Goal(f"append-one-{name}", f"{one}, {name}", "append-one", name, ("bare os.write",), bound)
    eight, alone, batch = "group, 8 threads", "group, 1 thread", "batch, 1 thread"
    yield Goal("group-8-batch", f"{group}, 8 threads", "append-durable", eight, (batch,), 3)
    yield Goal("group-8-syncs", f"{group}, 8 threads", "append-durable", eight, (), 3.5, Kind.RECORDS_PER_SYNC)
    yield Goal("group-1-batch", f"{group}, 1 thread", "append-durable", alone, (batch,), 0.9)
    yield Goal("group-1-SQLite", f"{group}, 1 thread", "append-durable", alone, ("SQLite FULL, 1 thread",), 2)
    shared = ("SQLite FULL, 8 threads", "SQLite FULL, 8 threads, one connection")
    yield Goal("group-8-SQLite", f"{group}, 8 threads", "append-durable", eight, shared, 2)
    wake, reader = "wake a waiting reader in another process", "waiting reader"
    yield Goal("wake-up-pipe", wake, "wake-up", reader, ("pipe",), 3, Kind.COST)
    yield Goal("wake-up-p99", wake, "wake-up", reader, (), 200, Kind.P99_MICROSECONDS)
    yield Goal("processes", "append from two processes", "append-shared", "two processes", ("one process",), 0.8)
    after, takeover = "next append", "take over after kill -9 inside the lock"
    yield Goal("takeover", takeover, "takeover", after, (), 5000, Kind.P99_MICROSECONDS)
    waiting = "append that waits"
    yield Goal("takeover-waiting", f"{takeover}, waiting", "takeover", waiting, (), None, Kind.P99_MICROSECONDS)


def _codec_goals() -> Iterator[Goal]:
    for codec in ("zstd", "lz4"):
        for what in ("append", "read"):
            peer = f"cramjam {codec}"
            yield Goal(f"{what}-{codec}", f"{what}, {codec}", f"{what}-{codec}", "fastlog", (peer,), 0.8)


def _messaging_goals() -> Iterator[Goal]:
    for contest, work in (("send", "send, no key"), ("send-keyed", "send, keys, 6 partitions")):
        for name, what in (("calls", "the calls alone"), ("delivered", "until delivered")):
            ours, peer = f"fastlog send, {name}", f"Kafka produce, {name}"
            yield Goal(f"{contest}-{name}", f"{work}: {what}", contest, ours, (peer,), 2)
        ours = "fastlog send, delivered"
        yield Goal(f"{contest}-rate", f"{work}: until delivered", contest, ours, (), 1, Kind.MILLIONS_PER_SECOND)
    yield Goal(
        "send-many", "send_many, one partition", "send-many", "send_many", ("PartitionLog.append",), 1.5, Kind.COST
    )
    for ours in ("fastlog iteration", "fastlog poll"):
        yield Goal(f"{ours[8:]}-consume", ours[8:], "consume", ours, ("Kafka consume(500)",), 4)
        yield Goal(f"{ours[8:]}-poll", ours[8:], "consume", ours, ("Kafka poll()",), 10)
    log = ("PartitionLog.batches",)
    yield Goal("consume-batches", "batches of a consumer", "consume-batches", "Consumer.batches", log, 1.3, Kind.COST)
    between, kafka = "produce to consume, two processes", ("Kafka",)
    yield Goal("deliver-p50", between, "deliver", "fastlog", kafka, 0.1, Kind.COST)
    yield Goal("deliver-p99", f"{between}, p99", "deliver", "fastlog", kafka, 0.2, Kind.P99_COST)
    yield Goal("transactions", "transactions of 100 records", "transactions", "fastlog send", ("Kafka",), 20)
    yield Goal("commit", "commit of one partition", "commit", "fastlog", (), 20, Kind.MICROSECONDS_EACH)


def _group_goals() -> Iterator[Goal]:
    for ours in ("of a reader", "inside a transaction"):
        work = f"next record after kill -9 {ours}"
        yield Goal(f"takeover {ours}", work, "group-takeover", ours, (), 50_000, Kind.P99_MICROSECONDS)
    for ours in ("a member joins", "a member leaves"):
        yield Goal(f"rebalance, {ours}", f"rebalance, {ours}", "rebalance", ours, (), 200_000, Kind.P99_MICROSECONDS)
    work = "watching the members of a group"
    yield Goal("watcher", work, "watcher", "a member", (), 0.2, Kind.PERCENT_OF_A_CORE)


def _delivery_goals() -> Iterator[Goal]:
    for ours, bound in (("def", 5), ("def, 16 threads", 30), ("async def, 16 tasks", 15)):
        yield Goal(f"app {ours}", f"App per record, {ours}", "app", ours, (), bound, Kind.MICROSECONDS_EACH)
    one, work = ("one at a time",), "handler that sleeps for 1 ms, 16 threads"
    yield Goal("app-concurrency", work, "app-concurrency", "16 threads", one, 12)
    for ours in ("handler that raises", "value that cannot be decoded"):
        rate = Kind.MILLIONS_PER_SECOND
        yield Goal(f"dead-letters {ours}", f"dead letters, {ours}", "dead-letters", ours, (), 0.05, rate)
    yield Goal("due", "begin a record that is due", "due", "fastlog", (), 10_000, Kind.P99_MICROSECONDS)


def _store_goals() -> Iterator[Goal]:
    contest = "many-partitions"
    yield Goal(
        "many-partitions-start", "open a store of 10,000 partitions", contest, "open", (), 2000, Kind.MILLISECONDS
    )
    yield Goal(
        "many-partitions-memory", "partitions used once, idle", contest, "written to once", (), 10, Kind.KIBIBYTES_EACH
    )
    yield Goal("many-partitions-read", "consumer of 2,000 partitions", contest, "consumer", (), None, Kind.MILLISECONDS)
    yield Goal(
        "idle-store", "idle store with producer and consumer", "idle-store", "store", (), None, Kind.PEAK_MEBIBYTES
    )


def goals() -> tuple[Goal, ...]:
    return (
        *_append_goals(),
        *_read_goals(),
        *_sharing_goals(),
        *_codec_goals(),
        *_messaging_goals(),
        *_group_goals(),
        *_delivery_goals(),
        *_store_goals(),
        Goal("compaction", "compact", "compaction", "fastlog", ("copy", "copy and sync"), 0.3),
        Goal("large-open", "open a large log", "large-open", "large log", (), 50, Kind.MILLISECONDS),
        Goal("large-append", "append to a large log", "large-append", "large log", ("small log",), 1.1, Kind.COST),
        Goal("memory", "read a large log in batches", "large-memory", "fastlog columns", (), 64, Kind.PEAK_MEBIBYTES),
        Goal("import", "import fastlog", "import", "fastlog", ("numpy",), 50, Kind.EXTRA_MILLISECONDS),
    )
