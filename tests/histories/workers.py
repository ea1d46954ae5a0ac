"""The processes of a history: writers with several threads, and readers of several kinds.

Both run until they are asked to stop, or killed, and note what they do (``events``). An error that the protocol allows
is noted as a failed append; any other one is a complaint, which no history may have.
"""

from __future__ import annotations

import random
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fastlog
from fastlog._native import oscalls
from tests.histories.events import AppendId, Notebook, Run, encode_values, key_of, now, runs_of
from tests.histories.nursery import stopping
from tests.histories.toy import ToyError, ToyLog

SMALL: dict[str, Any] = {"segment_bytes": 24_000, "index_interval_bytes": 500, "max_message_bytes": 4_000}
READER_KINDS = ("read", "records", "wait", "arrow", "reopen")
# what an append may raise here and there; whether its records are there then, the checker asks
REFUSALS = (fastlog.LockedError, fastlog.StorageError, getattr(fastlog, "FencedError", ToyError), ToyError)
SOME_TIME = 1_700_000_000_000


class _Stop(Exception):
    """The worker was asked to end."""


def open_log(path: str, mistake: str | None, durability: str, **options: Any) -> Any:
    """The log under test, or the toy with a mistake."""
    if mistake is not None:
        return ToyLog(path, mistake, options.get("read_only", False))
    config = fastlog.LogConfig(**options.pop("config", SMALL))
    return fastlog.PartitionLog.open(path, durability=durability, config=config, **options)


def complain(notebook: Notebook) -> None:
    notebook.complain(traceback.format_exc(limit=-6))


# --- writers --------------------------------------------------------------------------------------------------------


