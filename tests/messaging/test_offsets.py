"""Committed offsets: Kafka's bytes, replayed from ``__consumer_offsets``, and of one life of a topic."""

from __future__ import annotations

import errno
import json
import random
import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import fastlog
from fastlog._core import SharedPage, encode_batch
from fastlog._native import oscalls
from fastlog.errors import ConfigError, CorruptRecordError, FencedError, StorageError, UnknownTopicError
from fastlog.groups import formats
from fastlog.groups.formats import OffsetAndMetadata, OffsetKey
from fastlog.groups.membership import Membership
from fastlog.groups.offsets import OffsetsReplay, OffsetStore
from fastlog.records import TopicPartition
from fastlog.store.directory import Directory
from fastlog.store.internal import CONSUMER_OFFSETS, partition_for_name
from tests.oracle.kafka import KafkaOracle

SOME_ID = "8IYfv4G5QpqZrmC2cWrPuQ"
names = st.text(max_size=40)
positions = st.builds(
    OffsetAndMetadata,
    st.integers(0, 2**63 - 1),
    st.text(max_size=300),
    st.integers(-1, 2**31 - 1),
    st.integers(0, 2**62),
)


# --- bytes ----------------------------------------------------------------------------------------------------------


@given(group=names, topic=names, partition=st.integers(0, 2**31 - 1))
def test_keys_come_back(group: str, topic: str, partition: int) -> None:
    assert formats.decode_key(formats.encode_key(group, topic, partition)) == OffsetKey(group, topic, partition)


@given(position=positions, topic_id=st.sampled_from([None, SOME_ID]))
def test_values_come_back(position: OffsetAndMetadata, topic_id: str | None) -> None:
    decoded = formats.decode_value(formats.encode_value(position, topic_id))
    assert decoded.position == position
    assert decoded.topic_id == topic_id


@given(position=positions, topic_id=st.sampled_from([None, SOME_ID]), data=st.data())
def test_a_value_that_was_cut_is_corrupt(
    position: OffsetAndMetadata, topic_id: str | None, data: st.DataObject
) -> None:
    value = formats.encode_value(position, topic_id)
    with pytest.raises(CorruptRecordError):
        formats.decode_value(value[: data.draw(st.integers(0, len(value) - 1))])


@given(st.binary(max_size=80))
def test_hostile_bytes_are_corrupt_or_read(data: bytes) -> None:
    for decode in (formats.decode_key, formats.decode_value):
        try:
            decode(data)
        except CorruptRecordError:
            pass


def test_older_values_are_read() -> None:
    note = b"\x00\x02hi"
    first = (7).to_bytes(8) + note + (11).to_bytes(8)
    for version, value in {
        0: b"\x00\x00" + first,
        1: b"\x00\x01" + first + (99).to_bytes(8),
        2: b"\x00\x02" + first,
        3: b"\x00\x03" + (7).to_bytes(8) + (5).to_bytes(4) + note + (11).to_bytes(8),
    }.items():
        epoch = 5 if version == 3 else -1
        assert formats.decode_value(value) == (OffsetAndMetadata(7, "hi", epoch, 11), None)


def test_unknown_tagged_fields_are_passed_over() -> None:
    value = formats.encode_value(OffsetAndMetadata(7), SOME_ID)
    tagged = value.replace(b"\x01\x00\x10", b"\x02\x05\x03abc\x00\x10")
    assert formats.decode_value(tagged) == formats.decode_value(value)


def test_keys_of_groups_are_something_else() -> None:
    assert formats.decode_key(b"\x00\x02\x00\x01g") is None
    assert formats.decode_key(b"\x00\x03\x02g\x00") is None


@pytest.mark.parametrize(
    ("name", "hashed"),
    [("", 0), ("a", 97), ("billing", -109829509), ("polygenelubricants", 0), ("grüße", 98768023), ("😀", 1772899)],
)
def test_groups_lie_where_kafka_looks_for_them(name: str, hashed: int) -> None:
    """``hashCode()`` of the JVM; "polygenelubricants" is the smallest int, which Kafka's abs makes 0."""
    assert partition_for_name(name, 1 << 32) == abs(hashed)
    assert partition_for_name(name) == abs(hashed) % 50


def test_what_cannot_be_committed_is_refused() -> None:
    with pytest.raises(ConfigError, match="0 or more, found -1"):
        formats.encode_value(OffsetAndMetadata(-1), SOME_ID)
    with pytest.raises(ConfigError, match="at most 4096 bytes, found 4098"):
        formats.encode_value(OffsetAndMetadata(1, "ü" * 2049), SOME_ID)


# --- a store --------------------------------------------------------------------------------------------------------


@pytest.fixture
def directory(folder: Path) -> Iterator[Directory]:
    with Directory.open(folder / "store", durability="os") as opened:
        opened.create_topic("t", 4)
        yield opened


