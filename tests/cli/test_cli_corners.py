"""What the command line and its demos do off the beaten track: at the end of an input, when something is missing."""

from __future__ import annotations

import dataclasses
import errno
import fcntl
import importlib
import importlib.metadata
import json
import os
import pwd
import random
import signal
import struct
import subprocess
import sys
import time
import zipfile
from array import array
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import fastlog
from fastlog.cli import output as text
from fastlog.cli import workers
from fastlog.cli.consume import open_consumer
from fastlog.cli.dlq import OffsetsType, user
from fastlog.cli.run import Duration
from fastlog.cli.store import Moment, MomentType
from fastlog.cli.workers import Worker, WorkerError
from fastlog.demo import accounts, fleet, flights, handlers, job, pipeline, supervisor
from fastlog.demo.dataset import Dataset
from tests.cli.support import flip_byte, make_log, need, run, run_on_terminal, write_flights

DOCTOR: Any = importlib.import_module("fastlog.cli.doctor")  # the module: its name in the package is the command
SECOND = 1_000_000_000
FIRST_SEGMENT = f"{0:020d}.log"
LINUX_ONLY = pytest.mark.skipif(sys.platform != "linux", reason="Linux is asked for its locks")


@pytest.fixture
def store(folder: Path) -> Path:
    path = folder / "store"
    with fastlog.open(path, durability="os") as opened:
        opened.create_topic("orders", partitions=3)
    return path


@pytest.fixture
def table(folder: Path, seed: int) -> Path:
    return write_flights(folder / "flights.csv", 2000, random.Random(seed))


@pytest.fixture
def dataset(table: Path) -> Dataset:
    return flights.load_flights(table).first(300)


def fill(store: Path, values: list[bytes], topic: str = "orders") -> None:
    with fastlog.open(store, durability="os") as opened:
        opened.topic(topic).partition(0).append(values)


# --- what all commands share ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "exit_code", "words"),
    [
        (MemoryError(), 3, "fastlog: error: not enough memory\n"),
        (OSError(errno.EIO, "Input/output error"), 3, "fastlog: error: Input/output error\n"),
        (OSError("nobody knows"), 3, "fastlog: error: nobody knows\n"),
        (BrokenPipeError(), 141, ""),
    ],
)
def test_errors_are_a_line_and_an_exit_code(
    folder: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, exit_code: int, words: str
) -> None:
    def fail(path: object) -> None:
        raise error

    monkeypatch.setattr(fastlog, "diagnose", fail)
    result = run("doctor", folder)
    assert (result.exit_code, result.stderr) == (exit_code, words)


def test_numbers_for_people() -> None:
    assert text.rate(9999, "records") == "9,999 records/s"
    assert text.rate(12_345, "records") == "12 k records/s"
    assert (text.duration(99.5), text.duration(150)) == ("99.50 s", "2.5 min")
    assert text.instant(1_700_000_000_000) == "2023-11-14T22:13:20.000Z"
    assert text.instant(1 << 62) == str(1 << 62)


@pytest.mark.parametrize(("value", "error"), [({1}, TypeError), (float("nan"), ValueError)])
def test_what_json_cannot_say_is_refused(value: object, error: type[Exception]) -> None:
    with pytest.raises(error, match="JSON"):
        text.encode_json({"value": value})


@pytest.mark.parametrize(
    ("kind", "value"), [(Duration(), 1500), (MomentType(), Moment(name="latest")), (OffsetsType(), range(3, 8))]
)
def test_options_take_what_is_converted_already(kind: Any, value: object) -> None:
    """Click hands it over again, a default for example."""
    assert kind.convert(value, None, None) is value


def test_a_terminal_without_rich_gets_plain_tables_and_bars(folder: Path) -> None:
    (folder / "rich").mkdir()
    (folder / "rich" / "__init__.py").write_text("raise ImportError('not installed')\n")
    package = str(Path(fastlog.__file__).parents[1])
    code, shown = run_on_terminal(
        *("bench", "append", folder, "--seconds", 0.05, "--records", 200, "--durability", "os"),
        PYTHONPATH=os.pathsep.join((str(folder), package)),
    )
    assert code == 0, shown
    assert "measuring  [####" in shown
    assert "100%" in shown
    assert "─" not in shown
    assert "records/s" in shown


# --- bench ------------------------------------------------------------------------------------------


def test_the_codec_is_told_with_the_workload(folder: Path) -> None:
    shown = run("bench", "append", folder, "--seconds", 0.05, "--records", 200, "--compression", "zstd").stdout
    assert "durability group, zstd" in shown


def end(worker: Worker) -> None:
    """Close its input, and see that it ends in good order."""
    assert worker._process.stdin is not None
    worker._process.stdin.close()
    assert worker._process.wait(20) == 0


@contextmanager
def pipes() -> Iterator[tuple[int, int]]:
    """Both ends of a pipe, closed at the end if they are open still."""
    ends = os.pipe()
    try:
        yield ends
    finally:
        for descriptor in ends:
            try:
                os.close(descriptor)
            except OSError:
                pass


