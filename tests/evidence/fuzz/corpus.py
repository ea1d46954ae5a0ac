"""The kept inputs of the fuzzer: ``tests/evidence/corpus/TARGET/``, one file each.

``python -m tests.evidence.fuzz.corpus make`` writes those that fastlog's own writers make (``made-…``; the same bytes
every time), ``keep`` takes over the fewest of what runs on this machine have found that lead everywhere these lead,
``found`` those on which something was found, once it is fixed.
"""

from __future__ import annotations

import hashlib
import struct
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Final

import click

import fastlog
from fastlog._native.encoder import encode_batch
from fastlog._native.producers import ProducerStates
from fastlog._native.transactions import end_transaction_marker, pack_entries
from fastlog._native.validator import validate_batches
from fastlog.delivery import headers as moved
from fastlog.delivery.finished import Finished, Mark
from fastlog.groups import formats
from fastlog.records import TopicPartition
from fastlog.store import catalog
from fastlog.store import files as store_files
from fastlog.transactions import records as transaction_records
from fastlog.transactions.states import TransactionState, TransactionStatus
from tests.evidence.fuzz import TARGETS
from tests.evidence.run import KEPT, ROOT

CORPUS: Final = ROOT / "tests" / "evidence" / "corpus"
GROWN: Final = KEPT / "fuzz" / "grown"  # what runs on this machine have found to be new
FOUND: Final = KEPT / "fuzz" / "found"  # on which something was found
MOST_KEPT: Final = 40  # inputs of one target
MOST_BYTES: Final = 14_000  # of one target, all together
SOME_TIME: Final = 1_700_000_000_000
CODECS: Final = ("gzip", "snappy", "lz4", "zstd")


def kept(name: str) -> list[Path]:
    """The kept inputs of a target."""
    return sorted((CORPUS / name).iterdir())


# --- made by fastlog's own writers -----------------------------------------------------------------------------------


def batch(number: int, count: int = 2, compression: str | None = None, **more: Any) -> bytes:
    """One batch, encoded."""
    values = [b"value %d" % (number + i) if i % 3 != 2 else None for i in range(count)]
    keys = [b"key-%d" % (i % 2) if i % 2 == 0 else None for i in range(count)] if number % 2 else [b"k"] * count
    times = [SOME_TIME + number * 10 - i * 3 for i in range(count)]
    headers = {"h": b"x", "n": None} if number % 3 == 1 else None
    return bytes(encode_batch(values, keys, times, headers, compression=compression, **more))


def stamped(batches: Iterable[bytes], base: int = 0) -> bytes:
    """Batches as they lie in a log."""
    found = b""
    for one in batches:
        plan = validate_batches(one, 1 << 20, 1 << 20, internal=True)
        found += plan.stamped(base, 0)
        base += plan.shape()[1]
    return found


def marker(producer_id: int, epoch: int, *, commit: bool) -> bytes:
    return bytes(end_transaction_marker(producer_id, epoch, 3, commit, SOME_TIME))


def of_producers() -> list[bytes]:
    """Two producers, transactions that commit and abort, a new epoch, a batch sent twice."""
    one = batch(1, producer_id=7, producer_epoch=0, base_sequence=0)
    return [
        one, one, batch(2, producer_id=7, producer_epoch=0, base_sequence=2),
        batch(3, producer_id=8, producer_epoch=0, base_sequence=0, transactional=True),
        batch(4, producer_id=8, producer_epoch=0, base_sequence=2, transactional=True, compression="lz4"),
        marker(8, 0, commit=False), batch(5, producer_id=8, producer_epoch=1, base_sequence=0, transactional=True),
        marker(8, 1, commit=True), batch(6, producer_id=7, producer_epoch=1, base_sequence=0),
        batch(7, producer_id=8, producer_epoch=1, base_sequence=2, transactional=True),
    ]  # fmt: skip


def small_segment() -> bytes:
    """The segment that hostile indexes stand beside."""
    return stamped(batch(number, 1 + number % 3) for number in range(40))


