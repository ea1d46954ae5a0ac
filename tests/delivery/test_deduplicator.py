"""``Deduplicator``: which ids are known, for how long, to whom, and after which accidents."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import fastlog
from fastlog.delivery import deduplicator as module
from fastlog.delivery.deduplicator import Memory

DAY = 24 * 3600 * 1000
NOW = 1_700_000_000_000


@pytest.fixture
def memory(folder: Path) -> Iterator[Memory]:
    with_ttl = fastlog.Deduplicator(ttl="7d").open(str(folder), "mail")
    yield with_ttl
    with_ttl.close()


def ids(*numbers: int) -> list[bytes]:
    return [b"event-%d" % number for number in numbers]


# --- what is known ---------------------------------------------------------------------------------------------------


def test_what_was_remembered_is_known(memory: Memory) -> None:
    assert memory.known(ids(1, 2)) == set()
    memory.remember(ids(1, 2), NOW)
    assert memory.known(ids(1, 2, 3)) == set(ids(1, 2))
    assert memory.known([]) == set()
    memory.remember([], NOW)
    assert memory.count() == 2


def test_many_at_once_and_any_bytes(memory: Memory, seed: int) -> None:
    chance = random.Random(seed)
    many = [chance.randbytes(chance.randint(0, 40)) for _ in range(3000)] + [b"", b"\0", b"x" * 100_000]
    memory.remember(many[::2], NOW)
    assert memory.known(many * 2) == set(many[::2]) & set(many) | (set(many[1::2]) & set(many[::2]))


def test_it_is_there_again_after_closing(folder: Path) -> None:
    options = fastlog.Deduplicator()
    first = options.open(str(folder), "mail")
    first.remember(ids(1), NOW)
    first.close()
    first.close()
    assert [path.name for path in (folder / "deduplication").iterdir()] == ["mail.sqlite"]
    with pytest.raises(fastlog.ClosedError):
        first.known(ids(1))
    again = options.open(str(folder), "mail")
    assert again.known(ids(1, 2)) == set(ids(1))
    again.close()


def test_groups_do_not_share_what_they_know(folder: Path) -> None:
    for options in (fastlog.Deduplicator(), fastlog.Deduplicator(path=folder / "shared.sqlite")):
        mail, audit = options.open(str(folder), "mail"), options.open(str(folder), "audit")
        mail.remember(ids(1), NOW)
        audit.remember(ids(2), NOW)
        assert mail.known(ids(1, 2)) == set(ids(1))
        assert audit.known(ids(1, 2)) == set(ids(2))
        mail.close()
        audit.close()


def test_ids_cannot_be_read_back(folder: Path) -> None:
    memory = fastlog.Deduplicator().open(str(folder), "mail")
    memory.remember([b"alice@example.com"], NOW)
    memory.close()
    assert b"alice" not in (folder / "deduplication" / "mail.sqlite").read_bytes()


def test_the_name_of_a_file_stays_short_enough(folder: Path) -> None:
    names = ["a" * 249, "a" * 248 + "b", "a" * 200, ".", ".."]
    assert len({module.file_name(name) for name in names}) == len(names)
    for name in names:
        memory = fastlog.Deduplicator().open(str(folder), name)
        memory.remember(ids(1), NOW)
        memory.close()
    assert len(list((folder / "deduplication").iterdir())) == len(names)


# --- time ------------------------------------------------------------------------------------------------------------


def test_what_is_too_old_is_not_known_and_goes(memory: Memory) -> None:
    memory.remember(ids(1), NOW)
    memory.remember(ids(2), NOW + 3 * DAY)
    assert memory.known(ids(1, 2), NOW + 7 * DAY - 1) == set(ids(1, 2))
    assert memory.known(ids(1, 2), NOW + 7 * DAY) == set(ids(2))
    memory.remember(ids(3), NOW + 7 * DAY)
    assert memory.known(ids(1, 2, 3)) == set(ids(2, 3))
    assert memory.count() == 2


def test_an_id_that_comes_again_is_remembered_from_then_on(memory: Memory) -> None:
    memory.remember(ids(1), NOW)
    memory.remember(ids(1), NOW + DAY)
    memory.remember(ids(1), NOW - DAY)  # the clock went back
    assert memory.known(ids(1), NOW + 8 * DAY - 1) == set(ids(1))
    assert memory.known(ids(1), NOW + 8 * DAY) == set()


def test_forgetting_goes_in_small_steps_and_catches_up(memory: Memory) -> None:
    memory.remember(ids(*range(5000)), NOW)
    later = NOW + 8 * DAY
    counts = []
    for number in range(60):
        memory.remember(ids(10_000 + number), later)
        counts.append(memory.count())
    steps = [before - after for before, after in zip([5000, *counts], counts, strict=False)]
    assert max(steps) <= module.LEAST_FORGOTTEN
    assert counts[-1] == 60
    assert memory.known(ids(*range(5000))) == set()


# --- ids of records --------------------------------------------------------------------------------------------------


def record(headers: dict[str, bytes | None], key: bytes = b"k") -> fastlog.Record:
    from tests.delivery.records import make_record

    return make_record(headers, key)


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({"id": b"7", "ce_id": b"8"}, b"7"),
        ({"ce_id": b"8"}, b"8"),
        ({"id": None, "ce_id": b"8"}, b"8"),
        ({"id": b"", "ce_id": None}, b"orders-0-0"),
        ({}, b"orders-0-0"),
    ],
)
def test_the_id_is_a_header_or_the_place(headers: dict[str, bytes | None], expected: bytes) -> None:
    assert fastlog.Deduplicator().id_of(record(headers)) == expected


@pytest.mark.parametrize(
    ("given", "expected"), [(lambda r: r.key, b"k"), (lambda r: "ä", "ä".encode()), (lambda r: None, None)]
)
def test_the_id_is_what_the_function_gives(given: Any, expected: bytes | None) -> None:
    assert fastlog.Deduplicator(id=given).id_of(record({})) == expected


def test_what_is_no_id_is_refused() -> None:
    with pytest.raises(fastlog.ConfigError, match=r"gave int for orders-0 at offset 0: expected bytes or str"):
        fastlog.Deduplicator(id=lambda r: 5).id_of(record({}))  # type: ignore[arg-type, return-value]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ttl": 0}, "Deduplicator.ttl=0 is too short: expected at least 1 ms"),
        ({"ttl": "-7d"}, "Deduplicator.ttl='-7d' is not a duration"),
        ({"id": "header"}, "Deduplicator.id='header': expected a function"),
        ({"path": 5}, "Deduplicator.path=5: expected the path of a file"),
    ],
)
def test_what_makes_no_sense_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(fastlog.ConfigError, match=message):
        fastlog.Deduplicator(**options)


# --- several at once -------------------------------------------------------------------------------------------------


def test_threads_take_turns(memory: Memory) -> None:
    def work(first: int) -> None:
        for number in range(first, first + 50):
            memory.remember(ids(number), NOW)
            if memory.known(ids(number)) != set(ids(number)):
                problems.append(number)

    problems: list[int] = []
    threads = [threading.Thread(target=work, args=(1000 * number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not problems
    assert memory.count() == 200


WRITER = """
import sys
from fastlog.delivery.deduplicator import Deduplicator

