"""fastlog for asyncio: handing out, cancellation, back-pressure, transactions, threads, ends."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

import fastlog
from fastlog import TopicPartition
from fastlog.groups.offsets import OffsetStore


@asynccontextmanager
async def opened(path: Path, partitions: int = 1, **options: Any) -> AsyncIterator[fastlog.aio.Store]:
    """A store with a topic."""
    async with fastlog.aio.open(path / "store", **{"durability": "os", **options}) as store:
        await store.create_topic("orders", partitions, exist_ok=True)
        yield store


def run(main: Coroutine[Any, Any, Any], seconds: float = 60) -> None:
    """In a loop of its own; afterwards no thread of fastlog is left."""

    async def bounded() -> None:
        async with asyncio.timeout(seconds):
            await main

    asyncio.run(bounded(), debug=False)
    deadline = time.monotonic() + 5
    while threads() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not threads()


def threads() -> list[str]:
    names = (thread.name for thread in threading.enumerate())
    # one thread of the process flushes logs of the level "interval", for whoever asked in other tests too
    return [name for name in names if name.startswith("fastlog") and name != "fastlog-flush"]


async def fill(store: fastlog.aio.Store, count: int, topic: str = "orders") -> None:
    async with store.producer() as producer:
        await (await producer.send_many(topic, [b"%d" % i for i in range(count)]))


# --- handing out -----------------------------------------------------------------------------------------------------


def test_what_is_sent_is_delivered_and_handed_out(tmp_path: Path) -> None:
    async def main() -> None:
        async with opened(tmp_path, 3) as store, store.producer() as producer:
            deliveries = [await producer.send("orders", b"%d" % i, key=b"%d" % i) for i in range(100)]
            found = [await delivery for delivery in deliveries]
            assert all(delivery.done() for delivery in deliveries)
            assert len({(one.partition, one.offset) for one in found}) == 100
            many = await producer.send_many("orders", [b"x"] * 10)
            assert len(many) == 10 and len((await many).offsets) == 10
            async with store.consumer("orders", start="earliest") as consumer:
                seen = [record.value async for record in consumer.records()]
                assert len(seen) == 110 and set(seen) == {b"%d" % i for i in range(100)} | {b"x"}
                assert await consumer.poll(timeout=0) == []

    run(main())


def test_who_waits_is_woken_though_there_was_no_thread_to_listen_in_at_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if thread.name == "fastlog-aio-ear":
            raise RuntimeError("can't start new thread")
        start(thread)

    async def main() -> None:
        async with opened(tmp_path) as store, store.producer() as producer, store.consumer("orders") as consumer:
            with monkeypatch.context() as patched:
                patched.setattr(threading.Thread, "start", refuse)
                with pytest.raises(RuntimeError, match="can't start new thread"):
                    await consumer.poll(timeout="10s")
            waiting = asyncio.create_task(consumer.poll(timeout="30s"))
            await asyncio.sleep(0.01)
            await (await producer.send("orders", b"x"))
            assert [record.value for record in await asyncio.wait_for(waiting, 10)] == [b"x"]

    run(main())


def test_iteration_poll_and_batches_go_on_where_the_last_one_ended(tmp_path: Path) -> None:
    async def main() -> None:
        async with opened(tmp_path) as store:
            await fill(store, 10)
            async with store.consumer("orders", start="earliest") as consumer:
                iterator = aiter(consumer)
                assert (await anext(iterator)).offset == 0
                assert [record.offset for record in await consumer.poll(2)] == [1, 2]
                assert (await anext(aiter(consumer))).offset == 3
                assert await consumer.position("orders", 0) == 4
                batch = await anext(consumer.batches())
                assert list(batch.offsets) == [4, 5, 6, 7, 8, 9]
                await consumer.seek("orders", 0, offset=8)
                assert [batch.next_offset async for batch in consumer.batches(timeout="20ms")] == [10]
                await consumer.seek_to_beginning()
                assert [r.offset async for r in consumer.records(until={TopicPartition("orders", 0): 3})] == [0, 1, 2]
                await consumer.pause()
                assert await consumer.poll(timeout=0) == [] and await consumer.paused() == [("orders", 0)]
                await consumer.resume()
                assert (await consumer.lag())[TopicPartition("orders", 0)].records == 7
                assert (await consumer.stats()).records >= 10

    run(main())


def test_a_record_wakes_who_waits(tmp_path: Path) -> None:
    """By a bell, not by looking every 50 ms."""

    async def main() -> None:
        async with opened(tmp_path) as store, store.producer() as producer, store.consumer("orders") as consumer:
            took = []
            for _ in range(40):
                waiting = asyncio.create_task(consumer.poll())
                await asyncio.sleep(0.003)
                begun = time.perf_counter()
                await producer.send("orders", b"x")
                assert len(await waiting) == 1
                took.append(time.perf_counter() - begun)
            assert sorted(took)[len(took) // 2] < 0.02

    run(main())


def test_batch_of_a_thread_wakes_who_waits(tmp_path: Path) -> None:
    """Whoever appends rings, also through another handle."""

    async def main() -> None:
        async with opened(tmp_path) as store, store.consumer("orders") as consumer:
            waiting = asyncio.create_task(consumer.poll())
            await asyncio.sleep(0.02)
            with fastlog.open(tmp_path / "store", durability="os") as other, other.producer() as producer:
                producer.send("orders", b"x")
            assert len(await waiting) == 1

    run(main())


def test_a_reader_of_a_read_only_store_sees_what_comes(tmp_path: Path) -> None:
    async def main() -> None:
        async with opened(tmp_path) as store, fastlog.aio.open(tmp_path / "store", read_only=True) as other:
            await fill(store, 1)
            async with other.consumer("orders") as consumer:
                waiting = asyncio.create_task(consumer.poll())
                await asyncio.sleep(0.02)
                await fill(store, 1)
                assert [record.offset for record in await waiting] == [1]

    run(main())


# --- done ------------------------------------------------------------------------------------------------------------


async def committed(store: fastlog.aio.Store, group: str = "g") -> int:
    found = (await store.describe_group(group)).offsets.get(TopicPartition("orders", 0))
    return 0 if found is None else found.offset


def test_leaving_by_break_finishes_and_by_exception_does_not(tmp_path: Path) -> None:
    async def main() -> None:
        async with opened(tmp_path) as store:
            await fill(store, 10)
            async with store.consumer("orders", group="g", start="earliest") as consumer:
                async for record in consumer:
                    if record.offset == 3:
                        break
            assert await committed(store) == 4
            with pytest.raises(ValueError, match="handler"):
                async with store.consumer("orders", group="g") as consumer:
                    async for record in consumer:
                        if record.offset == 6:
                            raise ValueError("handler")
            assert await committed(store) == 6

    run(main())


def test_commit_and_committed(tmp_path: Path) -> None:
    async def main() -> None:
        async with opened(tmp_path) as store:
            await fill(store, 10)
            async with store.consumer("orders", group="g", start="earliest", auto_commit=False) as consumer:
                assert len(await consumer.poll(5)) == 5
                await consumer.commit()
                assert (await consumer.committed())[TopicPartition("orders", 0)].offset == 5  # type: ignore[union-attr]
                assert len(await consumer.poll(5)) == 5
            assert await committed(store) == 5

    run(main())


def test_what_is_finished_is_committed_while_a_handler_is_at_work(tmp_path: Path) -> None:
    async def main() -> None:
        async with opened(tmp_path) as store:
            await fill(store, 10)
            options: Any = {"group": "g", "start": "earliest", "auto_commit_interval": "20ms"}
            async with store.consumer("orders", **options) as consumer:
                async for record in consumer:
                    if record.offset == 4:
                        await until(lambda: committed(store), 4)
                        break

    run(main())


async def until(look: Callable[[], Awaitable[object]], wanted: object) -> None:
    while await look() != wanted:
        await asyncio.sleep(0.01)


# --- cancellation ----------------------------------------------------------------------------------------------------


def test_a_cancelled_poll_hands_out_nothing(tmp_path: Path) -> None:
    """At any moment: what a poll returned was seen by its caller, whatever was cancelled around it."""

    async def main() -> None:
        seed = random.randrange(1 << 32)
        print("seed", seed)
        chance = random.Random(seed)
        count = 3000
        async with (
            opened(tmp_path, 3) as store,
            store.producer() as producer,
            store.consumer("orders", start="earliest") as consumer,
        ):
            seen: list[bytes | None] = []

            async def read() -> None:
                while True:
                    seen.extend(record.value for record in await consumer.poll(7))

            async def send() -> None:
                for number in range(count):
                    await producer.send("orders", b"%d" % number)
                    if number % 5 == 0:
                        await asyncio.sleep(0.001 * chance.random())

            sending = asyncio.create_task(send())
            while len(seen) < count:
                reading = asyncio.create_task(read())
                await asyncio.sleep(0.004 * chance.random())
                reading.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await reading
            await sending
            assert sorted(seen) == sorted(b"%d" % number for number in range(count))

    run(main())


def test_an_iterator_goes_on_after_a_cancelled_await(tmp_path: Path) -> None:
    async def main() -> None:
        async with opened(tmp_path) as store, store.producer() as producer, store.consumer("orders") as consumer:
            records = aiter(consumer)
            seen = []
            for number in range(30):
                with suppress(TimeoutError):
                    async with asyncio.timeout(0.001):
                        seen.append((await anext(records)).offset)
                await producer.send("orders", b"%d" % number)
            while len(seen) < 30:
                seen.append((await anext(records)).offset)
            assert seen == list(range(30))

    run(main())


def test_group_hunt_with_cancellations_loses_nothing(tmp_path: Path) -> None:
    """Members come and go by cancellation at random moments: at least once, all of it, in order within each member."""

    async def main() -> None:
        seed = random.randrange(1 << 32)
        print("seed", seed)
        chance = random.Random(seed)
        count = 600
        seen: set[bytes | None] = set()

        async def member(store: fastlog.aio.Store) -> None:
            options: Any = {"group": "g", "start": "earliest", "auto_commit_interval": "10ms"}
            async with store.consumer("orders", **options) as consumer:
                async for record in consumer:
                    await asyncio.sleep(0)
                    seen.add(record.value)

        async with opened(tmp_path, 4) as store, store.producer() as producer:
            for number in range(count):
                await producer.send("orders", b"%d" % number, key=b"%d" % number)
            members = [asyncio.create_task(member(store)) for _ in range(3)]
            for _ in range(12):
                await asyncio.sleep(0.02 * chance.random())
                gone = members.pop(chance.randrange(len(members)))
                gone.cancel()
                members.append(asyncio.create_task(member(store)))
                with pytest.raises(asyncio.CancelledError):
                    await gone
            while len(seen) < count:
                await asyncio.sleep(0.01)
                for task in members:
                    assert not task.done(), task.exception()
            for task in members:
                task.cancel()
            await asyncio.gather(*members, return_exceptions=True)
            for task in members:
                assert task.cancelled()

    run(main())


def test_a_cancelled_commit_is_whole(tmp_path: Path) -> None:
    async def main() -> None:
        async with opened(tmp_path, durability="group") as store:
            await fill(store, 50)
            async with store.consumer("orders", group="g", start="earliest", auto_commit=False) as consumer:
                for end in range(1, 51):
                    await consumer.poll(1)
                    committing = asyncio.create_task(consumer.commit())
                    for _ in range(end % 4):
                        await asyncio.sleep(0)
                    committing.cancel()
                    with suppress(asyncio.CancelledError):
                        await committing
                    found = (await consumer.committed())[TopicPartition("orders", 0)]
                    assert found is None or found.offset <= end
                await consumer.commit()
                assert (await consumer.committed())[TopicPartition("orders", 0)].offset == 50  # type: ignore[union-attr]

    run(main())


def test_a_cancelled_flush_leaves_records_on_their_way(tmp_path: Path) -> None:
    async def main() -> None:
        async with opened(tmp_path, durability="group") as store, store.producer(linger="10s") as producer:
            deliveries = [await producer.send("orders", b"%d" % i) for i in range(100)]
            flushing = asyncio.create_task(producer.flush())
            await asyncio.sleep(0)
            flushing.cancel()
            with pytest.raises(asyncio.CancelledError):
                await flushing
            assert [(await delivery).offset for delivery in deliveries] == list(range(100))

    run(main())


# --- one at a time ---------------------------------------------------------------------------------------------------


def test_a_consumer_is_used_by_one_task_at_a_time(tmp_path: Path) -> None:
    async def main() -> None:
        async with opened(tmp_path) as store, store.consumer("orders") as consumer:
            waiting = asyncio.create_task(consumer.poll())
            await asyncio.sleep(0.01)
            with pytest.raises(fastlog.LockedError, match="one task at a time"):
                await consumer.poll()
            with pytest.raises(fastlog.LockedError):
                await consumer.position("orders", 0)
            await consumer.close()
            assert await waiting == []
            with pytest.raises(fastlog.ClosedError):
                await consumer.poll()

    run(main())


def test_close_ends_an_iteration(tmp_path: Path) -> None:
    async def main() -> None:
        async with opened(tmp_path) as store, store.consumer("orders", group="g") as consumer:

            async def read() -> list[int]:
                return [record.offset async for record in consumer]

            reading = asyncio.create_task(read())
            await asyncio.sleep(0.02)
            await consumer.close()
            assert await reading == []

    run(main())


# --- many ------------------------------------------------------------------------------------------------------------


def test_many_tasks_and_no_thread_for_each(tmp_path: Path) -> None:
    async def main() -> None:
        async with opened(tmp_path, 4) as store, store.producer() as producer:
            counts: list[int] = []

            async def read(number: int) -> int:
                group = None if number % 4 else f"g{number}"
                async with store.consumer("orders", group=group, start="earliest") as consumer:
                    found = 0
                    async for _ in consumer:
                        found += 1
                        if found == 1000:
                            return found
                return found

            async def send() -> None:
                for _ in range(10):
                    await (await producer.send("orders", b"x"))
                    await asyncio.sleep(0)
                    counts.append(len(threads()))

            readers = [asyncio.create_task(read(number)) for number in range(100)]
            await asyncio.gather(*(send() for _ in range(100)))
            assert await asyncio.gather(*readers) == [1000] * 100
            assert len(counts) == 1000
            # the ear, the watcher, one for each producer, and the workers
            assert max(counts) <= 1 + 2 + 1 + 4

    run(main())


# --- back-pressure ---------------------------------------------------------------------------------------------------


def test_a_full_buffer_lets_the_task_wait_and_not_the_loop(tmp_path: Path) -> None:
    async def main() -> None:
        async with opened(tmp_path, durability="group") as store, store.producer(buffer_memory="16KiB") as producer:
            turns = 0
            longest = 0.0

            async def watch() -> None:
                nonlocal turns, longest
                while True:
                    begun = time.perf_counter()
                    await asyncio.sleep(0)
                    longest = max(longest, time.perf_counter() - begun)
                    turns += 1

            async def send(sender: int) -> list[fastlog.aio.Delivery]:
                return [await producer.send("orders", b"%d:%d:" % (sender, i) + bytes(900)) for i in range(100)]

            watching = asyncio.create_task(watch())
            sent = await asyncio.gather(*(send(sender) for sender in range(5)))
            assert turns > 20
            many = await producer.send_many("orders", [b"many" + bytes(900)] * 10)
            more = await producer.send_many("orders", [b"more" + bytes(900)] * 200)
            await producer.flush()
            watching.cancel()
            for deliveries in sent:
                offsets = [(await delivery).offset for delivery in deliveries]
                assert offsets == sorted(offsets)
            assert len((await many).offsets) == 10 and len((await more).offsets) == 200
            async with store.consumer("orders", start="earliest") as consumer:
                assert len([record async for record in consumer.records()]) == 710

    run(main())


def test_a_cancelled_send_has_sent_nothing(tmp_path: Path) -> None:
    async def main() -> None:
        seed = random.randrange(1 << 32)
        print("seed", seed)
        chance = random.Random(seed)
        async with opened(tmp_path, durability="group") as store, store.producer(buffer_memory="8KiB") as producer:
            sent = 0
            for number in range(300):
                sending: asyncio.Task[Any]
                if number % 3:
                    sending = asyncio.create_task(producer.send("orders", b"%d" % number + bytes(1500)))
                    size = 1
                else:
                    sending = asyncio.create_task(producer.send_many("orders", [b"%d" % number + bytes(1500)] * 3))
                    size = 3
                for _ in range(chance.randrange(4)):
                    await asyncio.sleep(0)
                sending.cancel()
                try:
                    await sending
                except asyncio.CancelledError:
                    continue
                sent += size
            await producer.flush()
            assert 0 < sent < 500
            async with store.consumer("orders", start="earliest") as consumer:
                assert len([record async for record in consumer.records()]) == sent

    run(main())


# --- failures --------------------------------------------------------------------------------------------------------


def test_errors_arrive(tmp_path: Path) -> None:
    async def main() -> None:
        async with opened(tmp_path) as store, store.producer() as producer:
            with pytest.raises(fastlog.UnknownTopicError):
                await producer.send("order", b"x")
            with pytest.raises(fastlog.UnknownTopicError):
                await store.topic("order")
            with pytest.raises(fastlog.TopicExistsError):
                await store.create_topic("orders")
            with pytest.raises(fastlog.UnknownTopicError):
                async with store.consumer("order"):
                    pass
            with pytest.raises(fastlog.TransactionError):
                producer.transaction()

    run(main())


def test_a_failed_delivery_is_told_by_flush_unless_somebody_looked(tmp_path: Path) -> None:
    async def main() -> None:
        async with opened(tmp_path) as store, store.producer(linger="10s") as producer:
            delivery = await producer.send("orders", b"x")
            looking = asyncio.create_task(delivery.result())
            await asyncio.sleep(0)
            looking.cancel()  # it has not looked
            await store.delete_topic("orders")
            with pytest.raises(fastlog.UnknownTopicError):
                await producer.flush()
            await producer.flush()
            with pytest.raises(fastlog.UnknownTopicError):
                await delivery
            assert isinstance(await delivery.exception(), fastlog.UnknownTopicError)

    run(main())


def test_a_delivery_can_be_waited_for_in_time_and_tells_a_callback(tmp_path: Path) -> None:
    async def main() -> None:
        async with opened(tmp_path) as store, store.producer(linger="10s") as producer:
            delivery = await producer.send("orders", b"x")
            told = asyncio.get_running_loop().create_future()
            delivery.add_done_callback(told.set_result)
            with pytest.raises(fastlog.DeliveryTimeoutError):
                await delivery.result(timeout="10ms")
            with pytest.raises(fastlog.DeliveryTimeoutError):
                await delivery.exception(timeout="10ms")
            await producer.flush()
            assert await told is delivery and (await delivery.result()).offset == 0

    run(main())


# --- callbacks -------------------------------------------------------------------------------------------------------


def test_callbacks_run_in_the_loop_and_may_use_the_consumer(tmp_path: Path) -> None:
    async def main() -> None:
        loop_thread = threading.get_ident()
        told: list[tuple[str, int]] = []
        async with opened(tmp_path, 4) as store:
            await fill(store, 40)
            consumer: fastlog.aio.Consumer[Any, Any]

            async def on_assigned(names: list[TopicPartition]) -> None:
                assert threading.get_ident() == loop_thread
                await asyncio.sleep(0)
                told.append(("assigned", len(names)))
                for name in names:
                    if await consumer.position(name) == 0:
                        await consumer.seek(name, offset=0)
                assert set(names) <= set(await consumer.assignment())

            async def on_revoked(names: list[TopicPartition]) -> None:
                assert threading.get_ident() == loop_thread
                told.append(("revoked", len(names)))
                await store.topics()
                await consumer.commit()

            consumer = await store.consumer(
                "orders", group="g", start="earliest", auto_commit=False, on_assigned=on_assigned, on_revoked=on_revoked
            )
            assert len(await consumer.poll()) == 40
            assert told == [("assigned", 4)]
            async with store.consumer("orders", group="g", start="earliest", on_assigned=told.append) as other:
                assert await other.poll(timeout=0) == []
                assert await consumer.poll(timeout=0.05) == []
                assert told[1:2] == [("revoked", 2)]
                assert await other.poll(timeout=0.2) == []
            await consumer.close()
            with fastlog.open(tmp_path / "store", durability="os") as same:
                offsets = same.describe_group("g").offsets
            assert sum(found.offset for found in offsets.values()) == 40

    run(main())


def test_an_exception_of_a_callback_arrives(tmp_path: Path) -> None:
    async def main() -> None:
        async with (
            opened(tmp_path) as store,
            store.consumer("orders", group="g", on_assigned=lambda names: 1 / 0) as consumer,
        ):
            with pytest.raises(ZeroDivisionError):
                await consumer.poll()
            assert await consumer.poll(timeout=0) == []

    run(main())


def test_a_cancelled_callback_ends_the_poll(tmp_path: Path) -> None:
    async def main() -> None:
        async with opened(tmp_path) as store:
            await fill(store, 3)
            began = asyncio.Event()

            async def on_assigned(names: list[TopicPartition]) -> None:
                began.set()
                await asyncio.sleep(1000)

            async with store.consumer("orders", group="g", start="earliest", on_assigned=on_assigned) as consumer:
                polling = asyncio.create_task(consumer.poll())
                await began.wait()
                polling.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await polling
                assert len(await consumer.poll()) == 3

    run(main())


def test_a_rebalance_reaches_who_is_in_the_middle_of_a_batch(tmp_path: Path) -> None:
    """Another process joins while the records of a batch are handled: its share comes without waiting for the end."""

    async def main() -> None:
        async with opened(tmp_path, 2) as store:
            await fill(store, 500)
            gone = asyncio.Event()
            options: Any = {"group": "g", "start": "earliest", "auto_commit_interval": "1h"}
            async with store.consumer("orders", **options, on_revoked=lambda names: gone.set()) as consumer:

                async def read() -> None:
                    async for _ in consumer:
                        await asyncio.sleep(0.005)

                reading = asyncio.create_task(read())
                await asyncio.sleep(0.1)
                async with (
                    fastlog.aio.open(tmp_path / "store", durability="os") as other,
                    other.consumer("orders", group="g", start="earliest") as second,
                ):
                    polling = asyncio.create_task(second.poll())
                    async with asyncio.timeout(0.8):  # the timer looks once a second, the bell rings now
                        await gone.wait()
                    polling.cancel()
                    with suppress(asyncio.CancelledError):
                        await polling
                reading.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await reading

    run(main())


# --- transactions ----------------------------------------------------------------------------------------------------


async def values(store: fastlog.aio.Store, topic: str, isolation: str = "read_committed") -> list[bytes | None]:
    async with store.consumer(topic, start="earliest", isolation=isolation) as consumer:
        return [record.value async for record in consumer.records()]


def test_a_rewind_that_failed_is_done_before_the_next_poll(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any) -> None:
        raise fastlog.StorageError("no descriptors left")

    async def main() -> None:
        async with opened(tmp_path) as store:
            await fill(store, 10)
            async with store.consumer("orders", group="g", start="earliest") as consumer:
                await consumer.enlist()
                assert len(await consumer.poll(3)) == 3
                with monkeypatch.context() as patch, pytest.raises(fastlog.StorageError):
                    patch.setattr(OffsetStore, "committed", refuse)
                    await consumer.rewind()
                assert [record.offset for record in await consumer.poll(3)] == [0, 1, 2]

    run(main())


def test_a_transaction_commits_or_aborts(tmp_path: Path) -> None:
    async def main() -> None:
        async with opened(tmp_path) as store, store.producer(transactional_id="t") as producer:
            assert producer.transactional_id == "t"
            async with producer.transaction() as tx:
                delivery = await tx.send("orders", b"1")
                await tx.send_many("orders", [b"2", b"3"])
                assert tx.is_open and await values(store, "orders") == []
            assert tx.outcome == "committed" and (await delivery).offset == 0
            with pytest.raises(ValueError, match="no"):
                async with producer.transaction() as tx:
                    await tx.send("orders", b"4")
                    raise ValueError("no")
            assert tx.outcome == "aborted"
            async with producer.transaction() as tx:
                await tx.send("orders", b"5")
                await tx.abort()
            with pytest.raises(fastlog.TransactionError):
                await tx.send("orders", b"6")
            with pytest.raises(fastlog.TransactionError):
                await producer.send("orders", b"6")
            assert await values(store, "orders") == [b"1", b"2", b"3"]

    run(main())


def test_a_cancelled_transaction_aborts_and_its_records_come_again(tmp_path: Path) -> None:
    """Copying a topic exactly once, cancelled at random moments, by restarts of the task and of its handles."""

    async def main() -> None:
        seed = random.randrange(1 << 32)
        print("seed", seed)
        chance = random.Random(seed)
        count = 400

        async def copy(store: fastlog.aio.Store) -> None:
            async with (
                store.consumer("orders", group="g", start="earliest") as consumer,
                store.producer(transactional_id="copy") as producer,
            ):
                while True:
                    records = await consumer.poll(max_records=20)
                    async with producer.transaction(consumer) as tx:
                        for record in records:
                            await tx.send("copies", record.value)
                        await asyncio.sleep(0)
                        await tx.commit_offsets()

        async with opened(tmp_path, 2) as store:
            await store.create_topic("copies")
            await fill(store, count)
            cancelled = 0
            while True:
                copying = asyncio.create_task(copy(store))
                await asyncio.sleep(0.06 * chance.random())
                copying.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await copying
                cancelled += 1
                done = (await store.describe_group("g")).offsets
                if sum(found.offset for found in done.values()) == count:
                    break
            print("cancelled", cancelled)
            found = await values(store, "copies")
            assert sorted(found) == sorted(b"%d" % number for number in range(count))

    run(main())


def test_a_transaction_cancelled_while_it_commits_aborts(tmp_path: Path) -> None:
    """Nothing is decided while its records are on their way. The producer goes on."""

    async def main() -> None:
        async with opened(tmp_path) as store, store.producer(transactional_id="t", linger="10s") as producer:
            transactions: list[fastlog.aio.Transaction] = []

            async def use() -> None:
                async with producer.transaction() as tx:
                    transactions.append(tx)
                    await tx.send("orders", b"no")
                    using.cancel()

            using = asyncio.create_task(use())
            with pytest.raises(asyncio.CancelledError):
                await using
            assert transactions[0].outcome == "aborted"
            async with producer.transaction() as tx:
                await tx.send("orders", b"yes")
            assert await values(store, "orders") == [b"yes"]

    run(main())


def test_an_abort_takes_the_consumer_back(tmp_path: Path) -> None:
    async def main() -> None:
        async with opened(tmp_path) as store, store.producer(transactional_id="t") as producer:
            async with producer.transaction() as tx:
                await tx.send_many("orders", [b"%d" % i for i in range(10)])
            async with store.consumer("orders", group="g", start="earliest") as consumer:
                for _ in range(2):
                    with pytest.raises(ValueError, match="again"):
                        async with producer.transaction(consumer) as tx:
                            assert [record.offset for record in await consumer.poll(3)] == [0, 1, 2]
                            raise ValueError("again")
                async with producer.transaction(consumer) as tx:
                    assert len(await consumer.poll(3)) == 3
                    await tx.commit_offsets()
                assert (await consumer.committed())[TopicPartition("orders", 0)].offset == 3  # type: ignore[union-attr]
                assert [record.offset for record in await consumer.poll(2)] == [3, 4]

    run(main())


def test_the_position_of_a_source(tmp_path: Path) -> None:
    async def main() -> None:
        async with opened(tmp_path) as store:
            for number in range(3):
                async with store.producer(source="file") as producer:
                    assert producer.source == "file"
                    position = await producer.source_position()
                    assert position == (None if number == 0 else b"%d" % (number - 1))
                    async with producer.transaction() as tx:
                        await tx.send("orders", b"x")
                        await tx.commit_source(b"%d" % number)

    run(main())


# --- ends ------------------------------------------------------------------------------------------------------------

PROGRAM = """
import asyncio, sys, threading
import fastlog