def logs_of_batches() -> list[bytes]:
    one_of_each = [batch(number, 3, codec) for number, codec in enumerate((None, *CODECS))]
    return [
        stamped([batch(1)]), stamped([batch(1), batch(2, 5), batch(3)]), stamped(of_producers()), stamped(one_of_each),
        *(stamped([one]) for one in one_of_each), stamped([batch(2, 60, "zstd"), batch(4, 20, "gzip")]),
    ]  # fmt: skip


def producer_states() -> ProducerStates:
    states = ProducerStates()
    for one in of_producers():
        again = validate_batches(one, 1 << 20, 1 << 20, internal=True).stamped(states.end_offset, 0)
        if states.check_append(again) is None:
            states.append(again)
    return states


def made_log(folder: Path | None = None) -> dict[str, dict[str, bytes]]:
    """The files of a small log of three segments, as it is ``clean`` and as it was ``crashed``; made at ``folder``."""
    if folder is None:
        with tempfile.TemporaryDirectory() as name:
            return made_log(Path(name, "events-0"))
    from tests.make_golden import fill  # hypothesis comes with it: most processes do without

    config = fastlog.LogConfig(segment_bytes=3000, index_interval_bytes=300)
    with fastlog.PartitionLog.open(folder, durability="os", config=config) as log:
        fill(log)
        crashed = {file.name: file.read_bytes() for file in sorted(folder.iterdir())}
    return {"crashed": crashed, "clean": {file.name: file.read_bytes() for file in sorted(folder.iterdir())}}


def with_options(*choices: bytes) -> Callable[[Iterable[bytes]], Iterator[bytes]]:
    """Each input with each of these options in front, filled up to eight bytes."""

    def combined(inputs: Iterable[bytes]) -> Iterator[bytes]:
        for one in inputs:
            for choice in choices:
                yield choice.ljust(8, b"\0") + one

    return combined


def make_decoder() -> Iterator[bytes]:
    yield from with_options(b"\x03\x0c", b"\x97\x04\x08\x02\x09", b"\x23\x0c\x08\0\0\x02\x05")(logs_of_batches())


def make_validator() -> Iterator[bytes]:
    each = [batch(number, 3, codec) for number, codec in enumerate((None, *CODECS))]
    yield from with_options(b"\x03", b"\x33")([batch(1), batch(2, 4) + batch(3), *each, of_producers()[3]])
    yield from with_options(b"\x13")([marker(3, 0, commit=True)])


def make_producers() -> Iterator[bytes]:
    yield from with_options(b"\x13", b"\x13\x03")([b"".join(of_producers()), b"".join(of_producers()[3:6])])


def make_codecs() -> Iterator[bytes]:
    for number, codec in enumerate(CODECS):
        for count in (1, 30):
            yield bytes([number]) + batch(1, count, codec)[61:]
            yield bytes([number | 0xC8]) + batch(1, count, codec)[61:]
        yield bytes([number | 4]) + b"what is to be compressed, " * 4


def make_markers() -> Iterator[bytes]:
    yield from with_options(b"\x03")([marker(3, 0, commit=True), marker(1 << 40, 9, commit=False)])


def make_snapshot() -> Iterator[bytes]:
    yield from with_options(b"\x03\x00\x40")([producer_states().snapshot(), ProducerStates().snapshot()])


def make_txnindex() -> Iterator[bytes]:
    entries = [(7, 0, 5, 6), (8, 2, 9, 7), (7, 11, 14, 15)]
    yield from with_options(b"\0\x14", b"\x07\x05")([bytes(pack_entries(entries)), bytes(pack_entries(entries[:1]))])


