"""``fastlog topics | produce | consume | groups``: what people type, what programs read, what goes wrong."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

import fastlog
from tests.cli.support import run, run_on_terminal, run_process


@pytest.fixture
def store(folder: Path) -> Path:
    path = folder / "store"
    assert run("topics", "create", "orders", "-p", 3, "--store", path).exit_code == 0
    return path


def loads(*arguments: object, **options: Any) -> Any:
    result = run(*arguments, "--json", **options)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def consumed(store: Path, *arguments: object) -> list[dict[str, Any]]:
    result = run("consume", *arguments, "--store", store, "--json")
    assert result.exit_code == 0, result.output
    return [json.loads(line) for line in result.stdout.splitlines()]


# --- topics -------------------------------------------------------------------------------------------


def test_topics_that_nobody_has_used_yet(folder: Path) -> None:
    """Partitions have no files before they are first used; the nouns only read, and say that nothing is in there."""
    with fastlog.open(folder / "store") as opened:
        opened.create_topic("orders", partitions=3)
        with opened.consumer("orders", group="mail", start="earliest") as consumer:
            consumer.poll(timeout=0)
        with opened.producer() as producer:
            producer.send("orders", b"x", partition=1)
    listed = loads("topics", "list", "--internal", "--store", folder / "store")["topics"]
    assert ("orders", 3, 1) in [(topic["name"], topic["partitions"], topic["records"]) for topic in listed]
    parts = loads("topics", "describe", "orders", "--store", folder / "store")["partitions"]
    assert [(part["end_offset"], part["largest_timestamp"] is None) for part in parts] == [
        (0, True), (1, False), (0, True),
    ]  # fmt: skip


def test_topics_are_created_listed_described_altered_and_deleted(store: Path) -> None:
    made = loads("topics", "create", "a", "b", "--retention", "7d", "-c", "cleanup.policy=compact", "--store", store)
    assert [topic["name"] for topic in made["topics"]] == ["a", "b"]
    assert (
        made["topics"][0]["config"] == {"cleanup.policy": "compact", "retention.ms": "604800000"}
        or made["topics"][0]["config"]["cleanup.policy"] == "compact"
    )
    listed = loads("topics", "list", "--store", store)["topics"]
    assert [(topic["name"], topic["partitions"], topic["records"]) for topic in listed] == [
        ("a", 1, 0), ("b", 1, 0), ("orders", 3, 0),
    ]  # fmt: skip
    altered = loads("topics", "alter", "a", "-p", 4, "-c", "retention.ms=1000", "--store", store)
    assert len(altered["partitions"]) == 4
    assert int(altered["config"]["retention.ms"]) == 1000
    assert "7" not in run("topics", "describe", "a", "--store", store).stdout.splitlines()[-1].split()[0]
    refused = run("topics", "delete", "b", "--store", store)
    assert refused.exit_code == 1
    assert "--yes" in refused.output
    assert loads("topics", "delete", "b", "--yes", "--store", store)["deleted"]
    assert "b" not in [topic["name"] for topic in loads("topics", "list", "--store", store)["topics"]]


def test_the_store_is_named_before_or_after_the_noun_or_by_the_environment(
    store: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "orders" in run("--store", store, "topics", "list").stdout
    monkeypatch.setenv("FASTLOG_STORE", str(store))
    assert "orders" in run("topics", "list").stdout
    elsewhere = folder / "elsewhere"
    result = run("topics", "list", "--store", elsewhere)
    assert result.exit_code == 2
    assert str(elsewhere) in result.output
    assert not elsewhere.exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("topics", "create", "orders"), "there already"),
        (("topics", "create", "a/b"), "a/b"),
        (("topics", "create", "x", "-c", "retention.mss=1"), "retention"),
        (("topics", "create", "x", "-c", "nonsense"), "NAME=VALUE"),
        (("topics", "describe", "order"), "orders"),
        (("topics", "alter", "orders"), "nothing to change"),
        (("consume", "nope"), "nope"),
        (("consume", "orders", "--from", "yesterday"), "yesterday"),
        (("consume", "orders", "--show", "value,colour"), "colour"),
        (("consume", "orders", "--partition", 7), "7"),
        (("consume", "orders", "--group", "g", "--partition", 0), "--partition"),
        (("groups", "describe", "nobody"), "nobody"),
        (("groups", "reset", "nobody", "--to", "latest", "--yes"), "nobody"),
        (("produce", "nope"), "nope"),
        (("produce", "orders", "--key", "id"), "--format"),
    ],
)
def test_what_is_wrong_is_said_in_a_line(store: Path, arguments: tuple[object, ...], words: str) -> None:
    result = run(*arguments, "--store", store, input="")
    assert result.exit_code in (2, 3), result.output
    assert words in result.output
    assert "Traceback" not in result.output


# --- produce and consume --------------------------------------------------------------------------------


def test_lines_come_back_as_they_went_in(store: Path) -> None:
    assert run("produce", "orders", "--partition", 1, "--store", store, input="one\ntwo\r\n\nfour").exit_code == 0
    assert run("consume", "orders", "--store", store).stdout.split("\n") == ["one", "two", "", "four", ""]
    rows = consumed(store, "orders")
    assert [(row["partition"], row["offset"], row["key"], row["value"]) for row in rows] == [
        (1, 0, None, "one"), (1, 1, None, "two"), (1, 2, None, ""), (1, 3, None, "four"),
    ]  # fmt: skip


def test_keys_of_lines_jsonl_and_csv(store: Path, folder: Path) -> None:
    run("produce", "orders", "--key-separator", ":", "--store", store, input="a:1\nb:2:3\n")
    jsonl, table = folder / "x.jsonl", folder / "x.csv"
    jsonl.write_text('{"id": "c", "n": 1}\n\n{"id": 7, "n": null}\n')
    table.write_text("id,n\nd,x\n")
    assert run("produce", "orders", jsonl, "--key", "id", "--store", store).exit_code == 0
    assert run("produce", "orders", jsonl, "--value", "n", "--store", store).exit_code == 0
    assert run("produce", "orders", table, "--key", "id", "--compression", "zstd", "--store", store).exit_code == 0
    pairs = {(row["key"], row["value"]) for row in consumed(store, "orders")}
    assert pairs == {
        ("a", "1"), ("b", "2:3"), ("c", '{"id": "c", "n": 1}'), ("7", '{"id": 7, "n": null}'),
        (None, "1"), (None, None), ("d", '{"id": "d", "n": "x"}'),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "content", "options", "words"),
    [
        ("x.jsonl", '{"id": 1}\n{"id"\n', (), "line 2"),
        ("x.jsonl", '{"id": 1}\n[2]\n', ("--key", "id"), "line 2"),
        ("x.jsonl", '{"id": 1}\n{"it": 1}\n', ("--key", "id"), "'id'"),
        ("x.csv", "a,b\n1,2\n3\n", (), "row 3"),
        ("x.txt", "a:1\nb\n", ("--key-separator", ":"), "line 2"),
    ],
)
def test_a_bad_line_is_named_and_those_before_it_are_written(
    store: Path, folder: Path, name: str, content: str, options: tuple[str, ...], words: str
) -> None:
    (folder / name).write_text(content)
    result = run("produce", "orders", folder / name, *options, "--store", store)
    assert result.exit_code == 3
    assert words in result.output
    assert len(consumed(store, "orders")) == 1


def test_where_to_begin_and_how_much(store: Path) -> None:
    now = datetime.now(UTC)
    with fastlog.open(store) as opened:
        log = opened.topic("orders").partition(0)
        log.append([b"old"], timestamps=int((now - timedelta(hours=2)).timestamp() * 1000))
        log.append([b"new"], timestamps=int((now - timedelta(minutes=2)).timestamp() * 1000))
        log.append([b"last"])

    def values(*arguments: object) -> list[str]:
        return [row["value"] for row in consumed(store, "orders", *arguments)]

    assert values() == ["old", "new", "last"]
    assert values("--from", "-10m") == ["new", "last"]
    assert values("--from", "@2", "--partition", 0) == ["last"]
    assert values("--from", (now - timedelta(hours=1)).isoformat()) == ["new", "last"]
    assert values("--from", "latest") == []
    assert values("--max", 2) == ["old", "new"]
    assert values("--partition", 1) == []
    shown = run("consume", "orders", "--show", "topic,partition,offset,key,value", "--store", store).stdout
    assert shown.splitlines()[0] == "orders\t0\t0\t<null>\told"


def test_bytes_that_are_no_text(store: Path) -> None:
    with fastlog.open(store) as opened:
        opened.topic("orders").partition(0).append([b"\xff\x00", None], headers={"h": b"\xfe"})
    first, second = consumed(store, "orders")
    assert first["value"] == {"base64": "/wA="}
    assert first["headers"] == [["h", {"base64": "/g=="}]]
    assert second["value"] is None
    assert run("consume", "orders", "--store", store).stdout == "\\xff\\x00\n<null>\n"


@pytest.fixture
def follower(store: Path) -> Iterator[subprocess.Popen[str]]:
    command = [
        sys.executable,
        "-m",
        "fastlog",
        "consume",
        "orders",
        "--follow",
        "--from",
        "earliest",
        "--store",
        str(store),
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    yield process
    process.kill()
    process.wait()


def test_follow_shows_what_comes_and_ends_with_ctrl_c(store: Path, follower: subprocess.Popen[str]) -> None:
    assert follower.stdout is not None
    for value in ("one", "two"):
        run("produce", "orders", "--store", store, input=f"{value}\n")
        assert follower.stdout.readline() == f"{value}\n"
    follower.send_signal(signal.SIGINT)
    assert follower.wait(20) == 130


# --- groups -------------------------------------------------------------------------------------------------


def test_a_group_goes_on_where_it_was(store: Path) -> None:
    run("produce", "orders", "--partition", 0, "--store", store, input="\n".join(map(str, range(10))))
    assert len(consumed(store, "orders", "--group", "g", "--max", 4)) == 4
    assert [row["value"] for row in consumed(store, "orders", "--group", "g", "--max", 2)] == ["4", "5"]
    assert loads("groups", "list", "--store", store)["groups"] == [
        {"name": "g", "state": "Empty", "members": 0, "partitions": 3, "lag": 4}
    ]
    found = loads("groups", "describe", "g", "--store", store)
    assert [(row["partition"], row["committed"], row["lag"]) for row in found["partitions"]] == [
        (0, 6, 4),
        (1, 0, 0),
        (2, 0, 0),
    ]
    assert run("groups", "lag", "g", "--most", 4, "--store", store).exit_code == 0
    assert run("groups", "lag", "g", "--most", 3, "--store", store).exit_code == 1
    assert run("groups", "reset", "g", "--to", "earliest", "--store", store).exit_code == 1
    done = loads("groups", "reset", "g", "--to", "@2", "--yes", "--store", store)
    assert [(row["before"], row["after"]) for row in done["partitions"] if row["partition"] == 0] == [(6, 2)]
    assert consumed(store, "orders", "--group", "g", "--max", 1)[0]["value"] == "2"
    assert loads("groups", "delete", "g", "--yes", "--store", store)["deleted"]
    assert loads("groups", "list", "--store", store)["groups"] == []


def test_members_are_shown_while_they_live(store: Path) -> None:
    with fastlog.open(store) as opened, opened.consumer("orders", group="g") as consumer:
        consumer.poll(timeout=0)
        found = loads("groups", "describe", "g", "--store", store)
        assert found["state"] == "Stable"
        assert [len(member["partitions"]) for member in found["members"]] == [3]
        refused = run("groups", "reset", "g", "--to", "latest", "--topic", "orders", "--yes", "--store", store)
        assert refused.exit_code == 3
        assert "members" in refused.output


def test_a_terminal_is_asked(store: Path) -> None:
    code, shown = run_on_terminal("topics", "delete", "orders", "--store", store, answer="n")
    assert code == 1
    assert "Go ahead?" in shown
    code, _ = run_on_terminal("topics", "delete", "orders", "--store", store, answer="y")
    assert code == 0
    assert run_process("topics", "list", "--store", store).stdout.startswith("no topics")