class Writer:
    """One writing process: ``threads`` threads share a handle, which one of them reopens now and then."""

    def __init__(self, number: int, path: str, notes: str, durability: str, seed: int, **options: Any) -> None:
        self.number, self.path, self.durability, self.seed = number, path, durability, seed
        self.notebook = Notebook(notes)
        self.mistake: str | None = options.pop("mistake", None)
        self.threads: int = options.pop("threads", 2)
        self.pace: float = options.pop("pace", 0.004)  # seconds of rest behind each handful of appends, on average
        self.appends: int | None = options.pop("appends", None)  # of each thread; None: until it is asked to stop
        self.reopens: float = options.pop("reopens", 0.0)  # shares of the turns of a thread
        self.flushes: float = options.pop("flushes", 0.02)
        self.deletes: float = options.pop("deletes", 0.0)
        self.maintains: float = options.pop("maintains", 0.0)
        self.conditions: float = options.pop("conditions", 0.1)
        self.sizes: list[int] = options.pop("sizes", [1, 1, 1, 2, 10, 60])
        self.idle_until: str = options.pop("idle_until", "")  # a file that has to be there before the first append
        self.inject: dict[str, Any] | None = options.pop("inject_when_open", None)
        self.stubborn: bool = options.pop("stubborn", True)  # goes on after an append that was refused
        self.options = options
        self.handles = 0
        self.users = threading.Condition()
        self.using = 0
        self.log: Any = None
        self.name = ""

    def open(self) -> None:
        begun = now()
        while True:
            try:
                log = open_log(self.path, self.mistake, self.durability, **self.options)
                break
            except fastlog.LockedError:
                if stopping.is_set():
                    raise _Stop from None
                if not self.stubborn:
                    raise
        self.handles += 1
        self.name = f"{self.number}.{self.handles}"
        self.notebook.opened(self.name, True, begun)
        self.log = log

    def close(self) -> None:
        self.notebook.closing(self.name)
        while True:
            try:
                self.log.close()
                return
            except fastlog.LockedError:
                pass  # somebody syncs for longer than an impatient handle waits

    def reopen(self) -> None:
        """With nobody else in the handle."""
        with self.users:
            if not self.users.wait_for(lambda: self.using == 0, timeout=30):
                raise AssertionError("a thread of this process hangs in a call")
            self.close()
            self.open()

    def run(self) -> None:
        try:
            self.open()
            wait_for_start(self.idle_until)
            arm(None, self.inject)
            threads = [threading.Thread(target=self.run_thread, args=(n,), daemon=True) for n in range(self.threads)]
            for thread in threads:
                thread.start()
            while any(thread.is_alive() for thread in threads):
                for thread in threads:
                    thread.join(0.02)
            self.close()
        except _Stop:
            pass
        except BaseException:  # noqa: BLE001 - whatever it is, the history has to tell
            complain(self.notebook)

    def run_thread(self, thread: int) -> None:
        chance = random.Random(f"{self.seed}.{self.number}.{thread}")
        sequence = 0
        try:
            while not stopping.is_set() and (self.appends is None or sequence < self.appends):
                dice = chance.random()
                if dice < self.reopens:
                    self.reopen()
                    continue
                with self.users:
                    self.using += 1
                try:
                    if dice < self.reopens + self.flushes:
                        self.look(self.log.flush)
                    elif dice < self.reopens + self.flushes + self.deletes:
                        self.look(lambda: self.log.delete_records(before=max(0, self.log.end_offset - 2000)))
                    elif dice < self.reopens + self.flushes + self.deletes + self.maintains:
                        self.look(self.log.maintain)
                    else:
                        for _ in range(chance.randint(1, 12)):
                            self.append(AppendId(self.number, thread, sequence), chance)
                            sequence += 1
                finally:
                    with self.users:
                        self.using -= 1
                        self.users.notify_all()
                stopping.rest(chance.random() * 2 * self.pace)
        except _Stop:
            pass
        except BaseException:  # noqa: BLE001
            complain(self.notebook)

    def append(self, which: AppendId, chance: random.Random) -> None:
        count = chance.choice(self.sizes)
        values = encode_values(which, [chance.randbytes(chance.randint(0, 150)) for _ in range(count)])
        keys = [key_of(which, index) for index in range(count)]
        condition: dict[str, Any] = {}
        if self.mistake is None and chance.random() < self.conditions:
            condition["expected_end_offset"] = self.log.end_offset
        self.notebook.attempt(which, count)
        try:
            base = self.log.append(values, keys=keys, timestamps=SOME_TIME, **condition)
        except REFUSALS as error:
            self.notebook.failed(which, error)
            if not self.stubborn:
                raise _Stop from None
            return
        self.notebook.acked(which, base)
        if condition and base != condition["expected_end_offset"]:
            self.notebook.complain(f"{which} is at {base}, on the condition {condition}")

    def look(self, call: Callable[[], object]) -> None:
        """A call of which only the ends are noted, as a read of nothing."""
        begun = now()
        try:
            call()
        except REFUSALS:
            if not self.stubborn:
                raise _Stop from None
        except fastlog.OffsetOutOfRangeError:
            pass  # somebody else deleted more
        self.notebook.read(self.name, begun, 0, self.log, ())


def write(
    failpoint: list[Any] | None = None, inject: dict[str, Any] | None = None, start: str = "", **options: Any
) -> None:
    """The role of a writer. ``failpoint``: (name, action, nth), armed before the log is opened."""
    arm(failpoint, inject)
    wait_for_start(start)
    Writer(**options).run()


def arm(failpoint: list[Any] | None, inject: dict[str, Any] | None) -> None:
    if failpoint:
        oscalls.arm(*failpoint)
    if inject:
        oscalls.inject(**inject)


def wait_for_start(start: str) -> None:
    """Until a file is there: for processes that shall begin together, or later."""
    while start and not Path(start).exists() and not stopping.is_set():
        time.sleep(0.001)


# --- readers --------------------------------------------------------------------------------------------------------


