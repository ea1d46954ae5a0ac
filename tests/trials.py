"""Lives of a log, or of a store, in which something fails: what was acknowledged stays, and later calls work.

``python -m tests.trials FOLDER LEVEL`` lives one life of a log, and says what is known of it then as one line of JSON.
"""

from __future__ import annotations

import errno
import json
import logging
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fastlog
from fastlog._native import oscalls
from tests.crash.recording import Entry, Kind
from tests.crash.recording import Record as Marks
from tests.crash.store_history import StoreHistory
from tests.crash.store_life import LONGEST_WAIT, Life
from tests.foreign import read_all
from tests.reference.batch import Record
from tests.strategies import SOME_TIME
from tests.sweeping import plain

CONFIG: dict[str, Any] = {"segment_bytes": 20_000, "index_interval_bytes": 100, "max_message_bytes": 15_000}
WRITES = ("pwrite", "pwritev", "ftruncate")
SHORT_WAIT = 0.2  # seconds
FULL = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)
SWEEP = (
    [(call, code) for call in WRITES for code in (*FULL, errno.EIO)]
    + [(call, errno.EIO) for call in ("fdatasync", "fsync", "pread", "fstat", "unlink", "rename")]
    + [("open", errno.EMFILE), ("open", errno.ENOSPC), ("rename", errno.ENOSPC), ("mmap", errno.ENOMEM)]
)
FITTING = {
    "open": (errno.EMFILE, errno.ENFILE, errno.ENOSPC, errno.EACCES, errno.EIO),
    "pread": (errno.EIO,),
    "pwrite": (*FULL, errno.EIO),
    "pwritev": (*FULL, errno.EIO),
    "ftruncate": (*FULL, errno.EIO),
    "fdatasync": (errno.EIO, errno.ENOSPC),
    "fsync": (errno.EIO, errno.ENOSPC),
    "rename": (errno.EIO, errno.ENOSPC, errno.EACCES),
    "unlink": (errno.EIO, errno.EACCES),
    "mmap": (errno.ENOMEM,),
    "fstat": (errno.EIO,),
    "fallocate": (errno.ENOSPC, errno.EOPNOTSUPP, errno.EIO),
    "flock": (errno.ENOLCK, errno.EIO),
    "link": (errno.EXDEV, errno.EMLINK, errno.ENOSPC, errno.EIO),
    "mkdir": (errno.ENOSPC, errno.EMLINK, errno.EACCES, errno.EIO),
    "getdents": (errno.EIO, errno.EMFILE, errno.EACCES),
    "fcntl": (errno.ENOLCK, errno.EIO),
    "utimensat": (errno.EIO, errno.EPERM),
    "statfs": (errno.EIO, errno.EACCES),
    "poll": (errno.ENOMEM,),
    "pipe": (errno.EMFILE, errno.ENFILE),
    "pidfd_open": (errno.EMFILE, errno.ENOSYS),
}
assert tuple(FITTING) == oscalls.CALL_NAMES, "a system call that nothing fails"


def bare(failure: BaseException) -> BaseException:
    """An exception that holds nothing of what it has to do with."""
    seen: BaseException | None = failure
    while seen is not None:
        inner = seen.__cause__ or seen.__context__
        seen.__traceback__ = seen.__cause__ = seen.__context__ = None
        seen = inner
    return failure