root, first, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
memory = Deduplicator().open(root, "mail", "os")
print("open", flush=True)
for number in range(first, first + count):
    memory.remember([b"event-%d-%d" % (number, part) for part in range(30)], 1_700_000_000_000)
    print(number, flush=True)
memory.close()
"""


def start_writer(folder: Path, first: int, count: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", WRITER, str(folder), str(first), str(count)], stdout=subprocess.PIPE, text=True
    )


PARTS = 30


def parts_known(memory: Memory, number: int) -> int:
    """How many ids of one call of ``remember`` are known."""
    return len(memory.known([b"event-%d-%d" % (number, part) for part in range(PARTS)]))


def test_processes_share_a_file(folder: Path) -> None:
    writers = [start_writer(folder, 1000 * number, 40) for number in range(3)]
    for writer in writers:
        writer.communicate(timeout=60)
        assert writer.returncode == 0
    memory = fastlog.Deduplicator().open(str(folder), "mail")
    assert {parts_known(memory, 1000 * process + number) for process in range(3) for number in range(40)} == {PARTS}
    assert memory.count() == 3 * 40 * PARTS
    memory.close()


def test_kill_9_keeps_what_was_told_and_no_half_of_a_call(folder: Path, seed: int) -> None:
    chance = random.Random(seed)
    for life in range(8):
        writer = start_writer(folder, 100_000 * life, 100_000)
        assert writer.stdout is not None
        told = [writer.stdout.readline() for _ in range(chance.randint(2, 40))]
        time.sleep(chance.uniform(0, 0.004))
        writer.kill()
        told += writer.stdout.readlines()
        assert writer.wait(30) == -signal.SIGKILL
        writer.stdout.close()
        numbers = [int(line) for line in told if line.endswith("\n") and line != "open\n"]
        memory = fastlog.Deduplicator().open(str(folder), "mail")
        assert {parts_known(memory, number) for number in numbers} <= {PARTS}
        after = 100_000 * life + len(numbers)
        assert {parts_known(memory, number) for number in range(after, after + 3)} <= {0, PARTS}
        memory.close()


def test_a_call_that_fails_half_way_leaves_nothing(memory: Memory) -> None:
    with pytest.raises(TypeError):
        memory.remember([b"good", "no bytes"], NOW)  # type: ignore[list-item]
    with pytest.raises(OverflowError):
        memory.remember(ids(1), 2**70)
    assert memory.count() == 0
    memory.remember(ids(1), NOW)
    assert memory.known(ids(1)) == set(ids(1))


def test_a_busy_file_is_waited_for_and_then_told(memory: Memory, monkeypatch: pytest.MonkeyPatch) -> None:
    other = sqlite3.connect(memory.path, isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    threading.Timer(0.2, lambda: other.execute("COMMIT")).start()
    memory.remember(ids(1), NOW)
    monkeypatch.setattr(module, "BUSY_SECONDS", 0.1)
    hurried = Memory(memory.path, "mail", DAY)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(fastlog.LockedError, match="kept busy by others"):
        hurried.remember(ids(2), NOW)
    assert hurried.known(ids(1, 2)) == set(ids(1))
    other.execute("COMMIT")
    hurried.remember(ids(2), NOW)
    hurried.close()
    other.close()


def test_a_forked_child_is_told_to_open_its_own(memory: Memory) -> None:
    child = os.fork()
    if not child:
        status = 1
        try:
            memory.known(ids(1))
        except fastlog.ForkedHandleError:
            status = 0
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0
    memory.remember(ids(1), NOW)


# --- files that are not right ----------------------------------------------------------------------------------------


def written(folder: Path, count: int = 3000) -> Path:
    memory = fastlog.Deduplicator().open(str(folder), "mail")
    memory.remember(ids(*range(count)), NOW)
    memory.close()
    return folder / "deduplication" / "mail.sqlite"


def test_a_file_that_is_none_is_told(folder: Path) -> None:
    path = written(folder)
    path.write_bytes(b"not a database at all, and long enough to be looked at" * 100)
    with pytest.raises(
        fastlog.CorruptLogError, match=r"mail\.sqlite is damaged .*then events that come again run again"
    ):
        fastlog.Deduplicator().open(str(folder), "mail")
    assert path.read_bytes().startswith(b"not a database")


def test_damage_inside_is_told_when_it_is_met(folder: Path) -> None:
    path = written(folder)
    content = bytearray(path.read_bytes())
    content[4096:] = b"\xa5" * (len(content) - 4096)
    path.write_bytes(content)
    with pytest.raises(fastlog.CorruptLogError, match="is damaged") as caught:
        memory = fastlog.Deduplicator().open(str(folder), "mail")
        try:
            memory.known(ids(*range(3000)))
        finally:
            memory.close()
    assert caught.value.path == str(path)


def test_damage_that_is_no_text_is_told_too(folder: Path) -> None:
    """SQLite quotes the name of the table that it finds damaged, as it finds it."""
    path = written(folder)
    content = path.read_bytes()
    at = content.index(b"CREATE TABLE finished") - len(b"finished")
    for offset in range(at - 40, at + 8):
        for bit in (0x80, 0xE9):
            path.write_bytes(content[:offset] + bytes([content[offset] ^ bit]) + content[offset + 1 :])
            with contextlib.suppress(fastlog.Error):
                fastlog.Deduplicator().open(str(folder), "mail").close()


def test_any_damage_is_an_error_of_ours_or_harmless(folder: Path, seed: int) -> None:
    chance = random.Random(seed)
    path = written(folder, 300)
    whole = path.read_bytes()
    for _ in range(150):
        content = bytearray(whole[: chance.choice((len(whole), chance.randrange(len(whole))))])
        for _ in range(chance.randint(0, 3)):
            if content:
                content[chance.randrange(min(len(content), chance.choice((100, len(content)))))] = chance.randrange(256)
        path.write_bytes(content)
        try:
            memory = fastlog.Deduplicator().open(str(folder), "mail")
            try:
                assert memory.known(ids(*range(300))) <= set(ids(*range(300)))
                memory.remember(ids(7, 1000), NOW)
            finally:
                memory.close()
        except fastlog.Error:
            pass
        for beside in path.parent.glob("mail.sqlite-*"):
            beside.unlink()


def test_a_newer_file_is_left_alone(folder: Path) -> None:
    path = written(folder)
    other = sqlite3.connect(path)
    other.execute("PRAGMA user_version = 2")
    other.commit()
    other.close()
    before = path.read_bytes()
    with pytest.raises(fastlog.UnsupportedFormatError, match="has format 2, this fastlog reads up to 1"):
        fastlog.Deduplicator().open(str(folder), "mail")
    assert path.read_bytes() == before


def test_a_file_of_another_program_is_left_alone(folder: Path) -> None:
    path = folder / "other.sqlite"
    other = sqlite3.connect(path)
    other.execute("CREATE TABLE users (name TEXT)")
    other.commit()
    other.close()
    before = path.read_bytes()
    with pytest.raises(fastlog.UnsupportedFormatError, match="SQLite file of another program"):
        fastlog.Deduplicator(path=path).open(str(folder), "mail")
    assert path.read_bytes() == before


def test_an_empty_file_becomes_ours(folder: Path) -> None:
    path = folder / "made.sqlite"
    path.touch()
    memory = fastlog.Deduplicator(path=path).open(str(folder), "mail")
    memory.remember(ids(1), NOW)
    memory.close()


def test_a_folder_that_cannot_be_written_is_told(folder: Path) -> None:
    with pytest.raises(fastlog.StorageError, match=r"name another file by Deduplicator\(path=\.\.\.\)"):
        fastlog.Deduplicator(path="/proc/self/ids.sqlite").open(str(folder), "mail")
    with pytest.raises(fastlog.StorageError, match="Check that the folder exists"):
        fastlog.Deduplicator(path=folder / "missing" / "ids.sqlite").open(str(folder), "mail")
    with pytest.raises(fastlog.StorageError, match="deduplication") as caught:
        fastlog.Deduplicator().open("/proc/self", "mail")
    assert caught.value.errno in (errno.ENOENT, errno.EACCES, errno.EPERM)


READ_ONLY = """
import os, sys
import fastlog
from fastlog.delivery.deduplicator import Deduplicator