class Reader:
    """One reading process: follows the log in its way, from the beginning, and then again."""

    def __init__(self, number: int, path: str, notes: str, kind: str, seed: int, **options: Any) -> None:
        assert kind in READER_KINDS
        self.number, self.path, self.kind = number, path, kind
        self.notebook = Notebook(notes)
        self.mistake: str | None = options.pop("mistake", None)
        self.durability: str = options.pop("durability", "os")
        self.pace: float = options.pop("pace", 0.002)
        self.options = {"read_only": True, **options}
        self.chance = random.Random(f"{seed}.{number}")
        self.handles = 0
        self.log: Any = None
        self.name = ""

    def run(self) -> None:
        try:
            while not stopping.is_set():
                if not self.open():
                    continue
                self.follow()
                self.notebook.closing(self.name)
                self.log.close()
        except _Stop:
            pass
        except BaseException:  # noqa: BLE001
            complain(self.notebook)

    def open(self) -> bool:
        begun = now()
        try:
            log = open_log(self.path, self.mistake, self.durability, **self.options)
        except fastlog.LockedError:
            return False  # the next one may recover, or is frozen
        except fastlog.StorageError as error:
            if "does not exist" in str(error):
                stopping.rest(0.005)  # nobody has made it yet
                return False
            raise
        self.handles += 1
        self.name = f"{self.number}.{self.handles}"
        self.log = log
        self.notebook.opened(self.name, not self.options["read_only"], begun)
        return True

    def follow(self) -> None:
        offset = self.log.start_offset
        reads = 0
        while not stopping.is_set():
            self.pause(offset)
            begun = now()
            try:
                runs, following = self.read(offset)
            except fastlog.OffsetOutOfRangeError:
                if offset >= self.log.start_offset:
                    raise
                offset = self.log.start_offset  # deleted meanwhile
                continue
            self.notebook.read(self.name, begun, offset, self.log, runs)
            if runs and self.kind != "reopen":
                offset = following
            elif self.kind == "reopen" or self.chance.random() < 0.01:
                offset = max(self.log.start_offset, self.log.readable_offset - self.chance.randint(0, 3000))
            reads += 1
            if self.kind == "reopen" and reads >= 3:
                return

    def pause(self, offset: int) -> None:
        if self.kind == "wait":
            begun = now()
            if self.log.wait(offset, timeout=0.2) and self.log.readable_offset <= offset:
                self.notebook.complain(f"wait({offset}) returned True at {self.log.readable_offset}")
            if now() - begun > 20e9:
                self.notebook.complain(f"wait({offset}, timeout=0.2) took {(now() - begun) / 1e9} s")
        else:
            stopping.rest(self.chance.random() * 2 * self.pace)

    def read(self, offset: int) -> tuple[list[Run], int]:
        if self.kind == "records":
            return self.of_records(self.log.records(offset))
        if self.kind == "arrow":
            return self.of_arrow(offset)
        batch = self.log.read(offset, self.chance.choice([1000, 8000, 1 << 20]))
        runs = runs_of((record.offset, bytes(record.value)) for record in batch)
        return runs, batch.next_offset

    def of_records(self, records: Iterator[Any]) -> tuple[list[Run], int]:
        found = []
        for record in records:
            found.append((record.offset, bytes(record.value)))
            if len(found) >= 2000:
                break
        return runs_of(found), found[-1][0] + 1 if found else 0

    def of_arrow(self, offset: int) -> tuple[list[Run], int]:
        import pyarrow

        table = pyarrow.RecordBatchReader.from_stream(self.log.batches(offset, self.log.readable_offset))
        found: list[tuple[int, bytes]] = []
        try:
            for batch in table:
                found += zip(batch.column("offset").to_pylist(), batch.column("value").to_pylist(), strict=True)
        except (pyarrow.ArrowException, OSError) as error:
            if "is out of range" in str(error):
                raise fastlog.OffsetOutOfRangeError(str(error)) from error
            raise
        return runs_of(found), found[-1][0] + 1 if found else 0


def follow(
    failpoint: list[Any] | None = None, inject: dict[str, Any] | None = None, start: str = "", **options: Any
) -> None:
    """The role of a reader."""
    arm(failpoint, inject)
    wait_for_start(start)
    Reader(**options).run()


def final_runs(log: Any) -> list[Run]:
    """Everything that a log holds."""
    found: list[tuple[int, bytes]] = []
    offset = log.start_offset
    while offset < log.readable_offset:
        batch = log.read(offset)
        found += [(record.offset, bytes(record.value)) for record in batch]
        if batch.next_offset <= offset:
            raise AssertionError(f"a read of offset {offset} made no progress")
        offset = batch.next_offset
    return runs_of(found)
