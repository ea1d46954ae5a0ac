"""``fastlog.App``: handlers of an application, declared with decorators, and run until they are told to stop."""

from __future__ import annotations

import inspect
import logging
import os
import re
import signal
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from queue import Empty, SimpleQueue
from types import FrameType
from typing import Any, Final, Literal, TypeVar

from fastlog._native import oscalls
from fastlog.clients.starting import Start
from fastlog.clients.store import Store, open_store
from fastlog.errors import ConfigError, Error, HandlerTimeoutError

from .calling import Middleware
from .clock import Clock
from .deduplicator import Deduplicator
from .policy import Breaker, Retry
from .runner import Runner, SubscriberStats
from .subscriber import Duration, Handler, Subscriber

__all__ = ["App"]

logger = logging.getLogger("fastlog.delivery")

F = TypeVar("F", bound=Handler)
M = TypeVar("M", bound=Middleware)

GRACE_MS: Final = 5000  # for commits and the leaving of groups, when handlers have ended
GLANCE_S: Final = 1.0
# timeout(1), systemd and others tell each process of a group, and so does its parent: that is one signal, not two
SAME_SIGNAL_MS: Final = 500
SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)


class App:
    """Handlers of records and how they are run. Declare them with ``subscriber``, then ``run``.

    Args:
        store: path of a store, which is opened by ``run`` and closed at its end; or an open Store, which stays open.
        durability: level of a store given by its path, as of ``fastlog.open``.
        client_id: a name for descriptions of the groups.
        clock: by what records are due and time-outs end; for tests. Default: that of the machine.

    Handlers are called at least once for each record, in the order that ``order_by`` says. ``stop`` and ``stats`` may
    be called from any thread, ``stop`` from a signal handler too.
    """

    def __init__(
        self,
        store: str | os.PathLike[str] | Store,
        *,
        durability: str = "group",
        client_id: str = "",
        clock: Clock | None = None,
    ) -> None:
        self._given = checked_store(store)
        self._durability = durability
        self._client_id = client_id
        self._clock = clock
        self._subscribers: list[Subscriber] = []
        self._middleware: list[Middleware] = []
        self._store: Store | None = None
        self._runners: list[Runner] = []
        self._threads: list[threading.Thread] = []
        self._last: dict[str, SubscriberStats] = {}
        self._is_stopping = False
        self._signalled_at: int | None = None
        # not an Event, whose lock the main thread may hold when a signal comes
        self._endings: SimpleQueue[None] = SimpleQueue()

    # --- declaring ---------------------------------------------------------------------------------------------------

    def subscriber(
        self,
        topics: str | Sequence[str] | re.Pattern[str],
        *,
        group: str,
        name: str | None = None,
        concurrency: int = 1,
        order_by: Literal["partition", "key", "none"] = "key",
        retry: Retry | None = None,
        dead_letter: bool = True,
        retry_topic: str | None = None,
        dead_letter_topic: str | None = None,
        timeout: Duration | None = None,
        batch: int | None = None,
        start: Start = "earliest",
        block_on_dead_letter: bool = False,
        breaker: Breaker | None = None,
        deduplicate: Deduplicator | None = None,
        key_deserializer: Callable[[bytes], Any] | None = None,
        value_deserializer: Callable[[bytes], Any] | None = None,
        drain_timeout: Duration = "30s",
        max_poll_interval: Duration = "5m",
    ) -> Callable[[F], F]:
        """Declare a function as the handler of topics. It stays the function that it is.

        A handler takes a Record, or a list of them with ``batch``; it may be ``async``. When it returns, the record is
        finished; when it raises, the record failed.

        Args:
            topics: a name, names, or a compiled pattern that matches whole names (retry and dead-letter topics never).
            group: the consumer group; letters and digits of ASCII, ``.``, ``_``, ``-``.
            name: of the subscriber, in ``stats`` and messages. Default: the group.
            concurrency: calls at once in each process.
            order_by: ``"key"`` (default): records of a key one after the other; ``"partition"``: all of a partition one
                after the other; ``"none"``. A record without a key has no order under ``"key"``.
            retry: how often a failing record is tried, and when. None: once.
            dead_letter: whether a record that failed for good goes to the dead-letter topic; else it is logged, and
                dropped.
            retry_topic, dead_letter_topic: names of these, in place of ``<topic>.<group>.retry`` and ``….dlq``.
            timeout: how long a call may take. An async handler is cancelled, and the record failed; a thread cannot be:
                ``run`` ends with a HandlerTimeoutError, and so has the process to.
            batch: call the handler with lists of up to so many records, of those that are there.
            start: where to begin when the group has committed nothing; as of ``Store.consumer``, but everything that is
                there by default.
            block_on_dead_letter: with ``order_by="key"``: records of a key that has a dead letter become dead letters
                too, in order and uncalled, until those are redriven; or discarded, which counts from when the partition
                is taken the next time.
            breaker: when to pause after failures in a row.
            deduplicate: which events are known, and not handled again.
            key_deserializer, value_deserializer: callables that are given bytes; null stays None. A record that they
                fail on goes to the dead letters, as it is.
            drain_timeout: how long to wait for calls when partitions go, or at the end; at most four fifths of
                ``max_poll_interval``.
            max_poll_interval: how long the process may be stopped before others take its partitions. A call of a sync
                handler with ``concurrency=1`` and no ``timeout`` has to be shorter.

        Raises ConfigError for options that are out of range or exclude each other, and for a second subscriber of the
        same topic and group, or of the same name.
        """

        def declare(handler: F) -> F:
            self._add(
                Subscriber(
                    handler,
                    topics,
                    group=group,
                    name=name,
                    concurrency=concurrency,
                    order_by=order_by,
                    retry=retry,
                    dead_letter=dead_letter,
                    retry_topic=retry_topic,
                    dead_letter_topic=dead_letter_topic,
                    timeout=timeout,
                    batch=batch,
                    start=start,
                    block_on_dead_letter=block_on_dead_letter,
                    breaker=breaker,
                    deduplicate=deduplicate,
                    key_deserializer=key_deserializer,
                    value_deserializer=value_deserializer,
                    drain_timeout=drain_timeout,
                    max_poll_interval=max_poll_interval,
                )
            )
            return handler

        return declare

    def _add(self, added: Subscriber) -> None:
        for known in self._subscribers:
            both = set(known.claims()) & set(added.claims())
            if both:
                topic, group = both.pop()
                raise ConfigError(
                    f"topic {topic!r} and group {group!r} have a subscriber already ({known.name!r}): give one of them "
                    f"another group"
                )
            if known.name == added.name:
                raise ConfigError(f"two subscribers are called {added.name!r}: tell them apart with name=")
        self._subscribers.append(added)

    def middleware(self, function: M) -> M:
        """Declare a function that surrounds every call of a handler: ``def timing(call, proceed): return proceed()``.

        ``call`` tells of the records and the attempt, ``proceed()`` calls what is inside. The one that is declared
        first is the outermost. One with ``def`` surrounds handlers with ``def``, one with ``async def`` (and
        ``await proceed()``) those with ``async def``. What it raises counts as the handler's.
        """
        if not callable(function) or inspect.isclass(function):
            raise ConfigError(f"a middleware is a function of a call and of proceed, found {function!r}")
        self._middleware.append(function)
        return function

    def use_store(self, store: str | os.PathLike[str] | Store) -> None:
        """Work on another store than the one that the app was made with; before it runs. Raises ConfigError."""
        if self._runners:
            raise ConfigError("the app runs already: stop it before it is given another store")
        self._given = checked_store(store)

    @property
    def subscribers(self) -> list[Subscriber]:
        """What was declared."""
        return list(self._subscribers)

    # --- running -----------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Handle records until ``stop``, SIGTERM or SIGINT (Ctrl-C): then what is in hand ends, and is committed.

        Signals are only looked after in the main thread, and only meanwhile; a second one ends it at once: what is in
        hand comes again.

        Raises:
            ConfigError: nothing is declared; or see ``subscriber``.
            HandlerTimeoutError: a sync handler took too long; end the process.
            Error: what a subscriber could not go on with; the others were stopped.
        """
        before = self._catch_signals()
        try:
            self.start()
            self.wait()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _catch_signals(self) -> dict[int, Any]:
        if threading.current_thread() is not threading.main_thread():
            return {}
        return {number: signal.signal(number, self._on_signal) for number in SIGNALS}

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        now = oscalls.steady_clock()
        if not self._is_stopping:
            self._signalled_at = now
            self.stop()
        elif self._signalled_at is not None and now - self._signalled_at < SAME_SIGNAL_MS:
            pass
        elif number == signal.SIGINT:
            raise KeyboardInterrupt
        else:
            raise SystemExit(128 + number)

    def start(self) -> None:
        """Begin to handle records, in threads beside this one. ``stop`` and ``wait`` end it. Errors as of ``run``."""
        runners = self.open()
        self._threads = [
            threading.Thread(
                target=self._run_one, args=(runner,), name=f"fastlog-{runner.subscriber.name}", daemon=True
            )
            for runner in runners
        ]
        for thread in self._threads:
            thread.start()

    def _run_one(self, runner: Runner) -> None:
        try:
            runner.run()
        except BaseException as error:
            logger.error("subscriber %r ended: %s: %s", runner.subscriber.name, type(error).__name__, error)
            self.stop()
        finally:
            self._endings.put(None)

    def wait(self) -> None:
        """Wait until it was stopped and has ended. Raises what a subscriber could not go on with."""
        self._wait_for_threads()
        error = next((runner.error for runner in self._runners if runner.error is not None), None)
        stuck = [thread.name for thread in self._threads if thread.is_alive()]
        if stuck:
            # a store cannot be closed under a handler that uses it
            self._forget()
            raise HandlerTimeoutError(
                f"{', '.join(stuck)}: a handler did not end within drain_timeout after the stop. A thread cannot be "
                f"stopped, so the process has to end; its records come again"
            )
        self.close()
        if error is not None:
            raise error

    def _wait_for_threads(self) -> None:
        deadline: int | None = None
        while any(thread.is_alive() for thread in self._threads):
            with suppress(Empty):
                self._endings.get(timeout=GLANCE_S)
            for thread in self._threads:
                thread.join(0.01 if self._is_stopping else 0)
            if not self._is_stopping:
                continue
            now = oscalls.steady_clock()
            if deadline is None:
                deadline = now + GRACE_MS + max(runner.subscriber.drain_ms for runner in self._runners)
            elif now > deadline:
                return

    def stop(self) -> None:
        """End ``run``: nothing new is called, what is in hand ends and is committed. Does not wait; idempotent.

        Any thread, and a signal handler, may call it. Before ``run`` it lets that end at once.
        """
        self._is_stopping = True
        for runner in self._runners:
            runner.stop()
        self._endings.put(None)

    def stats(self) -> dict[str, SubscriberStats]:
        """Counts and states by the subscribers' names; after the end those of the end. Any thread."""
        return {runner.subscriber.name: runner.stats() for runner in self._runners} or dict(self._last)

    # --- for who steps by hand ---------------------------------------------------------------------------------------

    def bound_to(
        self,
        store: str | os.PathLike[str] | Store,
        *,
        clock: Clock | None = None,
        change: Callable[[Subscriber], dict[str, Any]] | None = None,
    ) -> App:
        """An App for another store, with the subscribers and the middleware declared so far. This one stays as it is.

        Args:
            store: as of App.
            clock: as of App.
            change: for each subscriber the options that are different there, by the names of its attributes.
        """
        bound = App(store, durability=self._durability, client_id=self._client_id, clock=clock)
        bound._subscribers = [
            subscriber.changed(**({} if change is None else change(subscriber))) for subscriber in self._subscribers
        ]
        bound._middleware = list(self._middleware)
        return bound

    def open(self, *, inline: bool = False) -> list[Runner]:
        """Open the store, and a runner for each subscriber, which nobody runs yet.

        ``inline``: handlers are called in the thread that steps them. Errors as of ``run``.
        """
        if not self._subscribers:
            raise ConfigError("the app has no subscribers: declare one with @app.subscriber(topic, group=…)")
        if self._runners:
            raise ConfigError("the app runs already: stop it first")
        store = self._store = (
            self._given if isinstance(self._given, Store) else open_store(self._given, durability=self._durability)
        )
        try:
            for subscriber in self._subscribers:
                self._runners.append(
                    Runner(
                        store.directory,
                        subscriber,
                        clock=self._clock,
                        middleware=self._middleware,
                        client_id=self._client_id,
                        inline=inline,
                    )
                )
        except BaseException:
            self.close()
            raise
        if self._is_stopping:
            self.stop()
        return list(self._runners)

    def close(self) -> None:
        """Close the runners, and the store unless it was given open. Idempotent. Raises the first error."""
        problem: Error | None = None
        for runner in self._runners:
            try:
                runner.close()
            except Error as error:
                problem = problem or error
        self._last = self.stats()
        store = self._store
        self._forget()
        if store is not None and store is not self._given:
            store.close()
        if problem is not None:
            raise problem

    def _forget(self) -> None:
        self._runners, self._threads, self._store, self._is_stopping = [], [], None, False

    def __repr__(self) -> str:
        names = ", ".join(subscriber.name for subscriber in self._subscribers) or "no subscribers"
        return f"<App: {names}{', running' if self._runners else ''}>"


def checked_store(store: str | os.PathLike[str] | Store) -> str | os.PathLike[str] | Store:
    if not isinstance(store, (str, os.PathLike, Store)):
        raise ConfigError(f"store={store!r} is a {type(store).__name__}: expected a path or an open Store")
    return store
