"""The thread that notices deaths, and that does what has to be done from time to time."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from functools import partial

from fastlog._native import oscalls
from fastlog.errors import ClosedError, ForkedHandleError
from fastlog.liveness.slots import Slots

logger = logging.getLogger("fastlog.liveness")

# Milliseconds between two looks at a lock:
OFTEN = 20  # nothing else tells of the death
SELDOM = 250  # the end of the process is told by the kernel, but an owner may go without its process
AT_ONCE = 1  # the process has ended, so the lock will be free any moment


class Timer:
    """A callback that a ``Watcher`` calls again and again. Calling the timer is the same as ``cancel``."""

    __slots__ = ("_watcher", "aside", "callback", "due", "period", "runner", "when")

    def __init__(
        self,
        watcher: Watcher,
        period: int,
        callback: Callable[[], object],
        aside: bool,
        when: Callable[[], bool] | None,
    ) -> None:
        self._watcher = watcher
        self.period = period  # milliseconds from the end of a call to the next
        self.callback = callback
        self.aside = aside
        self.when = when
        self.due = oscalls.steady_clock() + period
        self.runner: threading.Thread | None = None  # of a call aside

    def cancel(self) -> None:
        """Call it no more; a call that has begun goes on. May be repeated, from any thread."""
        self._watcher._drop_timer(self)

    __call__ = cancel


class _Process:
    """The owner of some slots, whose end concerns all of them.

    Where the kernel does not tell of its end (``file`` is None), one of its slots is looked at often, for all.
    """

    __slots__ = ("file", "key", "watched")

    def __init__(self, key: tuple[int, int, int], file: oscalls.Descriptor | None) -> None:
        self.key = key
        self.file = file
        self.watched: list[_Watched] = []

    def add(self, watched: _Watched) -> None:
        watched.process = self
        self.watched.append(watched)
        self.choose()

    def remove(self, watched: _Watched) -> None:
        """It is dead, or nobody cares: the others may be dead too."""
        self.watched.remove(watched)
        if self.file is None:
            for other in self.watched:
                other.due = 0
            self.choose()

    def choose(self) -> None:
        """Let one be looked at often, if any has to."""
        if self.file is None and self.watched:
            self.watched[0].pause = OFTEN


class _Watched:
    """One slot, and who wants to know of its owner's death."""

    __slots__ = ("callbacks", "due", "number", "pause", "process")

    def __init__(self, number: int, pause: int) -> None:
        self.number = number
        self.callbacks: list[Callable[[int], object]] = []
        self.process: _Process | None = None
        self.pause = pause
        self.due = 0  # at once: it may be dead already

    def postpone(self, now: int) -> None:
        """Until the next multiple of the pause, so that many slots are looked at together."""
        self.due = (now // self.pause + 1) * self.pause
        if self.pause < OFTEN:
            self.pause = min(2 * self.pause, OFTEN)

    def hurry(self, now: int) -> None:
        """Its process has ended."""
        self.process = None
        self.pause = AT_ONCE
        self.due = now


class Watcher:
    """Tells of slots whose owners died, and calls what has to be called from time to time. One for each open store.

    Its thread starts with the first ``watch`` or ``every``, sleeps in the kernel and costs next to nothing. It finds

    - the end of a process of the same pid namespace at once, as the kernel tells it (Linux 5.3 and later);
    - any other death within 20 ms, by asking for the lock;
    - an owner that is gone though its process goes on within 250 ms.

    A death is believed once the lock is free, never before. Callbacks run in the thread, one after the other, so they
    have to be quick; what they raise is logged. All methods may be called from any thread, from callbacks too. In a
    forked child there is no thread: ``watch`` and ``every`` raise ForkedHandleError, the rest does nothing.
    """

    def __init__(self, slots: Slots) -> None:
        self._slots = slots
        # reentrant: a finalizer may come in whenever this thread allocates
        self._guard = threading.RLock()
        self._watched: dict[int, _Watched] = {}
        self._processes: dict[tuple[int, int, int], _Process] = {}
        self._timers: list[Timer] = []
        self._thread: threading.Thread | None = None
        self._pipe: tuple[oscalls.Descriptor, oscalls.Descriptor] | None = None
        self._stop = threading.Event()
        self._forks = oscalls.forks()

    def watch(self, slot_number: int, identity: Mapping[str, int], on_death: Callable[[int], object]) -> None:
        """Call ``on_death(slot_number)`` once, when the owner of the slot is dead; soon, if it is already.

        ``identity`` is what the owner's ``Slot.identity`` says. A slot may be watched several times: all are called.
        """
        self._require_usable()
        with self._guard:
            self._wake()
            watched = self._watched.get(slot_number)
            if watched is None:
                watched = self._watched[slot_number] = self._begin(slot_number, identity)
            watched.callbacks.append(on_death)

    def unwatch(self, slot_number: int, on_death: Callable[[int], object] | None = None) -> None:
        """Take back ``watch``: with this ``on_death``, or with any (None). A call that has begun goes on.

        Who shares the watcher with others names its own callback. Nothing happens when there is no such watch.
        """
        if self._forks != oscalls.forks():
            return
        with self._guard:
            watched = self._watched.get(slot_number)
            if watched is None:
                return
            watched.callbacks = [each for each in watched.callbacks if on_death is not None and each != on_death]
            if not watched.callbacks:
                self._forget(watched)

    def every(
        self,
        seconds: float,
        callback: Callable[[], object],
        *,
        aside: bool = False,
        when: Callable[[], bool] | None = None,
    ) -> Timer:
        """Call ``callback()`` every so many seconds, from the end of one call to the next, until it is cancelled.

        ``aside``: in a thread of its own, for what takes longer than some milliseconds; not twice at a time. A thread
        costs much more than a look: ``when`` is asked first, in the watcher's own, and on False nothing is called.
        ValueError unless ``seconds`` > 0.
        """
        self._require_usable()
        if not seconds > 0:
            raise ValueError(f"a timer needs some time between two calls, got {seconds} seconds")
        timer = Timer(self, max(1, round(1000 * seconds)), callback, aside, when)
        with self._guard:
            self._wake()
            self._timers.append(timer)
        return timer

    def close(self) -> None:
        """End the thread, and wait for it and for calls aside; nothing is called any more. May be repeated.

        From within a callback it waits for nothing: the thread ends when the callback returns.
        """
        if self._forks != oscalls.forks():
            return
        with self._guard:
            self._stop.set()
            runners = [self._thread, *(timer.runner for timer in self._timers)]
            if self._pipe is not None:
                oscalls.fill_pipe(self._pipe[1])
        for runner in runners:
            if runner is not None and runner is not threading.current_thread():
                runner.join()
        with self._guard:
            self._watched.clear()
            self._processes.clear()
            self._timers.clear()
            if threading.current_thread() is not self._thread:
                self._pipe = None

    @property
    def closed(self) -> bool:
        """Whether ``close`` was called."""
        return self._stop.is_set()

    # --- under the guard ---------------------------------------------------------------------------------------------

    def _require_usable(self) -> None:
        if self._forks != oscalls.forks():
            raise ForkedHandleError(
                "the watcher was started before fork and belongs to the parent: open the store again"
            )
        if self.closed:
            raise ClosedError("the watcher was closed with its store: open the store again")

    def _begin(self, number: int, identity: Mapping[str, int]) -> _Watched:
        """Find out how the death of a slot's owner can be noticed."""
        own = self._slots.identity
        watched = _Watched(number, SELDOM)
        key = identity["pid_namespace"], identity["pid"], identity["start_time"]
        if key == (own["pid_namespace"], own["pid"], own["start_time"]):
            return watched
        process = self._processes.get(key)
        if process is None:
            process = self._processes[key] = _Process(key, self._end_of(identity))
        process.add(watched)
        return watched

    def _end_of(self, identity: Mapping[str, int]) -> oscalls.Descriptor | None:
        """What the kernel makes ready when the process has ended; None when it cannot be asked, or is gone."""
        namespace = self._slots.identity["pid_namespace"]
        if not namespace or identity["pid_namespace"] != namespace:
            return None
        file = oscalls.open_process(identity["pid"])
        # the id may be that of another process by now
        return file if oscalls.process_start_time(identity["pid"]) == identity["start_time"] else None

    def _forget(self, watched: _Watched) -> None:
        self._watched.pop(watched.number, None)
        process = watched.process
        if process is not None:
            process.remove(watched)
            if not process.watched:
                del self._processes[process.key]

    def _drop_timer(self, timer: Timer) -> None:
        if self._forks != oscalls.forks():
            return
        with self._guard:
            if timer in self._timers:
                self._timers.remove(timer)

    def _wake(self) -> None:
        """Let the thread look at what changes before the guard is let go of; start it if there is none, or an error has
        ended it. Where that fails nothing is noted, and the next one who needs it tries again."""
        if self._thread is None or not self._thread.is_alive():
            pipe = oscalls.open_pipe()
            thread = threading.Thread(target=self._run, args=(pipe[0],), name="fastlog-watcher", daemon=True)
            thread.start()
            self._pipe, self._thread = pipe, thread
        elif self._pipe is not None and threading.current_thread() is not self._thread:
            oscalls.fill_pipe(self._pipe[1])

    # --- in the thread -----------------------------------------------------------------------------------------------

    def _run(self, pipe: oscalls.Descriptor) -> None:
        while not self.closed:
            try:
                self._sleep(pipe)
                if not self.closed:
                    self._bury()
                    self._tick()
            except Exception:
                logger.exception("the watcher of %s stumbled, and goes on", self._slots.path)
                self._stop.wait(OFTEN / 1000)

    def _sleep(self, pipe: oscalls.Descriptor) -> None:
        """Until something is due, a process ends, or somebody calls."""
        with self._guard:
            processes = [process for process in self._processes.values() if process.file is not None]
            moments = [watched.due for watched in self._watched.values()] + [timer.due for timer in self._timers]
        files = [pipe, *(process.file for process in processes if process.file is not None)]
        ready = oscalls.wait_for_files(files, max(0, min(moments) - oscalls.steady_clock()) if moments else -1)
        if not ready:
            return
        now = oscalls.steady_clock()
        with self._guard:
            for process in processes:
                if process.file in ready:
                    # its slots are found by their locks from now on
                    if self._processes.get(process.key) is process:
                        del self._processes[process.key]
                    for watched in process.watched:
                        watched.hurry(now)
        if pipe in ready:
            oscalls.empty_pipe(pipe)

    def _bury(self) -> None:
        """Ask for the locks whose time has come, and tell of those that are free."""
        now = oscalls.steady_clock()
        with self._guard:
            due = [watched for watched in self._watched.values() if watched.due <= now]
            for watched in due:
                watched.postpone(now)
        if not due:
            return
        free = set(self._slots.free([watched.number for watched in due]))
        with self._guard:
            dead = [each for each in due if each.number in free and self._watched.get(each.number) is each]
            for watched in dead:
                self._forget(watched)
        for watched in dead:
            for on_death in watched.callbacks:
                if not self.closed:
                    self._call(on_death, watched.number)

    def _tick(self) -> None:
        """Call what is due."""
        now = oscalls.steady_clock()
        with self._guard:
            due = [timer for timer in self._timers if timer.due <= now]
        for timer in due:
            if self.closed:
                return
            if timer.when is None or self._call(timer.when):
                if timer.aside:
                    self._call(partial(self._start_aside, timer))
                else:
                    self._call(timer.callback)
            timer.due = oscalls.steady_clock() + timer.period

    def _start_aside(self, timer: Timer) -> None:
        with self._guard:
            if self.closed or timer not in self._timers or (timer.runner is not None and timer.runner.is_alive()):
                return
            runner = threading.Thread(target=self._call, args=(timer.callback,), name="fastlog-upkeep", daemon=True)
            runner.start()
            timer.runner = runner

    def _call(self, callback: Callable[..., object], *arguments: int) -> object:
        """What it returns; None when it failed."""
        try:
            return callback(*arguments)
        except BaseException:
            logger.exception("%r, called by the watcher of %s, failed; the watcher goes on", callback, self._slots.path)
            return None
