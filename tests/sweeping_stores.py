"""What may come of a store one of whose files is damaged, and of a file of finished ids; see ``sweeping``."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import fastlog
from fastlog.delivery.deduplicator import Deduplicator
from fastlog.groups.offsets import OffsetStore
from fastlog.store import naming
from fastlog.store.internal import CONSUMER_OFFSETS
from tests.specimens import GROUPS, IDS, META, partition_content
from tests.strategies import SOME_TIME

UNKNOWN_IDS = [b"nobody %d" % number for number in range(50)]


class StoreJudge:
    """One store with one damage; ``damaged`` is the path of the file within it."""

    def __init__(self, root: Path, told: dict[str, Any], kind: str, damaged: str) -> None:
        self.root = root
        self.told = told
        self.kind = kind
        self.damaged = damaged
        self.errors: set[str] = set()
        self.cut = False

    def judge(self, chance: random.Random) -> str:
        """The name of an acceptable outcome; raises AssertionError for all others."""
        before = self.segments()
        damaged = self.root / self.damaged
        self.is_gone = not damaged.exists()
        self.says_nothing = self.is_gone or not damaged.stat().st_size
        self.read_only = chance.random() < 0.4
        try:
            store = fastlog.open(self.root, durability="os", read_only=self.read_only)
        except fastlog.Error as error:
            assert str(self.root) in str(error), f"the error does not name the file: {error}"
            self.check_kept(before)
            return f"open: {type(error).__name__}"
        try:
            with store:
                self.look(store)
        except fastlog.Error as error:
            self.errors.add(f"close {type(error).__name__}")
        self.check_kept(before)
        if self.errors:
            return "read: " + "+".join(sorted(self.errors))
        return "cut and reported" if self.cut else "same"

    def look(self, store: fastlog.Store) -> None:
        """Topics, records and offsets: as they were, or an error."""
        there = store.topics()
        topics = self.told["topics"]
        assert set(there) <= set(topics), f"topics that there were not: {set(there) - set(topics)}"
        for name, told in topics.items():
            try:
                topic = store.topic(name)
                found = [topic.topic_id, topic.partitions, topic.config]
            except fastlog.UnknownTopicError:
                # without its file there is no topic; its folders stay, which ``check_kept`` sees to
                assert self.damaged == f"config/{name}.json" and self.is_gone, f"{name} is gone"
                self.errors.add("UnknownTopicError")
                continue
            except fastlog.Error as error:
                self.note(error)
                continue
            wanted = [told["id"], len(told["partitions"]), told["options"]]
            assert found == wanted, f"{name} is {found}, and was {wanted}"
            for number, records in enumerate(told["partitions"]):
                self.look_at(store, name, number, records)
        self.look_at_offsets(store)

    def look_at(self, store: fastlog.Store, name: str, number: int, records: list[list[Any]]) -> None:
        try:
            found = partition_content(store, name, number)
        except fastlog.Error as error:
            self.note(error)
            return
        if found == records:
            return
        state = f"topics/{naming.folder_name(name, number)}/{META}"
        if self.says_nothing and self.kind != "clean" and self.damaged == state:
            # without it, and its copy in the marker of a clean close, nobody knows where the log began
            assert found[len(found) - len(records) :] == records, "records are missing, or others"
            return
        where = f"{name}-{number} has {len(found)} of {len(records)} records"
        assert self.may_be_cut(store, name, number), f"{where}, and no error"
        some = iter(records)
        assert all(record in some for record in found), f"{where}, others or in another order"
        self.cut = True

    def look_at_offsets(self, store: fastlog.Store) -> None:
        offsets = OffsetStore(store.directory)
        for group, wanted in self.told["groups"].items():
            assert group in GROUPS
            try:
                found = sorted([*where, at.offset] for where, at in offsets.all_committed(group).items())
            except fastlog.Error as error:
                self.note(error)
                continue
            if self.errors:
                # of a topic that cannot be used nothing is committed
                found = [one for one in wanted if one in found or not self.is_there(store, one[0])]
            if found != wanted:
                number = offsets.partition_of(group)
                assert self.may_be_cut(store, CONSUMER_OFFSETS, number), f"{group} is at {found}, and was at {wanted}"
                self.cut = True

    @staticmethod
    def is_there(store: fastlog.Store, topic: str) -> bool:
        try:
            store.topic(topic)
        except fastlog.Error:
            return False
        return True

    def note(self, error: fastlog.Error) -> None:
        assert str(self.root) in str(error), f"the error does not name the file: {error}"
        self.errors.add(type(error).__name__)

    def may_be_cut(self, store: fastlog.Store, name: str, number: int) -> bool:
        """Whether the damage is in a segment of this partition, which was not closed cleanly, and recovery tells of
        what it has cut."""
        folder = f"topics/{naming.folder_name(name, number)}"
        if self.kind == "clean" or not self.damaged.startswith(f"{folder}/") or not self.damaged.endswith(".log"):
            return False
        if self.is_gone or self.read_only:
            return True  # as after power loss; and who may not write cuts nothing, and says so in its report only
        kept = [file for file in (self.root / folder).iterdir() if ".torn-" in file.name]
        with store.directory.lease(name, number) as lease:
            report = lease.log.recovery
        # cut between two batches there is nothing left to cut; zeros are not kept
        return bool(kept) or (report is not None and all(one.side_file is None for one in report.cut))

    # --- nothing is lost ----------------------------------------------------------------------------------------------

    def segments(self) -> dict[str, bytes]:
        return {
            file.relative_to(self.root).as_posix(): file.read_bytes() for file in self.root.glob("topics/*-*/*.log")
        }

    def check_kept(self, before: dict[str, bytes]) -> None:
        """Every segment but the damaged one is where it was; opening may have appended to it."""
        after = self.segments()
        for name, content in before.items():
            if name == self.damaged or not content:
                continue
            folder, _, file = name.rpartition("/")
            if name not in after and self.damaged.startswith(folder):
                assert list((self.root / folder).glob(f"{file}.torn-*")), f"{name} was removed"
                continue
            assert name in after, f"{name} was removed"
            assert after[name][: len(content)] == content, f"{name} was changed"


def judge_ids(root: Path, chance: random.Random) -> str:
    """What a damaged file of finished ids answers: SQLite keeps no checksums, so that an id may be forgotten, and its
    event handled once more; but nothing is known that never was, and everything else is an error with a name.
    """
    path = root / "ids.sqlite"
    try:
        memory = Deduplicator(path=path).open(str(root), "mail")
        try:
            asked = chance.sample([*IDS, *UNKNOWN_IDS], 60)
            known = memory.known(asked)
            assert known <= set(IDS), f"{known - set(IDS)} were never finished"
            memory.remember([b"new"], SOME_TIME + 1000)
            is_new = b"new" in memory.known([b"new"])
        finally:
            memory.close()
    except fastlog.Error as error:
        assert str(path) in str(error), f"the error does not name the file: {error}"
        return f"ids: {type(error).__name__}"
    return "same" if is_new and known == set(asked) & set(IDS) else "forgotten"
