"""What a consumer in a group sees to besides reading: commits in time, and retention that comes too close."""

from __future__ import annotations

import logging
import threading
import weakref
from typing import TYPE_CHECKING, Protocol

from fastlog._native import oscalls

if TYPE_CHECKING:
    from .fetching import Assigned, Fetcher
    from .waiting import Sleeper

__all__ = ["Pulse", "retention_warnings"]

logger = logging.getLogger("fastlog.consumer")

SHORTEST_BEAT_MS = 10
LONGEST_BEAT_MS = 1000
ALARMING_PART = 0.8


class Beaten(Protocol):
    """What a pulse asks of its consumer."""

    @property
    def is_busy(self) -> bool:
        """Whether somebody iterates, and may be in the middle of a handler."""

    def beat(self) -> None:
        """Do what is due."""

    def interrupt(self) -> None:
        """Have the group looked at before the next record."""


class Pulse:
    """A daemon thread beside a member of a group: it calls ``beat`` every so often, and ``interrupt`` as soon as the
    group changes while its consumer is busy with a handler. Ends with ``stop``, and when its consumer is gone.

    What ``beat`` raises is logged, and it is tried again.
    """

    def __init__(
        self,
        consumer: weakref.ref[Beaten],
        waiter: Sleeper,
        bells: int,
        interval_ms: int,
    ) -> None:
        self._consumer = consumer
        self._waiter = waiter
        self._bells = bells
        self._interval = max(min(interval_ms, LONGEST_BEAT_MS), SHORTEST_BEAT_MS)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="fastlog-consumer", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        due = oscalls.steady_clock() + self._interval
        while not self._stopped.is_set():
            left = due - oscalls.steady_clock()
            if left > 0:
                self._rest(left)
                continue
            due = oscalls.steady_clock() + self._interval
            consumer = self._consumer()
            if consumer is None:
                return
            try:
                consumer.beat()
            except Exception:
                logger.exception("the upkeep of a consumer failed, and is tried again")
            del consumer

    def _rest(self, milliseconds: float) -> None:
        """Only who is busy has to be told of the group: who waits hears the bell itself."""
        if not self._is_busy():
            self._stopped.wait(milliseconds / 1000)
            return
        heard = self._waiter.listen(self._bells)
        if self._stopped.is_set() or not self._waiter.sleep(heard, milliseconds):
            return
        consumer = self._consumer()
        if consumer is not None:
            consumer.interrupt()

    def _is_busy(self) -> bool:
        consumer = self._consumer()
        return consumer is not None and consumer.is_busy

    def stop(self) -> None:
        """End the thread, and wait for it unless it is the caller."""
        self._stopped.set()
        self._waiter.wake()
        if threading.current_thread() is not self._thread:
            self._thread.join()


def retention_warnings(group: str, fetcher: Fetcher) -> None:
    """Warn of partitions whose next record retention will soon take away."""
    now = oscalls.wall_clock()
    for found in fetcher:
        reason = danger(found, now)
        if reason is not None:
            logger.warning(
                "group %r is about to lose records of %s-%d: %s. Read faster, or keep more", group, *found.name, reason
            )


def danger(found: Assigned, now: int) -> str | None:
    """Why the record at the position will soon be deleted, None when it will not."""
    log = found.log
    if not log.config.deletes or not log.start_offset <= found.position < log.readable_offset:
        return None
    retention_ms, retention_bytes = log.config.retention_ms, log.config.retention_bytes
    if retention_ms >= 0:
        batch = log.read(found.position, 1)
        if len(batch) and 0 <= batch.timestamps[0] < now - ALARMING_PART * retention_ms:
            age = (now - int(batch.timestamps[0])) / 1000
            return f"the next one is {age:.0f} s old, and retention.ms is {retention_ms / 1000:.0f} s"
    if retention_bytes >= 0:
        segments = log.segments()
        ahead = sum(segment.size for segment in segments if segment.end_offset > found.position)
        if len(segments) > 1 and ahead > ALARMING_PART * retention_bytes:
            return f"{ahead} bytes are still to be read, and retention.bytes is {retention_bytes}"
    return None
