"""Members of groups in processes of their own, which do what a test tells them."""

from __future__ import annotations

import os
import signal
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from fastlog._native import oscalls
from fastlog.errors import CommitFailedError
from fastlog.groups.membership import Changes, Membership
from fastlog.groups.offsets import OffsetAndMetadata, OffsetStore
from fastlog.records import TopicPartition
from fastlog.store.directory import Directory
from tests.forking import SERVER


class PuppetError(Exception):
    """What the process raised: the name of the class, and its message."""


class Strings:
    """Runs in the process."""

    def __init__(self, path: str, group: str) -> None:
        self.directory = Directory.open(path, durability="os")
        self.group = group
        self.members: list[Membership] = []
        self.failures = 0

    def join(self, *topics: str, **options: Any) -> str:
        self.members.append(Membership(self.directory, self.group, topics=topics or ["t"], **options))
        return self.members[-1].member_id

    def poll(self, release: bool = True) -> list[Changes | None]:
        """Let every member of the process poll, and let go of what it has to."""
        found = []
        for member in self.members:
            found.append(member.poll())
            if release and found[-1] is not None:
                member.release(found[-1].revoked)
        return found

    def work(self, seconds: float) -> int:
        """Poll, commit and let go, for so long: how many commits. Each says by which epoch it was made."""
        stop, commits = time.monotonic() + seconds, 0
        while time.monotonic() < stop:
            self.poll()
            for member in self.members:
                owned = member.owned()
                try:
                    member.commit({one: OffsetAndMetadata(commits, str(epoch.value)) for one, epoch in owned.items()})
                    commits += bool(owned)
                except CommitFailedError:
                    self.failures += 1
        return commits

    def failed(self) -> int:
        return self.failures

    def owned(self) -> list[list[TopicPartition]]:
        return [sorted(member.owned()) for member in self.members]

    def commit(self, partitions: list[TopicPartition], offset: int) -> None:
        for member in self.members:
            if set(partitions) & set(member.owned()):
                member.commit(dict.fromkeys(partitions, OffsetAndMetadata(offset)))

    def committed(self, partitions: list[TopicPartition]) -> dict[TopicPartition, OffsetAndMetadata | None]:
        return OffsetStore(self.directory).committed(self.group, partitions)

    def arm(self, failpoint: str, action: str = "kill", nth: int = 1) -> None:
        oscalls.arm(failpoint, action, nth)

    def create_topic(self, name: str, partitions: int) -> None:
        self.directory.create_topic(name, partitions)

    def leave(self) -> None:
        while self.members:
            self.members.pop().leave()

    def close(self) -> None:
        self.leave()
        self.directory.close()


def dance(path: str, group: str, pipe: Connection) -> None:
    """The process: does what comes through the pipe, until it is closed."""
    strings = Strings(path, group)
    pipe.send((True, None))
    while True:
        try:
            name, arguments, options = pipe.recv()
        except EOFError:
            return
        try:
            pipe.send((True, getattr(strings, name)(*arguments, **options)))
        except Exception as error:
            pipe.send((False, (type(error).__name__, str(error))))


class Puppet:
    """A process with members; every method of ``Strings`` can be called, ``start_*`` without waiting for the answer."""

    def __init__(self, path: Path, group: str = "g") -> None:
        self.pipe, other = SERVER.Pipe()
        self.process = SERVER.Process(target=dance, args=(str(path), group, other), daemon=True)
        self.process.start()
        other.close()
        self.answer()

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            self.pipe.send((name.removeprefix("start_"), arguments, options))
            return None if name.startswith("start_") else self.answer()

        return call

    def answer(self, timeout: float = 60) -> Any:
        """What it answers; PuppetError for what it raised, EOFError when it died."""
        if not self.pipe.poll(timeout):
            raise TimeoutError(f"process {self.process.pid} does not answer")
        is_fine, answer = self.pipe.recv()
        if not is_fine:
            raise PuppetError(*answer)
        return answer

    def signal(self, number: signal.Signals) -> None:
        assert self.process.pid is not None
        os.kill(self.process.pid, number)

    def kill(self) -> None:
        self.signal(signal.SIGKILL)
        self.process.join()

    def end(self) -> None:
        """However it is."""
        if self.process.is_alive():
            self.kill()
        self.pipe.close()
