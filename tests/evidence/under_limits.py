"""The life of a process whose disk, descriptors or memory run out while it does one thing: its limits and its work.

Work that is hindered says so by an error of its own; it has then changed nothing, or says that this is not known. When
there is room again it goes on, with the same handles, and everything that was acknowledged is there.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import random
import resource
import shutil
import traceback
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import fastlog
from fastlog._native import oscalls
from fastlog.delivery.app import App
from fastlog.groups.offsets import OffsetStore
from tests.delivery.apps import Driven, HandClock, values_of

__all__ = ["LIMITS", "WORKS", "live"]

ROUNDS = 2  # of a life: each ends with everything in order
SMALL = 60_000  # bytes of a segment
# what may be said of a call that a limit has hindered
NAMED = (fastlog.StorageError, fastlog.DeliveryTimeoutError, MemoryError, RuntimeError, OSError, ImportError)
PATIENCE = "200ms"  # of producers, with what may be better soon: too many open files


# --- limits -----------------------------------------------------------------------------------------------------------


class Limit:
    """What there is not enough of, between ``squeeze`` and ``lift``."""

    segment_bytes = SMALL
    most_acts = 250
    codes: ClassVar[tuple[int, ...]] = (errno.ENOSPC, errno.EFBIG)

    def __init__(self, path: Path, chance: random.Random) -> None:
        self.path, self.chance = path, chance

    def squeeze(self) -> None:
        raise NotImplementedError

    def lift(self) -> None:
        raise NotImplementedError

    def is_named(self, error: BaseException) -> bool:
        """Whether an error tells of this limit."""
        return isinstance(error, fastlog.StorageError) and error.errno in self.codes


class Disk(Limit):
    """A small file system, which something else has filled up to a few bytes."""

    @property
    def ballast(self) -> Path:
        return self.path.parent / "ballast"

    def squeeze(self) -> None:
        status = os.statvfs(self.path.parent)
        room = self.chance.choice([0, 4096, 50_000, 300_000])
        with self.ballast.open("wb") as file:
            file.write(bytes(max(0, status.f_bavail * status.f_frsize - room)))

    def lift(self) -> None:
        self.ballast.unlink(missing_ok=True)


class FileSize(Limit):
    """No file may grow beyond a size (``ulimit -f``)."""

    def squeeze(self) -> None:
        logs = [path.stat().st_size for path in self.path.rglob("*.log")]
        most = self.chance.choice(sorted(logs) or [0]) + self.chance.choice([0, 200, 5000])
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, resource.RLIM_INFINITY))

    def lift(self) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


class Descriptors(Limit):
    """No file can be opened any more, or only a few (``ulimit -n``)."""

    codes = (errno.EMFILE,)

    def __init__(self, path: Path, chance: random.Random) -> None:
        super().__init__(path, chance)
        self.before = resource.getrlimit(resource.RLIMIT_NOFILE)
        self.held: list[int] = []

    def squeeze(self) -> None:
        open_now = len(os.listdir("/proc/self/fd"))
        resource.setrlimit(resource.RLIMIT_NOFILE, (open_now + 40, self.before[1]))
        with contextlib.suppress(OSError):
            while True:
                self.held.append(os.open(os.devnull, os.O_RDONLY))
        for _ in range(self.chance.choice([0, 0, 1, 2, 4])):
            os.close(self.held.pop())

    def lift(self) -> None:
        while self.held:
            os.close(self.held.pop())
        resource.setrlimit(resource.RLIMIT_NOFILE, self.before)

    def is_named(self, error: BaseException) -> bool:
        if isinstance(error, fastlog.DeliveryTimeoutError):
            return "raise the limit of open files" in str(error)
        # a module that is imported at its first use says so in Python's words
        return super().is_named(error) or (type(error) is OSError and error.errno in self.codes)


class Memory(Limit):
    """No more memory can be mapped (``ulimit -v``)."""

    segment_bytes = 1 << 30  # a segment is mapped with room to grow
    most_acts = 60
    codes = (errno.ENOMEM,)

    def squeeze(self) -> None:
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        # in between, Python waits for ever for a thread that has a stack and nothing else
        room = self.chance.choice([1 << 18, 2 << 20, 6 << 20, 32 << 20])
        resource.setrlimit(resource.RLIMIT_AS, (used + room, resource.RLIM_INFINITY))

    def lift(self) -> None:
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))

    def is_named(self, error: BaseException) -> bool:
        if isinstance(error, fastlog.DeliveryTimeoutError):
            return "leave this process more memory" in str(error)
        words = ("can't start new thread", "failed to map segment from shared object")  # Python's, and the linker's
        return isinstance(error, MemoryError) or any(one in str(error) for one in words) or super().is_named(error)


# --- work -------------------------------------------------------------------------------------------------------------


class Work:
    """What a process does. ``act`` raises what hindered it; ``check`` is for when nothing hinders."""

    def __init__(self, path: Path, chance: random.Random, segment_bytes: int) -> None:
        self.path, self.chance, self.segment_bytes = path, chance, segment_bytes
        self.number = 0

    def open(self) -> None:
        raise NotImplementedError

    def act(self) -> None:
        raise NotImplementedError

    def check(self) -> None:
        raise NotImplementedError

    def close(self) -> None:
        raise NotImplementedError

    def next(self) -> int:
        self.number += 1
        return self.number

    def filler(self) -> bytes:
        """Something that makes a value large."""
        size = 900_000 if self.segment_bytes > SMALL else 700
        return bytes(self.chance.choice([10, size]))


class InLog(Work):
    """Work on one partition by itself, which ``open`` opens."""

    log: fastlog.PartitionLog

    def close(self) -> None:
        self.log.close()
        self.open()
        assert self.log.recovery is None
        self.check()
        self.log.close()


class Partition(InLog):
    """Appends, reads, flushes, deletions; segments roll."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.there: dict[int, bytes] = {}

    def open(self) -> None:
        config = fastlog.LogConfig(segment_bytes=self.segment_bytes)
        self.log = fastlog.PartitionLog.open(self.path / "events-0", durability="os", config=config)

    def act(self) -> None:
        dice = self.chance.random()
        if dice < 0.1:
            self.log.flush()
        elif dice < 0.2:
            self.log.read(self.chance.randint(self.log.start_offset, self.log.end_offset))
        elif dice < 0.22:
            self.log.delete_records(self.chance.randint(self.log.start_offset, self.log.end_offset))
        else:
            values = [b"%d " % self.next() + self.filler() for _ in range(self.chance.choice([1, 10]))]
            end = self.log.end_offset
            try:
                base = self.log.append(values, compression=self.chance.choice([None, None, "lz4"]))
            except NAMED:
                assert self.log.end_offset == end, "what failed is there"
                raise
            self.there |= dict(enumerate(values, base))

    def check(self) -> None:
        start = self.log.start_offset
        found = {record.offset: record.value for record in self.log.records()}
        assert found == {offset: value for offset, value in self.there.items() if offset >= start}
        assert self.log.verify().ok