class Trial:
    """One life of a log with one fault somewhere in it. Acknowledged records must survive whatever happens.

    ``refuses`` are the errors that a call may raise.
    """

    def __init__(
        self,
        path: Path,
        durability: str,
        *,
        mmap: bool = True,
        refuses: tuple[type[BaseException], ...] = (fastlog.StorageError,),
    ) -> None:
        self.path = path
        self.durability = durability
        self.config = fastlog.LogConfig(**CONFIG, mmap=mmap)
        self.refuses = refuses
        self.expected: list[Record] = []
        self.unsure: list[Record] = []  # a failed append: after a failed sync it may be there
        self.start_offset = 0
        self.log: Any = None
        self.unclosed: list[Any] = []
        self.failures: list[BaseException] = []

    def attempt(self, action: Callable[[], Any]) -> Any:
        """Do something that may fail."""
        try:
            return action()
        except self.refuses as failure:
            code = getattr(failure, "errno", None)
            assert code is None or code > 0
            self.failures.append(bare(failure))
            return None

    def look(self, action: Callable[[], Any]) -> Any:
        """Compare something, which reads."""
        return self.attempt(action)

    def open(self) -> None:
        self.log = self.attempt(
            lambda: fastlog.PartitionLog.open(self.path, durability=self.durability, config=self.config)
        )
        if self.log is not None:
            self.look(self.compare_after_opening)

    def compare_after_opening(self) -> None:
        found = read_all(self.log)
        wanted = [record for record in self.expected if record.offset >= self.log.start_offset]
        assert found[: len(wanted)] == wanted
        doubtful = found[len(wanted) :]
        assert doubtful == self.unsure[: len(doubtful)]
        self.expected += found[len(wanted) :]
        self.unsure = []

    def append(self, values: list[bytes | None], compression: str | None = None) -> None:
        if self.log is None:
            return
        end = self.log.end_offset
        drawn = [Record(end + i, SOME_TIME + i, None, value) for i, value in enumerate(values)]
        times = [record.timestamp for record in drawn]
        failures = len(self.failures)
        self.attempt(lambda: self.log.append(values, timestamps=times, compression=compression))
        if len(self.failures) == failures:
            # a sync that could not even begin has doomed nothing: the next one covers those records as well
            self.expected += self.unsure + drawn if self.unsure and self.unsure[-1].offset < end else drawn
            self.unsure = []
            assert self.log.end_offset == end + len(values)
        elif self.log.end_offset == end:
            self.unsure = self.unsure or drawn
        else:  # written, but its sync failed
            assert self.log.end_offset == end + len(values)
            self.unsure = [record for record in self.unsure if record.offset < end] + drawn

    def read(self) -> None:
        if self.log is None:
            return
        end = self.log.readable_offset
        found = self.look(lambda: read_all(self.log))
        # a sync in the background that fails meanwhile takes it back to what is durable
        end = min(end, self.log.readable_offset)
        readable = [r for r in self.expected if self.log.start_offset <= r.offset < end]
        assert found is None or found[: len(readable)] == readable
        self.attempt(lambda: self.log.offset_for_time(SOME_TIME))

    def delete(self) -> None:
        if self.log is not None:
            before = min(self.start_offset + 3, self.log.readable_offset)
            if self.attempt(lambda: self.log.delete_records(before=before)) is not None:
                self.start_offset = before
            assert self.log.start_offset >= self.start_offset

    def close(self) -> None:
        if self.log is not None:
            self.attempt(self.log.close)
            if not self.log.closed:
                # who cannot take the locks has to come again
                self.unclosed.append(self.log)
            self.log = None

    def live(self) -> None:
        self.open()
        for number in range(6):
            self.append([b"small %d" % number, None, b""])
            self.append([bytes([number]) * 5000])
        self.read()
        if self.log is not None:
            self.attempt(self.log.flush)
        self.delete()
        self.append([b"x" * 100] * 40)
        self.append([b"y" * 100] * 400, "lz4")
        self.close()
        self.open()
        self.append([b"second session"])
        self.read()
        self.look_around()
        self.close()

    def look_around(self) -> None:
        """What else a log is asked for."""
        if self.log is None:
            return
        log = self.log
        works: list[Callable[[], object]] = [
            lambda: [record.headers for record in log.records()],
            lambda: [batch.__arrow_c_array__() for batch in log.batches()],
            log.verify,
            log.segments,
            log.maintain,
        ]
        for work in works:
            self.attempt(work)

    def settle(self) -> None:
        """The fault is gone: everything has to work again, and nothing may be missing."""
        oscalls.clear()
        for log in self.unclosed:
            log.close()
        met = len(self.failures)
        if self.log is None:
            self.open()
        assert self.failures[met:] == []
        self.expected = [record for record in self.expected if record.offset >= self.log.start_offset]
        assert self.log.start_offset >= self.start_offset
        self.append([b"afterwards"])
        assert self.expected[-1].value == b"afterwards"
        assert read_all(self.log) == self.expected
        assert self.log.verify().ok
        self.log.close()
        self.log = None
        self.unclosed.clear()
        with fastlog.PartitionLog.open(self.path, read_only=True) as log:
            assert log.recovery is None
            assert read_all(log) == self.expected
            assert log.verify().ok

    def known(self) -> str:
        """What another process has to know to settle it."""
        return json.dumps(
            {
                "expected": [plain(record) for record in self.expected],
                "unsure": [plain(record) for record in self.unsure],
                "start_offset": self.start_offset,
                "failures": [repr(failure) for failure in self.failures],
            }
        )

    def take_over(self, known: str) -> list[str]:
        """Go on with what another process knows; what it met."""
        told = json.loads(known)
        self.expected = [of_plain(one) for one in told["expected"]]
        self.unsure = [of_plain(one) for one in told["unsure"]]
        self.start_offset = told["start_offset"]
        failures: list[str] = told["failures"]
        return failures


