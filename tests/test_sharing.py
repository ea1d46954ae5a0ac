"""Several processes and handles on one log, one situation per test: who gets in, who waits, who is told what.

Each process is a puppet (``tests/histories/puppet.py``) that does one thing after another as the test says. Nothing
here depends on how fast the machine is: what has to be quick is measured several times, and the median counts.
"""

from __future__ import annotations

import errno
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import fastlog
from fastlog._core import mark_deleted
from fastlog._native import oscalls
from tests.conftest import UNDER_CI
from tests.histories.driver import SLOWNESS
from tests.histories.nursery import ROOT, Nursery
from tests.histories.puppet import Puppet, open_small

LINUX = sys.platform == "linux"
CONTROL = ".fastlog-control"
NFS = 0x6969

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module")
def native() -> Iterator[Nursery]:
    with Nursery() as server:
        yield server


@pytest.fixture(scope="module")
def portable_server() -> Iterator[Nursery]:
    with Nursery(environment={"FASTLOG_PORTABLE": "1"}) as server:
        yield server


@pytest.fixture
def puppets(native: Nursery) -> Iterator[Callable[..., Puppet]]:
    """Makes puppets, and ends them when the test is over."""
    with_all: list[Puppet] = []

    def make(name: str = "", nursery: Nursery = native) -> Puppet:
        puppet = Puppet(nursery, name or f"puppet {len(with_all)}")
        with_all.append(puppet)
        return puppet

    yield make
    for puppet in with_all:
        puppet.signal(signal.SIGCONT)
        puppet.kill()


@pytest.fixture
def path(folder: Path) -> str:
    return str(folder / "events-0")


# Tests that name this fixture are the subset that runs on the portable path too: polling instead of futexes.
@pytest.fixture(params=["native", "portable"])
def either(request: pytest.FixtureRequest, puppets: Callable[..., Puppet]) -> Callable[..., Puppet]:
    if request.param == "native":
        return puppets
    server: Nursery = request.getfixturevalue("portable_server")
    return lambda name="": puppets(name, server)


def opened(puppet: Puppet, path: str, **options: Any) -> Puppet:
    puppet.do("log = open_log(path, **options)", path=path, options={"durability": "os", **options})
    return puppet


def values(path: str) -> list[bytes]:
    """Everything in the log, which verifies."""
    with fastlog.PartitionLog.open(path, durability="os") as log:
        assert log.verify().ok
        return [bytes(record.value) for record in log.records()]


def median_seconds(times: list[float]) -> float:
    return statistics.median(times) / SLOWNESS


# --- handles and processes ------------------------------------------------------------------------------------------


def test_two_handles_of_one_process(path: str) -> None:
    with open_small(path, durability="os") as one, open_small(path, durability="group") as two:
        assert one.append([b"1"]) == 0
        assert two.end_offset == 1
        assert two.append([b"2", b"3"]) == 1
        assert one.append([b"4"]) == 3
        assert [bytes(r.value) for r in one.records()] == [bytes(r.value) for r in two.records()]
        one.close()
        assert two.append([b"5"]) == 4
    assert values(path) == [b"1", b"2", b"3", b"4", b"5"]


def test_two_handles_and_threads_of_one_process(path: str) -> None:
    """The mutex and the file lock together: threads of two handles never write over each other."""
    with open_small(path, durability="os") as one, open_small(path, durability="os") as two:

        def work(log: Any, name: bytes) -> None:
            for number in range(200):
                log.append([b"%s %d" % (name, number)])

        threads = [threading.Thread(target=work, args=(log, b"%d" % n)) for n, log in enumerate([one, two, one, two])]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    found = values(path)
    for n in range(4):
        assert [v for v in found if v.startswith(b"%d " % n)] == [b"%d %d" % (n, i) for i in range(200)]
    assert len(found) == 800


