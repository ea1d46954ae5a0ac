"""Engine ``kills``: processes are killed and frozen, at random and at every failpoint, over the whole product.

Each scenario kills at one kind of work, and has a check of its own that says after the kills what is lost, doubled or
out of order, and whether the survivors go on. ``kills`` and ``freezes`` are counted apart, and which kills were at a
failpoint of which group. How long survivors took to go on is measured, not judged: a loaded machine may take its time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import fastlog
from fastlog._core import SharedPage
from fastlog.delivery.dead_letters import DeadLetters
from fastlog.store.directory import Directory
from fastlog.transactions import Coordinator
from tests.delivery import lettering
from tests.delivery.apps import is_read
from tests.delivery.operator_worker import act
from tests.evidence.run import Scenario, Turn
from tests.histories import strikes
from tests.histories.driver import Crowd
from tests.histories.nursery import Nursery
from tests.histories.workers import SMALL
from tests.kill_server import CONFIG, DURABLE
from tests.killing import backups, handlers, members, operators, owners, topics, transactions, transformers
from tests.killing.lives import Life, Lives, until
from tests.messaging.transacting import open_store
from tests.victims import Victims, Witness, check_recovery

WITHIN = 30.0  # seconds until survivors have to go on; what they take is measured
RETAINED = 40_000
RETENTION = {**SMALL, "retention_bytes": RETAINED}
COMPACTED_AND_DELETED = {**strikes.COMPACTED, "cleanup_policy": "compact,delete", "retention_bytes": 4 * RETAINED}
# what one writer, alone with its log, comes by
ALONE = [
    *(*strikes.APPEND, *strikes.ROLL, *strikes.SYNC, *strikes.OPEN_ALONE, "open.attached"),
    *(*strikes.CLOSE, *strikes.DELETE),
]
STEPS = [*strikes.AS_A_WRITER, *strikes.TAKEOVER, *strikes.OPEN_ALONE, *strikes.CLOSE]
PRELOADED = [
    *("backups", "handlers", "members", "operators", "owners", "topics", "transactions", "transformers"),
]


@dataclass(frozen=True)
class Kind:
    """One scenario: its name, how often it comes in a round, and the failpoints that it kills at."""

    name: str
    weight: int
    failpoints: Sequence[str]


KINDS = [
    Kind("writer", 8, ALONE),
    Kind("crowd", 4, ()),
    Kind("steps", 5, STEPS),
    Kind("upkeep", 2, strikes.COMPACTION),
    Kind("frozen", 2, ()),
    Kind("pages", 1, [*owners.PUBLISHING, "page.retiring", "page.waiting"]),
    Kind("owners", 2, [*owners.EXCHANGES, *owners.APPENDS]),
    Kind("topics", 3, list(topics.all_points())),
    Kind("groups", 3, [*members.COMING, *members.GROWING]),
    Kind("transactions", 4, [*transactions.BEFORE, *transactions.AFTER]),
    Kind("transformers", 2, transformers.POINTS),
    Kind("handlers", 1, handlers.POINTS),
    Kind("operators", 2, operators.POINTS),
    Kind("backups", 2, backups.POINTS),
]


def tally(turn: Turn, done: Crowd | Lives) -> None:
    """Count what was done, and has been checked by now."""
    count(turn, done.kills, done.deaths)
    turn.count("freezes", done.freezes)
    for seconds in done.waits:
        turn.measure("seconds until others went on", seconds)


def count(turn: Turn, kills: int, deaths: Counter[str]) -> None:
    """So many kills, of which these were at failpoints."""
    turn.count("kills", kills)
    for name, number in deaths.items():
        turn.count(f"kills at {name.partition('.')[0]}", number)


class Killer:
    """What all turns share, and a method for each scenario."""

    def __init__(self, nursery: Nursery, victims: Victims) -> None:
        self.nursery, self.victims = nursery, victims

    @contextmanager
    def lives(self, turn: Turn) -> Iterator[Lives]:
        """Processes on a store. What befell them counts when the block ends well."""
        with Lives(self.nursery, turn.folder, turn.seed) as lives:
            yield lives
        tally(turn, lives)

    @contextmanager
    def crowd_of(self, turn: Turn, **options: Any) -> Iterator[Crowd]:
        """Processes on one partition; they are to be checked by ``finish``."""
        with Crowd(self.nursery, turn.folder, turn.seed, options) as crowd:
            yield crowd

    def finish(self, turn: Turn, crowd: Crowd, **options: Any) -> None:
        """The history of a crowd is possible."""
        # a sync owner that is frozen: the records are there, but whether they are durable nobody can say
        anomalies = crowd.check(unsure={"LockedErrorInSync"}, **options)
        assert not anomalies, "\n".join(f"{one.kind}: {one.text}" for one in anomalies[:10])
        tally(turn, crowd)

    # --- one partition ----------------------------------------------------------------------------------------------

    def kill_writer(self, turn: Turn) -> None:
        """One writer after the other on one log; what was acknowledged is there, byte by byte."""
        chance, path, witness = turn.chance, turn.folder / "events-0", Witness()
        kills, deaths = 0, Counter[str]()
        for _ in range(12):
            level = chance.choice(strikes.LEVELS)
            name = chance.choice([*ALONE, *[""] * len(ALONE)])
            level = "group" if name in strikes.SYNC else level
            nth = chance.choice([1, 1, 2, 7]) if name.startswith(("append", "sync")) else 1
            seconds = 0.5 if name else chance.choice([0.002, 0.01, 0.02, 0.04]) * chance.random()
            place = f"{name}:{nth}" if name else ""
            if self.victims.run_and_kill(path, level, chance.getrandbits(32), seconds, witness, place):
                deaths[name] += 1
            kills += 1
            read_only = chance.random() < 0.4
            if not path.exists() or chance.random() < 0.1 or (read_only and not any(path.glob("*.log"))):
                continue
            config = fastlog.LogConfig(**CONFIG)
            with fastlog.PartitionLog.open(path, durability=level, read_only=read_only, config=config) as log:
                check_recovery(log.recovery, path)
                witness.check(log)
        fastlog.PartitionLog.open(path).close()
        with fastlog.PartitionLog.open(path) as log:
            assert log.recovery is None
            assert log.verify().ok
            witness.check(log)
        count(turn, kills, deaths)

    def kill_crowd(self, turn: Turn) -> None:
        """Several writers and readers, killed at random."""
        level = turn.chance.choice([*strikes.LEVELS, "mixed"])
        levels = strikes.LEVELS if level == "mixed" else (level,)
        with self.crowd_of(turn) as crowd:
            strikes.killed_at_random(crowd, turn.chance, levels, 12, WITHIN)
            self.finish(turn, crowd, durable_levels=level in DURABLE)

    def kill_steps(self, turn: Turn) -> None:
        """Several writers and readers, killed at a step of one kind."""
        chance = turn.chance
        with self.crowd_of(turn, durability="os") as crowd:
            kind = chance.choice(["writer", "writer", "takeover", "opening", "closing"])
            if kind == "writer":
                strikes.killed_as_a_writer(crowd, chance, chance.sample(strikes.AS_A_WRITER, 8), WITHIN)
            elif kind == "takeover":
                strikes.killed_in_a_takeover(crowd, chance, chance.sample(strikes.TAKEOVER, 3))
            elif kind == "opening":
                strikes.killed_in_opening_alone(crowd, chance, chance.sample(strikes.OPEN_ALONE, 2))
            else:
                strikes.killed_in_closing(crowd, chance, chance.sample(strikes.CLOSE, 3))
            self.finish(turn, crowd)

    def kill_upkeep(self, turn: Turn) -> None:
        """Compaction and retention under way."""
        chance = turn.chance
        kind = chance.choice(["compaction", "compaction", "retention", "both"])
        if kind == "compaction":
            with self.crowd_of(turn, durability="os", config=strikes.COMPACTED) as crowd:
                strikes.killed_in_a_compaction(crowd, chance.sample(strikes.COMPACTION, 6), WITHIN)
                self.finish(turn, crowd, compacted=True)
            return
        config = RETENTION if kind == "retention" else COMPACTED_AND_DELETED
        with self.crowd_of(turn, config=config) as crowd:
            strikes.killed_at_random(crowd, chance, strikes.LEVELS, 8, WITHIN, maintains=0.3, deletes=0)
            self.finish(turn, crowd, compacted=kind == "both")
        if kind == "retention":
            with fastlog.PartitionLog.open(crowd.path, read_only=True) as log:
                left = sum(segment.size for segment in log.segments())
                assert left >= RETAINED or log.start_offset == 0, f"{left} bytes are left of {RETAINED}"

    def kill_frozen(self, turn: Turn) -> None:
        """Several writers and readers, stopped at random, or at a step of an append, a roll or a sync."""
        chance = turn.chance
        with self.crowd_of(turn, durability="os", config=strikes.IMPATIENT) as crowd:
            if chance.random() < 0.5:
                strikes.frozen_at_random(crowd, chance, 6)
            else:
                names = chance.sample([*strikes.APPEND, *strikes.ROLL, *strikes.SYNC], 4)
                strikes.frozen_at_steps(crowd, [(name, chance.choice([1, 4])) for name in names])
            self.finish(turn, crowd)

    # --- what stands between partitions and stores --------------------------------------------------------------------

    def kill_pages(self, turn: Turn) -> None:
        """Publishers of a shared page; readers see whole documents."""
        chance, path = turn.chance, str(turn.folder / "page")
        with self.lives(turn) as lives:
            page = SharedPage.create(path, 2, owners.LARGEST)
            for _ in range(12):
                name = chance.choice([*owners.PUBLISHING, "", "page.retiring", "page.waiting"])
                if name == "page.waiting":
                    self._wait_for_a_page(lives, page)
                elif name == "page.retiring":
                    lives.dies("owners:publish", name, path=path, retires=True)
                    owners.check_half_retired(page)
                    page.retire()
                    assert page.replaced
                    page = SharedPage.create(path, 2, owners.LARGEST, version=page.version)
                else:
                    self._publish_to_death(lives, page, name)

    def _publish_to_death(self, lives: Lives, page: SharedPage, name: str) -> None:
        life = lives.start("owners:publish", name or None, nth=lives.chance.randint(1, 200), path=page.path)
        if name:
            while life.child.alive:
                owners.check_page(page)
            lives.died(life, name)
        else:
            lives.rest(0.02)
            owners.check_page(page)
            lives.kill(life)
        owners.check_page(page, life)
        page.publish(owners.document_of(page.version + 1, 8))

    def _wait_for_a_page(self, lives: Lives, page: SharedPage) -> None:
        """Who sleeps and is killed hinders nobody; who was stopped just before its sleep is not left asleep."""
        if lives.chance.random() < 0.5:
            lives.dies("owners:wait", "page.waiting", path=page.path, version=page.version)
            page.publish(owners.document_of(page.version + 1, 8))
            return
        life = lives.start("owners:wait", "page.waiting", "stop", path=page.path, version=page.version)
        lives.stopped(life)
        page.publish(owners.document_of(page.version + 1, 8))
        lives.thaw(life)
        assert life.child.wait() == 0
        assert life.events()[-1]["changed"] is True

    def kill_owners(self, turn: Turn) -> None:
        """Owners by a condition, who take each other's place in exchanges."""
        chance, log_path, page_path = turn.chance, str(turn.folder / "owned-0"), str(turn.folder / "owners")
        page = SharedPage.create(page_path, 2, 0)
        with self.lives(turn) as lives:

            def start(name: str = "") -> Life:
                nth = chance.choice([1, 3, 20])
                return lives.start("owners:own", name or None, nth=nth, log_path=log_path, page_path=page_path)

            survivor = start()
            lives.begins(survivor)
            for _ in range(10):
                name = chance.choice([*owners.EXCHANGES, *owners.EXCHANGES, *owners.APPENDS, "", ""])
                victim = start(name)
                if name:
                    lives.died(victim, name)
                else:
                    lives.rest(0.03)
                    victim = chance.choice([victim, survivor])
                    lives.kill(victim)
                    survivor = start() if victim is survivor else survivor
                lives.goes_on(survivor, victim.child.dead_by)
                for life in lives.all:
                    if life is not survivor and life.child.alive:
                        lives.kill(life)
            lives.kill(survivor)
            with fastlog.PartitionLog.open(log_path, durability="os") as log:
                assert log.verify().ok
                assert owners.check_owners(log, page, lives.all) > 1

    # --- stores -----------------------------------------------------------------------------------------------------

    def kill_topics(self, turn: Turn) -> None:
        """Topics created, changed, grown and deleted, and the store opened and closed."""
        chance, path = turn.chance, turn.folder / "store"
        posts = topics.Posts()
        with self.lives(turn) as lives:
            start = partial(lives.start, "topics:live", path=str(path), durability=chance.choice(["os", "os", "group"]))
            for _ in range(chance.choice([0, 0, 1, 2])):
                if not (path / "fastlog.json").exists():
                    name = chance.choice(topics.MAKING)
                    lives.died(start(name, post=0), name)
            beside: Life | None = None
            for _ in range(6):
                if beside is None and chance.random() < 0.5:
                    beside = start(post=1)
                    lives.begins(beside, 3)
                names = topics.CHANGING if beside is not None else [*topics.CHANGING, *topics.LEAVING]
                name, nth = chance.choice([*names, ""]), chance.choice([1, 1, 2])
                if name and chance.random() < 0.2:
                    life = start(name, "stop", nth, post=0)
                    self._freeze_at_post(lives, life, beside)
                    self._end_at_post(lives, path, posts, life, "", 0)
                else:
                    self._end_at_post(lives, path, posts, start(name or None, nth=nth, post=0), name, 0)
                if beside is not None:
                    lives.goes_on(beside)
                    if chance.random() < 0.5:
                        self._end_at_post(lives, path, posts, beside, "", 1)
                        beside = None
            if beside is not None:
                self._end_at_post(lives, path, posts, beside, "", 1)
            with Directory.open(path, durability="os") as directory:
                posts.check_shared(directory)
            topics.check_folder(path)

    def _end_at_post(self, lives: Lives, path: Path, posts: topics.Posts, life: Life, name: str, post: int) -> None:
        """Let it die, at its failpoint or soon, and look what it left: beside others, or alone."""
        if name:
            lives.died(life, name)
        else:
            lives.rest(0.05)
            lives.kill(life)
        with Directory.open(path, durability="os") as directory:
            posts.check(directory, post, life)

    def _freeze_at_post(self, lives: Lives, life: Life, beside: Life | None) -> None:
        """It is stopped somewhere in a change, with or without locks; then it goes on, and so does the other one."""
        lives.stopped(life)
        lives.rest(0.05)
        lives.thaw(life)
        for one in (life, beside):
            if one is not None:
                lives.goes_on(one)

    def kill_backups(self, turn: Turn) -> None:
        """Backups while others write."""
        chance, path = turn.chance, turn.folder / "store"
        backups.prepare(path)
        with self.lives(turn) as lives:

            def write() -> Life:
                return lives.start("backups:write", path=str(path))

            writer, owner = (
                write(),
                lives.start("transactions:transact", path=str(path), transactional_id="p", pace=0.01),
            )
            writers = [writer]
            lives.begins(writer, 20)
            lives.begins(owner, 3)
            done = 0
            for number in range(5):
                target = turn.folder / f"copy{number}"
                with Directory.open(path, durability="os") as directory:
                    least = backups.ends(directory)
                name = chance.choice([*backups.POINTS, "", ""])
                how = chance.choice(["kill", "kill", "kill", "stop"])
                life = lives.start("backups:back_up", name or None, how, path=str(path), target=str(target))
                if name and how == "stop":
                    lives.stopped(life)
                    lives.goes_on(writer)
                    lives.goes_on(owner)
                    lives.thaw(life)
                elif name:
                    lives.died(life, name)
                elif chance.random() < 0.5:
                    lives.rest(0.03)
                    lives.finish(life)
                else:
                    # somebody else dies meanwhile
                    lives.rest(0.01)
                    lives.kill(writer)
                    writer = write()
                    writers.append(writer)
                status = life.child.wait()
                is_whole = backups.check_backup(target, least)
                assert is_whole or status != 0, life.last_words()
                assert is_whole == (name == "backup.finished") or status == 0 or not name
                done += is_whole
                lives.goes_on(writer, life.child.dead_by)
                lives.goes_on(owner)
            lives.kill(writer)
            lives.kill(owner)
            with Directory.open(path, durability="os") as directory:
                backups.check_numbers(directory, backups.acknowledged(writers))
                Coordinator.of(directory).attach()
                transactions.check(directory, [owner])
            turn.count("backups that open", done)

    # --- transactions and groups ------------------------------------------------------------------------------------

    def kill_transactions(self, turn: Turn) -> None:
        """Owners of transactional ids, and who ends what they left."""
        chance, path = turn.chance, turn.folder / "store"
        open_store(path).close()
        with self.lives(turn) as lives:
            level = chance.choice(["os", "os", "os", "group"])
            for _ in range(5):
                name = chance.choice([*transactions.BEFORE, *transactions.AFTER, "", ""])
                # nobody syncs before an abort
                ends = (
                    ["commit"] if name == "transaction.synced" else chance.choice([["commit"], ["commit"], ["abort"]])
                )
                start = partial(
                    lives.start, "transactions:transact", path=str(path), ends=ends,
                    transactional_id=chance.choice(transactions.NAMES),
                    durability=level,
                )  # fmt: skip
                take = chance.choice([
                    self._ended_alone, self._ended_by_owner, self._ended_by_mortals, self._ended_beside,
                    self._ended_beside, self._ended_in_a_crowd, self._ended_while_frozen,
                ])  # fmt: skip
                take(lives, path, start, name)

    def _die_in_a_transaction(self, lives: Lives, start: Any, name: str) -> None:
        life: Life = start(name or None, nth=transactions.passing(lives.chance, name))
        if name:
            lives.died(life, name)
        else:
            lives.begins(life)
            lives.rest(0.03)
            lives.kill(life)

    def _ended_alone(self, lives: Lives, path: Path, start: Any, name: str) -> None:
        """The next one to open the store ends everything."""
        self._die_in_a_transaction(lives, start, name)
        with Directory.open(path, durability="os") as directory:
            Coordinator.of(directory).attach()
            transactions.check(directory, lives.all)

    def _ended_by_owner(self, lives: Lives, path: Path, start: Any, name: str) -> None:
        """The next one with the same id ends what the one before has left; who is frozen beside them does no harm."""
        beside = lives.start("transactions:attend", path=str(path), stay=True)
        lives.begins(beside)
        with Directory.open(path, durability="os") as directory:
            Coordinator.of(directory).start()  # so that nothing is ended by who opens the store alone
        lives.freeze(beside)
        self._die_in_a_transaction(lives, start, name)
        heir = start()
        lives.begins(heir, 3)
        lives.end(heir)
        lives.thaw(beside)
        lives.kill(beside)
        with Directory.open(path, durability="os") as directory:
            Coordinator.of(directory).attach()
            transactions.check(directory, lives.all)

    def _ended_by_mortals(self, lives: Lives, path: Path, start: Any, name: str) -> None:
        """Who opens the store next dies while it ends what was left, and the one after it."""
        self._die_in_a_transaction(lives, start, name)
        for _ in range(2):
            place = lives.chance.choice(transactions.ENDING)
            lives.may_die(lives.start("transactions:attend", place, path=str(path)), place)
        with Directory.open(path, durability="os") as directory:
            Coordinator.of(directory).attach()
            transactions.check(directory, lives.all)

    def _ended_beside(self, lives: Lives, path: Path, start: Any, name: str) -> None:
        """Who has the store open ends it, unasked."""
        with Directory.open(path, durability="os") as directory:
            Coordinator.of(directory).start()
            self._die_in_a_transaction(lives, start, name)
            until(lambda: transactions.is_empty(directory), "everything is ended")
            transactions.check(directory, lives.all)

    def _ended_in_a_crowd(self, lives: Lives, path: Path, start: Any, name: str) -> None:
        """Two have it open, and one of them dies in ending it."""
        place = lives.chance.choice(transactions.ENDING)
        attend = partial(lives.start, "transactions:attend", path=str(path), stay=True)
        one, other = attend(place), attend()
        lives.begins(other)
        self._die_in_a_transaction(lives, start, name)
        lives.finish(one, place, 0.1)
        lives.kill(other)
        with Directory.open(path, durability="os") as directory:
            Coordinator.of(directory).attach()
            transactions.check(directory, lives.all)

    def _ended_while_frozen(self, lives: Lives, path: Path, start: Any, name: str) -> None:
        """Frozen for longer than its time-out: others end it; then it wakes up, learns so, and goes on."""
        name = name or "transaction.entered"
        with Directory.open(path, durability="os") as directory:
            Coordinator.of(directory).start()
            life = start(name, "stop", transactions.passing(lives.chance, name), timeout_ms=200)
            lives.stopped(life)
            until(lambda: transactions.is_quiet(directory), "what is frozen is ended by others")
            lives.thaw(life)
            lives.goes_on(life)
            lives.kill(life)
            until(lambda: transactions.is_empty(directory), "everything is ended")
            transactions.check(directory, lives.all)

    def kill_groups(self, turn: Turn) -> None:
        """Members of a group: who is left owns everything, and only owners commit."""
        chance, path = turn.chance, str(turn.folder / "store")
        members.prepare(path)
        with self.lives(turn) as lives:
            start = partial(lives.start, "members:belong", path=path)
            survivors = [start() for _ in range(2)]
            for one in survivors:
                lives.begins(one, 3)
            for _ in range(7):
                dice = chance.random()
                if dice < 0.5:
                    name = chance.choice(members.COMING)
                    victim = start(name, nth=chance.choice([1, 1, 2]))
                    lives.died(victim, name)
                elif dice < 0.7:
                    name = chance.choice(members.GROWING)
                    victim = start(name, grows=True)
                    lives.died(victim, name)
                elif dice < 0.85:
                    victim = start(chance.choice(members.COMING), "stop", max_poll_interval_ms=200)
                    lives.stopped(victim)
                    lives.rest(0.4)
                    lives.thaw(victim)
                    lives.goes_on(victim)
                    lives.kill(victim)
                else:
                    victim = survivors.pop(0)
                    lives.kill(victim)
                    survivors.append(start())
                for one in survivors:
                    lives.goes_on(one, victim.child.dead_by)
            for one in survivors:
                lives.kill(one)
            with Directory.open(path, durability="os") as directory:
                assert members.check(directory, lives.all) > 1

    def kill_transformers(self, turn: Turn) -> None:
        """Read, transform, write, in transactions with the offsets: each input has one output."""
        chance, path = turn.chance, turn.folder / "store"
        transformers.prepare(path)
        sent = 0
        with self.lives(turn) as lives:

            def start(number: int) -> Life:
                place = chance.choice([*transformers.POINTS, "", ""])
                life = lives.start(
                    "transformers:transform", place or None, nth=chance.choice([1, 1, 2, 3]), path=str(path),
                    transactional_id=f"eos-{number}", durability=level,
                )  # fmt: skip
                names[life.number] = place
                return life

            names: dict[int, str] = {}
            level = chance.choice(["os", "os", "group"])
            with fastlog.open(path, durability="os") if chance.random() < 0.5 else ExitStack():
                posts = [start(number) for number in range(2)]
                for _ in range(6):
                    with fastlog.open(path, durability="os") as store:
                        transformers.fill(store, sent, 30)
                    sent += 30
                    at = chance.randrange(2)
                    victim = posts[at]
                    lives.rest(0.2)
                    lives.finish(victim, names[victim.number], 0.3)
                    posts[at] = start(at)
                for life in posts:
                    lives.finish(life, names[life.number])
            drain = lives.start("transformers:transform", path=str(path), transactional_id="eos-drain", drains=True)
            assert drain.child.wait(60) == 0, drain.last_words()
            with fastlog.open(path, durability="os") as store:
                transformers.check(store, sent)

    # --- handlers ---------------------------------------------------------------------------------------------------

    def kill_handlers(self, turn: Turn) -> None:
        """Handlers, retries and dead letters: each record is handled, or a dead letter."""
        chance = turn.chance
        handlers.prepare(turn.folder)
        orders = handlers.Orders(turn.folder)
        with self.lives(turn) as lives, fastlog.open(turn.folder / "store", durability="os") as store:
            level = chance.choice(["os", "group"])
            start = partial(lives.start, "handlers:handle", folder=str(turn.folder), durability=level)
            for _ in range(8):
                orders.send(store, 8)
                name = chance.choice([*handlers.POINTS, *handlers.POINTS, ""])
                life = start(name or None, nth=chance.choice([1, 2]))
                if name:
                    lives.died(life, name)
                else:
                    lives.rest(0.5)
                    lives.kill(life)
            last = start()
            until(lambda: is_read(store), "everything is handled")
            lives.end(last)
            orders.check(store, lives.kills)

    def kill_operators(self, turn: Turn) -> None:
        """Dead letters sent back or discarded: each is handled once."""
        chance, path = turn.chance, turn.folder / "store"
        with fastlog.open(path, durability="os") as store:
            lettering.prepare(store)
        letters = 0
        with self.lives(turn) as lives:
            for number in range(6):
                with fastlog.open(path, durability="os") as store:
                    lettering.fill(store, 12, first=letters)
                    letters += 12
                name = chance.choice(operators.POINTS)
                nth = chance.choice([1, 2, 3]) if name in operators.ONCE else chance.choice([1, 2, 4, 7])
                work = chance.choice(["retry", "retry", "source", "discard"])
                level = chance.choice(["os", "os", "group"])
                life = lives.start("operators:operate", name, nth=nth, path=str(path), work=work, durability=level)
                lives.may_die(life, name)
                if number % 2:
                    with fastlog.open(path, durability="os") as store:
                        act(DeadLetters.open(store, lettering.DLQ, by="second"), work)
                        lettering.check_each_once(letters, store, done=True)
            with fastlog.open(path, durability="os") as store:
                act(DeadLetters.open(store, lettering.DLQ, by="last"), "retry")
                lettering.check_each_once(letters, store, done=True)


def failpoints() -> set[str]:
    """Every failpoint that some scenario kills at."""
    return {name for kind in KINDS for name in kind.failpoints}


@contextmanager
def kills() -> Iterator[list[Scenario]]:
    """The engine."""
    preloaded = [f"tests.killing.{name}" for name in PRELOADED]
    victims = Victims()
    try:
        with Nursery(preloaded=preloaded) as nursery:
            killer = Killer(nursery, victims)
            yield [Scenario(kind.name, getattr(killer, f"kill_{kind.name}"), kind.weight) for kind in KINDS]
    finally:
        victims.close()