def times_in(path: Path) -> array[int]:
    found = array("q")
    found.frombytes(path.read_bytes())
    return found


def test_a_worker_of_the_bench_does_each_job_and_ends_with_its_input(folder: Path) -> None:
    """It is killed when all is measured; should the bench die before, the end of its input ends it."""
    path, took = folder / "events-0", folder / "took"
    limits = {"nanoseconds": 60 * SECOND, "latencies": str(took)}
    with workers.workers(()) as (worker,):
        assert worker.ask("open", path=str(path), durability="os") == {"records": 0, "bytes": 0}
        done = worker.ask("append", size=10, batch=100, threads=2, records=2000, compression=None, **limits)
        assert done["records"] == 2000
        assert done["began"] < done["ended"]
        assert len(times_in(took)) == 20
        done = worker.ask("append", size=10, batch=100, threads=1, records=500, compression="gzip", **limits)
        assert done["records"] == 500
        hurried = {**limits, "nanoseconds": 0}
        done = worker.ask("append", size=10, batch=100, threads=1, records=500, compression=None, **hurried)
        assert done["records"] == 100

        length = sum(file.stat().st_size for file in path.glob("*.log"))
        for way, units in (("columns", 2600), ("lists", 2600), ("records", 2600), ("bytes", length)):
            everything = {"path": str(path), "way": way, "enough": units, "nanoseconds": 60 * SECOND}
            assert worker.ask("read", **everything, threads=1)["units"] == units
            assert worker.ask("read", **everything, threads=2)["units"] == 2 * units
        done = worker.ask("read", path=str(path), way="records", threads=1, enough=2600, nanoseconds=0)
        assert done["units"] == 1000
        assert worker.ask("close") == {}

        bare = folder / "bare"
        for synced in (False, True):
            done = worker.ask("write", path=str(bare), size=10, batch=4, records=40, synced=synced, **limits)
            assert done["records"] == 40
            assert len(bare.read_bytes()) == 400
            assert len(times_in(took)) == 10
            bare.unlink()
        end(worker)


def test_an_error_in_a_job_is_the_answer_and_the_worker_goes_on(folder: Path) -> None:
    path = make_log(folder / "events-0")
    (folder / "file").touch()
    with workers.workers(()) as (worker,):
        with pytest.raises(WorkerError, match="is a file: a partition is a folder"):
            worker.ask("open", path=str(folder / "file"))
        worker.ask("open", path=str(path), read_only=True)
        with pytest.raises(WorkerError, match="read_only"):
            worker.ask(
                "append", size=10, batch=1, threads=2, records=2, nanoseconds=SECOND, compression=None,
                latencies=str(folder / "took"),
            )  # fmt: skip
        assert not (folder / "took").exists()
        flip_byte(path / FIRST_SEGMENT, 80)
        with pytest.raises(WorkerError, match="position 0"):
            worker.ask("read", path=str(path), way="columns", threads=2, enough=30, nanoseconds=SECOND)
        assert worker.ask("close") == {}
        end(worker)


def test_two_workers_wake_each_other(folder: Path) -> None:
    path = str(folder / "events-0")
    with (
        pipes() as (hears_ready, says_ready),
        pipes() as (hears_bell, rings_bell),
        workers.workers((hears_ready, rings_bell), (says_ready, hears_bell)) as (ringer, listener),
    ):
        for worker in (ringer, listener):
            worker.ask("open", path=path, durability="os")
        listener.send("listen", ready=says_ready, bell=hears_bell, times=3)
        began = ringer.ask("ring", ready=hears_ready, bell=rings_bell, times=3)
        woken = listener.receive()
        assert {way: len(moments) for way, moments in woken.items()} == {"log": 3, "pipe": 3}
        for way in ("log", "pipe"):
            assert all(first < then for first, then in zip(began[way], woken[way], strict=True))
        for worker in (ringer, listener):
            end(worker)


def test_a_worker_notices_that_the_other_one_is_gone(folder: Path) -> None:
    path = str(folder / "events-0")
    with pipes() as (hears, says), pipes() as (hears_bell, rings), workers.workers((hears,)) as (ringer,):
        os.close(says)
        ringer.ask("open", path=path, durability="os")
        with pytest.raises(WorkerError, match="the process that waits is gone"):
            ringer.ask("ring", ready=hears, bell=1, times=1)
        end(ringer)
    with (
        pipes() as (hears, says),
        pipes() as (hears_bell, rings),
        workers.workers((says, hears_bell)) as (listener,),
        fastlog.PartitionLog.open(path, durability="os") as log,
    ):
        listener.ask("open", path=path, durability="os")
        os.close(rings)
        listener.send("listen", ready=says, bell=hears_bell, times=1)
        assert os.read(hears, 1) == b"."
        log.append([b"wake up"])
        with pytest.raises(WorkerError, match="the process that appends is gone"):
            listener.receive()
        end(listener)


