"""A store of topics: what there is, how partitions are opened, what is refused."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

import fastlog
from fastlog.store import naming
from fastlog.store.directory import Directory


def test_topics_are_created_described_and_deleted(tmp_path: Path) -> None:
    with Directory.open(tmp_path / "store") as store:
        info = store.create_topic("orders", partitions=4, options={"retention": "7d", "segment.bytes": "1MiB"})
        assert info == store.topic("orders")
        assert info.partitions == 4 and len(info.topic_id) == 22 and not info.internal
        assert dict(info.options) == {"retention.ms": 7 * 86_400_000, "segment.bytes": 1 << 20}
        assert store.topics() == ["orders"]
        before = store.topics_version
        store.delete_topic("orders")
        assert store.topics() == [] and store.topics_version != before
        with pytest.raises(fastlog.UnknownTopicError):
            store.topic("orders")


def test_a_lease_opens_a_partition_and_makes_its_folder(tmp_path: Path) -> None:
    with Directory.open(tmp_path / "store", durability="os") as store:
        info = store.create_topic("orders", partitions=2)
        folder = tmp_path / "store/topics/orders-1"
        assert not folder.exists() and not store.is_created("orders", 1)
        with store.lease("orders", 1) as lease:
            assert lease.log.append([b"a"]) == 0
            assert (lease.log.topic, lease.log.partition) == ("orders", 1)
        assert store.is_created("orders", 1)
        assert (folder / "partition.metadata").read_text() == f"version: 0\ntopic_id: {info.topic_id}"
        log = store.partition_log("orders", 1)
        assert log is store.partition_log("orders", 1) and log.end_offset == 1
    assert log.closed
    with Directory.open(tmp_path / "store") as store, store.lease("orders", 1) as lease:
        assert [bytes(record.value) for record in lease.log.records()] == [b"a"]


def test_names_are_kafkas(tmp_path: Path) -> None:
    with Directory.open(tmp_path / "store") as store:
        for name in ("", ".", "..", "a b", "a/b", "ä", "x" * 250, 7):
            with pytest.raises(fastlog.InvalidTopicError):
                store.create_topic(name)  # type: ignore[arg-type]
        store.create_topic("x" * 249)
        with store.lease("x" * 249, 0) as lease:
            lease.log.append([b"a"])
        store.create_topic("a.b")
        with pytest.raises(fastlog.InvalidTopicError, match="collides with the topic 'a.b'"):
            store.create_topic("a_b")
        with pytest.raises(fastlog.TopicExistsError):
            store.create_topic("a.b")
        assert store.create_topic("a.b", partitions=9, exist_ok=True).partitions == 1
        with pytest.raises(fastlog.InvalidTopicError, match="fastlog's own"):
            store.create_topic("__consumer_offsets")


def test_unknown_names_tell_the_nearest(tmp_path: Path) -> None:
    with Directory.open(tmp_path / "store") as store:
        store.create_topic("orders")
        with pytest.raises(fastlog.UnknownTopicError, match="did you mean 'orders'"):
            store.lease("order", 0)
        with pytest.raises(fastlog.UnknownTopicError, match="it has 1, numbered from 0"):
            store.lease("orders", 1)
        with pytest.raises(fastlog.ConfigError, match=r"did you mean 'retention\.ms'"):
            store.create_topic("other", options={"retentoin.ms": 5})
        with pytest.raises(fastlog.ConfigError, match="out of range"):
            store.create_topic("other", options={"retention.ms": -2})
        assert store.topics() == ["orders"]


def test_layout_of_a_new_store(tmp_path: Path) -> None:
    root = tmp_path / "store"
    with Directory.open(root) as store:
        assert {path.name for path in root.iterdir()} == {"fastlog.json", "topics", "config", "control"}
        content = json.loads((root / "fastlog.json").read_text())
        assert content["format"] == 1 and content["cluster_id"] == store.cluster_id
        store.create_topic("orders")
        store.partition_log("orders", 0).append([b"a"])
    properties = dict(line.split("=") for line in (root / "topics/meta.properties").read_text().split())
    assert properties.keys() == {"version", "cluster.id", "node.id", "directory.id"}
    assert properties["cluster.id"] == content["cluster_id"] and naming.is_id(properties["directory.id"])
    for folder, names, files in os.walk(root):
        assert all((Path(folder) / name).stat().st_mode & 0o777 == 0o700 for name in names)
        assert all((Path(folder) / name).stat().st_mode & 0o777 == 0o600 for name in files), folder