T0, T1 = TopicPartition("t", 0), TopicPartition("t", 1)


def offsets_of(found: dict[TopicPartition, OffsetAndMetadata | None]) -> dict[TopicPartition, int | None]:
    return {one: None if position is None else position.offset for one, position in found.items()}


def test_what_was_committed_last_counts(directory: Directory) -> None:
    store = OffsetStore(directory)
    assert store.committed("g", [T0]) == {T0: None}
    store.commit("g", {T0: OffsetAndMetadata(5, "note"), T1: OffsetAndMetadata(6)})
    store.commit("g", {T0: OffsetAndMetadata(4)})
    store.commit("other", {T0: OffsetAndMetadata(9)})
    store.commit("g", {})
    assert offsets_of(store.committed("g", [T0, T1])) == {T0: 4, T1: 6}
    found = OffsetStore(directory).committed("g", [T1])[T1]
    assert found is not None
    assert abs(found.timestamp - oscalls.wall_clock()) < 60_000
    assert store.groups() == ["g", "other"]
    assert store.forget("g", [T0, TopicPartition("t", 3)]) == [T0]
    assert offsets_of(store.committed("g", [T0, T1])) == {T0: None, T1: 6}
    assert store.forget("g") == [T1]
    assert store.groups() == ["other"]


def test_another_process_that_opens_the_store_finds_the_same(folder: Path) -> None:
    with Directory.open(folder / "store", durability="os") as directory:
        directory.create_topic("t", 4)
        OffsetStore(directory).commit("g", {T0: OffsetAndMetadata(5)})
    with Directory.open(folder / "store", durability="os", read_only=True) as directory:
        assert offsets_of(OffsetStore(directory).committed("g", [T0])) == {T0: 5}
        assert OffsetStore(directory).groups() == ["g"]


def test_a_reader_of_a_store_without_offsets_finds_none(folder: Path) -> None:
    with Directory.open(folder / "store") as directory:
        directory.create_topic("t", 1)
    with Directory.open(folder / "store", read_only=True) as directory:
        store = OffsetStore(directory)
        assert store.committed("g", [T0]) == {T0: None}
        assert store.groups() == [] and store.pending("g") == {}


def test_offsets_of_an_unknown_topic_are_refused(directory: Directory) -> None:
    with pytest.raises(UnknownTopicError):
        OffsetStore(directory).commit("g", {TopicPartition("nowhere", 0): OffsetAndMetadata(1)})


def test_offsets_of_a_deleted_topic_are_not_those_of_its_successor(directory: Directory) -> None:
    store = OffsetStore(directory)
    store.commit("g", {T0: OffsetAndMetadata(5)})
    directory.delete_topic("t")
    assert store.committed("g", [T0]) == {T0: None}
    directory.create_topic("t", 2)
    assert store.committed("g", [T0]) == {T0: None}
    store.commit("g", {T1: OffsetAndMetadata(1)})
    assert offsets_of(store.committed("g", [T0, T1])) == {T0: None, T1: 1}


def everything(store: OffsetStore, group: str = "g") -> list[tuple[OffsetKey | None, bool]]:
    """Whose the records of the group's partition are, and whether they are tombstones."""
    return [
        (formats.decode_key(key), value is None)
        for batch in store.log(group).replay()
        for key, value in zip(batch.keys(), batch.values(), strict=True)
    ]