class InStore(Work):
    """Work on a store with topics ``a`` (three partitions) and ``b``."""

    def open(self) -> None:
        self.store = fastlog.open(self.path / "store", durability="os")
        for name, partitions in (("a", 3), ("b", 1)):
            config = {"segment.bytes": self.segment_bytes}
            self.store.create_topic(name, partitions, config=config, exist_ok=True)

    def close(self) -> None:
        self.store.close()
        self.open()
        self.check()
        self.store.close()

    def found(self, topic: str, partition: int = 0) -> list[int]:
        """Numbers of the records of a partition."""
        records = self.store.topic(topic).partition(partition).records()
        return [int(bytes(record.value or b"").split()[0]) for record in records]


class Producing(InStore):
    """Single records and many at a time, each waited for; a producer is opened anew now and then."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.acked: Counter[int] = Counter()
        self.refused: set[int] = set()

    def open(self) -> None:
        super().open()
        self.producer = self.store.producer(delivery_timeout=PATIENCE)

    def act(self) -> None:
        if self.producer.closed or self.chance.random() < 0.05:
            self.producer.close()
            self.producer = self.store.producer(delivery_timeout=PATIENCE)
        numbers = [self.next() for _ in range(self.chance.choice([1, 1, 5]))]
        values = [b"%d " % number + self.filler() for number in numbers]
        try:
            self.producer.send_many("a", values, partition=self.chance.randrange(3)).result(30)
        except fastlog.StorageFullError:
            self.refused.update(numbers)  # that one has written nothing
            raise
        self.acked.update(numbers)

    def check(self) -> None:
        found = Counter(number for partition in range(3) for number in self.found("a", partition))
        assert not self.acked - found, f"lost: {self.acked - found}"
        assert max(found.values(), default=1) == 1, f"twice: {found.most_common(3)}"
        assert not self.refused & set(found), f"refused, and there: {self.refused & set(found)}"

    def close(self) -> None:
        self.producer.close()
        super().close()


class Transactions(InStore):
    """One number into three partitions at a time; where the outcome is unknown the producer is opened anew."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.outcomes: dict[int, str] = {}
        self.producer: Any = None

    def act(self) -> None:
        number = self.next()
        if self.producer is None:
            self.producer = self.store.producer(transactional_id="work", delivery_timeout=PATIENCE)
        transaction = self.producer.transaction()
        try:
            with transaction:
                for partition in range(3):
                    transaction.send("a", b"%d " % number + self.filler(), partition=partition)
        finally:
            self.outcomes[number] = transaction.outcome or "aborted"
            if transaction.outcome == "unknown":
                self.let_go()

    def let_go(self) -> None:
        producer, self.producer = self.producer, None
        if producer is not None:
            with contextlib.suppress(*NAMED):
                producer.close()

    def check(self) -> None:
        if self.producer is None:
            # ends what was left open
            self.producer = self.store.producer(transactional_id="work", delivery_timeout=PATIENCE)
        found = [self.found("a", partition) for partition in range(3)]
        assert found[0] == found[1] == found[2], "a transaction by halves"
        assert found[0] == sorted(set(found[0]))
        for number, outcome in self.outcomes.items():
            assert outcome == "unknown" or (outcome == "committed") == (number in found[0]), (number, outcome)

    def close(self) -> None:
        self.let_go()
        super().close()
        self.let_go()