def test_processes_see_each_other(either: Callable[..., Puppet], path: str) -> None:
    one, two, reader = opened(either(), path), opened(either(), path), either()
    opened(reader, path, read_only=True)
    for number in range(0, 300, 3):
        assert one.get("log.append([b'a', b'b'])") == number
        assert two.get("log.end_offset") == number + 2
        assert two.get("log.append([b'c' * 500])") == number + 2
        assert one.get("log.end_offset") == number + 3
        if number % 30 == 0:
            assert reader.get("log.end_offset") == number + 3
            assert reader.get("[bytes(r.value) for r in log.records()]") == [b"a", b"b", b"c" * 500] * (number // 3 + 1)
    assert len(one.get("[s.base_offset for s in log.segments()]")) > 1
    assert one.get("[s.base_offset for s in log.segments()]") == reader.get("[s.base_offset for s in log.segments()]")
    for puppet in (one, two, reader):
        puppet.do("log.close()")
    assert values(path) == [b"a", b"b", b"c" * 500] * 100


def test_a_read_only_handle_alone_attaches_when_a_writer_comes(either: Callable[..., Puppet], path: str) -> None:
    with open_small(path, durability="os") as log:
        log.append([b"old"])
    reader, writer = either(), either()
    opened(reader, path, read_only=True)
    assert reader.get("log.end_offset") == 1
    opened(writer, path)  # nobody is in its way
    writer.do("log.append([b'new'])")
    reader.begin("log.wait(1, timeout=20)", expression=True)
    assert reader.result() is True
    assert reader.get("[bytes(r.value) for r in log.records()]") == [b"old", b"new"]
    writer.do("log.append([b'newer'])")
    assert reader.get("log.wait(2, timeout=20)") is True
    writer.do("log.close()")
    assert reader.get("[bytes(r.value) for r in log.records()]") == [b"old", b"new", b"newer"]
    opened(writer, path)
    writer.do("log.append([b'newest'])")
    assert reader.get("log.wait(3, timeout=20)") is True
    reader.do("log.close()")


def test_a_read_only_handle_alone_writes_nothing(puppets: Callable[..., Puppet], path: str) -> None:
    writer = opened(puppets(), path)
    writer.do("log.append([b'x'])")
    writer.kill()
    before = {p.name: p.read_bytes() for p in Path(path).iterdir()}
    with open_small(path, read_only=True, durability="os") as log:
        assert log.end_offset == 1
        assert [bytes(r.value) for r in log.records()] == [b"x"]
    assert {p.name: p.read_bytes() for p in Path(path).iterdir()} == before


def test_exclusive_keeps_others_out(either: Callable[..., Puppet], path: str) -> None:
    owner = opened(either("owner"), path, exclusive=True)
    assert owner.get("log.append([b'x'])") == 0
    for options in ({}, {"exclusive": True}, {"read_only": True}):
        other = either()
        with pytest.raises(fastlog.LockedError, match=str(owner.pid)) as caught:
            opened(other, path, config={"lock_timeout": 0.2}, **options)
        assert caught.value.pid == owner.pid
        assert other.took < 10 * SLOWNESS
    assert owner.get("log.append([b'y'])") == 1
    owner.kill()
    opened(other, path)
    assert other.get("log.end_offset") == 2


def test_exclusive_waits_for_others(either: Callable[..., Puppet], path: str) -> None:
    shared, wants = opened(either("shared"), path), either("wants it alone")
    with pytest.raises(fastlog.LockedError):
        opened(wants, path, exclusive=True, config={"lock_timeout": 0.2})
    wants.begin("log = open_log(path, exclusive=True, durability='os', config={'lock_timeout': 20})", path=path)
    shared.do("log.close()")
    wants.result()
    assert wants.get("log.append([b'x'])") == 0


def test_handles_with_other_layouts_are_refused(puppets: Callable[..., Puppet], path: str) -> None:
    opened(puppets(), path)
    with pytest.raises(fastlog.ConfigError, match="segment_bytes"):
        opened(puppets(), path, config={"segment_bytes": 48_000})


def test_a_reader_that_looked_during_an_append(either: Callable[..., Puppet], path: str) -> None:
    """What the file was long when a reader first saw it means nothing later: not published, cut, and written anew."""
    dead, reader, writer = opened(either("dead"), path), either("reader"), either("writer")
    dead.do("log.append([b'1'])")
    dead.do("oscalls.arm('append.written', 'stop')")
    dead.begin("log.append([b'x' * 3000])", expression=True)
    dead.child.wait_until_stopped()
    opened(reader, path, read_only=True)
    assert reader.get("log.read(0).next_offset") == 1
    opened(writer, path)
    dead.kill()
    written = [b"1", *[b"%d" % n * 300 for n in range(100)]]
    for value in written[1:]:
        writer.do("log.append([value])", value=value)
    assert writer.get("len(log.segments())") > 1
    # goes on where it was
    reader.do(
        "found, at = [], 1\n"
        "while at < log.end_offset:\n"
        "    batch = log.read(at)\n"
        "    found, at = [*found, *batch], batch.next_offset"
    )
    assert reader.get("[bytes(r.value) for r in found]") == written[1:]


def test_reading_while_others_delete(puppets: Callable[..., Puppet], path: str) -> None:
    """What is gone when it is looked for is out of range, and no damage."""
    writer, reader = opened(puppets(), path), puppets()
    opened(reader, path, read_only=True)
    reader.do(
        "seen = []\n"
        "def follow():\n"
        "    while log.end_offset < 3000:\n"
        "        try:\n"
        "            seen.append(len(log.read(log.start_offset)))\n"
        "        except fastlog.OffsetOutOfRangeError:\n"
        "            pass\n"
    )
    reader.begin("follow()")
    writer.do(
        "while log.end_offset < 3000:\n"
        "    log.append([b'x' * 3000] * 5)\n"
        "    log.delete_records(before=max(0, log.end_offset - 10))\n",
        timeout=100,
    )
    reader.result()
    assert reader.get("len(seen)") > 0


STORM = """
import os, random, time
from collections import Counter
def pages():
    with open("/proc/self/maps") as maps:
        return Counter(line.split()[4] for line in maps if ".fastlog-control" in line)
def storm(seed, notes, seconds):
    chance = random.Random(seed)
    fd = os.open(notes, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        before = pages()  # a thread that ends may still hold the one of an older handle
        log = open_log(path, durability="os", read_only=chance.random() < 0.2)
        begun = time.monotonic_ns()
        mine = next(iter(pages() - before), None)
        if mine is not None:
            os.write(fd, f"open {mine} {begun}\\n".encode())
        if not log.read_only and chance.random() < 0.5:
            base = log.append([b"%d" % seed] * chance.randint(1, 5))
            os.write(fd, f"ack {base}\\n".encode())
        time.sleep(chance.random() * 0.003)
        if mine is not None:
            os.write(fd, f"close {time.monotonic_ns()}\\n".encode())
        log.close()
        del log  # and the page with it
"""


@pytest.mark.slow
@pytest.mark.skipif(not LINUX, reason="/proc/self/maps tells which page a handle has")
def test_a_storm_of_openings_and_closings(puppets: Callable[..., Puppet], folder: Path, path: str, seed: int) -> None:
    """Eight processes open and close at random and are killed in it: at no moment are there two instances."""
    chance = random.Random(seed)
    open_small(path).close()
    crowd: list[Puppet] = []
    number = 0

    def one_more() -> Puppet:
        nonlocal number
        number += 1
        puppet = puppets(f"stormy {number}")
        puppet.do(STORM, path=path)
        puppet.begin("storm(seed, notes, 60)", seed=seed + number, notes=str(folder / f"notes-{number}"))
        return puppet

    crowd = [one_more() for _ in range(8)]
    for _ in range(40):
        time.sleep(0.03 * chance.random())
        at = chance.randrange(8)
        crowd[at].kill()
        crowd[at] = one_more()
    for puppet in crowd:
        assert puppet.pending(), puppet.result()
        puppet.kill()
    spans: list[tuple[int, int, str]] = []  # from, until at least, inode of the page
    acked = set[int]()
    for notes in folder.glob("notes-*"):
        current: tuple[str, int] | None = None
        for line in notes.read_text().split("\n")[:-1]:
            word, *rest = line.split()
            if word == "open":
                current = (rest[0], int(rest[1]))
            elif word == "close" and current is not None:
                spans.append((current[1], int(rest[0]), current[0]))
            elif word == "ack":
                assert int(rest[0]) not in acked
                acked.add(int(rest[0]))
    assert len(spans) > 50
    spans.sort()
    latest: tuple[int, int, str] | None = None
    for span in spans:
        if latest is not None and span[0] < latest[1]:
            assert span[2] == latest[2], f"two instances at a time: {latest} and {span}"
        if latest is None or span[1] > latest[1]:
            latest = span
    assert len(values(path)) >= len(acked)


# --- the control file -----------------------------------------------------------------------------------------------


def damage_random(data: bytes, chance: random.Random) -> bytes:
    return chance.randbytes(len(data))


def damage_version(data: bytes, chance: random.Random) -> bytes:
    """Another version of the layout: the word that follows the magic."""
    return data[:8] + bytes([data[8] ^ 0x7F]) + data[9:]


def damage_cut(data: bytes, chance: random.Random) -> bytes:
    return data[: chance.choice([0, 1, 8, 64, len(data) // 2, len(data) - 1])]


def damage_zeros(data: bytes, chance: random.Random) -> bytes:
    return bytes(len(data))


DAMAGES = [damage_random, damage_version, damage_cut, damage_zeros]


def replace(file: Path, data: bytes) -> None:
    """As an editor or a copy does it: those who have the old file keep it."""
    other = file.with_suffix(".other")
    other.write_bytes(data)
    other.rename(file)


def test_a_deleted_control_file_in_use(either: Callable[..., Puppet], path: str) -> None:
    one, two, late = opened(either(), path), opened(either(), path), either("late")
    one.do("log.append([b'1'])")
    (Path(path) / CONTROL).unlink()
    with pytest.raises(fastlog.LockedError):
        opened(late, path, config={"lock_timeout": 0.3})
    assert two.get("log.append([b'2'])") == 1
    assert one.get("log.append([b'3'])") == 2
    with pytest.raises(fastlog.LockedError):
        opened(late, path, config={"lock_timeout": 0.3})
    one.do("log.close()")
    two.do("log.close()")
    opened(late, path)
    assert late.get("log.append([b'4'])") == 3
    late.do("log.close()")
    assert values(path) == [b"1", b"2", b"3", b"4"]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_foreign_control_file_in_use(
    puppets: Callable[..., Puppet], path: str, seed: int, damage: Callable[[bytes, random.Random], bytes]
) -> None:
    one, late = opened(puppets(), path), puppets("late")
    one.do("log.append([b'1'])")
    control = Path(path) / CONTROL
    replace(control, damage(control.read_bytes(), random.Random(seed)))
    with pytest.raises(fastlog.LockedError):
        opened(late, path, config={"lock_timeout": 0.3})
    assert one.get("log.append([b'2'])") == 1
    one.do("log.close()")
    opened(late, path)
    assert late.get("log.append([b'3'])") == 2
    late.do("log.close()")
    assert values(path) == [b"1", b"2", b"3"]


def test_an_intact_copy_of_the_control_file_in_use(puppets: Callable[..., Puppet], path: str) -> None:
    """The same bytes in another file: nobody is attached to that one, so it is not the page of this log."""
    one, late = opened(puppets(), path), puppets("late")
    one.do("log.append([b'1'])")
    control = Path(path) / CONTROL
    replace(control, control.read_bytes())
    with pytest.raises(fastlog.LockedError):
        opened(late, path, config={"lock_timeout": 0.3})
    assert one.get("log.append([b'2'])") == 1
    one.do("log.close()")
    assert values(path) == [b"1", b"2"]


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("died", [True, False], ids=["died", "closed"])
def test_a_damaged_control_file_of_nobody(
    puppets: Callable[..., Puppet], path: str, seed: int, damage: Callable[[bytes, random.Random], bytes], died: bool
) -> None:
    one = opened(puppets(), path)
    one.do("log.append([b'1'])")
    control = Path(path) / CONTROL
    page = control.read_bytes()
    if died:
        one.kill()
    else:
        one.do("log.close()")
    control.write_bytes(damage(page, random.Random(seed)))
    two, three = opened(puppets(), path), puppets()
    opened(three, path)
    assert two.get("log.append([b'2'])") == 1
    assert three.get("log.end_offset") == 2
    two.do("log.close()")
    three.do("log.close()")
    assert values(path) == [b"1", b"2"]


def stale_page(puppets: Callable[..., Puppet], path: str) -> list[bytes]:
    """A folder as power loss may leave it: the page is there with its old ends, the last appends are not."""
    one = opened(puppets(), path)
    kept = [b"kept %d" % n for n in range(5)]
    one.do("log.append(kept)", kept=kept)
    one.do("log.flush()")
    segment = Path(one.get("log.segments()[-1].path"))
    end = max(batch.position + batch.size for batch in fastlog.scan_segment(segment))
    one.do("log.append([b'lost'] * 50)")
    page = (Path(path) / CONTROL).read_bytes()
    one.kill()
    with segment.open("r+b") as file:
        file.truncate(end)
    (Path(path) / CONTROL).write_bytes(page)
    return kept


def test_a_page_that_survived_while_the_data_did_not(puppets: Callable[..., Puppet], path: str) -> None:
    kept = stale_page(puppets, path)
    two = opened(puppets(), path)
    assert two.get("log.end_offset") == 5
    assert two.get("[bytes(r.value) for r in log.records()]") == kept
    assert two.get("log.append([b'new'])") == 5
    two.do("log.close()")
    assert values(path) == [*kept, b"new"]


def test_a_stale_page_is_not_believed_by_readers(puppets: Callable[..., Puppet], path: str) -> None:
    kept = stale_page(puppets, path)
    reader = opened(puppets(), path, read_only=True)
    assert reader.get("log.end_offset") == 5
    assert reader.get("[bytes(r.value) for r in log.records()]") == kept


@pytest.mark.parametrize("step", ["open.exclusive", "open.page_unlinked", "open.recovered", "open.page_written"])
@pytest.mark.parametrize("late_options", [{}, {"read_only": True}], ids=["writer", "reader"])
def test_a_stale_page_while_somebody_dies_in_recovery(
    puppets: Callable[..., Puppet], path: str, step: str, late_options: dict[str, Any]
) -> None:
    """One holds the folder and stops; a second one waits for it; the first one dies. The page is still nobody's."""
    kept = stale_page(puppets, path)
    first, second = puppets("first"), puppets("second")
    first.do("oscalls.arm(step, 'stop')", step=step)
    first.begin("log = open_log(path, durability='os')", path=path)
    first.child.wait_until_stopped()
    options = {"durability": "os", **late_options}
    second.begin("log = open_log(path, **options)", path=path, options=options)
    time.sleep(0.05)  # so that it may have come to where it waits
    first.kill()
    second.result()
    assert second.get("log.end_offset") == 5
    assert second.get("[bytes(r.value) for r in log.records()]") == kept
    if not late_options:
        assert second.get("log.append([b'new'])") == 5
    second.do("log.close()")
    assert values(path)[:5] == kept


def test_an_opener_in_recovery_that_is_frozen_names_itself(puppets: Callable[..., Puppet], path: str) -> None:
    open_small(path).close()
    frozen, late = puppets("frozen"), puppets("late")
    frozen.do("oscalls.arm('open.exclusive', 'stop')")
    frozen.begin("log = open_log(path, durability='os')", path=path)
    frozen.child.wait_until_stopped()
    with pytest.raises(fastlog.LockedError):
        opened(late, path, config={"lock_timeout": 0.3})
    assert late.took < 10 * SLOWNESS
    frozen.signal(signal.SIGCONT)
    frozen.result()
    opened(late, path)
    assert late.get("log.append([b'x'])") == 0
    assert frozen.get("log.end_offset") == 1


# --- segments that are swapped ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "late_step", ["compaction.indexes_unlinked", "compaction.moved", "compaction.sources_unlinked"]
)
def test_who_looked_before_the_files_moved_looks_again(
    puppets: Callable[..., Puppet], path: str, late_step: str
) -> None:
    """Files move while one generation lasts: a list made at its beginning is no damage later."""
    dead, heir, reader = puppets("dead"), puppets("heir"), puppets("reader")
    config = {"cleanup_policy": "compact", "min_cleanable_dirty_ratio": 0.01}
    opened(dead, path, config=config)
    dead.do("for i in range(40): log.append([b'%04d' % i * 500], keys=[b'k%d' % (i % 3)])")
    opened(heir, path, config=config)
    opened(reader, path, read_only=True)
    values_of = "[(r.offset, bytes(r.value)) for r in log.records()]"
    everything = reader.get(values_of)
    assert len(everything) == 40
    dead.do("oscalls.arm('compaction.odd', 'kill')")
    dead.begin("log.maintain()")
    dead.child.wait()
    seen = reader.get("(len(log.segments()), log.offset_for_time(0), log.read(39).next_offset)")
    heir.do("oscalls.arm(step, 'stop')", step=late_step)
    heir.begin("log.append([b'last'], keys=[b'k'])", expression=True)
    heir.child.wait_until_stopped()
    assert reader.get("log.read(39).next_offset") == 40
    assert reader.get("len(log.segments())") <= seen[0]
    assert reader.get("log.offset_for_time(0)") is not None
    assert reader.get("log.verify().damages") == ()
    left = reader.get(values_of)
    assert set(left) <= set(everything)
    assert left[-3:] == everything[-3:]
    heir.signal(signal.SIGCONT)
    assert heir.result() == 40
    assert reader.get(values_of)[-1] == (40, b"last")
    assert reader.get("log.verify().ok")


# --- locks ----------------------------------------------------------------------------------------------------------


def test_a_frozen_owner_of_the_lock_is_named(either: Callable[..., Puppet], path: str) -> None:
    frozen, other, reader = opened(either("frozen"), path), either("other"), either("reader")
    opened(other, path, config={"lock_timeout": 0.3})
    opened(reader, path, read_only=True)
    frozen.do("log.append([b'1'])")
    frozen.do("oscalls.arm('append.written', 'stop')")
    frozen.begin("log.append([b'2'])", expression=True)
    frozen.child.wait_until_stopped()
    with pytest.raises(fastlog.LockedError, match=str(frozen.pid)) as caught:
        other.get("log.append([b'3'])")
    assert caught.value.pid == frozen.pid
    assert 0.25 < other.took < 10 * SLOWNESS
    assert reader.get("[bytes(r.value) for r in log.records()]") == [b"1"]
    assert other.get("[bytes(r.value) for r in log.records()]") == [b"1"]
    frozen.signal(signal.SIGCONT)
    assert frozen.result() == 1
    assert other.get("log.append([b'4'])") == 2
    for puppet in (frozen, other, reader):
        puppet.do("log.close()")
    assert values(path) == [b"1", b"2", b"4"]


@pytest.mark.parametrize("step", ["append.locked", "append.batch_written", "append.published", "roll.created"])
def test_the_dead_owner_of_the_lock_is_followed_at_once(either: Callable[..., Puppet], path: str, step: str) -> None:
    """A waiting writer has the lock as soon as its owner is dead."""
    other, times = opened(either("other"), path), []
    for _ in range(5):
        owner = opened(either("owner"), path)
        owner.do("oscalls.arm(step, 'stop')", step=step)
        owner.begin("while True: log.append([b'x' * 1000] * 8)")
        owner.child.wait_until_stopped()
        other.begin("log.append([b'mine'])", expression=True)
        time.sleep(0.03)  # it waits; sooner or later makes no difference
        assert other.pending()
        owner.kill()
        died = time.monotonic()
        other.result()
        times.append(other.ended - died)
    assert median_seconds(times) < 1.0
    found = other.get("[bytes(r.value) for r in log.records()]")
    assert found.count(b"mine") == 5
    other.do("log.close()")
    assert values(path) == found


def test_a_takeover_leaves_nothing_of_the_dead(either: Callable[..., Puppet], path: str) -> None:
    """Not in the file either: what is written next may be as long as a part of it, and then all die."""
    dead, survivor = opened(either("dead"), path), opened(either("survivor"), path)
    dead.do("oscalls.arm('append.written', 'kill')")
    dead.begin("log.append([b'dead' * 700] * 3)", expression=True)  # a batch for each
    dead.wait_until_gone()
    assert survivor.get("log.append([b'mine' * 700])") == 0
    survivor.kill()
    assert values(path) == [b"mine" * 700]


def test_compare_and_append(either: Callable[..., Puppet], path: str) -> None:
    """A counter of four processes, each of which reads the last value and appends the next one if nobody else did."""
    count = """
def count(times):
    fenced = 0
    for _ in range(times):
        while True:
            end = log.end_offset
            last = int(bytes(log.get(end - 1).value)) if end else 0
            try:
                assert log.append([b"%d" % (last + 1)], expected_end_offset=end) == end
                break
            except fastlog.FencedError:
                fenced += 1
    return fenced
"""
    crowd = [opened(either(), path) for _ in range(4)]
    for puppet in crowd:
        puppet.do(count)
    for puppet in crowd:
        puppet.begin("count(100)", expression=True)
    for puppet in crowd:
        puppet.result(60)
        puppet.do("log.close()")
    assert values(path) == [b"%d" % (n + 1) for n in range(400)]


def test_a_fenced_append_writes_nothing(either: Callable[..., Puppet], path: str) -> None:
    one, two = opened(either(), path), opened(either(), path)
    assert one.get("log.append([b'1'], expected_end_offset=0)") == 0
    for wrong in (0, 2, 1 << 40):
        with pytest.raises(fastlog.FencedError):
            two.get("log.append([b'2'], expected_end_offset=wrong)", wrong=wrong)
    assert one.get("log.end_offset") == 1
    assert two.get("log.append([b'2'], expected_end_offset=1)") == 1


# --- waiting --------------------------------------------------------------------------------------------------------


def test_wait_wakes(either: Callable[..., Puppet], path: str) -> None:
    writer, reader = opened(either(), path), either()
    opened(reader, path, read_only=True)
    times = []
    for number in range(9):
        reader.begin("log.wait(number, timeout=30)", expression=True, number=number)
        time.sleep(0.02)  # so that it sleeps; a wake-up that was missed shows either way
        writer.do("log.append([b'x'])")
        assert reader.result() is True
        times.append(reader.ended - writer.ended)
    assert median_seconds(times) < 0.1
    assert reader.get("log.wait(0)") is True
    assert reader.get("log.wait(9, timeout=0.05)") is False
    assert 0.04 < reader.took < 10 * SLOWNESS


def test_wait_of_a_durable_reader(either: Callable[..., Puppet], path: str) -> None:
    """It wakes when what was appended is durable, and not before; it need not wait for the appender to sync."""
    writer, reader = opened(either(), path), either()
    opened(reader, path, read_only=True, durability="group")
    for number in range(3):
        reader.begin("(log.wait(number, timeout=30), log.durable_offset)", expression=True, number=number)
        writer.do("log.append([b'x'])")
        writer.do("log.flush()")
        woke, durable = reader.result()
        assert woke is True
        assert durable >= number + 1


@pytest.mark.parametrize("step", ["append.published", "append.unlocked"])
def test_a_bell_that_was_never_rung(either: Callable[..., Puppet], path: str, step: str) -> None:
    """The writer dies between publishing and ringing: whoever waits finds it out by itself, soon."""
    keeper, reader, times = opened(either("keeper"), path), either("reader"), []
    opened(reader, path, read_only=True)
    for number in range(5):
        writer = opened(either("writer"), path)
        reader.begin("log.wait(number, timeout=30)", expression=True, number=number)
        writer.do("oscalls.arm(step, 'kill')", step=step)
        begun = time.monotonic()
        writer.begin("log.append([b'x'])", expression=True)
        writer.wait_until_gone()
        assert reader.result() is True
        times.append(reader.ended - begun)
    assert median_seconds(times) < 0.1 + 0.05
    assert keeper.get("log.append([b'last'])") == 5


def test_ctrl_c_wakes_a_wait(either: Callable[..., Puppet], path: str) -> None:
    reader, times = opened(either(), path), []
    for _ in range(5):
        reader.begin("log.wait(0, timeout=60)", expression=True)
        time.sleep(0.05)
        assert reader.pending()
        sent = time.monotonic()
        reader.signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            reader.result()
        times.append(reader.ended - sent)
    assert median_seconds(times) < 0.15
    assert reader.get("log.append([b'x'])") == 0


def test_ctrl_c_wakes_who_waits_for_the_lock(either: Callable[..., Puppet], path: str) -> None:
    frozen, other = opened(either("frozen"), path), opened(either("other"), path)
    frozen.do("oscalls.arm('append.locked', 'stop')")
    frozen.begin("log.append([b'1'])", expression=True)
    frozen.child.wait_until_stopped()
    other.begin("log.append([b'2'])", expression=True)
    time.sleep(0.05)
    assert other.pending()
    sent = time.monotonic()
    other.signal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        other.result()
    assert other.ended - sent < 5 * SLOWNESS
    frozen.signal(signal.SIGCONT)
    assert frozen.result() == 0
    assert other.get("log.append([b'3'])") == 1


# --- durability -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", ["group", "batch"])
def test_a_failed_sync_poisons_the_log_for_all(either: Callable[..., Puppet], path: str, level: str) -> None:
    one, two, reader, lazy = either("one"), either("two"), either("reader"), opened(either("lazy"), path)
    opened(one, path, durability=level)
    opened(two, path, durability=level)
    opened(reader, path, read_only=True, durability="os")
    one.do("log.append([b'durable'])")
    one.do("oscalls.inject('fdatasync', errno=5)")
    with pytest.raises(fastlog.StorageError) as caught:
        one.get("log.append([b'lost'])")
    assert caught.value.errno == errno.EIO
    for puppet in (two, lazy, one):
        with pytest.raises(fastlog.StorageError):
            puppet.get("log.append([b'more'])")
        with pytest.raises(fastlog.StorageError):
            puppet.do("log.flush()")
    for puppet in (reader, two, lazy, one):
        assert puppet.get("log.readable_offset") == 1
        assert puppet.get("[bytes(r.value) for r in log.records()]") == [b"durable"]
        assert puppet.get("log.wait(1, timeout=0.05)") is False
    late = either("late")
    try:
        opened(late, path)
    except fastlog.StorageError:
        pass  # as good: it says that the log is poisoned
    else:
        with pytest.raises(fastlog.StorageError):
            late.get("log.append([b'more'])")
        late.do("log.close()")
    for puppet in (one, two, reader, lazy):
        try:
            puppet.do("log.close()")
        except fastlog.StorageError:
            pass
    again = opened(either("again"), path, durability=level)
    assert again.get("[bytes(r.value) for r in log.records()]")[0] == b"durable"
    end = again.get("log.end_offset")
    assert again.get("log.append([b'after'])") == end
    again.do("log.close()")
    assert values(path)[0] == b"durable"


def test_a_poisoned_log_is_healed_only_by_a_sole_opener(puppets: Callable[..., Puppet], path: str) -> None:
    """Also when all died: the marker on disk says that recovery must not trust what the cache holds."""
    one = opened(puppets(), path, durability="batch")
    one.do("log.append([b'durable'])")
    one.do("oscalls.inject('fdatasync', errno=5)")
    with pytest.raises(fastlog.StorageError):
        one.get("log.append([b'lost'])")
    assert (Path(path) / ".fastlog-poisoned").exists()
    one.kill()
    two = opened(puppets(), path, durability="batch")
    assert not (Path(path) / ".fastlog-poisoned").exists()
    assert two.get("bytes(log.get(0).value)") == b"durable"
    two.do("log.append([b'after'])")
    two.do("log.close()")
    assert values(path)[-1] == b"after"


UNTIL_DURABLE = """
until = time.monotonic() + 20
while log.durable_offset < end and time.monotonic() < until:
    time.sleep(0.01)
"""


@pytest.mark.parametrize("level", ["os", "interval", "batch", "group"])
def test_any_live_process_enforces_the_interval(either: Callable[..., Puppet], path: str, level: str) -> None:
    """The appender is killed; somebody else, who does nothing himself, syncs in its stead."""
    watch, writer = either("watch"), either("writer")
    config = {"flush_interval": 0.2}
    opened(watch, path, durability=level, config=config)
    opened(writer, path, durability="interval", config=config)
    writer.do("oscalls.arm('append.unlocked', 'kill', 3)")
    writer.begin("while True: log.append([b'x'])")
    writer.wait_until_gone()
    end = watch.get("log.end_offset")
    assert end == 3
    if level != "interval":
        return  # only a handle of this level has promised it; the others must not be harmed
    watch.do(UNTIL_DURABLE, end=3)
    assert watch.get("log.durable_offset") == 3
    assert watch.took < 2 * SLOWNESS


def test_the_interval_is_kept_by_the_appender(either: Callable[..., Puppet], path: str) -> None:
    writer = opened(either(), path, durability="interval", config={"flush_interval": 0.2})
    writer.do("log.append([b'x'])")
    writer.do(
        "until = time.monotonic() + 20\nwhile log.durable_offset < 1 and time.monotonic() < until: time.sleep(0.01)"
    )
    assert writer.get("log.durable_offset") == 1


def test_group_commit_shares_syncs(either: Callable[..., Puppet], path: str) -> None:
    """What was acknowledged is durable for all; and eight threads of two processes need fewer syncs than appends."""
    crowd = [opened(either(), path, durability="group") for _ in range(2)]
    work = """
def work():
    def run():
        for _ in range(25):
            base = log.append([b"x"])
            assert log.durable_offset > base
    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
    return oscalls.call_counts()["fdatasync"]
"""
    for puppet in crowd:
        puppet.do(work)
        puppet.begin("work()", expression=True)
    syncs = sum(puppet.result(60) for puppet in crowd)
    assert crowd[0].get("log.durable_offset") == 200
    print(f"{syncs} syncs for 200 appends")
    assert syncs <= 220
    for puppet in crowd:
        puppet.do("log.close()")
    assert values(path) == [b"x"] * 200


@pytest.mark.parametrize("call", ["flush", "append"])
def test_a_process_without_descriptors_harms_nobody_else(path: str, call: str) -> None:
    """What it cannot open it cannot sync, and says so; nothing is lost, so nobody else has to stop."""
    with open_small(path, durability="os") as one, open_small(path, durability="group") as two:
        two.append([b"first"])
        for number in range(60):
            one.append([b"%d" % number * 300])  # rolls, so that the other one has files to open
        oscalls.inject("open", errno=errno.EMFILE, sticky=True)
        with pytest.raises(fastlog.StorageError):
            two.flush() if call == "flush" else two.append([b"no"])
        oscalls.clear()
        end = one.append([b"more"])
        assert two.append([b"and more"]) == end + 1
        assert two.durable_offset == end + 2
    assert values(path)[-2:] == [b"more", b"and more"]


@pytest.mark.skipif(not LINUX, reason="looks into /proc")
@pytest.mark.parametrize("level", ["os", "group"])
def test_descriptors_do_not_grow_with_the_segments(puppets: Callable[..., Puppet], path: str, level: str) -> None:
    """Neither those of who appends, nor those of who follows."""
    writer, syncer, reader = opened(puppets(), path, durability=level), opened(puppets(), path), puppets()
    opened(reader, path, read_only=True, durability=level)
    for _ in range(60):
        writer.do("log.append([b'x' * 2000] * 6)")
        reader.do("log.read(log.readable_offset - 1)")
        syncer.do("log.flush()")
    assert writer.get("len(log.segments())") > 50
    count = (
        "sum('events-0' in os.readlink('/proc/self/fd/' + n) for n in os.listdir('/proc/self/fd')"
        " if os.path.lexists('/proc/self/fd/' + n))"
    )
    assert max(puppet.get(count) for puppet in (writer, syncer, reader)) < 20


# --- fork -----------------------------------------------------------------------------------------------------------

USES = {
    "append": "log.append([b'child'])",
    "read": "log.read(0)",
    "end_offset": "log.end_offset",
    "wait": "log.wait(1000, timeout=0.1)",
    "flush": "log.flush()",
    "close": "log.close()",
}

FORK = """
def child_does(action, uses):
    results = {}
    if action == "use":
        for name, source in uses.items():
            try:
                eval(source, globals())
                results[name] = "no error"
            except BaseException as error:
                results[name] = type(error).__name__
    elif action == "gc":
        import gc
        globals().pop("log", None)
        gc.collect()
    return results

def fork(action, uses, sleep_on=False):
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            import signal
            signal.alarm(60)  # never for ever, whatever happens
            os.write(writer, repr(child_does(action, uses)).encode())
            os.close(writer)
            if sleep_on:
                time.sleep(60)
        finally:
            os._exit(0)
    os.close(writer)
    data = b""
    while more := os.read(reader, 65536):
        data += more
    os.close(reader)
    if not sleep_on:
        assert os.waitpid(pid, 0)[1] == 0
    return eval(data)

stop = threading.Event()
def busy():
    value = bytes(1 << 20)
    while not stop.is_set():
        log.append([value] * 4)

def begin_busy():
    global thread
    thread = threading.Thread(target=busy)
    thread.start()
    while log.end_offset < 8:
        time.sleep(0.001)

def end_busy():
    stop.set()
    thread.join()
"""
BIG = {"segment_bytes": "256MiB", "max_message_bytes": "2MiB"}
FORKS_PER_TEST = 5


@pytest.mark.parametrize("action", ["use", "gc"])
@pytest.mark.parametrize("state", ["idle", "mid-write", "lock held"])
def test_I10_fork(puppets: Callable[..., Puppet], path: str, state: str, action: str) -> None:
    """A child that inherited a handle: its calls are refused, and its garbage collection harms nobody."""
    parent, other = puppets("parent"), puppets("other")
    options = {"durability": "os", "config": BIG, "exclusive": state == "lock held"}
    parent.do("log = open_log(path, **options)", path=path, options=options)
    parent.do(FORK)
    parent.do("log.append([b'x'])")
    if state != "lock held":
        other.do("log = open_log(path, **options)", path=path, options=options)
    if state == "mid-write":
        parent.do("begin_busy()")
    for _ in range(FORKS_PER_TEST):
        results = parent.get("fork(action, uses)", action=action, uses=USES, timeout=60)
        if action == "use":
            results.pop("close")  # may do nothing as well
            assert set(results.values()) == {"ForkedHandleError"}, results
        if state == "lock held":
            with pytest.raises(fastlog.LockedError):
                other.do("open_log(path, durability='os', config={'lock_timeout': 0.05, **big})", path=path, big=BIG)
        else:
            assert other.get("log.append([b'other'])") >= 1
    if state == "mid-write":
        parent.do("end_busy()")
    end = parent.get("log.append([b'still'])")
    assert parent.get("bytes(log.get(end).value)", end=end) == b"still"
    parent.do("log.close()")
    if state != "lock held":
        other.do("log.close()")
    with fastlog.PartitionLog.open(path, durability="os") as log:
        assert log.recovery is None
        assert log.verify().ok
        assert log.end_offset == end + 1


EXIT = """
import os, sys, threading, time
import fastlog
path, state = sys.argv[1:]
config = fastlog.LogConfig(segment_bytes="256MiB", max_message_bytes="2MiB")
log = fastlog.PartitionLog.open(path, durability="os", exclusive=state == "lock held", config=config)
log.append([b"x"])
stop = threading.Event()
def busy():
    value = bytes(1 << 20)
    while not stop.is_set():
        log.append([value] * 4)
if state == "mid-write":
    thread = threading.Thread(target=busy)
    thread.start()
    while log.end_offset < 8:
        time.sleep(0.001)
for _ in range(5):
    pid = os.fork()
    if pid == 0:
        sys.exit(7)  # with all the cleaning up that Python does
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
if state == "mid-write":
    stop.set()
    thread.join()
base = log.append([b"still"])
assert bytes(log.get(base).value) == b"still"
log.close()
"""


@pytest.mark.parametrize("state", ["idle", "mid-write", "lock held"])
def test_I10_a_forked_child_that_exits(path: str, state: str) -> None:
    """The interpreter of the child ends in the usual way, with the inherited handle in its hands."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    subprocess.run([sys.executable, "-c", EXIT, path, state], check=True, env=environment, timeout=60 * SLOWNESS)
    with fastlog.PartitionLog.open(path, durability="os") as log:
        assert log.recovery is None
        assert log.verify().ok
        assert bytes(log.get(log.end_offset - 1).value) == b"still"  # type: ignore[union-attr]


@pytest.mark.parametrize("state", ["idle", "mid-write", "lock held"])
def test_I10_no_lock_outlives_its_owner_in_a_child(puppets: Callable[..., Puppet], path: str, state: str) -> None:
    """The parent is killed, a forked child sleeps on: the folder is nobody's at once."""
    parent, other = puppets("parent"), puppets("other")
    options = {"durability": "os", "config": BIG, "exclusive": state == "lock held"}
    parent.do("log = open_log(path, **options)", path=path, options=options)
    parent.do(FORK)
    parent.do("log.append([b'x'])")
    if state == "mid-write":
        parent.do("begin_busy()")
    for _ in range(3):
        parent.get("fork('sleep', {}, sleep_on=True)")
    parent.kill()
    config = {**BIG, "lock_timeout": 2}
    other.do("log = open_log(path, durability='os', exclusive=True, config=config)", path=path, config=config)
    assert other.took < 1.5 * SLOWNESS
    assert other.get("bytes(log.get(0).value)") == b"x"
    assert other.get("log.verify().ok")


@pytest.mark.skipif(not LINUX, reason="looks into /proc")
def test_I10_a_child_has_no_descriptor_of_the_log(puppets: Callable[..., Puppet], path: str) -> None:
    parent = opened(puppets(), path)
    parent.do(FORK)
    parent.do("log.append([b'x']); log.flush(); log.read(0)")
    listing = (
        "[os.readlink('/proc/self/fd/' + n) for n in os.listdir('/proc/self/fd') "
        "if os.path.lexists('/proc/self/fd/' + n)]"
    )
    mine = parent.get(listing)
    assert any("events-0" in name for name in mine)
    parent.do(
        "reader, writer = os.pipe()\n"
        "if os.fork() == 0:\n"
        f"    os.write(writer, repr({listing}).encode())\n"
        "    os._exit(0)\n"
        "os.close(writer)\n"
        "data = b''\n"
        "while more := os.read(reader, 65536): data += more\n"
        "os.wait()\n"
    )
    assert not [name for name in parent.get("eval(data)") if "events-0" in name]


# --- where it runs --------------------------------------------------------------------------------------------------


def test_other_file_systems_only_exclusively(puppets: Callable[..., Puppet], path: str) -> None:
    """NFS and its like do not share memory between machines, nor locks reliably."""
    puppet = puppets()
    puppet.do("oscalls.fake_file_system(magic)", magic=NFS)
    with pytest.raises(fastlog.Error, match="exclusive=True") as caught:
        opened(puppet, path)
    assert isinstance(caught.value, (fastlog.NotSupportedError, fastlog.StorageError, fastlog.ConfigError))
    opened(puppet, path, exclusive=True)
    assert puppet.get("log.append([b'x'])") == 0
    assert puppet.get("[bytes(r.value) for r in log.records()]") == [b"x"]
    puppet.do("log.close()")
    assert values(path) == [b"x"]


def namespaces_refused() -> str | None:
    """Why no pid namespace can be made here, or None."""
    if not LINUX:
        return "Linux only"
    tool = shutil.which("unshare")
    if tool is None:
        return "no unshare(1) here"
    result = subprocess.run([tool, "--pid", "--fork", "true"], check=False, capture_output=True, text=True)
    return None if result.returncode == 0 else f"unshare --pid: {result.stderr.strip()}"


def test_two_pid_namespaces_with_equal_pids(path: str) -> None:
    """Pids are for messages: two processes with the same one share the log, and one's death is not the other's."""
    reason = namespaces_refused()
    if reason is not None:
        if UNDER_CI and os.geteuid() == 0:
            pytest.fail(f"pid namespaces have to be there under CI as root: {reason}")
        pytest.skip(reason)
    prefix = ["unshare", "--pid", "--fork", "--kill-child"]
    with Nursery(prefix) as left, Nursery(prefix) as right:
        one, two = Puppet(left, "left"), Puppet(right, "right")
        assert one.pid == two.pid
        opened(one, path, config={"lock_timeout": 0.3})
        opened(two, path, config={"lock_timeout": 0.3})
        for number in range(0, 100, 2):
            assert one.get("log.append([b'x' * 500])") == number
            assert two.get("log.append([b'y' * 500])") == number + 1
        one.do("oscalls.arm('append.batch_written', 'stop')")
        one.begin("log.append([b'z' * 3000] * 3)", expression=True)
        one.child.wait_until_stopped()
        with pytest.raises(fastlog.LockedError):
            two.get("log.append([b'no'])")
        one.kill()
        assert two.get("log.append([b'x' * 500])") == 100
        three = opened(Puppet(left, "left again"), path)
        assert three.get("log.append([b'y' * 500])") == 101
        assert two.get("log.end_offset") == 102
        two.do("log.close()")
        three.do("log.close()")
    assert values(path) == [b"x" * 500, b"y" * 500] * 51


@pytest.fixture(scope="session")
def other_build(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A second build of the engine: by clang where there is one, else by the same compiler without optimisation."""
    if not (ROOT / "setup.py").exists() or shutil.which(os.environ.get("CC", "cc")) is None:
        pytest.skip("no sources or no compiler here: there is no second build")
    target = tmp_path_factory.mktemp("build")
    environment = {**os.environ, "FASTLOG_DEBUG": "1", "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    compiler = shutil.which("clang")
    if compiler:
        environment["CC"] = compiler
    command = [sys.executable, "setup.py", "--quiet", "build", "--build-base", str(target), "--build-lib"]
    subprocess.run([*command, str(target / "lib")], cwd=ROOT, check=True, env=environment, capture_output=True)
    print(f"the second build: {compiler or 'the same compiler'}, -O0 -g")
    return target / "lib"


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_builds_share_a_partition(puppets: Callable[..., Puppet], path: str, other_build: Path) -> None:
    """The page has no layout of a compiler or a C library in it."""
    paths = os.pathsep.join([str(other_build), *(p for p in sys.path if p and not p.endswith("/src"))])
    with Nursery(environment={"PYTHONPATH": paths}) as nursery:
        one, two = puppets("one"), Puppet(nursery, "two")
        assert str(other_build) in two.get("fastlog.__file__")
        assert one.get("fastlog.__file__") != two.get("fastlog.__file__")
        opened(one, path, durability="group")
        opened(two, path, durability="group")
        for number in range(0, 100, 2):
            assert one.get("log.append([b'x' * 500])") == number
            assert two.get("log.append([b'y' * 500])") == number + 1
        for first, second in ((one, two), (two, one)):
            end = second.get("log.end_offset")
            second.begin("log.wait(end, timeout=20)", expression=True, end=end)
            first.do("log.append([b'z'])")
            assert second.result() is True
        one.do("oscalls.arm('append.batch_written', 'kill')")
        one.begin("log.append([b'lost' * 500] * 5)", expression=True)
        one.wait_until_gone()
        assert two.get("log.append([b'after'])") == 102
        three = opened(puppets("three"), path)
        assert three.get("log.verify().ok")
        two.do("log.close()")
        three.do("log.close()")
    assert values(path) == [*[b"x" * 500, b"y" * 500] * 50, b"z", b"z", b"after"]


def test_a_log_that_is_closed_while_others_are_told_of_its_deletion(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its control file was there a moment ago; or is another one by now, of somebody who opened the log since."""
    path = folder / "log-0"
    logs = [fastlog.PartitionLog.open(path, durability="os")]
    original = oscalls.identity
    opens_again = [False]

    def identity(name: str) -> Any:
        found = original(name)
        if name.endswith(".fastlog-control") and logs:
            logs.pop().close()
            if opens_again[0]:
                opened.append(fastlog.PartitionLog.open(path, durability="os"))
        return found

    opened: list[Any] = []
    monkeypatch.setattr(oscalls, "identity", identity)
    assert mark_deleted(str(path), 1000) is False
    monkeypatch.undo()
    logs.append(fastlog.PartitionLog.open(path, durability="os"))
    opens_again[0] = True
    monkeypatch.setattr(oscalls, "identity", identity)
    assert mark_deleted(str(path), 1000) is True
    with pytest.raises(fastlog.UnknownTopicError):
        opened[0].append([b"v"])
    opened[0].close()