def test_what_a_worker_waits_for_has_to_come(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "WAIT_SECONDS", 0.02)
    state = workers._State()
    with pipes() as (_, says):
        workers.open_log(state, str(folder / "events-0"), durability="os")
        with pytest.raises(WorkerError, match=r"no record came within 0\.02 s"):
            workers.listen(state, ready=says, bell=-1, times=1)
        workers.close_log(state)
    with fastlog.open(folder / "store", durability="os") as store:
        store.create_topic("bench", partitions=2)
    with pytest.raises(WorkerError, match=r"a consumer has no 3 partitions after 0\.02 s"):
        workers.open_consumer(state, path=str(folder / "store"), durability="os", topic="bench", share=3)
    workers.close_store(state)


def test_a_pipeline_of_two_workers(folder: Path) -> None:
    path, all_sent = str(folder / "store"), folder / "all sent"
    with fastlog.open(path, durability="os") as store:
        store.create_topic("bench", partitions=2)
    with pipes() as (hears, says), workers.workers((says,), (hears,)) as (producer, consumer):
        producer.ask("open producer", path=path, durability="os", compression=None)
        consumer.ask("open consumer", path=path, durability="os", topic="bench", share=2)
        consumer.send("consume", all_sent=str(all_sent))
        work = {"size": 10, "nanoseconds": 60 * SECOND}
        sent = [
            producer.ask("produce", topic="bench", batch=batch, records=records, text=False, **work)["records"]
            for batch, records in ((1, 1500), (100, 450))
        ]
        assert sent == [1500, 500]
        all_sent.touch()
        assert consumer.receive()["records"] == 2000
        for worker in (producer, consumer):
            assert worker.ask("close store") == {}

        all_sent.unlink()
        consumer.send("read pipe", pipe=hears, all_sent=str(all_sent))
        assert producer.ask("write pipe", pipe=says, batch=10, records=1000, **work)["bytes"] == 10_000
        all_sent.touch()
        assert consumer.receive()["bytes"] == 10_000
        for worker in (producer, consumer):
            end(worker)


def test_a_worker_that_dies_in_a_job_is_an_error(folder: Path) -> None:
    with pipes() as (hears, says), workers.workers((hears,)) as (worker,):
        worker.ask("open", path=str(folder / "events-0"))
        worker.send("ring", ready=hears, bell=says, times=1)
        worker._process.kill()
        with pytest.raises(WorkerError, match="exit code -9"):
            worker.receive()


# --- consume ----------------------------------------------------------------------------------------


def test_a_group_can_be_told_where_to_begin(store: Path) -> None:
    with fastlog.open(store, durability="os") as opened:
        hour, now = 3_600_000, int(time.time() * 1000)
        opened.topic("orders").partition(0).append([b"a", b"b", b"c"], timestamps=[now - 2 * hour, now - hour, now])

    def values(*arguments: object) -> list[str]:
        result = run("consume", "orders", "--group", "g", "--store", store, *arguments)
        assert result.exit_code == 0, result.output
        return result.stdout.splitlines()

    assert values() == ["a", "b", "c"]
    assert values() == []
    assert values("--from", "earliest") == ["a", "b", "c"]
    assert values("--from", "-90m") == ["b", "c"]
    assert values("--from", "latest") == []
    assert values("--from", "@2") == ["c"]


def test_an_offset_that_cannot_be_is_an_error_and_nobody_stays_in_the_group(store: Path) -> None:
    fill(store, [b"a"])
    result = run("consume", "orders", "--group", "g", "--from", f"@{1 << 63}", "--store", store)
    assert result.exit_code == 3
    assert "2**63 - 1" in result.stderr
    with fastlog.open(store) as opened:
        with pytest.raises(fastlog.ConfigError, match="2\\*\\*63 - 1"):
            open_consumer(opened, ("orders",), Moment(offset=1 << 63), False, "g", (), "read_committed")
        assert opened.describe_group("g").members == []


# --- produce and topics -----------------------------------------------------------------------------


def test_a_separator_of_keys_is_for_lines(store: Path) -> None:
    result = run("produce", "orders", "--format", "csv", "--key-separator", ":", "--store", store, input="")
    assert result.exit_code == 2
    assert "name the key of csv with --key FIELD" in result.stderr


def test_produce_tells_programs_what_it_wrote(store: Path, folder: Path) -> None:
    (folder / "many.txt").write_text("x\n" * 2500)
    result = run("produce", "orders", folder / "many.txt", "--durability", "os", "--store", store, "--json")
    told = json.loads(result.stdout)
    assert (told["topic"], told["records"], told["durability"]) == ("orders", 2500, "os")
    assert told["seconds"] > 0


def test_a_table_without_a_row_writes_nothing(store: Path, folder: Path) -> None:
    (folder / "empty.csv").touch()
    result = run("produce", "orders", folder / "empty.csv", "--store", store)
    assert result.exit_code == 0
    assert result.stdout.startswith("0 records written to orders in ")


def test_altering_a_topic_says_what_it_is_now(store: Path) -> None:
    result = run("topics", "alter", "orders", "-p", 5, "--store", store)
    assert result.exit_code == 0
    assert result.stdout == "  ok       orders: 5 partitions\n"