class Commits(InStore):
    """A member of a group that commits each record that it was handed."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.least = self.most = 0
        self.consumer: Any = None

    def open(self) -> None:
        super().open()
        with self.store.producer(delivery_timeout=PATIENCE) as producer:
            producer.send_many("b", [b"%d" % number for number in range(20_000)]).result(30)

    def act(self) -> None:
        if self.consumer is not None and self.chance.random() < 0.05:
            consumer, self.consumer = self.consumer, None
            consumer.close()
        if self.consumer is None:
            self.consumer = self.store.consumer("b", group="g", start="earliest", auto_commit=False)
        records = self.consumer.poll(max_records=self.chance.choice([1, 7]), timeout=5)
        self.most = records[-1].offset + 1
        self.consumer.commit()
        self.least = self.most

    def check(self) -> None:
        (position,) = OffsetStore(self.store.directory).all_committed("g").values()
        assert self.least <= position.offset <= self.most, (self.least, position, self.most)

    def close(self) -> None:
        if self.consumer is not None:
            self.consumer.close()
        super().close()


class Moves(InStore):
    """A handler that fails: its records go to the dead letters, and offsets with them."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.sent: Counter[bytes] = Counter()
        self.handled: Counter[bytes] = Counter()
        self.clock = HandClock()

    def open(self) -> None:
        self.store = fastlog.open(self.path / "store", durability="os")
        self.store.create_topic("orders", 2, config={"segment.bytes": self.segment_bytes}, exist_ok=True)
        app = App(self.store, clock=self.clock)

        @app.subscriber("orders", group="mail", order_by="none", retry=fastlog.Retry(2, backoff="1ms", jitter=False))
        def mail(record: fastlog.Record) -> None:
            if bytes(record.value or b"").startswith(b"bad"):
                raise ValueError("a bad order")
            self.handled[bytes(record.value or b"")] += 1

        self.driven = Driven(app, self.clock)
        self.producer = self.store.producer(delivery_timeout=PATIENCE)

    def act(self) -> None:
        value = b"%s %d " % (self.chance.choice([b"bad", b"good"]), self.next()) + self.filler()
        self.producer.send("orders", value, partition=self.chance.randrange(2)).result(30)
        self.sent[value] += 1
        for _ in range(3):
            self.driven.advance(1000)
        problem = self.driven.stats()["mail"].problem
        if problem is not None:
            raise Hindered(problem)

    def check(self) -> None:
        for _ in range(40):
            self.driven.advance(1000)
        assert self.driven.stats()["mail"].problem is None
        bad = Counter({value: count for value, count in self.sent.items() if value.startswith(b"bad")})
        topics = self.store.topics()
        letters = Counter(bytes(value or b"") for value in values_of(self.store, "orders.mail.dlq")) if topics else {}
        # what could not be acknowledged may be there
        assert not bad - Counter(letters) and max(Counter(letters).values(), default=1) == 1
        assert not (self.sent - bad) - self.handled
        assert not any(lag.records for lag in self.store.group_lag("mail", ["orders"]).values())

    def close(self) -> None:
        self.driven.app.close()
        super().close()
        self.driven.app.close()


