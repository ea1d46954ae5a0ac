"""``fastlog dlq``: what it prints, what it changes, and what its exit code says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

import fastlog
from tests.cli.support import run, run_on_terminal, run_process
from tests.delivery import lettering
from tests.delivery.lettering import AGAIN, DLQ, SOURCE, content, fill, prepare


@pytest.fixture
def path(folder: Path) -> Path:
    """A store with 64 dead letters: 60 in partition 0, 4 in partition 1."""
    with fastlog.open(folder / "store", durability="os") as store:
        prepare(store)
        fill(store, 60)
        fill(store, 4, partition=1)
    return folder / "store"


@pytest.fixture
def dlq(path: Path) -> Any:
    def call(verb: str, *arguments: object, **options: Any) -> Result:
        return run("dlq", verb, *arguments, "--store", path, **options)

    return call


def lines(result: Result) -> list[dict[str, Any]]:
    return [json.loads(line) for line in result.stdout.splitlines()]


def sent_back(path: Path, topic: str = AGAIN) -> int:
    with fastlog.open(path, read_only=True) as store:
        return len(content(store, topic))


# --- list -------------------------------------------------------------------------------------------------------------


def test_all_dead_letter_topics(dlq: Any, path: Path) -> None:
    result = dlq("list")
    assert result.exit_code == 0
    assert result.stdout.splitlines()[1].split() == [DLQ, "orders", "mail", "64"]
    assert json.loads(dlq("list", "--json").stdout)["topics"] == [
        {"topic": DLQ, "source": "orders", "group": "mail", "open": 64}
    ]
    assert dlq("list", "--most", 63).exit_code == 1 and dlq("list", "--most", 64).exit_code == 0
    with fastlog.open(path.parent / "empty") as store:
        store.create_topic("orders")
    assert "no dead-letter topics" in run("dlq", "list", "--store", path.parent / "empty").stdout


def test_letters_in_a_table(dlq: Any) -> None:
    result = dlq("list", "orders", "--group", "mail")
    assert result.exit_code == 0
    shown = result.stdout.splitlines()
    assert shown[0] == f"{DLQ}: 64 open dead letters" and "… and 14 more: --max N shows them" in result.stdout
    assert shown[2].split() == [
        "0", "0", "orders-0-0", "key-0", "5", "2023-11-14T22:13:20.500Z", "ValueError", "order", "0", "failed",
    ]  # fmt: skip
    assert shown[-4:][1:] == ["  ValueError                22", *shown[-2:]]
    few = dlq("list", DLQ, "--max", 2, "--exception", "TimeoutError", "--partition", 0)
    assert few.stdout.splitlines()[0] == f"{DLQ}: 20 open dead letters" and "… and 18 more" in few.stdout
    assert dlq("list", DLQ, "--key", "nobody's").stdout == f"{DLQ}: 0 open dead letters\n"


FILTERS: list[tuple[list[object], list[str]]] = [
    (["-p", 1], ["1-0", "1-1", "1-2", "1-3"]),
    (["-p", 1, "-p", 0, "--offsets", "2-3"], ["0-2", "0-3", "1-2", "1-3"]),
    (["--offsets", "59, 3-4", "-p", 0], ["0-3", "0-4", "0-59"]),
    (["--offsets", "7"], ["0-7"]),
    (["--id", "orders-0-7", "--id", "orders-1-1"], ["0-7", "1-1"]),
    (["--key", "key-2", "--exception", "TimeoutError"], ["0-2", "0-17", "0-32", "0-47", "1-2"]),
    (["--message", "order 3 "], ["0-3", "1-3"]),
    (["--since", "2023-11-14T22:13:21.058Z"], ["0-58", "0-59"]),
    (["--until", "2023-11-14T22:13:21.001Z"], ["0-0", "1-0"]),
    (["--since", "-1h"], []),
]


@pytest.mark.parametrize("case", FILTERS, ids=str)
def test_filters_and_json(dlq: Any, case: tuple[list[object], list[str]]) -> None:
    arguments, expected = case
    result = dlq("list", DLQ, "--json", *arguments)
    assert [one["id"].removeprefix("orders-") for one in lines(result)] == expected
    assert dlq("list", DLQ, "--json", "--quiet", "--most", 0, *arguments).exit_code == bool(expected)


def test_json_has_everything(dlq: Any) -> None:
    (letter,) = lines(dlq("list", DLQ, "--json", "--id", "orders-1-3"))
    assert letter == {
        "id": "orders-1-3", "state": "open", "topic": DLQ, "partition": 1, "offset": 3,
        "timestamp": lettering.START + 1003,
        "origin": {"topic": "orders", "partition": 1, "offset": 3, "timestamp": lettering.START + 3,
                   "timestamp_type": "create"},
        "group": "mail", "attempts": 5, "first_failure": lettering.START + 503, "last_failure": lettering.START + 503,
        "exception": "ValueError", "message": "order 3 failed", "traceback": "Traceback\nValueError: order 3 failed",
        "key": "key-3", "value": "value-1-3", "headers": [["h", "3"], ["n", None]],
    }  # fmt: skip
    assert json.loads(dlq("show", DLQ, "orders-1-3", "--json").stdout) == {**letter, "audits": []}
    assert len(lines(dlq("list", DLQ, "--json", "--max", 2))) == 2


@pytest.mark.parametrize(
    "arguments",
    [
        ["--offsets", "3-"], ["--offsets", "x"], ["--offsets", ""], ["--offsets", "0-9999999,3"],
        ["--since", "earliest"], ["--since", "@3"], ["--until", "soon"], ["-p", -1], ["--state", "closed"],
    ],
    ids=str,
)  # fmt: skip
def test_wrong_usage(dlq: Any, arguments: list[object]) -> None:
    assert dlq("list", DLQ, *arguments).exit_code == 2


def test_what_is_not_there(dlq: Any, path: Path) -> None:
    for arguments in (["orders"], ["orders", "--group", "ship"], [AGAIN], ["nothing"], [DLQ, "-p", 9]):
        result = dlq("list", *arguments)
        assert result.exit_code == 3 and "fastlog: error:" in result.stderr
    assert dlq("list", "--group", "mail").exit_code == 2
    assert dlq("show", DLQ, "orders-0-99").exit_code == 3
    assert run("dlq", "list", "--store", path.parent / "nowhere").exit_code == 2


# --- show -------------------------------------------------------------------------------------------------------------


def test_one_letter(dlq: Any) -> None:
    shown = dlq("show", "orders", "orders-0-3", "-g", "mail").stdout
    for told in (
        "orders-0-3\n", "state          open\n", f"lies in        {DLQ}-0, offset 3\n", "attempts       5\n",
        "exception      ValueError\n", "value          value-0-3\n", "header n       <null>\n",
        "\ntraceback\n  Traceback\n",
    ):  # fmt: skip
        assert told in shown
    dlq("redrive", DLQ, "--id", "orders-0-3", "--yes", "--by", "zoë")
    assert f"redrive to {AGAIN} at 20" in (shown := dlq("show", DLQ, "orders-0-3").stdout) and "by zoë" in shown


def test_what_others_wrote_cannot_reach_the_terminal(dlq: Any, path: Path) -> None:
    evil = lettering.Failure("\x1b[31mE\n", "\x1b]0;gone\x07 two\nlines", "Trace\x1b[2Jback", 7)
    raw = lettering.raw_of(70, 0, key=b"\x1b[1m", value=b"\x9b\xff")
    with fastlog.open(path) as store:
        lettering.put(store, [raw], [lettering.letter_pairs(raw, evil)])
    for result in (dlq("list", DLQ, "--offsets", "60"), dlq("show", DLQ, "orders-0-70"), dlq("redrive", DLQ)):
        assert "\x1b" not in result.stdout and "\x07" not in result.stdout
    assert "two\\nlines" in dlq("list", DLQ, "--offsets", "60").stdout


# --- redrive and discard ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", ["redrive", "discard"])
def test_without_yes_nothing_changes(dlq: Any, path: Path, verb: str) -> None:
    result = dlq(verb, DLQ, "-p", 1)
    assert result.exit_code == 1 and "add --yes" in result.stderr
    assert f"To {verb} from {DLQ}" in result.stdout and "4 dead letters" in result.stdout
    told = json.loads(dlq(verb, DLQ, "-p", 1, "--json").stdout)
    assert told == {
        "topic": DLQ, "letters": 4, "exceptions": {"ValueError": 2, "shop.errors.NoStock": 1, "TimeoutError": 1},
        "action": verb, "done": 0,
    }  # fmt: skip
    assert len(lines(dlq("list", DLQ, "--json"))) == 64 and sent_back(path) == 0


def test_redriven(dlq: Any, path: Path) -> None:
    result = dlq("redrive", DLQ, "--exception", "NoStock", "--limit", 5, "--yes")
    assert result.exit_code == 0 and "5 of 21 dead letters" in result.stdout
    assert f"ok       5 dead letters redriven to {AGAIN}" in result.stdout
    assert sent_back(path) == 5
    told = json.loads(dlq("redrive", DLQ, "--exception", "NoStock", "--yes", "--json").stdout)
    assert (told["done"], told["to"], told["action"]) == (16, AGAIN, "redrive") and sent_back(path) == 21
    again = dlq("redrive", DLQ, "--exception", "NoStock", "--yes")
    assert again.exit_code == 0 and "no open dead letters match" in again.stdout and sent_back(path) == 21
    assert json.loads(dlq("redrive", DLQ, "--exception", "NoStock", "--json").stdout)["done"] == 0
    assert len(lines(dlq("list", DLQ, "--json", "--state", "handled"))) == 21


def test_to_the_source(dlq: Any, path: Path) -> None:
    assert dlq("redrive", DLQ, "-p", 1, "--to", "source", "--rate", 1000, "--yes").exit_code == 0
    assert (sent_back(path, SOURCE), sent_back(path)) == (4, 0)


def test_discarded(dlq: Any, path: Path) -> None:
    result = dlq("discard", DLQ, "--exception", "TimeoutError", "--yes", "--by", "zoë")
    assert result.exit_code == 0 and "ok       21 dead letters discarded" in result.stdout
    assert {one["state"] for one in lines(dlq("list", DLQ, "--json", "--state", "handled"))} == {"discarded"}
    assert sent_back(path) == 0
    table = dlq("list", DLQ, "--state", "handled").stdout.splitlines()
    assert table[0] == f"{DLQ}: 21 handled dead letters" and table[2].endswith("discarded")


def test_an_error_says_how_far_it_came(dlq: Any, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastlog.delivery.dead_letters.MOST_AT_ONCE", 10)
    original = fastlog.DeadLetters.redrive

    def fenced(self: Any, **options: Any) -> Any:
        follow = options.pop("progress")

        def interfere(done: int) -> None:
            follow(done)
            if done == 20:
                original(self, limit=1)

        return original(self, progress=interfere, **options)

    monkeypatch.setattr(fastlog.DeadLetters, "redrive", fenced)
    result = dlq("redrive", DLQ, "--yes")
    assert result.exit_code == 3
    assert "20 dead letters redriven before it ended; call again to go on" in result.stderr
    assert "another operator has begun" in result.stderr and sent_back(path) == 21


def test_quiet(dlq: Any, path: Path) -> None:
    result = dlq("redrive", DLQ, "--yes", "--quiet")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", "") and sent_back(path) == 64


# --- as users run it --------------------------------------------------------------------------------------------------


def test_in_a_process_of_its_own(path: Path) -> None:
    shown = run_process("--store", path, "dlq", "list", DLQ, "--json", "-p", 1)
    assert shown.returncode == 0 and len(shown.stdout.splitlines()) == 4
    refused = run_process("dlq", "discard", DLQ, "--store", path)
    assert refused.returncode == 1 and "add --yes" in refused.stderr


def test_on_a_terminal_it_asks(path: Path) -> None:
    code, shown = run_on_terminal("dlq", "redrive", DLQ, "-p", 1, "--store", path, answer="n")
    assert code == 1 and "Go ahead?" in shown and sent_back(path) == 0
    code, shown = run_on_terminal("dlq", "redrive", DLQ, "-p", 1, "--store", path, answer="y")
    assert code == 0 and "4 dead letters redriven" in shown and sent_back(path) == 4


def test_the_topic_says_for_whom_it_is_kept(path: Path) -> None:
    assert "kept for  dead-letter of topic orders, group mail" in run("topics", "describe", DLQ, "--store", path).stdout
    told = json.loads(run("topics", "describe", AGAIN, "--store", path, "--json").stdout)
    assert told["owner"] == {"topic": "orders", "group": "mail", "kind": "retry"}
    assert json.loads(run("topics", "describe", SOURCE, "--store", path, "--json").stdout)["owner"] is None
    listed = json.loads(run("topics", "list", "--store", path, "--json").stdout)["topics"]
    assert [one["name"] for one in listed] == [SOURCE, DLQ, AGAIN]


def test_help_says_what_the_verbs_do() -> None:
    result = run("dlq", "--help")
    for verb in ("list", "show", "redrive", "discard"):
        assert f"\n  {verb} " in result.stdout and run("dlq", verb, "--help").exit_code == 0
    assert "..." not in result.stdout.partition("Commands:")[2]
