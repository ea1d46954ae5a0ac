"""``fastlog.open`` and the store: its face, and that every documented name is there."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
from pathlib import Path

import pytest

import fastlog
from fastlog import TopicPartition

# what a user of the documents writes: class -> members
DOCUMENTED: dict[str, set[str]] = {
    "Store": {
        *("create_topic", "topics", "topic", "delete_topic", "alter_topic", "add_partitions", "producer", "consumer"),
        *("close", "path", "durability", "read_only", "closed", "cluster_id"),
    },
    "Topic": {"name", "partitions", "partition", "read", "config", "topic_id"},
    "Consumer": {
        *("poll", "batches", "records", "commit", "committed", "seek", "seek_to_beginning", "seek_to_end", "pause"),
        *("resume", "paused", "assignment", "position", "lag", "stats", "beginning_offsets", "end_offsets", "close"),
        *("closed", "group", "membership", "enlist", "offsets_in_hand", "rewind", "__iter__", "__enter__", "__exit__"),
    },
}
CONSUMER_OPTIONS = {
    *("topics", "group", "start", "auto_commit", "auto_commit_interval", "isolation", "max_poll_interval"),
    *("session_timeout", "instance_id", "assignor", "key_deserializer", "value_deserializer", "on_assigned"),
    *("on_revoked", "on_lost", "partitions"),
}


@pytest.mark.parametrize("name", sorted(DOCUMENTED))
def test_every_documented_member_is_there(name: str) -> None:
    owner = getattr(fastlog, name)
    attributes = {"name"} if name == "Topic" else set[str]()
    assert not {member for member in DOCUMENTED[name] - attributes if not hasattr(owner, member)}


def test_the_store_passes_on_every_option_of_a_consumer() -> None:
    of_store = set(inspect.signature(fastlog.Store.consumer).parameters) - {"self"}
    of_consumer = set(inspect.signature(fastlog.Consumer).parameters) - {"directory"}
    assert of_store == of_consumer >= CONSUMER_OPTIONS


def test_a_store_of_topics(tmp_path: Path) -> None:
    with fastlog.open(tmp_path / "store", durability="os") as store:
        assert store.path == str(tmp_path / "store") and store.durability == "os" and not store.read_only
        topic = store.create_topic("orders", partitions=4, retention="7d", config={"cleanup.policy": "delete"})
        assert (topic.name, topic.partitions, len(topic)) == ("orders", 4, 4)
        assert topic.config["retention.ms"] == 7 * 86_400_000
        assert store.create_topic("orders", exist_ok=True).partitions == 4
        with pytest.raises(fastlog.TopicExistsError):
            store.create_topic("orders")
        with pytest.raises(fastlog.ConfigError, match="cleanup"):
            store.create_topic("x", config={"cleanup.polcy": "delete"})
        with pytest.raises(fastlog.InvalidTopicError):
            store.create_topic("a/b")
        store.alter_topic("orders", {"retention.ms": None})
        assert "retention.ms" not in topic.config
        store.add_partitions("orders", 5)
        assert topic.partitions == 5
        assert topic.partition(4).append([b"x"]) == 0
        assert store.topics() == ["orders"]
        with pytest.raises(fastlog.UnknownTopicError, match="orders"):
            store.topic("order")
        with pytest.raises(fastlog.UnknownTopicError):
            topic.partition(5)
        store.delete_topic("orders")
        assert store.topics() == []
    assert store.closed
    with pytest.raises(fastlog.ClosedError):
        store.topics()
    store.close()


def test_read_only_changes_nothing(tmp_path: Path) -> None:
    with fastlog.open(tmp_path / "store", durability="os") as store:
        store.create_topic("orders").partition(0).append([b"x"])
    with fastlog.open(tmp_path / "store", read_only=True) as store:
        assert store.topic("orders").partition(0).get(0).value == b"x"  # type: ignore[union-attr]
        with pytest.raises(fastlog.NotSupportedError):
            store.create_topic("other")
    with pytest.raises(fastlog.Error):
        fastlog.open(tmp_path / "nothing", read_only=True)
    assert not os.path.exists(tmp_path / "nothing")


def test_two_processes_see_each_others_topics(tmp_path: Path) -> None:
    with fastlog.open(tmp_path / "store", durability="os") as store:
        script = (
            "import fastlog, sys\n"
            "with fastlog.open(sys.argv[1], durability='os') as store:\n"
            "    store.create_topic('theirs').partition(0).append([b'x'])\n"
        )
        subprocess.run([sys.executable, "-c", script, store.path], check=True, timeout=60)
        assert store.topics() == ["theirs"]
        with store.consumer("theirs", start="earliest") as consumer:
            assert [record.value for record in consumer.poll()] == [b"x"]
            assert consumer.assignment() == [TopicPartition("theirs", 0)]


def test_names_of_the_store_are_loaded_when_they_are_asked_for() -> None:
    script = (
        "import sys, fastlog\n"
        "assert not [name for name in sys.modules if name.startswith(('fastlog.clients', 'fastlog.store'))]\n"
        "assert 'open' in dir(fastlog) and 'Consumer' in dir(fastlog)\n"
        "assert callable(fastlog.open) and 'fastlog.clients.store' in sys.modules\n"
        "assert 'open' in vars(fastlog)\n"
        "assert not hasattr(fastlog, 'opne')\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


def test_from_a_producer_to_a_group(tmp_path: Path) -> None:
    with fastlog.open(tmp_path / "store", durability="os") as store:
        store.create_topic("orders", partitions=3)
        with store.producer(linger="1ms", compression="zstd", value_serializer=str.encode) as producer:
            for number in range(300):
                producer.send("orders", f"v{number}", key=b"k%d" % (number % 10))
        with store.consumer("orders", group="g", start="earliest", value_deserializer=bytes.decode) as consumer:
            found = [record.value for record in consumer.records(until="end")]
        assert sorted(found) == sorted(f"v{number}" for number in range(300))
        assert store.groups() == ["g"]


def test_closing_the_store_delivers_what_was_sent(tmp_path: Path) -> None:
    with fastlog.open(tmp_path / "store", durability="os") as store:
        store.create_topic("orders")
        producer = store.producer(linger="10s")
        delivery = producer.send("orders", b"x")
        store.close()
        assert delivery.result(timeout=0).offset == 0
        assert producer.closed


def test_consume_transform_produce_exactly_once(tmp_path: Path) -> None:
    """The block that the documents show: an exception takes back what was sent, and the consumer goes back."""
    with fastlog.open(tmp_path / "store", durability="os") as store:
        store.create_topic("orders").partition(0).append([b"%d" % number for number in range(10)])
        store.create_topic("payments")
        with (
            store.consumer("orders", group="pay", start="earliest") as consumer,
            store.producer(transactional_id="pay-1") as producer,
        ):
            fail = [True, False, True, False, False]
            while records := consumer.poll(4, timeout=0):
                try:
                    with producer.transaction(consumer) as tx:
                        for record in records:
                            tx.send("payments", b"paid " + (record.value or b""))
                        tx.commit_offsets()
                        if fail.pop(0):
                            raise ValueError("a handler failed")
                except ValueError:
                    pass
        with store.consumer("payments", start="earliest") as consumer:
            paid = [record.value for record in consumer.records(until="end")]
        assert paid == [b"paid %d" % number for number in range(10)]
        with store.consumer("orders", group="pay") as consumer:
            assert consumer.poll(timeout=0) == []
            assert consumer.position("orders", 0) == 10