class Hindered(fastlog.StorageError):
    """A limit that the runner has met, logged, and will meet again."""


class Compaction(InLog):
    """Few keys, compacted again and again."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.newest: dict[bytes, bytes] = {}

    def open(self) -> None:
        config = fastlog.LogConfig(
            segment_bytes=min(self.segment_bytes, 20_000 if self.segment_bytes == SMALL else 1 << 22),
            cleanup_policy="compact", min_cleanable_dirty_ratio=0,
        )  # fmt: skip
        self.log = fastlog.PartitionLog.open(self.path / "events-0", durability="os", config=config)
        self.log.maintain()  # has everything imported that it needs

    def act(self) -> None:
        if self.chance.random() < 0.2:
            self.log.maintain()
            return
        keys = [b"key %d" % self.chance.randrange(30) for _ in range(self.chance.choice([1, 3]))]
        values = [b"%d " % self.next() + self.filler() for _ in keys]
        self.log.append(values, keys=keys)
        self.newest |= dict(zip(keys, values, strict=True))

    def check(self) -> None:
        self.log.maintain()
        found = {bytes(record.key or b""): bytes(record.value or b"") for record in self.log.records()}
        assert found == self.newest, set(found) ^ set(self.newest)
        assert self.log.verify().ok


class Backup(InStore):
    """Backups of a store that grows: whole, or an empty folder."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.acked: list[int] = []
        self.copies: dict[Path, int] = {}
        self.refused: list[Path] = []

    def act(self) -> None:
        if self.chance.random() < 0.8:
            number = self.next()
            self.store.topic("b").partition(0).append([b"%d " % number + self.filler()])
            self.acked.append(number)
            return
        self.back_up()

    def back_up(self) -> None:
        target = self.path / f"copy-{self.next()}"
        self.refused.append(target)
        self.store.backup(target)
        self.refused.remove(target)
        self.copies[target] = len(self.acked)

    def check(self) -> None:
        assert self.found("b") == self.acked
        for target in self.refused:
            assert not target.exists() or not list(target.iterdir()), f"half a backup: {list(target.iterdir())}"
        self.back_up()
        for target, count in self.copies.items():
            with fastlog.open(target, durability="os") as copy:
                records = copy.topic("b").partition(0).records()
                numbers = [int(bytes(record.value or b"").split()[0]) for record in records]
                assert numbers == self.acked[:count], target
            shutil.rmtree(target)
        self.copies.clear()


# --- a life -----------------------------------------------------------------------------------------------------------

LIMITS: dict[str, type[Limit]] = {
    "disk": Disk, "file-size": FileSize, "descriptors": Descriptors, "memory": Memory,
}  # fmt: skip
WORKS: dict[str, type[Work]] = {
    "partition": Partition, "producer": Producing, "transactions": Transactions, "commits": Commits, "moves": Moves,
    "compaction": Compaction, "backup": Backup,
}  # fmt: skip


def live(limit: str, work: str, path: str, seed: int, result: str) -> None:
    """A role of the nursery: works under a limit that comes and goes; what came of it goes into a file."""
    found: dict[str, Any] = {"errors": {}, "problem": None}
    try:
        chance = random.Random(seed)
        tight = LIMITS[limit](Path(path), chance)
        busy = WORKS[work](Path(path), chance, tight.segment_bytes)
        busy.open()
        for _ in range(3):
            busy.act()
        errors: Counter[str] = Counter()
        for _ in range(ROUNDS):
            errors += hinder(busy, tight, chance)
            busy.check()
            busy.act()
            busy.check()
        busy.close()
        found["errors"] = dict(errors)
    except BaseException:  # noqa: BLE001 - whatever it is, the other side is told
        found["problem"] = traceback.format_exc()
    oscalls.set_clock(None)
    Path(result).write_text(json.dumps(found))


def hinder(busy: Work, tight: Limit, chance: random.Random) -> Counter[str]:
    """Act under the limit until it was met a few times; the errors that told of it."""
    errors: Counter[str] = Counter()
    most = chance.choice([1, 2, 6])
    with squeezed(tight):
        for _ in range(tight.most_acts):
            try:
                busy.act()
            except NAMED as error:
                if not (isinstance(error, Hindered) or tight.is_named(error)):
                    raise
                errors[type(error).__name__] += 1
                if errors.total() >= most:
                    break
    return errors


@contextlib.contextmanager
def squeezed(tight: Limit) -> Iterator[None]:
    tight.squeeze()
    try:
        yield
    finally:
        tight.lift()
