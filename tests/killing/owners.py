"""Owners of a log who take each other's place, and die in it; and pages whose publisher dies."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

import fastlog
from fastlog._core import SharedPage
from tests.histories.nursery import stopping
from tests.killing.lives import Desk, Life, calls

EXCHANGES = ["exchange.compared", "exchange.stored"]
APPENDS = ["append.locked", "append.dirty", "append.written", "append.published", "append.unlocked"]
PUBLISHING = ["page.filling", "page.filled", "page.published"]
LARGEST = 20_000  # bytes of a document
RETIRED = -(1 << 63)  # every word of a page that was retired


# --- owners -----------------------------------------------------------------------------------------------------------


def own(number: int, notes: str, seed: int, failpoint: list[Any] | None, log_path: str, page_path: str) -> None:
    """Takes the place of whoever owns the log, writes as its owner until replaced, and again."""
    desk = Desk(number, notes, seed, failpoint)
    page = SharedPage.open(page_path)
    with fastlog.PartitionLog.open(log_path, durability="os") as log:
        while not stopping.is_set():
            found = page.load(0)
            try:
                with desk.call("exchange", to=found + 1):
                    log.exchange([(page, 0, found)], [(page, 0, found + 1), (page, 1, number)])
                for _ in range(desk.chance.choice([1, 5, 50])):
                    value = f"{found + 1} {number} {desk.notes.calls}"
                    with desk.call("append", value=value):
                        log.append([value.encode()], conditions=[(page, 0, found + 1)])
            except fastlog.FencedError:
                continue


def check_owners(log: fastlog.PartitionLog, page: SharedPage, lives: Iterable[Life]) -> int:
    """No owner wrote behind the next one; what was acknowledged is there once, what was refused is not.

    How many owners there were.
    """
    values = [(record.value or b"").decode() for record in log.records()]
    owners: dict[int, int] = {}
    newest = 0
    for value in values:
        epoch, number = map(int, value.split()[:2])
        assert epoch >= newest, f"owner {epoch} wrote behind owner {newest}"
        assert owners.setdefault(epoch, number) == number, f"epoch {epoch} had two owners"
        newest = epoch
    there = Counter(values)
    assert set(there.values()) <= {1}, there.most_common(3)
    taken: set[int] = set()
    for life in lives:
        for event, end in calls(life.events()):
            if event["op"] == "exchange":
                if end is not None and end["k"] == "o":
                    assert event["to"] not in taken, f"{event} was taken twice"
                    taken.add(event["to"])
            elif end is not None:
                assert (event["value"] in there) == (end["k"] == "o"), f"{event}: {end}"
    assert newest <= page.load(0)
    return len(owners)


# --- pages ------------------------------------------------------------------------------------------------------------


def document_of(number: int, length: int) -> bytes:
    """A document that shows when it is of two pieces."""
    return (b"%08d" % number) * (length // 8)


def publish(number: int, notes: str, seed: int, failpoint: list[Any] | None, path: str, retires: bool = False) -> None:
    """Publishes one document after the other, or retires the page."""
    desk = Desk(number, notes, seed, failpoint)
    page = SharedPage.open(path)
    if retires:
        with desk.call("retire"):
            page.retire()
    while not stopping.is_set():
        version = page.version + 1
        with desk.call("publish", version=version):
            page.publish(document_of(version, desk.chance.randrange(LARGEST)))


def wait(number: int, notes: str, seed: int, failpoint: list[Any] | None, path: str, version: int) -> None:
    """Sleeps until the document has changed."""
    desk = Desk(number, notes, seed, failpoint)
    page = SharedPage.open(path)
    with desk.call("wait") as answer:
        answer["changed"] = page.wait(version, 30_000)


def check_page(page: SharedPage, life: Life | None = None) -> None:
    """One whole document, as new as the publisher was told."""
    version, document = page.read()
    assert document == document_of(version, len(document)), f"version {version} is of two pieces"
    for event, end in [] if life is None else list(calls(life.events()))[-1:]:
        assert version in ({event["version"]} if end is not None else {event["version"] - 1, event["version"]})


def check_half_retired(page: SharedPage) -> None:
    """Who was retiring it died: no condition on it holds any more, and yet nobody takes it for replaced."""
    assert not page.replaced
    assert page.load_many(0, page.words) == [RETIRED] * page.words
    check_page(page)