def make_indexes() -> Iterator[bytes]:
    found = made_log()["clean"]
    for base in (0, 56):
        index, times = found[f"{base:020d}.index"], found[f"{base:020d}.timeindex"]
        yield b"\x02" + struct.pack(">H", len(index) // 8) + b"\x40\0\0\0\x05" + index + times
    headers = []
    segment, at, offset = small_segment(), 0, 0
    while at < len(segment):
        size, last = 12 + int.from_bytes(segment[at + 8 : at + 12], "big"), offset + segment[at + 26]
        headers.append((at, last))
        at, offset = at + size, last + 1
    right = b"".join(struct.pack(">ii", last, position) for position, last in headers[3::7])
    for how in (b"\x02", b"\x03"):
        yield how + struct.pack(">H", len(right) // 8) + b"\x40\0\0\0\x05" + right + struct.pack(">qi", SOME_TIME, 9)


def make_segments() -> Iterator[bytes]:
    yield from with_options(b"\x33", b"\x37\x03")(logs_of_batches()[:6])


def make_pages() -> Iterator[bytes]:
    with tempfile.TemporaryDirectory() as name:
        path = f"{name}/page"
        fastlog._core.SharedPage.create(path, 20, 100, values=(1, 2, 3), document=b"a document", version=3)
        page = Path(path).read_bytes()
        bells = f"{name}/bells"
        fastlog._core.Bells.open(bells).close()
        rings = Path(bells).read_bytes()
    yield from with_options(b"\0", b"\x02")([page])
    yield from with_options(b"\x01\x05")([rings])


def make_arrow() -> Iterator[bytes]:
    for kind in range(14):
        for how in (0, 1, 2, 0x32, 0x40):
            yield bytes([how, kind, 1, 1, 3, 0, 1, 2]) + bytes(range(40)) + b"\x01\x05\x02" * 8


def make_logs() -> Iterator[bytes]:
    found = made_log()["clean"]
    for number, name in enumerate(log_parts(found)):
        if name in found and len(found[name]) < 4000:
            yield bytes([number, 5 if name.startswith(".") else 1]) + found[name]
            yield bytes([number, 2 | 16 * (number & 1)]) + struct.pack(">H", len(found[name]) // 2) + found[name][:40]


def first_slot(content: bytes) -> bytes:
    """What a meta file says, once."""
    return content[: content.index(b"\n") + 1]


def log_parts(found: Iterable[str]) -> tuple[str, ...]:
    """Names of the files of a log that an input may be: those that there are, and those that there might be."""
    names = set(found)
    stems = sorted(name[:20] for name in names if name.endswith(".log"))
    extra = {f"{stem}.{kind}" for stem in stems for kind in ("log", "index", "timeindex", "txnindex", "snapshot")}
    return tuple(sorted(names | extra | {".fastlog-control", ".fastlog-poisoned"}))


def make_offsets() -> Iterator[bytes]:
    yield b"\0" + formats.encode_key("group", "topic", 3)
    for metadata, topic_id in (("", None), ("", "A" * 21 + "Q"), ("a note", "A" * 21 + "Q"), ("fl1:AQ==", None)):
        yield b"\x80" + formats.encode_value(formats.OffsetAndMetadata(40, metadata, 2, SOME_TIME), topic_id)


def make_transactions() -> Iterator[bytes]:
    yield b"\0" + transaction_records.encode_key("worker-1")
    places = (TopicPartition("orders", 0), TopicPartition("orders", 2), TopicPartition("bills", 1))
    for status in TransactionStatus:
        state = TransactionState(7, 3, 60_000, status, places, SOME_TIME, SOME_TIME - 5)
        yield b"\x80" + transaction_records.encode_value(state)


def make_headers() -> Iterator[bytes]:
    place = [b"0=orders", b"1=3", b"2=77", b"3=1700000000000", b"4=create"]
    retry = [b"own=x", *(b"0" + line for line in place), b"05=2", b"06=5", b"07=head"]
    letter = [b"own=x", b"10=nested", *(b"1" + line for line in place), b"15=4", b"18=group"]
    for lines in (retry, letter, [*letter, b"other", *retry]):
        yield b"\n".join(lines)
    names = [f"{moved.RETRY_PREFIX}first-failure=5", f"{moved.RETRY_PREFIX}last-failure=9"]
    names += [f"{moved.RETRY_PREFIX}exception=ValueError", f"{moved.RETRY_PREFIX}message"]
    yield b"\n".join([*retry, *(name.encode() for name in names)])


def make_finished() -> Iterator[bytes]:
    for one in (
        Finished(5), Finished(5, ((7, 9), (12, 400)), False),
        Finished(1 << 40, (), True, Mark((1 << 40) + 2, 3, 99, 7)), Finished(5, ((6, 1 << 50),), True, Mark(5, 1)),
    ):  # fmt: skip
        yield b"\0\x05\0" + one.encode().encode()
    yield b"\0\x05\x3d" + Finished(5, ((7, 9),)).encode().encode()


def make_audits() -> Iterator[bytes]:
    one = b'{"action":"redrive","to":null,"offsets":[[0,2],[5,1]],"at":1700000000000,"by":"me"}'
    yield one
    yield one + b"\n" + b'{"action":"discard","offsets":[[9223372036854775806,1]],"at":1,"by":"you"}'


def make_state() -> Iterator[bytes]:
    found = made_log()["clean"]
    for number, name in enumerate((".fastlog-meta", ".fastlog-clean", ".fastlog-indexes", "leader-epoch-checkpoint")):
        for how in (0, 4):
            yield bytes([number | how]) + (first_slot(found[name]) if name == ".fastlog-meta" else found[name])


def make_store() -> Iterator[bytes]:
    with tempfile.TemporaryDirectory() as name:
        for owner in (None, catalog.TopicOwner("orders", "group", "retry")):
            info = catalog.TopicInfo("events", "A" * 21 + "Q", 3, {"retention.ms": 5}, owner=owner)
            catalog.write_topic(name, info, deleting=owner is None)
            yield b"\0" + Path(name, "events.json").read_bytes()
        store_files.write_checkpoint(f"{name}/c", {("events", 0): 5, ("other", 12): 1 << 40})
        yield b"\x01" + Path(name, "c").read_bytes()
        store_files.write_meta_properties(name, "A" * 22, "B" * 22)
        yield b"\x02" + Path(name, store_files.META_PROPERTIES).read_bytes()
        store_files.write_partition_metadata(name, "A" * 21 + "Q")
        yield b"\x02" + Path(name, store_files.PARTITION_METADATA).read_bytes()
    yield b"\x03events-12"


def made(name: str) -> list[bytes]:
    """The inputs of a target that our own writers make."""
    make: Callable[[], Iterator[bytes]] = globals()[f"make_{name}"]
    return list(make())


# --- kept files ------------------------------------------------------------------------------------------------------


def write_made(name: str) -> int:
    """Write the inputs that our own writers make; how many they are."""
    folder = CORPUS / name
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("made-*"):
        old.unlink()
    inputs = made(name)
    for number, content in enumerate(inputs):
        (folder / f"made-{number:02d}").write_bytes(content)
    return len(inputs)


def keep_grown(name: str) -> int:
    """Of what runs have found, take over the smallest that lead where nothing kept leads; how many are kept now."""
    from tests.evidence import fuzzing

    folder = CORPUS / name
    with tempfile.TemporaryDirectory() as merged:
        for old in kept(name):
            Path(merged, old.name).write_bytes(old.read_bytes())
        fuzzing.merge(name, Path(merged), GROWN / name)
        fresh = [one for one in Path(merged).iterdir() if not (folder / one.name).exists()]
        room = MOST_BYTES - sum(one.stat().st_size for one in kept(name))
        for one in sorted(fresh, key=lambda one: one.stat().st_size)[: max(0, MOST_KEPT - len(kept(name)))]:
            room -= one.stat().st_size
            if room < 0:
                break
            (folder / one.name).write_bytes(one.read_bytes())
    return len(kept(name))


@click.group()
def main() -> None:
    """Look after the kept inputs."""


@main.command()
@click.argument("names", nargs=-1)
def make(names: tuple[str, ...]) -> None:
    """Write the inputs that our own writers make."""
    for name in names or TARGETS:
        click.echo(f"{name}: {write_made(name)} made")


@main.command()
@click.argument("names", nargs=-1)
def keep(names: tuple[str, ...]) -> None:
    """Take over what runs on this machine have found to lead elsewhere."""
    for name in names or TARGETS:
        click.echo(f"{name}: {keep_grown(name)} kept")


@main.command()
def found() -> None:
    """Take over the inputs on which something was found."""
    for file in sorted(FOUND.glob("*/*")):
        content = file.read_bytes()
        target = CORPUS / file.parent.name / f"found-{hashlib.sha256(content).hexdigest()[:12]}"
        target.write_bytes(content)
        file.unlink()
        click.echo(target.relative_to(ROOT))


if __name__ == "__main__":
    main()
