"""The fixtures as users have them: runs of pytest over a project with an App, and the package installed."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.house.sources import ROOT
from tests.test_docs import blocks

pytest_plugins = ["pytester"]

SHOP = """
import asyncio
import fastlog

app = fastlog.App("/somewhere/in/production")
sent = []


class NoAddressError(Exception):
    pass


retry = fastlog.Retry(5, backoff=("1s", "5m"), give_up_on=NoAddressError)


@app.subscriber("orders", group="mail", concurrency=8, retry=retry)
def mail(record: fastlog.Record) -> None:
    if record.value == b"no address":
        raise NoAddressError("whose is it?")
    if record.value == b"flaky" and sent.count(b"flaky") < 2:
        sent.append(b"flaky")
        raise ConnectionError("mail server")
    if record.value == b"broken":
        raise ValueError("broken")
    sent.append(record.value)


@app.subscriber("orders", group="index", timeout="10s", retry=fastlog.Retry(2))
async def index(record: fastlog.Record) -> None:
    await asyncio.sleep(60 if record.value == b"slow" else 1)


@app.subscriber("orders", group="totals", batch=100)
def totals(records: list[fastlog.Record]) -> None:
    sent.append(len(records))
"""

TESTS = """
import fastlog
import pytest
import shop
import time
from fastlog.testing import TestClock


@pytest.fixture(autouse=True)
def no_mail():
    shop.sent.clear()


@pytest.fixture(autouse=True)
def no_sleep(monkeypatch):
    monkeypatch.setattr(time, "sleep", None)


def test_a_mail_is_sent(fastlog_app):
    app = fastlog_app(shop.app)
    app.send("orders", b"one", key=b"customer-1")
    assert app.run_until_idle() == 3
    assert b"one" in shop.sent
    app.assert_no_dead_letters()


def test_a_flaky_server(fastlog_app, fastlog_clock):
    app = fastlog_app(shop.app)
    app.send("orders", b"flaky")
    app.run_until_idle()
    assert app.stats("mail").waiting == 1
    app.advance("1m")
    assert app.stats("mail").waiting == 0
    assert shop.sent.count(b"flaky") == 3
    app.assert_no_dead_letters()


def test_no_address(fastlog_app):
    app = fastlog_app(shop.app)
    app.send("orders", b"no address", key=b"customer-1")
    app.run_until_idle(advance=True)
    letter, = app.assert_dead_lettered(1, subscriber="mail", exception=shop.NoAddressError)
    assert (letter.key, letter.attempts) == (b"customer-1", 1)


def test_five_attempts(fastlog_app, fastlog_clock):
    app = fastlog_app(shop.app)
    begun = fastlog_clock.now
    app.send("orders", b"broken")
    app.run_until_idle(advance=True)
    app.assert_dead_lettered(1, exception=ValueError, attempts=5)
    assert (fastlog_clock.now - begun).total_seconds() == 1 + 2 + 4 + 8


def test_an_async_handler_that_hangs(fastlog_app):
    app = fastlog_app(shop.app)
    app.send("orders", b"slow")
    app.run_until_idle(advance=True)
    app.assert_dead_lettered(1, exception=fastlog.HandlerTimeoutError, subscriber="index", attempts=2)


def test_order_of_a_parked_key(fastlog_app):
    app = fastlog_app(shop.app, partitions=4)
    for value in (b"flaky", b"second", b"third"):
        app.send("orders", value, key=b"customer-1")
    app.send("orders", b"other", key=b"customer-2")
    app.run_until_idle(advance=True)
    mails = [value for value in shop.sent if isinstance(value, bytes)]
    assert mails.index(b"other") < mails.index(b"second")
    assert [value for value in mails if value != b"other"] == [b"flaky", b"flaky", b"flaky", b"second", b"third"]


def test_batches(fastlog_app):
    app = fastlog_app(shop.app)
    for number in range(250):
        app.send("orders", b"%d" % number)
    app.run_until_idle()
    assert sum(value for value in shop.sent if isinstance(value, int)) == 250
    assert app.stats("totals").calls < 50


def test_what_is_there_before(fastlog_store, fastlog_app):
    fastlog_store.create_topic("orders", partitions=3)
    with fastlog_store.producer() as producer:
        producer.send_many("orders", [b"a", b"b", b"c"])
    app = fastlog_app(shop.app)
    assert app.store is fastlog_store
    app.run_until_idle()
    assert {b"a", b"b", b"c"} <= set(shop.sent)


def test_each_test_has_a_store_of_its_own(fastlog_store):
    assert fastlog_store.topics() == []
    assert fastlog_store.durability == "os"