async def main():
    async with fastlog.aio.open(sys.argv[1], durability="os") as store:
        await store.create_topic("orders", exist_ok=True)
        async with store.producer() as producer, store.consumer("orders", group="g") as consumer:
            await consumer.poll(timeout=0)
            print("ready", flush=True)
            async for record in consumer:
                pass

try:
    asyncio.run(main())
except KeyboardInterrupt:
    print("interrupted", [t.name for t in threading.enumerate() if t.name.startswith("fastlog")], flush=True)
"""

LEFT_OPEN = """
import asyncio, sys
import fastlog

async def main():
    store = await fastlog.aio.open(sys.argv[1], durability="os")
    await store.create_topic("orders", exist_ok=True)
    producer = await store.producer()
    consumer = await store.consumer("orders", group="g")
    waiting = asyncio.create_task(consumer.poll())
    await asyncio.sleep(0.05)
    delivery = await producer.send("orders", b"x")
    print("ready", flush=True)
    keep.append((store, producer, consumer))

keep = []
asyncio.run(main())
print("interrupted []", flush=True)
"""


@pytest.mark.parametrize("program", [PROGRAM, LEFT_OPEN], ids=["Ctrl-C", "nothing closed"])
def test_the_program_ends(tmp_path: Path, program: str) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path / "store")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert process.stdout is not None and process.stderr is not None
    assert process.stdout.readline() == "ready\n"
    if program is PROGRAM:
        time.sleep(0.1)
        process.send_signal(signal.SIGINT)
    assert process.wait(timeout=20) == 0
    out, errors = process.stdout.read(), process.stderr.read()
    assert out == "interrupted []\n", errors
    assert "Traceback" not in errors
    if program is LEFT_OPEN:
        with fastlog.open(tmp_path / "store") as store, store.consumer("orders", start="earliest") as consumer:
            assert len(list(consumer.records())) == 1


def test_closing_the_store_ends_everything(tmp_path: Path) -> None:
    async def main() -> None:
        store = await fastlog.aio.open(tmp_path / "store", durability="os")
        await store.create_topic("orders")
        consumers = [await store.consumer("orders", group=group) for group in (None, "g", "g", "h")]
        polls = [asyncio.create_task(consumer.poll()) for consumer in consumers]
        producer = await store.producer(linger="10s")
        delivery = await producer.send("orders", b"x")
        await asyncio.sleep(0.05)
        await store.close()
        assert store.closed and producer.closed and all(consumer.closed for consumer in consumers)
        for found in await asyncio.gather(*polls):
            assert [record.value for record in found] in ([], [b"x"])
        assert (await delivery).offset == 0
        await store.close()
        with pytest.raises(fastlog.ClosedError):
            await producer.send("orders", b"x")
        with pytest.raises(fastlog.ClosedError):
            await store.create_topic("more")

    run(main())


def test_a_cancelled_opening_leaves_nothing_open(tmp_path: Path) -> None:
    async def main() -> None:
        for turns in range(60):

            async def use() -> None:
                async with (
                    fastlog.aio.open(tmp_path / "store", durability="os") as store,
                    store.producer(transactional_id="t"),
                    store.consumer("orders", group="g") as consumer,
                ):
                    await consumer.poll()

            with fastlog.open(tmp_path / "store", durability="os") as synchronous:
                synchronous.create_topic("orders", exist_ok=True)
                using = asyncio.create_task(use())
                await asyncio.sleep(0.0005 * turns)
                using.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await using
                assert not synchronous.describe_group("g").members

    run(main())