class StoreTrial:
    """One life of a store with one fault somewhere in it: whatever was acknowledged is there afterwards, once.

    ``refuses`` are the errors that a call may raise.
    """

    def __init__(
        self, folder: Path, seed: int, durability: str, refuses: tuple[type[BaseException], ...] = (fastlog.Error,)
    ) -> None:
        self.folder = folder
        self.seed = seed
        self.told: list[dict[str, Any]] = []
        self.failures: list[str] = []
        self.is_hit: Callable[[], bool] = lambda: oscalls.injected() > 0
        self.life = Life(
            folder, seed, durability=durability, tell=self.tell, forgives=refuses, wait_for=self.wait_for,
            delivery_timeout="1s",
        )  # fmt: skip

    def tell(self, what: str, **facts: Any) -> None:
        self.told.append({"what": what, **facts})
        if what == "failed":
            self.failures.append(facts["error"])

    def wait_for(self, delivery: Any) -> Any:
        """What becomes of a delivery. A producer tries for a long time; nobody waits for what may never succeed."""
        limit = time.monotonic() + LONGEST_WAIT
        while True:
            try:
                return delivery.result(SHORT_WAIT)
            except fastlog.DeliveryTimeoutError:
                if self.is_hit() or time.monotonic() > limit:
                    raise

    def live(self, times: int = 6) -> None:
        """Some of everything, in two sessions."""
        life = self.life
        actions: list[Callable[[], object]] = [
            life.create, life.send, life.transact, life.transact, life.commit, life.alter, life.grow, life.delete,
            life.trim, life.move, life.move, life.redrive, life.compact, life.backup, life.leave,
        ]  # fmt: skip
        for _ in range(2):
            life.open()
            for _ in range(times):
                if life.store is None:
                    life.open()
                if life.store is not None:
                    life.chance.choice(actions)()
            life.close()

    def settle(self) -> None:
        """The fault is gone: everything works again, and nothing is missing."""
        oscalls.clear()
        self.life.drop()
        entries = [
            Entry(at, Kind.MARK, 0, 0, 0, 0, "", "", json.dumps(told).encode(), False)
            for at, told in enumerate(self.told)
        ]
        history = StoreHistory(Marks(entries), self.seed, loses=False)
        history.check(self.folder, len(entries), self.seed)


def of_plain(told: list[Any]) -> Record:
    """A record of a trial from JSON: these have neither keys nor headers."""
    offset, timestamp, _, value, _ = told
    return Record(offset, timestamp, None, None if value is None else bytes.fromhex(value))


def fault_was_hit(call: str, nth: int, before: dict[str, int]) -> bool:
    return bool(oscalls.call_counts()[call] - before[call] >= nth)


def main() -> None:
    logging.getLogger("fastlog").setLevel(logging.CRITICAL)
    trial = Trial(Path(sys.argv[1]), sys.argv[2], refuses=(fastlog.Error,))
    trial.live()
    print(trial.known())


if __name__ == "__main__":
    main()