"""

FAILING = """
import shop


def test_fails(fastlog_app):
    app = fastlog_app(shop.app)
    app.send("orders", b"no address", key=b"customer-1")
    app.run_until_idle()
    app.assert_no_dead_letters()


def test_waits(fastlog_app):
    app = fastlog_app(shop.app)
    app.send("orders", b"broken")
    app.run_until_idle()
    app.assert_dead_lettered(subscriber="mail")
"""


@pytest.fixture
def project(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """A folder with an application, where pytest finds the plugin as it does when fastlog is installed."""
    told = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]["pytest11"]
    installed = pytester.mkdir("installed")
    metadata = installed / "fastlog_of_this_test-0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: fastlog-of-this-test\nVersion: 0\n")
    lines = [f"{name} = {module}" for name, module in told.items()]
    (metadata / "entry_points.txt").write_text("\n".join(["[pytest11]", *lines]) + "\n")
    source = Path(__import__("fastlog").__file__).parents[1]
    monkeypatch.setenv("PYTHONPATH", f"{installed}:{source}")
    monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)
    pytester.makepyfile(shop=SHOP)
    return pytester


def test_handlers_are_tested_without_waiting(project: pytest.Pytester) -> None:
    project.makepyfile(test_shop=TESTS)
    result = project.runpytest_subprocess("-q", "-p", "no:cacheprovider", "-W", "error::pytest.PytestCollectionWarning")
    result.assert_outcomes(passed=TESTS.count("\ndef test_"))
    assert result.duration < 30


def test_a_failing_test_says_why(project: pytest.Pytester) -> None:
    project.makepyfile(test_shop=FAILING)
    result = project.runpytest_subprocess("-p", "no:cacheprovider", "-p", "pytest_fastlog")  # named once more, no harm
    result.assert_outcomes(failed=2)
    result.stdout.fnmatch_lines(
        [
            ">       app.assert_no_dead_letters()",
            "E       AssertionError: expected no dead letters, found 1:",
            "E         orders-0-0 of group 'mail', key b'customer-1', value b'no address': "
            "shop.NoAddressError: whose is it? (1 attempt)",
            'E           File "*shop.py", line 18, in mail',
            "*Captured log call*",
            "*attempt 1 of orders-0, offset 0, by 'mail' failed",
            "*shop.NoAddressError: whose is it?",
            '>       app.assert_dead_lettered(subscriber="mail")',
            "E       AssertionError: expected at least one dead letter of 'mail'; found 0.",
            "E       There are no dead letters.",
            "E       Records wait for their next attempt: run_until_idle(advance=True) gives them their time.",
            "E       mail: 1 calls, 0 succeeded, 1 failed, 1 retried, 0 dead lettered, 1 waiting",
            "E       index: 1 calls, 1 succeeded, 0 failed, 0 retried, 0 dead lettered, 0 waiting",
        ]
    )
    assert 'harness.py", line' not in result.stdout.str(), "what the harness does inside is in nobody's way"


def test_who_does_not_use_it_does_not_pay(project: pytest.Pytester) -> None:
    project.makepyfile(
        test_other="""
        import sys

        def test_nothing_is_loaded():
            assert "pytest_fastlog" in sys.modules
            assert not [name for name in sys.modules if name.partition(".")[0] in ("fastlog", "numpy")]
        """
    )
    project.runpytest_subprocess("-q", "-p", "no:cacheprovider").assert_outcomes(passed=1)


def test_it_can_be_left_out(project: pytest.Pytester) -> None:
    project.makepyfile(test_shop="def test(fastlog_app): pass")
    result = project.runpytest_subprocess("-q", "-p", "no:cacheprovider", "-p", "no:pytest_fastlog")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*fixture 'fastlog_app' not found*"])


def test_the_page_about_testing_runs_as_tests(project: pytest.Pytester) -> None:
    """Its code is what users begin with: with the fixtures it has to pass."""
    page = (ROOT / "docs" / "testing.md").read_text(encoding="utf-8")
    code = "\n".join(body for _, body, _ in blocks(page))
    project.makepyfile(test_page=code)
    project.runpytest_subprocess("-q", "-p", "no:cacheprovider").assert_outcomes(passed=code.count("\ndef test_"))
    assert code.count("\ndef test_") >= 4


def test_testing_needs_no_pytest() -> None:
    script = "import fastlog.testing, sys; assert 'pytest' not in sys.modules and 'asyncio' in sys.modules"
    subprocess.run([sys.executable, "-c", script], check=True)
