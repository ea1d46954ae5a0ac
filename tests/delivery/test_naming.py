"""Names of retry and dead-letter topics, and whose they are: in the catalog, for patterns, in backups."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import fastlog
from fastlog.delivery import naming
from fastlog.delivery.naming import DEAD_LETTER, RETRY, require_topic
from fastlog.store.catalog import TopicOwner
from fastlog.store.directory import Directory

NAME = st.from_regex(r"[a-zA-Z0-9._-]{1,130}", fullmatch=True).filter(lambda name: name not in (".", ".."))


@pytest.fixture
def store(folder: Path) -> Iterator[fastlog.Store]:
    with fastlog.open(folder / "store", durability="os") as store:
        store.create_topic("orders", partitions=3)
        yield store


# --- names alone ------------------------------------------------------------------------------------------------------


@given(topic=NAME, group=NAME)
def test_names_follow_from_topic_and_group(topic: str, group: str) -> None:
    if len(topic) + len(group) + 7 > 249:
        with pytest.raises(fastlog.ConfigError, match="expected at most 249"):
            naming.check_names(topic, group)
        return
    assert naming.check_names(topic, group) == (f"{topic}.{group}.retry", f"{topic}.{group}.dlq")


@pytest.mark.parametrize("group", ["", "größe", "a b", "a/b", "a\n", 7, None])
def test_a_group_that_cannot_name_a_topic(group: object) -> None:
    with pytest.raises(fastlog.ConfigError):
        naming.check_names("orders", group)  # type: ignore[arg-type]


def test_given_names_take_the_place_of_derived_ones() -> None:
    long = "x" * 249
    assert naming.check_names(long, "mail", "again", "dead") == ("again", "dead")
    with pytest.raises(fastlog.ConfigError, match="name it by dead_letter_topic="):
        naming.check_names(long, "mail", "again")
    for wrong in ("", "a b", "ä", ".", 7):
        with pytest.raises(fastlog.ConfigError, match="retry_topic="):
            naming.check_names("orders", "mail", wrong)  # type: ignore[arg-type]
    for same in (("dead", "dead"), ("orders", None), (None, "orders"), (None, "orders.mail.retry")):
        with pytest.raises(fastlog.ConfigError, match="three different names"):
            naming.check_names("orders", "mail", *same)


# --- in the store -----------------------------------------------------------------------------------------------------


def test_a_topic_is_made_for_its_owner_once(store: fastlog.Store) -> None:
    made = require_topic(store.directory, "orders", "mail", DEAD_LETTER)
    assert (made.name, made.partitions) == ("orders.mail.dlq", 3)
    assert made.owner == TopicOwner("orders", "mail", "dead-letter") == store.topic("orders.mail.dlq").owner
    assert require_topic(store.directory, "orders", "mail", DEAD_LETTER) == made
    assert naming.owned_topic(store.directory, "orders", "mail", DEAD_LETTER) == made
    assert naming.owned_topic(store.directory, "orders", "mail", RETRY) is None
    assert store.topic("orders").owner is None
    require_topic(store.directory, "orders", "mail", RETRY)
    require_topic(store.directory, "orders", "audit", DEAD_LETTER, "failed")
    assert list(naming.dead_letter_topics(store.directory)) == ["failed", "orders.mail.dlq"]


def test_other_handles_and_later_ones_see_the_owner(folder: Path, store: fastlog.Store) -> None:
    require_topic(store.directory, "orders", "mail", RETRY)
    path = folder / "store/config/orders.mail.retry.json"
    assert json.loads(path.read_text())["owner"] == {"topic": "orders", "group": "mail", "kind": "retry"}
    with fastlog.open(folder / "store", read_only=True) as other:
        assert other.topic("orders.mail.retry").owner == TopicOwner("orders", "mail", "retry")
    store.alter_topic("orders.mail.retry", {"retention": "1d"})
    store.add_partitions("orders.mail.retry", 5)
    assert store.topic("orders.mail.retry").owner == TopicOwner("orders", "mail", "retry")
    store.directory.backup(folder / "copy")
    with fastlog.open(folder / "copy") as copy:
        assert copy.topic("orders.mail.retry").owner == TopicOwner("orders", "mail", "retry")


def test_two_pairs_that_lead_to_one_name(store: fastlog.Store) -> None:
    store.create_topic("a")
    store.create_topic("a.b")
    require_topic(store.directory, "a", "b.c", DEAD_LETTER)
    with pytest.raises(fastlog.ConfigError, match=r"dead-letter topic of topic 'a' and group 'b\.c'.*name another one"):
        require_topic(store.directory, "a.b", "c", DEAD_LETTER)
    assert require_topic(store.directory, "a.b", "c", DEAD_LETTER, "a.b.c.dead").name == "a.b.c.dead"
    store.create_topic("a-x")
    with pytest.raises(fastlog.ConfigError, match="collides"):
        require_topic(store.directory, "a", "b_c", DEAD_LETTER)


def test_one_topic_is_not_retry_and_dead_letter_topic(store: fastlog.Store) -> None:
    require_topic(store.directory, "orders", "mail", RETRY, "again")
    with pytest.raises(fastlog.ConfigError, match="is the retry topic of topic 'orders' and group 'mail'"):
        require_topic(store.directory, "orders", "mail", DEAD_LETTER, "again")


def test_a_pair_has_one_topic_of_a_kind(store: fastlog.Store) -> None:
    """Another name would leave behind what waits under the first."""
    require_topic(store.directory, "orders", "mail", RETRY)
    with pytest.raises(fastlog.ConfigError, match=r"is 'orders\.mail\.retry': go on with that one, or delete it"):
        require_topic(store.directory, "orders", "mail", RETRY, "again")
    store.create_topic("again")
    with pytest.raises(fastlog.ConfigError, match=r"is 'orders\.mail\.retry'"):
        require_topic(store.directory, "orders", "mail", RETRY, "again")
    assert store.topic("again").owner is None
    store.delete_topic("orders.mail.retry")
    assert require_topic(store.directory, "orders", "mail", RETRY, "again").name == "again"


def test_an_empty_topic_of_nobody_is_taken(store: fastlog.Store) -> None:
    store.create_topic("orders.mail.dlq", config={"retention.ms": 1000})
    taken = require_topic(store.directory, "orders", "mail", DEAD_LETTER)
    assert taken.owner is not None and taken.partitions == 3 and taken.options["retention.ms"] == 1000
    store.create_topic("used")
    store.topic("used").partition(0).append([b"somebody's"])
    store.create_topic("tidy", config={"cleanup.policy": "compact"})
    for name in ("used", "tidy", "orders"):
        with pytest.raises(fastlog.ConfigError):
            require_topic(store.directory, "orders", "audit", DEAD_LETTER, name)
        assert store.topic(name).owner is None


def test_partitions_and_limits_follow_the_source(store: fastlog.Store) -> None:
    made = require_topic(store.directory, "orders", "mail", RETRY)
    assert made.options["max.message.bytes"] == 64 * 1024 * 1024 + naming.HEADERS_ROOM
    store.add_partitions("orders", 7)
    store.alter_topic("orders", {"max.message.bytes": 100_000_000})
    grown = require_topic(store.directory, "orders", "mail", RETRY)
    assert grown.partitions == 7 and grown.topic_id == made.topic_id
    assert grown.options["max.message.bytes"] == 100_000_000 + naming.HEADERS_ROOM


def test_topics_that_have_none(store: fastlog.Store) -> None:
    with pytest.raises(fastlog.UnknownTopicError, match="did you mean 'orders'"):
        require_topic(store.directory, "order", "mail", RETRY)
    store.directory.internal_topic("__consumer_offsets")
    with pytest.raises(fastlog.ConfigError, match="fastlog's own"):
        require_topic(store.directory, "__consumer_offsets", "mail", RETRY)
    with pytest.raises(fastlog.ConfigError):
        require_topic(store.directory, "orders", "mail", DEAD_LETTER, "__transaction_state")


@pytest.mark.parametrize(
    "owner", ["mail", 7, [], {}, {"topic": "orders", "group": "mail"}, {"topic": "", "group": "mail", "kind": "retry"}]
)
def test_a_damaged_owner_is_an_error(folder: Path, owner: object) -> None:
    with Directory.open(folder / "store") as store:
        store.create_topic("orders")
    path = folder / "store/config/orders.json"
    content = json.loads(path.read_text())
    del content["crc32c"]  # written by hand, then
    path.write_text(json.dumps({**content, "owner": owner}))
    with Directory.open(folder / "store") as store, pytest.raises(fastlog.CorruptLogError, match="owner"):
        store.topic("orders")


# --- patterns ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("group", [None, "all"])
def test_patterns_pass_over_them(store: fastlog.Store, group: str | None) -> None:
    for kind in (RETRY, DEAD_LETTER):
        made = require_topic(store.directory, "orders", "mail", kind)
        store.topic(made.name).partition(0).append([kind.encode()])
    store.topic("orders").partition(0).append([b"order"])
    assert store.topics() == ["orders", "orders.mail.dlq", "orders.mail.retry"]
    with store.consumer(re.compile(".*"), group=group, start="earliest") as consumer:
        assert [record.value for record in consumer.records(until="end")] == [b"order"]
        late = require_topic(store.directory, "orders", "late", DEAD_LETTER).name
        store.create_topic("more")
        store.topic(late).partition(0).append([b"dead"])
        store.topic("more").partition(0).append([b"more"])
        assert [record.value for record in consumer.poll(timeout=5)] == [b"more"]


def test_by_name_they_are_read(store: fastlog.Store) -> None:
    """Also beside a member of the same group that follows a pattern: it does not get what the other one asked for."""
    name = require_topic(store.directory, "orders", "mail", DEAD_LETTER).name
    store.topic(name).partition(2).append([b"dead"])
    with (
        store.consumer(re.compile(".*"), group="all", start="earliest") as everything,
        store.consumer(name, group="all", start="earliest") as dead,
    ):
        found: list[bytes | None] = []
        for _ in range(4):
            assert not everything.poll(timeout=0)
            found += [record.value for record in dead.poll(timeout=0.2)]
        assert found == [b"dead"]
        assert {one.topic for one in everything.assignment()} == {"orders"}
        assert {one.topic for one in dead.assignment()} == {name}
