"""Members of a group that come, commit, let go and leave, while the group's page grows and its topics change."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from fastlog.errors import CommitFailedError, TopicExistsError, UnknownTopicError
from fastlog.groups.membership import Membership
from fastlog.groups.offsets import OffsetAndMetadata
from fastlog.groups.table import peek
from fastlog.store.directory import Directory
from tests.histories.nursery import stopping
from tests.killing.lives import Desk, Life, calls, until
from tests.messaging.grouping import check_epochs, check_table, commits, turn

GROUP = "g"
TOPIC, CHURN = "t", "churn"
PARTITIONS = 6

COMING = [
    *("group.seated", "group.published", "group.stripped", "group.taken", "group.released", "group.layout"),
    *("page.filling", "page.filled", "page.published", "exchange.compared", "exchange.stored"),
]
GROWING = ["group.moving", "group.copied", "group.retired", "page.retiring"]


# --- the process ------------------------------------------------------------------------------------------------------


class Member:
    """The members of one process, and what they do."""

    def __init__(self, desk: Desk, directory: Directory, max_poll_interval_ms: int) -> None:
        self.desk, self.directory, self.max_poll_interval_ms = desk, directory, max_poll_interval_ms
        self.members: list[Membership] = []

    def join(self, *topics: str) -> None:
        with self.desk.call("join"):
            self.members.append(
                Membership(
                    self.directory, GROUP, topics=[TOPIC, CHURN, *topics],
                    max_poll_interval_ms=self.max_poll_interval_ms,
                )
            )  # fmt: skip

    def leave(self) -> None:
        with self.desk.call("leave"):
            self.members.pop(0).leave()

    def work(self) -> None:
        """Every member polls, and commits for what it owns: each commit says by which epoch it was made."""
        for member in self.members:
            turn(member)
            owned = {one: epoch for one, epoch in member.owned().items() if one.topic in (TOPIC, CHURN)}
            if not owned:
                continue
            number = self.desk.notes.calls + 1
            # epochs begin anew with the page, when everybody is gone; numbers of processes do not
            said = {one: OffsetAndMetadata(number, f"{self.desk.number} {epoch.value}") for one, epoch in owned.items()}
            names = [[*one, position.metadata] for one, position in said.items()]
            try:
                with self.desk.call("commit", offset=number, names=names):
                    member.commit(said)
            except CommitFailedError:
                pass

    def churn(self) -> None:
        """A topic that everybody wants goes, or comes back."""
        with self.desk.call("churn"):
            try:
                if CHURN in self.directory.topics():
                    self.directory.delete_topic(CHURN)
                else:
                    self.directory.create_topic(CHURN, self.desk.chance.choice([1, 3]))
            except (TopicExistsError, UnknownTopicError):
                pass

    def grow(self) -> None:
        """More partitions than the page has room for, when what others left half-way is done."""
        self.join()
        view = peek(self.directory, GROUP)
        assert view is not None
        topic = f"more-{self.desk.number}"
        self.directory.create_topic(topic, view.page.words)
        self.join(topic)


def belong(
    number: int, notes: str, seed: int, failpoint: list[Any] | None, path: str, grows: bool = False,
    max_poll_interval_ms: int = 300_000,
) -> None:  # fmt: skip
    """Some members, until it is asked to stop."""
    desk = Desk(number, notes, seed, failpoint)
    with Directory.open(path, durability="os") as directory:
        member = Member(desk, directory, max_poll_interval_ms)
        if grows:
            member.grow()
        while not stopping.is_set():
            dice = desk.chance.random()
            if not member.members or (dice < 0.04 and len(member.members) < 3):
                member.join()
            elif dice < 0.07:
                member.leave()
            elif dice < 0.12:
                member.churn()
            member.work()
            stopping.rest(0.003 * desk.chance.random())
        while member.members:
            member.leave()


# --- what has to be there ---------------------------------------------------------------------------------------------


def check(directory: Directory, lives: Iterable[Life]) -> int:
    """Everybody is gone. The next member gets everything; only owners have committed, and what they were told is there.

    How many epochs there were.
    """
    heir = Membership(directory, GROUP, topics=[TOPIC])
    until(lambda: owns_everything(heir), "the heir owns everything")
    check_table(directory, GROUP)
    found = {(*one.topic_partition, position.metadata, position.offset) for one, position in commits(directory, GROUP)}
    begun, acked = set(), set()
    for life in lives:
        for event, end in calls(life.events()):
            if event["op"] != "commit":
                continue
            entries = {(topic, partition, epoch, event["offset"]) for topic, partition, epoch in event["names"]}
            begun |= entries
            if end is None:
                assert entries <= found or not entries & found, f"{event} is there in part"
            elif end["k"] == "o":
                acked |= entries
            else:
                assert not entries & found, f"{event} was refused, and is there"
    assert acked <= found, f"{len(acked - found)} commits are lost, such as {sorted(acked - found)[0]}"
    assert found <= begun, f"commits of nobody: {sorted(found - begun)[:3]}"
    epochs = check_epochs(directory, GROUP)
    heir.commit({one: OffsetAndMetadata(1, str(epoch.value)) for one, epoch in heir.owned().items()})
    heir.leave()
    return epochs


def owns_everything(member: Membership) -> bool:
    turn(member)
    return len([one for one in member.owned() if one.topic == TOPIC]) == PARTITIONS


def prepare(path: str) -> None:
    """A store with what the group reads."""
    with Directory.open(path, durability="os") as directory:
        directory.create_topic(TOPIC, PARTITIONS)
        directory.create_topic(CHURN, 2)
