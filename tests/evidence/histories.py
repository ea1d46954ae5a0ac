"""Histories of many processes: what each of them did and saw, checked as a whole.

``crowd``: writers and readers of one partition (``tests/histories``). ``gang``: producers, transactions, members of
groups, readers and gardeners of topics, synchronous and asynchronous, on one store (``tests/histories_messaging``).
``deliveries``: apps that retry and put aside, and an operator who sends back what was put aside (``tests/delivery``).
"""

from __future__ import annotations

import contextlib
import signal
import time
from collections import Counter
from collections.abc import Iterator
from functools import partial
from typing import Any

import fastlog
from fastlog.delivery.dead_letters import DeadLetters
from tests.crash.checker import quiet
from tests.delivery.apps import is_read, send, values_of
from tests.delivery.fleet import PATIENCE, Fleet, check_order, until
from tests.delivery.lettering import DLQ
from tests.delivery.worker import Worker, read_diary
from tests.evidence.run import Scenario, Turn
from tests.histories.driver import Crowd
from tests.histories.nursery import Nursery
from tests.histories.strikes import IMPATIENT, LEVELS, frozen_at_random, killed_at_random
from tests.histories_messaging.driver import MORE_POSTS, POSTS, Gang

__all__ = ["histories"]

OPERATIONS = 10_000  # calls of a gang, at least
FEWEST = 4  # processes of a gang, at any time
KEYS, WAVES = 12, 25
STEPS = [
    *("move.entered", "move.offsets", "move.appended", "move.committed"),
    *("transaction.entered", "transaction.decided", "transaction.marked", "append.written"),
]


def crowd(nursery: Nursery, turn: Turn) -> None:
    """One partition: writers of several threads and readers of every kind, killed or frozen."""
    chance = turn.chance
    if chance.random() < 0.6:
        levels = chance.choice([LEVELS, LEVELS, ("batch", "group"), ("os",)])
        with Crowd(nursery, turn.folder, turn.seed) as crowd:
            killed_at_random(crowd, chance, levels, kills=40, within=PATIENCE)
            finish_crowd(crowd, turn, durable_levels=levels == ("batch", "group"))
    else:
        with Crowd(nursery, turn.folder, turn.seed, {"durability": "os", "config": IMPATIENT}) as crowd:
            frozen_at_random(crowd, chance, 15)
            finish_crowd(crowd, turn)


def finish_crowd(crowd: Crowd, turn: Turn, **options: Any) -> None:
    # a sync owner that is frozen: the records are there, but whether they are durable nobody can say
    anomalies = crowd.check(unsure={"LockedErrorInSync"}, **options)
    assert not anomalies, "\n".join(f"{one.kind}: {one.text}" for one in anomalies[:20])
    turn.count("histories")
    turn.count("operations", sum(worker.count("T ") + worker.count("R ") for worker in crowd.workers))


def gang(nursery: Nursery, turn: Turn) -> None:
    """One store: 10,000 calls of processes that are killed, frozen, replaced while frozen, and asked to stop."""
    posts = dict(POSTS)
    for name in turn.chance.sample(sorted(MORE_POSTS), 3):
        posts[name] = MORE_POSTS[name]
    for name in turn.chance.sample(sorted(POSTS), 3):
        del posts[name]
    posts.setdefault("producer", POSTS["producer"])  # else there is nothing to read
    assert len(posts) >= FEWEST
    with Gang(nursery, turn.folder, turn.seed, posts=posts) as gang:
        gang.run(OPERATIONS, least=5, most=120)
        anomalies = gang.check()
        assert not anomalies, "\n".join([gang.summary, *(f"{one.kind}: {one.text}" for one in anomalies[:20])])
        assert gang.operations() >= OPERATIONS, f"the machine is too slow for this: {gang.summary}"
        turn.count("operations", gang.operations())
    turn.count("histories")


# --- deliveries -------------------------------------------------------------------------------------------------------