# --- groups -----------------------------------------------------------------------------------------


def test_groups_for_people(store: Path) -> None:
    def shown(*arguments: object) -> str:
        result = run("groups", *arguments, "--store", store)
        assert result.exit_code == 0, result.output
        return result.stdout

    assert shown("list") == f"no groups in {store}: a consumer that names one makes it\n"
    fill(store, [b"a", b"b", b"c"])
    with (
        fastlog.open(store, durability="os") as opened,
        opened.consumer("orders", group="mail", start="earliest", instance_id="desk-1") as consumer,
    ):
        consumer.poll(max_records=1)
        found = shown("describe", "mail")
        assert found.startswith("mail\n")
        for words in ("Stable", "generation", "members", "desk-1", str(os.getpid()), " ago", "orders-0, orders-1"):
            assert words in found
        consumer.commit()
    assert [line.split() for line in shown("list").splitlines()][1] == ["mail", "Empty", "0", "3", "2"]
    found = shown("describe", "mail")
    assert ["orders", "0", "1", "2"] in [line.split()[:4] for line in found.splitlines()]
    assert "members\n" not in found
    lag = json.loads(run("groups", "lag", "mail", "--json", "--store", store).stdout)
    assert (lag["name"], lag["lag"], lag["partitions"][0]["committed"]) == ("mail", 2, 1)
    reset = shown("reset", "mail", "--to", "@0", "--topic", "orders", "--yes")
    assert reset.startswith("To reset mail in orders to @0\n")
    assert ["orders", "0", "1", "0"] in [line.split() for line in reset.splitlines()]
    assert shown("delete", "mail", "--yes") == (
        "To forget the offsets of mail in 3 partitions\n  ok       the offsets of mail are forgotten\n"
    )
    assert shown("list").startswith("no groups")


def test_a_group_that_owns_and_has_committed_nothing_shows_no_partitions(store: Path) -> None:
    with fastlog.open(store) as opened, opened.consumer("orders", group="mail"):
        result = run("groups", "lag", "mail", "--store", store)
    assert (result.exit_code, result.stdout) == (0, "mail is 0 records behind\n")


# --- dlq --------------------------------------------------------------------------------------------


def test_somebody_without_a_name_is_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(uid: int) -> None:
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    monkeypatch.setattr(pwd, "getpwuid", fail)
    monkeypatch.setenv("LOGNAME", "ada")
    assert user() == "ada"
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    assert user() is None


# --- doctor -----------------------------------------------------------------------------------------