def test_offsets_of_ended_lives_are_taken_back(directory: Directory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastlog.groups.offsets.TOMBSTONES", 1)
    store = OffsetStore(directory)
    directory.create_topic("other", 1)
    for group in ("g", "h"):
        store.commit(group, {one: OffsetAndMetadata(5) for one in (T0, T1, TopicPartition("other", 0))})
    store.forget_topic("t")
    assert not any(is_tombstone for _, is_tombstone in everything(store)), "this life goes on"
    directory.delete_topic("t")
    directory.create_topic("t", 2)
    append_pending(store, 7, {T1: OffsetAndMetadata(1)})
    store.commit("h", {T0: OffsetAndMetadata(2)})
    store.forget_topic("t")
    assert [subject for subject, is_tombstone in everything(store, "g") if is_tombstone] == [("g", *T0)]
    assert [subject for subject, is_tombstone in everything(store, "h") if is_tombstone] == [("h", *T1)]
    store.log("g").end_transaction(7, 0, commit=True)
    assert offsets_of(store.committed("g", [T0, T1])) == {T0: None, T1: 1}
    assert offsets_of(store.committed("h", [T0, T1])) == {T0: 2, T1: None}
    assert offsets_of(store.committed("g", [TopicPartition("other", 0)])) == {TopicPartition("other", 0): 5}


def test_deleting_a_topic_takes_back_its_offsets(folder: Path) -> None:
    with fastlog.open(folder / "store", durability="os") as opened:
        opened.create_topic("t", 1)
        store = OffsetStore(opened.directory)
        store.commit("g", {T0: OffsetAndMetadata(5)})
        assert store.groups() == ["g"]
        opened.delete_topic("t")
        assert store.groups() == []
        assert everything(store) == [(("g", *T0), False), (("g", *T0), True)]


def test_offsets_without_a_topic_id_belong_to_any_life(directory: Directory) -> None:
    store = OffsetStore(directory)
    key, value = formats.encode_key("g", "t", 0), formats.encode_value(OffsetAndMetadata(5), None)
    store.log("g").append([value], keys=[key])
    assert offsets_of(store.committed("g", [T0])) == {T0: 5}


def append_pending(
    store: OffsetStore, producer_id: int, offsets: dict[TopicPartition, OffsetAndMetadata], sequence: int = 0
) -> None:
    keys, values = store.encode_commit("g", offsets)
    batch = encode_batch(
        values, keys, producer_id=producer_id, producer_epoch=0, base_sequence=sequence, transactional=True
    )
    store.log("g").append_batch(batch)


def test_offsets_of_a_transaction_count_once_it_is_committed(directory: Directory) -> None:
    store = OffsetStore(directory)
    store.commit("g", {T0: OffsetAndMetadata(1)})
    append_pending(store, 7, {T0: OffsetAndMetadata(5)})
    assert offsets_of(store.committed("g", [T0])) == {T0: 1}
    assert store.pending("g") == {T0: 7}
    assert store.pending("other") == {}
    store.log("g").end_transaction(7, 0, commit=True)
    assert offsets_of(store.committed("g", [T0])) == {T0: 5}
    assert store.pending("g") == {}


def test_offsets_of_an_aborted_transaction_never_count(directory: Directory) -> None:
    store = OffsetStore(directory)
    append_pending(store, 7, {T0: OffsetAndMetadata(5)})
    append_pending(store, 8, {T1: OffsetAndMetadata(6)})
    store.log("g").end_transaction(7, 0, commit=False)
    assert store.pending("g") == {T1: 8}
    store.log("g").end_transaction(8, 0, commit=True)
    assert offsets_of(store.committed("g", [T0, T1])) == {T0: None, T1: 6}


def test_a_transaction_does_not_undo_a_later_commit(directory: Directory) -> None:
    store = OffsetStore(directory)
    append_pending(store, 7, {T0: OffsetAndMetadata(5)})
    store.commit("g", {T0: OffsetAndMetadata(9)})
    store.log("g").end_transaction(7, 0, commit=True)
    assert offsets_of(store.committed("g", [T0])) == {T0: 9}


# --- a sync that fails ----------------------------------------------------------------------------------------------


def poison(store: OffsetStore) -> None:
    """A commit whose sync fails: it may be there or not."""
    try:
        oscalls.inject("fdatasync", errno=errno.EIO)
        with pytest.raises(StorageError, match="could not sync"):
            store.commit("g", {T0: OffsetAndMetadata(8)})
    finally:
        oscalls.clear()


def test_commits_go_on_after_a_sync_failed(folder: Path) -> None:
    with Directory.open(folder / "store") as directory:
        directory.create_topic("t", 4)
        store = OffsetStore(directory)
        store.commit("g", {T0: OffsetAndMetadata(7)})
        poison(store)
        assert store.is_poisoned("g")
        assert offsets_of(store.committed("g", [T0])) == {T0: 7}, "what is durable can be read"
        assert offsets_of(store.committed("g", [T0]))[T0] in (7, 8), "read back from the disk"
        store.commit("g", {T1: OffsetAndMetadata(1)})
        poison(store)
        store.commit("g", {T0: OffsetAndMetadata(9)})
        assert offsets_of(store.committed("g", [T0, T1])) == {T0: 9, T1: 1}
    with Directory.open(folder / "store") as directory:
        assert offsets_of(OffsetStore(directory).committed("g", [T0, T1])) == {T0: 9, T1: 1}


def test_commits_go_on_after_a_sync_failed_once_all_have_let_go(folder: Path) -> None:
    with Directory.open(folder / "store") as directory, Directory.open(folder / "store") as other:
        directory.create_topic("t", 4)
        store, idle = OffsetStore(directory), Membership(other, "g", topics=["t"])
        store.commit("g", {T0: OffsetAndMetadata(7)})
        with other.lease(CONSUMER_OFFSETS, store.partition_of("g")):
            poison(store)
            with pytest.raises(StorageError, match="others have it open still"):
                store.commit("g", {T0: OffsetAndMetadata(9)})
            assert offsets_of(store.committed("g", [T0])) == {T0: 7}
        deadline = time.monotonic() + 20
        while idle._table.offsets.is_poisoned("g"):  # its tick lets go of it
            assert time.monotonic() < deadline
            time.sleep(0.01)
        store.commit("g", {T0: OffsetAndMetadata(9)})
        idle.poll()
        idle.commit({T1: OffsetAndMetadata(1)})
        assert offsets_of(store.committed("g", [T0, T1])) == {T0: 9, T1: 1}
        idle.leave()


def test_a_condition_that_does_not_hold_commits_nothing(directory: Directory, folder: Path) -> None:
    store = OffsetStore(directory)
    page = SharedPage.create(str(folder / "page"), 2, 0)
    page.store(1, 5)
    store.commit("g", {T0: OffsetAndMetadata(1)}, [(page, 1, 5)])
    with pytest.raises(FencedError):
        store.commit("g", {T0: OffsetAndMetadata(2)}, [(page, 0, 0), (page, 1, 4)])
    assert offsets_of(store.committed("g", [T0])) == {T0: 1}


def test_random_histories_are_replayed_as_they_were(directory: Directory, seed: int) -> None:
    """Commits, transactions and tombstones in any order, read now and then, and by a reader that starts at the end."""
    chance = random.Random(seed)
    store = OffsetStore(directory)
    expected: dict[TopicPartition, tuple[int, int]] = {}
    pending: dict[int, dict[TopicPartition, tuple[int, int]]] = {}
    sequences: dict[int, int] = {}
    for step in range(200):
        action = chance.choice(["commit", "commit", "add", "add", "end", "forget", "look"])
        one = TopicPartition("t", chance.randrange(4))
        if action == "commit":
            store.commit("g", {one: OffsetAndMetadata(step)})
            expected[one] = (step, step)
        elif action == "add":
            producer_id = chance.randrange(3)
            append_pending(store, producer_id, {one: OffsetAndMetadata(step)}, sequences.get(producer_id, 0))
            sequences[producer_id] = sequences.get(producer_id, 0) + 1
            pending.setdefault(producer_id, {})[one] = (step, step)
        elif action == "end" and pending:
            producer_id = chance.choice(sorted(pending))
            commit = chance.random() < 0.6
            store.log("g").end_transaction(producer_id, 0, commit=commit)
            for each, (at, offset) in pending.pop(producer_id).items():
                if commit and expected.get(each, (-1, 0))[0] < at:
                    expected[each] = (at, offset)
        elif action == "forget" and store.forget("g", [one]):
            del expected[one]
        elif action == "look":
            everything = {each: offset for each, (_, offset) in expected.items()}
            assert {each: position.offset for each, position in store.all_committed("g").items()} == everything
    fresh = OffsetsReplay()
    fresh.catch_up(store.log("g"))
    found = {each: formats.decode_value(stored.value).position.offset for each, stored in fresh.committed["g"].items()}
    assert found == {each: offset for each, (_, offset) in expected.items()}


def test_I12_kafka_reads_what_was_committed(folder: Path, kafka: KafkaOracle, seed: int) -> None:
    """DumpLogSegments with the decoder of offsets tells the same groups, partitions, offsets and notes."""
    chance = random.Random(seed)
    expected = []
    with Directory.open(folder / "store", durability="os") as directory:
        directory.create_topic("t", 4)
        store = OffsetStore(directory)
        topic_id = directory.topic("t").topic_id
        for _ in range(20):
            group = chance.choice(["billing", "g", "größe"])
            one = TopicPartition("t", chance.randrange(4))
            position = OffsetAndMetadata(chance.randrange(1 << 40), chance.choice(["", "note"]), -1, 1_700_000_000_000)
            store.commit(group, {one: position})
            expected.append((group, one, position))
        store.forget("g")
    logs = sorted(path for path in folder.glob("store/topics/__consumer_offsets-*/*.log") if path.stat().st_size)
    output, problems = kafka.dump(logs, "--deep-iteration", "--print-data-log", "--offsets-decoder")
    assert not problems, problems
    told = []
    for line in output.splitlines():
        match = re.search(r"key: (\{.*\}) payload: (\{.*\}|<DELETE>|null|.*)$", line)
        if match is None:
            continue
        key = json.loads(match[1])["data"]
        if not match[2].startswith("{"):
            continue
        value = json.loads(match[2])
        assert value["version"] == "4" or value["version"] == 4
        data = value["data"]
        assert data["topicId"] == topic_id
        one = TopicPartition(key["topic"], key["partition"])
        told.append(
            (
                key["group"],
                one,
                OffsetAndMetadata(data["offset"], data["metadata"], data["leaderEpoch"], data["commitTimestamp"]),
            )
        )
    assert sorted(told) == sorted(expected)