if os.geteuid() == 0:
    os.setgroups([]); os.setgid(65534); os.setuid(65534)
try:
    memory = Deduplicator(path=sys.argv[1]).open("/", "mail")
    memory.remember([b"1"], 1)
except fastlog.StorageError as error:
    print(error)
"""


def test_a_read_only_folder_and_file_are_told(folder: Path) -> None:
    """By a user without rights, also where the tests are run by root."""
    path = written(folder)
    folder.chmod(0o755)
    path.parent.chmod(0o555)
    path.chmod(0o444)
    try:
        for target in (path, path.with_name("new.sqlite")):
            result = subprocess.run(
                [sys.executable, "-c", READ_ONLY, str(target)], capture_output=True, text=True, timeout=60, check=False
            )
            assert "written, or name another file" in result.stdout, result.stderr
    finally:
        path.parent.chmod(0o755)


def test_a_full_disk_marks_nothing(memory: Memory) -> None:
    memory.remember(ids(1), NOW)
    pages = memory._connection.execute("PRAGMA page_count").fetchone()[0]
    memory._connection.execute(f"PRAGMA max_page_count = {pages + 2}")
    with pytest.raises(fastlog.StorageFullError, match="no space is left"):
        memory.remember(ids(*range(2, 5000)), NOW)
    assert memory.known(ids(*range(5000))) == set(ids(1))
    memory._connection.execute("PRAGMA max_page_count = 100000")
    memory.remember(ids(*range(2, 5000)), NOW)
    assert memory.count() == 4999