def examined(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(run("doctor", path, "--json").stdout)
    return found


def fail_to_lock(*arguments: object) -> None:
    raise OSError(errno.ENOLCK, "No locks available")


def allow_every_lock(file: object, command: int, argument: bytes) -> bytes:
    """What a file system says that shows locks, and gives them to everybody."""
    return struct.pack(DOCTOR.FLOCK_FORMAT, fcntl.F_RDLCK, os.SEEK_SET, 0, 1, os.getpid())


@LINUX_ONLY
@pytest.mark.parametrize(
    ("name", "lock", "lacks"),
    [
        ("flock", fail_to_lock, "flock"),
        ("fcntl", fail_to_lock, "open_file_description"),
        ("fcntl", allow_every_lock, "open_file_description"),
    ],
)
def test_locks_that_are_refused_or_given_to_everybody_are_not_in_force(
    folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, lock: Callable[..., object], lacks: str
) -> None:
    monkeypatch.setattr(DOCTOR.fcntl, name, lock)
    found = examined(folder)
    assert found["locks"] == {"flock": True, "open_file_description": True, lacks: False}
    assert [problem for problem in found["problems"] if problem.endswith("not in force")]


@LINUX_ONLY
def test_where_a_platform_cannot_be_asked_for_locks_that_is_said(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = folder / "events-0"
    with fastlog.PartitionLog.open(path, durability="os"):
        monkeypatch.delattr(DOCTOR.fcntl, "F_OFD_GETLK")
        monkeypatch.setattr(DOCTOR, "LOCKS", folder / "no locks")
        found = examined(path)
        assert (found["partition"]["is_open"], found["partition"]["pids"]) == (None, [])
        assert found["locks"]["open_file_description"] is False
        assert "cannot be told" in run("doctor", path).stdout


@LINUX_ONLY
def test_a_control_file_that_cannot_be_opened_leaves_it_open_who_is_there(folder: Path) -> None:
    path = make_log(folder / "events-0")
    (path / ".fastlog-control").unlink(missing_ok=True)
    (path / ".fastlog-control").mkdir()
    assert examined(path)["partition"]["is_open"] is None


def test_a_package_that_is_missing_is_said(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.metadata.version

    def version(name: str) -> str:
        if name == "cramjam":
            raise importlib.metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    assert examined(folder)["versions"]["cramjam"] is None
    assert ["cramjam", "not", "installed"] in [line.split() for line in run("doctor", folder).stdout.splitlines()]


@LINUX_ONLY
def test_nothing_is_tried_in_a_partition_that_is_a_file_system_of_its_own() -> None:
    found = DOCTOR._probe(Path("/proc"), is_partition=True)
    assert (found.flock, found.sync_seconds) == (None, [])
    assert found.obstacle == "/proc is where its file system begins, and nothing is written into a partition"


@pytest.mark.parametrize(("slow", "fast", "words"), [(0.0, 0.0, "; that is slow"), (1000.0, 0.0, "(median)")])
def test_what_a_sync_takes_is_judged(
    folder: Path, monkeypatch: pytest.MonkeyPatch, slow: float, fast: float, words: str
) -> None:
    monkeypatch.setattr(DOCTOR, "SLOW_SYNC_SECONDS", slow)
    monkeypatch.setattr(DOCTOR, "FAST_SYNC_SECONDS", fast)
    (line,) = [line for line in run("doctor", folder).stdout.splitlines() if "append of 4 KiB" in line]
    assert line.startswith("  note " if slow == 0 else "  ok ")
    assert words in line


def test_an_append_that_was_not_finished_is_a_note(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, real = folder / "events-0", fastlog.diagnose

    def diagnose(path: str | os.PathLike[str] | None = None) -> dict[str, Any]:
        found = real(path)
        return {**found, "control": {**found["control"], "is_dirty": True}}

    with fastlog.PartitionLog.open(path, durability="os"):
        monkeypatch.setattr(fastlog, "diagnose", diagnose)
        assert "an append is under way, or its writer died; the next writer takes over" in examined(path)["notes"]


# --- log --------------------------------------------------------------------------------------------


def test_dump_tells_producers_transactions_and_control_batches(store: Path) -> None:
    with fastlog.open(store, durability="os") as opened:
        with opened.producer(transactional_id="till-1") as producer, producer.transaction() as transaction:
            transaction.send("orders", b"a", partition=0)
        path = Path(opened.topic("orders").partition(0).path)
    first, second = list(fastlog.scan_segment(path / FIRST_SEGMENT))
    shown = run("log", "dump", path).stdout.splitlines()
    assert shown[-2].endswith(f"  producer {first.producer_id} epoch {first.producer_epoch} sequence 0  transactional")
    assert shown[-1].endswith(f"sequence {second.base_sequence}  transactional  control")


def test_dump_of_index_files_chooses_offsets(folder: Path) -> None:
    path = make_log(folder / "events-0", index_interval_bytes=1)  # each batch has an entry, with its last offset
    offsets = run("log", "dump", path / f"{0:020d}.index", "--start", 20).stdout.splitlines()
    assert [line.split()[:2] for line in offsets] == [["offset", "29"]]
    times = run("log", "dump", path / f"{0:020d}.timeindex", "--start", 20).stdout.splitlines()
    assert times
    assert all(line.startswith("timestamp 2023-11-14T22:13:") for line in times)
    assert all(int(line.split()[-1]) >= 20 for line in times)


def test_damage_is_told_by_the_offsets_that_it_takes(folder: Path) -> None:
    single, tail, hole = folder / "single-0", folder / "tail-0", folder / "hole-0"
    with fastlog.PartitionLog.open(single, durability="os") as log:
        for value in (b"a", b"b", b"c"):
            log.append([value])
    flip_byte(single / FIRST_SEGMENT, list(fastlog.scan_segment(single / FIRST_SEGMENT))[1].position + 60)
    for path in (tail, hole):
        make_log(path, segment_bytes=600)
    flip_byte(tail / FIRST_SEGMENT, 80)
    for file in hole.glob(f"{10:020d}.*"):
        file.unlink()
    for path, words in (
        (single, "damaged (offset 1): "),
        (tail, "damaged (offset 0 and all behind it in this file): "),
        (hole, "position 0: offsets 10 to 19 are in no segment before this one"),
    ):
        result = run("log", "verify", path)
        assert result.exit_code == 1
        assert words in result.stdout


def test_a_sound_log_needs_no_repair(folder: Path) -> None:
    path = make_log(folder / "events-0")
    told = json.loads(run("log", "repair", path, "--json").stdout)
    assert (told["repaired"], told["report"], told["plan"]["ok"]) == (False, None, True)


def test_stats_of_many_batches_and_of_a_missing_index(folder: Path) -> None:
    path = folder / "events-0"
    with fastlog.PartitionLog.open(path, durability="os") as log:
        for _ in range(1001):
            log.append([b"x"])
    (path / f"{0:020d}.index").unlink()
    found = json.loads(run("log", "stats", path, "--json").stdout)
    assert (found["batches"], found["records"]) == (1001, 1001)
    assert found["segments"][0]["index_entries"] is None
    assert run("log", "stats", path).stdout.splitlines()[-1].split()[-2] == "missing"


# --- demos on a terminal, and their exit codes ------------------------------------------------------


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("verb", "expected"),
    [
        ("pipeline", ("processes, 0 deaths", "records/s", "topic turnarounds", "group delays", "members")),
        ("handlers", ("s, handling, ", "s, redriving, ", "open dead letter", "topic flights", "group airports")),
    ],
)
def test_a_demo_draws_a_table_while_it_runs(table: Path, folder: Path, verb: str, expected: tuple[str, ...]) -> None:
    code, shown = run_on_terminal(
        "demo", verb, "--data", table, "--keep", folder / "kept", "--kills", 0, "--events", 300
    )
    assert code == 0, shown
    for words in expected:
        assert words in shown


def test_the_demo_of_a_log_has_a_bar(table: Path, folder: Path) -> None:
    need("duckdb")
    code, shown = run_on_terminal("demo", "log", "--data", table, "--keep", folder / "kept")
    assert code == 0, shown
    assert "append and compare" in shown
    assert "100%" in shown


def failing(*arguments: object) -> list[job.Check]:
    return [job.Check("planted", False, "something is wrong")]


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("verb", "module", "check"), [("pipeline", supervisor, "check_lag"), ("handlers", fleet, "check_all")]
)
def test_a_check_of_a_demo_that_fails_is_exit_code_1(
    table: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, verb: str, module: Any, check: str
) -> None:
    monkeypatch.setattr(module, check, failing)
    result = run("demo", verb, "--data", table, "--keep", folder / "kept", "--kills", 0, "--events", 100)
    assert result.exit_code == 1
    assert [line for line in result.stdout.splitlines() if "PROBLEM" in line] == [
        "  PROBLEM  planted: something is wrong"
    ]


# --- the demo's job and its data --------------------------------------------------------------------


def test_flights_of_an_installed_package(folder: Path, table: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = folder / "made_up_flights"
    (package / "data").mkdir(parents=True)
    (package / "__init__.py").touch()
    monkeypatch.setattr(flights, "PACKAGE", package.name)
    monkeypatch.syspath_prepend(str(folder))
    with pytest.raises(fastlog.NotSupportedError, match=r"holds no data/flights\.csv\.zip; install it again"):
        flights.find_flights()
    path = package / "data" / "flights.csv.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.write(table, "flights.csv")
    assert flights.find_flights() == path
    assert package.name not in sys.modules
    with zipfile.ZipFile(path, "a") as archive:
        archive.write(table, "more.csv")
    with pytest.raises(fastlog.ConfigError, match=r"expected one \.csv file in the zip, found 2"):
        flights.load_flights(path)


def test_a_flight_in_words(dataset: Dataset) -> None:
    event = {"carrier": "UA", "flight": 1, "origin": "EWR", "destination": "IAH", "departure_delay": 0}
    assert dataset.describe(json.dumps(event).encode()) == "UA1 EWR→IAH, on time"


def test_a_table_without_flights(folder: Path) -> None:
    need("duckdb")
    write_flights(folder / "none.csv", 0, random.Random(0))
    result = run("demo", "log", "--data", folder / "none.csv", "--keep", folder / "kept", "--json")
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert (told["ok"], told["records"]) == (True, 0)
    assert {lookup["description"] for lookup in told["lookups"]} == {"behind the last record"}


def test_an_answer_with_a_row_too_many_is_wrong(folder: Path, table: Path) -> None:
    need("duckdb")
    dataset = flights.load_flights(table)
    busiest, delays = dataset.questions
    fewer = dataclasses.replace(busiest, expected=busiest.expected[:-1])
    report = job.run(dataclasses.replace(dataset, questions=(fewer, delays)), folder / "flights-0")
    assert [check.name for check in report.checks if not check.ok] == ["answer 1"]


def test_a_log_that_will_not_open_is_replaced_like_any_other(folder: Path) -> None:
    assert job.prepare_folder(folder / "kept", "flights-0") == folder / "kept" / "flights-0"
    path = make_log(folder / "kept" / "flights-0")
    (path / ".fastlog-meta").write_text("nonsense")
    (path / ".fastlog-clean").unlink()  # it has a copy
    with pytest.raises(fastlog.CorruptLogError):
        fastlog.PartitionLog.open(path, exclusive=True)
    assert job.prepare_folder(folder / "kept", "flights-0") == path
    assert not path.exists()


# --- the demo's pipeline ----------------------------------------------------------------------------


def make_pipeline(folder: Path, dataset: Dataset) -> tuple[Path, Path]:
    """The store, and the file of events, before anybody has begun."""
    pipeline.write_events(folder / "events", dataset.timestamps, dataset.keys, dataset.values)
    with fastlog.open(folder / "store", durability="os") as store:
        pipeline.create_topics(store)
    return folder / "store", folder / "events"


def test_who_is_told_to_stop_ends_between_two_transactions(folder: Path, dataset: Dataset) -> None:
    path, events = make_pipeline(folder, dataset)
    with fastlog.open(path, durability="os") as store:
        assert pipeline.ingest(store, events, 0, lambda: True) == 0
        assert supervisor.records_in(store, pipeline.EVENTS) == 0
        sent = [pipeline.ingest(store, events, number, lambda: False) for number in range(pipeline.INGESTERS)]
        assert sum(sent) == len(dataset)
        looks = iter([False, True])
        pipeline.add_delays(store, "0", lambda: next(looks))
        counted = supervisor.records_in(store, pipeline.EVENTS) - supervisor.lag_of(store, pipeline.DELAYS)
        assert 0 < counted < len(dataset)
        results = [json.loads(record.value or b"") for record in supervisor.records_of(store, pipeline.DELAYS)]
        assert 0 < sum(result["departed"] for result in results) <= counted


def test_a_transaction_that_stays_open_is_told(folder: Path, dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    path, _ = make_pipeline(folder, dataset)
    monkeypatch.setattr(pipeline, "PATIENCE", 0.02)
    with (
        fastlog.open(path, durability="os") as store,
        store.producer(transactional_id="slow") as producer,
        producer.transaction() as transaction,
    ):
        transaction.send(pipeline.TURNAROUNDS, b"{}", key=b"N1", partition=0)
        producer.flush()
        with pytest.raises(fastlog.TransactionError, match="turnarounds-0 was still open after 0 s"):
            pipeline.last_departures(store.topic(pipeline.TURNAROUNDS).partition(0))


def test_a_role_that_nobody_knows(store: Path) -> None:
    command = [sys.executable, "-m", "fastlog.demo.worker", "cook", str(store), "0"]
    process = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert process.returncode == 1
    assert "role 'cook': expected one of ingest, delays, turnarounds" in process.stderr


@pytest.mark.timeout(300)
def test_who_dies_in_each_first_commit_is_started_again(
    folder: Path, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "MOST_COMMITS_BEFORE_DEATH", 1)
    path, events = make_pipeline(folder, dataset)
    with fastlog.open(path, durability="os") as store:
        crew = supervisor._Supervisor(store, events, len(dataset), random.Random(0), 1, lambda snapshot: None)
        crew.kill_one()  # nobody is there yet
        assert (crew.killed, len(crew.kills_at)) == (0, 1)
        crew.kills_at.clear()
        for worker in crew.workers:
            crew.start(worker, dies_in_commit=True)
        crew.run()
        assert crew.died_in_commit >= pipeline.INGESTERS
        for check in (supervisor.check_source, supervisor.check_delays, supervisor.check_turnarounds):
            assert all(found.ok for found in check(store, dataset))


@pytest.mark.timeout(300)
def test_a_process_of_the_pipeline_that_fails_by_itself_ends_the_demo(
    folder: Path, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FASTLOG_DEMO_LOG", "NONSENSE")
    with pytest.raises(fastlog.Error, match=r"^process (ingest|delays|turnarounds)-\d failed with exit code 1$"):
        supervisor.run_pipeline(dataset, folder / "store", seed=0, kills=0)


def test_demos_give_up_in_the_end(folder: Path, dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "GIVE_UP_AFTER", 0.0)
    monkeypatch.setattr(fleet, "GIVE_UP_AFTER", 0.0)
    with pytest.raises(fastlog.Error, match="the pipeline has not ended within 0 s"):
        supervisor.run_pipeline(dataset, folder / "store", seed=0, kills=0)
    with (
        pytest.raises(fastlog.Error, match="the demo has not ended within 0 s; HandlersSnapshot"),
        fleet.HandlersDemo(dataset, folder / "other", seed=0, kills=0) as demonstration,
    ):
        demonstration.fail()


# --- the demo's handlers ----------------------------------------------------------------------------


@pytest.fixture
def demonstration(folder: Path, dataset: Dataset) -> fleet.HandlersDemo:
    return fleet.HandlersDemo(dataset, folder / "store", seed=0, kills=0)


def test_the_demo_of_handlers_has_a_store_inside_of_with_only(demonstration: fleet.HandlersDemo) -> None:
    with pytest.raises(fastlog.ClosedError, match="open inside of `with` only"):
        demonstration.snapshot()
    demonstration.folder.mkdir()
    (demonstration.folder / "delays-1-1").write_text("of an earlier demo")
    with demonstration:
        assert list(demonstration.folder.iterdir()) == []
        assert demonstration.store.topics() == []


def test_a_process_with_handlers_that_fails_by_itself_ends_the_demo(demonstration: fleet.HandlersDemo) -> None:
    with demonstration:
        fleet.produce(demonstration.store, demonstration._dataset)
        with pytest.raises(fastlog.Error, match="a process with handlers failed with exit code 1"):
            demonstration._run_to_death(0, "nonsense")
        with pytest.raises(fastlog.Error, match="`fastlog dlq redrive flights .* failed with exit code"):
            demonstration._operate()  # there is no dead letter, and no topic for them


APPS = """
import os, signal, sys, threading

class StandIn:
    def __init__(self, code, at_once):
        self.code = code
        self.ended = threading.Event()
        if at_once:
            self.ended.set()

    def use_store(self, path):
        pass

    def run(self):
        signal.signal(signal.SIGTERM, lambda number, frame: self.stop())
        self.ended.wait(60)
        print("what it leaves", file=sys.stderr, flush=True)
        sys.exit(self.code)

    def stop(self):
        self.ended.set()

dying, ending_badly, patient = StandIn(7, True), StandIn(7, False), StandIn(0, False)
"""


@pytest.fixture
def environment(folder: Path) -> dict[str, str]:
    """One in which there are the apps above."""
    (folder / "stand_ins.py").write_text(APPS)
    package = str(Path(fastlog.__file__).parents[1])
    return {**os.environ, "PYTHONPATH": os.pathsep.join((str(folder), package))}


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def error_of(check: Callable[[], None]) -> str:
    """What ``check`` raises when it does."""
    found = ""

    def raises() -> bool:
        nonlocal found
        try:
            check()
        except fastlog.Error as error:
            found = str(error)
        return bool(found)

    until(raises)
    return found


def test_a_fleet_without_an_app_says_what_fastlog_run_said(store: Path, environment: dict[str, str]) -> None:
    crew = fleet.Fleet("no_such_module:app", store, environment)
    crew._process.wait(30)
    crew._reader.join(30)
    with pytest.raises(fastlog.Error, match=r"^`fastlog run` ended with exit code 2 / .*no_such_module"):
        crew.check()
    crew.kill()


def test_a_worker_of_the_fleet_that_fails_ends_the_demo(store: Path, environment: dict[str, str]) -> None:
    crew = fleet.Fleet("stand_ins:dying", store, environment)
    assert "ended with exit code 7" in error_of(crew.check)
    crew.kill()
    assert crew._process.poll() is not None


def test_a_fleet_that_does_not_end_well_is_an_error(store: Path, environment: dict[str, str]) -> None:
    crew = fleet.Fleet("stand_ins:ending_badly", store, environment)
    until(lambda: len(crew.pids()) == fleet.WORKERS)
    time.sleep(0.1)  # what tells that a worker has begun is told before its app runs
    with pytest.raises(fastlog.Error, match=r"^`fastlog run` ended with exit code 1 / .*what it leaves"):
        crew.stop()


def test_a_fleet_that_hangs_is_killed(
    store: Path, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    crew = fleet.Fleet("stand_ins:patient", store, environment)
    until(lambda: len(crew.pids()) == fleet.WORKERS)
    monkeypatch.setattr(fleet, "PATIENCE", 0.05)
    crew._process.send_signal(signal.SIGSTOP)
    crew.kill()
    assert crew._process.returncode == -signal.SIGKILL


def test_workers_that_do_not_come_are_an_error(
    demonstration: fleet.HandlersDemo, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (
        demonstration,
        monkeypatch.context() as patched,
        pytest.raises(fastlog.Error, match="the workers of the second version: not there within 0 s"),
    ):
        patched.setattr(fleet, "PATIENCE", 0.0)
        demonstration.redrive()


def test_handlers_in_a_process_that_lives_long_enough(demonstration: fleet.HandlersDemo) -> None:
    """What is to die in a later call than there are ends like others."""
    with demonstration:
        fleet.produce(demonstration.store, demonstration._dataset)
        assert demonstration._run_to_death(10**6) is False
        assert demonstration.report.died_in_call == 0
        diaries = [handlers.read_diary(path) for path in demonstration.folder.iterdir()]
        assert len(diaries) == len(handlers.GROUPS)
        assert all(has_ended for _, has_ended in diaries)
        letters = fastlog.DeadLetters.open(demonstration.store, handlers.EVENTS, handlers.DELAYS).survey().letters
        assert sum(len(lines) for lines, _ in diaries) == 2 * len(demonstration._dataset) - letters


def test_a_flight_that_nobody_sent_is_noticed(folder: Path, dataset: Dataset) -> None:
    with fastlog.open(folder / "store", durability="os") as store:
        fleet.produce(store, dataset)
        assert accounts.check_source(store, dataset).ok
        with store.producer() as producer:
            producer.send(handlers.EVENTS, b"{}", headers={"id": b"0"})
        found = accounts.check_source(store, dataset)
        assert not found.ok
        assert found.detail == "301 records, 300 flights in the source"


def test_flights_whose_process_died_are_told_apart(folder: Path, dataset: Dataset) -> None:
    with fastlog.open(folder / "store", durability="os") as store:
        fleet.produce(store, dataset)
        record = next(iter(store.topic(handlers.EVENTS).partition(0).records()))
    number = accounts.flight_of(record)
    letter = fastlog.DeadLetter(
        topic=accounts.DEAD_LETTER_TOPIC, partition=0, offset=0, timestamp=1, id="flights-0-0",
        origin_topic=handlers.EVENTS, origin_partition=0, origin_offset=0,
        origin_timestamp=dataset.timestamps[number], timestamp_type="create", group=handlers.DELAYS,
        attempts=handlers.ATTEMPTS, first_failure=1, last_failure=1, exception=accounts.DIED, message="",
        traceback="", key=record.key, value=record.value, headers=record.headers, state="redriven",
    )  # fmt: skip
    found = accounts.check_dead_letters([letter], dataset, Counter(), 1)
    assert found.ok
    assert found.detail.endswith("; 0 open; of 1 the last that is known is that their process died")
    assert not accounts.check_dead_letters([letter], dataset, Counter(), 0).ok