class Shop:
    """Apps in processes that come and go, and what they are given to do: ``tests/delivery/worker.py`` has the words."""

    def __init__(self, turn: Turn) -> None:
        self.chance = turn.chance
        self.fleet = Fleet(turn.folder)
        self.cure = turn.folder / "cure"
        order_by = self.chance.choice(["key", "key", "partition", "none"])
        self.options: dict[str, Any] = {
            "order_by": order_by,
            "concurrency": 1 if order_by == "partition" else self.chance.choice([2, 4]),
            "max_poll_interval": "1s",
            "retry": {"attempts": 3, "backoff": "15ms"},
            "cure": str(self.cure),
        }
        self.values: list[str] = []
        self.workers: list[Worker] = []
        self.leaving: list[Worker] = []
        self.frozen: dict[Worker, float] = {}
        self.interruptions = 0

    def fill(self, store: fastlog.Store, number: int) -> None:
        """One more record of each key."""
        kinds = ["good"] * 8 + ["once", "bad", "sick"]
        values = [f"{self.chance.choice(kinds)}-{key}-{number}" for key in range(KEYS)]
        send(store, "orders", [value.encode() for value in values], [b"key %d" % key for key in range(KEYS)])
        self.values += values

    def of(self, *kinds: str) -> set[str]:
        return {value for value in self.values if value.startswith(kinds)}

    def start(self) -> None:
        failpoint = None
        if self.chance.random() < 0.4:
            what = self.chance.choice(["kill", "kill", "stop"])
            failpoint = f"{self.chance.choice(STEPS)}:{what}:{self.chance.choice([1, 2, 5, 12])}"
        self.workers.append(self.fleet.start(failpoint, **self.options))

    def strike(self) -> None:
        """Something befalls one of the workers, or nothing."""
        now = time.monotonic()
        for worker, until_when in list(self.frozen.items()):
            if until_when <= now:
                tell(worker, signal.SIGCONT)
                del self.frozen[worker]
        for worker in [worker for worker in self.workers if worker.code is not None]:
            assert worker.code == -signal.SIGKILL, f"a worker ended with {worker.code}"
            self.workers.remove(worker)
            self.interruptions += 1
            self.start()
        worker = self.chance.choice(self.workers)
        dice = self.chance.random()
        if dice < 0.15:
            worker.kill()
        elif dice < 0.35 and worker not in self.frozen:
            tell(worker, signal.SIGSTOP)
            self.frozen[worker] = now + self.chance.choice([0.02, 0.2, 1.5])
            self.interruptions += 1
        elif dice < 0.4 and worker not in self.frozen and len(self.workers) > 1:
            tell(worker, signal.SIGTERM)
            self.leaving.append(worker)
            self.workers.remove(worker)
            self.start()

    def calm_down(self) -> None:
        """Nobody is frozen any more, also those who have stopped themselves; fresh ones bring it to an end."""
        for worker in self.fleet.workers:
            if worker.code is None:
                tell(worker, signal.SIGCONT)
                if worker not in self.leaving:  # a second signal would end it at once
                    tell(worker, signal.SIGTERM)
        for worker in self.fleet.workers:
            limit = time.monotonic() + PATIENCE
            while worker.wait(0.5) is None and time.monotonic() < limit:
                tell(worker, signal.SIGCONT)  # it may have come to where it stops itself on its way out
            # -15: who had not yet come to where it listens to signals
            is_over = worker.code in (0, -signal.SIGKILL, -signal.SIGTERM)
            assert is_over, f"a worker does not end: {worker.code}"
        self.frozen.clear()
        self.workers = [self.fleet.start(**self.options) for _ in range(2)]


def tell(worker: Worker, number: int) -> None:
    """Signal a worker; it may have died at its failpoint just now."""
    with contextlib.suppress(ProcessLookupError):
        worker.signal(number)


def deliveries(turn: Turn) -> None:
    """Every record is handled, or a dead letter once; letters that are sent back are handled, or letters again."""
    shop = Shop(turn)
    try:
        with fastlog.open(shop.fleet.store, durability="os") as store:
            store.create_topic("orders", 4)
            for _ in range(3):
                shop.start()
            for number in range(WAVES):
                shop.fill(store, number)
                for _ in range(2):
                    shop.strike()
                    time.sleep(turn.chance.random() * 0.1)
            shop.calm_down()
            until(lambda: is_read(store), "everything is read")
            put_aside = Counter((value or b"").decode() for value in values_of(store, DLQ))
            # and one or the other that was in hand when its process died, three times
            missing = shop.of("bad", "sick") - set(put_aside)
            assert not missing and set(put_aside) <= set(shop.values), missing
            assert set(put_aside.values()) == {1}, put_aside.most_common(5)
            if shop.options["order_by"] == "key":
                check_order(read_diary(shop.fleet.diary), set(put_aside))
            shop.cure.touch()
            letters = DeadLetters.open(store, DLQ, by="tester")
            assert letters.redrive().letters == len(put_aside)
            until(lambda: is_read(store) and letters.count() == len(shop.of("bad")), "the cured are handled")
            for worker in shop.workers:
                worker.end(PATIENCE)
            left = Counter((letter.value or b"").decode() for letter in letters.list())
            assert left == Counter(shop.of("bad")), left - Counter(shop.of("bad"))
        ends = Counter(shop.fleet.calls("end"))
        assert set(ends) == shop.of("good", "once", "sick"), set(ends) ^ shop.of("good", "once", "sick")
        # what was not committed yet comes again
        assert max(ends.values()) <= 1 + shop.interruptions, ends.most_common(5)
        turn.count("histories")
        turn.count("operations", len(read_diary(shop.fleet.diary)))
    finally:
        for worker in shop.fleet.workers:
            worker.kill()


@contextlib.contextmanager
def histories() -> Iterator[list[Scenario]]:
    """The engine."""
    with quiet(), Nursery() as nursery:
        yield [
            Scenario("crowd", partial(crowd, nursery), 3),
            Scenario("gang", partial(gang, nursery), 4),
            Scenario("deliveries", deliveries, 3),
        ]
