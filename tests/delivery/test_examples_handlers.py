"""The examples that have workers run as their READMEs say, from a folder that they do not write to."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import fastlog

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
PACKAGE = str(Path(fastlog.__file__).resolve().parents[1])
PATIENCE = 60.0

Start = Callable[..., "subprocess.Popen[str]"]


class Example:
    """One folder of ``examples/``, whose programs are run on a store of the test."""

    def __init__(self, name: str, folder: Path) -> None:
        self.home = EXAMPLES / name
        self.store = folder / "data"
        self.folder = folder
        self.environment = {
            **os.environ, "PYTHONPATH": PACKAGE, "PYTHONDONTWRITEBYTECODE": "1", "FASTLOG_STORE": str(self.store),
            "OUTBOX": str(folder / "outbox.txt"), "RESULTS": str(folder / "results.sqlite"),
        }  # fmt: skip
        self.running: list[subprocess.Popen[str]] = []

    def start(self, *arguments: str, **variables: str) -> subprocess.Popen[str]:
        errors = (self.folder / f"errors-{len(self.running)}.txt").open("w+")
        process = subprocess.Popen(
            [sys.executable, *arguments], cwd=self.home, env={**self.environment, **variables}, stdout=subprocess.PIPE,
            stderr=errors, text=True,
        )  # fmt: skip
        self.running.append(process)
        return process

    def run(self, *arguments: str, **variables: str) -> str:
        process = self.start(*arguments, **variables)
        output = process.communicate(timeout=PATIENCE)[0]
        assert process.returncode == 0, self.errors()
        return output

    def errors(self) -> str:
        return "\n".join(path.read_text() for path in sorted(self.folder.glob("errors-*.txt")))

    def until(self, condition: Callable[[], object]) -> None:
        stop = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < stop, f"it does not happen; stderr: {self.errors()}"
            assert not any(process.poll() for process in self.running), f"one failed: {self.errors()}"
            time.sleep(0.05)

    def stop(self, process: subprocess.Popen[str]) -> None:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=PATIENCE)
        assert process.returncode == 0, self.errors()

    def records(self, topic: str) -> list[fastlog.Record]:
        with fastlog.open(self.store, durability="os") as store:
            if topic not in store.topics():
                return []
            with store.consumer(topic, start="earliest") as consumer:
                return list(consumer.records(until="end"))

    def dead(self, topic: str) -> list[bytes | None]:
        """Ids of the records in a dead-letter topic; those that tell of what was done with them have none."""
        return [record.headers["id"] for record in self.records(topic) if "id" in record.headers]


@pytest.fixture
def example(folder: Path) -> Iterator[Callable[[str], Example]]:
    made: list[Example] = []

    def make(name: str) -> Example:
        made.append(Example(name, folder))
        return made[-1]

    yield make
    for each in made:
        for process in each.running:
            if process.poll() is None:
                process.kill()
                process.communicate()


def test_every_folder_is_tried() -> None:
    assert sorted(path.name for path in EXAMPLES.iterdir() if path.is_dir() and path.name != "__pycache__") == [
        "orders",
        "web",
    ]
    for name in ("orders", "web"):
        readme = (EXAMPLES / name / "README.md").read_text()
        programs = set(re.findall(r"\b(\w+\.py)\b", readme))
        assert programs <= {path.name for path in (EXAMPLES / name).iterdir()} and programs


# --- orders ----------------------------------------------------------------------------------------------------------


def mailed(example: Example) -> list[tuple[str, str]]:
    """(customer, order) of every e-mail, in order."""
    path = example.folder / "outbox.txt"
    text = path.read_text() if path.exists() else ""
    return [(line.split()[1].rstrip(":"), line.split()[2].rstrip(":")) for line in text.splitlines(keepends=True)
            if line.endswith("\n")]  # fmt: skip


def test_orders_are_paid_and_confirmed_once_and_in_order(example: Callable[[str], Example]) -> None:
    shop = example("orders")
    assert shop.run("checkout.py", "40") == "40 orders, from order-0\n"
    assert shop.run("checkout.py", "8") == "8 orders, from order-40\n"
    orders = [json.loads(record.value or b"") for record in shop.records("orders")]
    names = {order["id"]: order["customer"] for order in orders}
    assert len(names) == 48
    workers = shop.start("-m", "fastlog", "run", "shop:app", "--workers", "2", BANK_DOWN="0.2")

    def dead() -> set[str]:
        letters = [*shop.dead("orders.payment.dlq"), *shop.dead("payments.e-mail.dlq")]
        return {(found or b"").decode() for found in letters}

    shop.until(lambda: len(mailed(shop)) + len(dead()) >= len(names))
    shop.stop(workers)
    confirmed = [order for _, order in mailed(shop)]
    assert Counter(confirmed) == Counter(set(names) - dead())
    assert dead() >= {name for name, customer in names.items() if customer == "frank"}
    assert_in_order(mailed(shop))
    for payment in shop.records("payments"):
        assert payment.headers["id"] == json.loads(payment.value or b"")["id"].encode()
    attempts = defaultdict(list)
    for letter in shop.records("orders.payment.dlq"):
        attempts[letter.headers["fastlog.dlq.exception"]].append(letter.headers["fastlog.dlq.attempts"])
    blocked = attempts.pop(b"bank.CardBlocked", [])
    assert bool(blocked) == ("frank" in names.values())
    assert not blocked or min(blocked) < b"4"  # the first answer of the bank was the last
    assert set(attempts) <= {b"bank.BankDown"} and all(set(found) == {b"4"} for found in attempts.values())

    count = len(dead())
    shop.run("-m", "fastlog", "dlq", "redrive", "orders.payment.dlq", "--yes")
    workers = shop.start("-m", "fastlog", "run", "shop:app", "--workers", "2", BANK_DOWN="0", BANK_BLOCKED="")
    shop.until(lambda: len(mailed(shop)) >= len(names))
    shop.stop(workers)
    assert Counter(order for _, order in mailed(shop)) == Counter(set(names))
    assert len(mailed(shop)) - len(confirmed) == count


def assert_in_order(mails: list[tuple[str, str]]) -> None:
    """A customer's orders are confirmed in the order in which they were placed."""
    by_customer: dict[str, list[int]] = defaultdict(list)
    for customer, order in mails:
        by_customer[customer].append(int(order.removeprefix("order-")))
    for numbers in by_customer.values():
        assert numbers == sorted(numbers)


def test_an_order_that_comes_twice_is_paid_once(example: Callable[[str], Example]) -> None:
    shop = example("orders")
    shop.run("checkout.py", "3")
    first = shop.records("orders")[0]
    with fastlog.open(shop.store, durability="os") as store, store.producer() as producer:
        producer.send("orders", first.value, key=first.key, headers=first.headers)
    workers = shop.start("-m", "fastlog", "run", "shop:app", BANK_DOWN="0", BANK_BLOCKED="")
    shop.until(lambda: len(mailed(shop)) >= 3)

    def lag() -> int:
        with fastlog.open(shop.store, durability="os") as store:
            return sum(lag.records for lag in store.group_lag("payment").values())

    shop.until(lambda: not lag())
    shop.stop(workers)
    assert len(mailed(shop)) == len(shop.records("payments")) == 3


# --- web -------------------------------------------------------------------------------------------------------------


def ask(url: str, body: bytes | None = None, **headers: str) -> tuple[int, dict[str, Any]]:
    """Status and answer of a GET, or a POST with a body."""
    request = urllib.request.Request(
        url, data=body, headers={name.replace("_", "-"): headers[name] for name in headers}
    )
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE) as response:
            return response.status, json.loads(response.read())
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.loads(error.read())


def test_the_web_application_answers_and_workers_work(example: Callable[[str], Example]) -> None:
    site = example("web")
    server = site.start("web.py", "0")
    assert server.stdout is not None
    url = server.stdout.readline().strip()
    assert url.startswith("http://127.0.0.1:")
    assert ask(f"{url}/texts", b"")[0] == 400
    assert ask(f"{url}/nothing", b"text")[0] == 404
    before = [ask(f"{url}/texts", f"text number {number} of texts".encode()) for number in range(20)]
    assert {status for status, _ in before} == {202}
    assert ask(url + before[0][1]["result"])[0] == 404

    workers = site.start("-m", "fastlog", "run", "workers:app", "--workers", "2", "--json")
    site.until(lambda: ask(url + before[0][1]["result"])[0] == 200)
    events = [json.loads(line) for line in site.errors().splitlines() if line.startswith("{")]
    os.kill(next(event["pid"] for event in events if event["event"] == "loaded"), signal.SIGKILL)
    after = [ask(f"{url}/texts", f"text number {number} of texts".encode()) for number in range(20, 40)]
    repeated = [ask(f"{url}/texts", b"said twice", Idempotency_Key="twice") for _ in range(2)]
    assert repeated[0] == repeated[1] == (202, {"id": "twice", "result": "/results/twice"})
    broken = ask(f"{url}/texts", b"\xff\xfe\xfd", Idempotency_Key="broken")
    assert broken[0] == 202

    accepted = [answer["result"] for _, answer in [*before, *after]]
    site.until(lambda: all(ask(url + result)[0] == 200 for result in [*accepted, "/results/twice"]))
    for result in accepted:
        answer = ask(url + result)[1]
        assert answer["result"]["words"] == 5
        assert answer["result"]["most"][0][1] == 1
    site.until(lambda: site.dead("texts.count-words.dlq"))
    assert site.dead("texts.count-words.dlq") == [b"broken"]
    assert ask(f"{url}/results/broken")[0] == 404
    site.stop(workers)
    site.stop(server)
