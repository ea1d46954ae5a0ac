"""System calls that the kernel refuses, or answers in an unusual way: errors with a name, never an ``OSError``."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import fastlog
from fastlog._native import oscalls
from fastlog.errors import StorageError


@contextlib.contextmanager
def failing(call: str, code: int, nth: int = 1) -> Iterator[None]:
    oscalls.inject(call, errno=code, nth=nth)
    try:
        yield
        assert oscalls.injected() == 1, f"{call} was not called"
    finally:
        oscalls.clear()


REFUSED: dict[str, tuple[Callable[[Path], object], int]] = {
    "read of a directory": (lambda folder: with_fd(folder, lambda fd: oscalls.read_bytes(fd, 0, 10)), errno.EISDIR),
    "write to a reader": (
        lambda folder: with_fd(folder / "file", lambda fd: oscalls.write_at(fd, b"x", 0, "p")),
        errno.EBADF,
    ),
    "cut of a reader": (lambda folder: with_fd(folder / "file", lambda fd: oscalls.truncate(fd, 0, "p")), errno.EINVAL),
    "sync of a pipe": (lambda folder: with_pipe(lambda fd: oscalls.sync_data(fd, "p")), errno.EINVAL),
    "inode of nothing": (lambda folder: oscalls.inode_of(-1), errno.EBADF),
    "identity below a file": (lambda folder: oscalls.identity("x" * 5000), errno.ENAMETOOLONG),
    "stamp of a long name": (lambda folder: oscalls.file_stamp("x" * 5000), errno.ENAMETOOLONG),
    "time of nothing": (lambda folder: oscalls.set_modified(str(folder / "none"), 5), errno.ENOENT),
    "name of nothing": (lambda folder: oscalls.rename(str(folder / "none"), str(folder / "other")), errno.ENOENT),
    "file that is a folder": (lambda folder: oscalls.remove(str(folder)), errno.EISDIR),
    "folder that is a file": (lambda folder: oscalls.make_directory(str(folder / "file")), errno.EEXIST),
    "folder that is not empty": (lambda folder: oscalls.remove_directory(str(folder)), errno.ENOTEMPTY),
    "file system of nothing": (lambda folder: oscalls.file_system(str(folder / "none")), errno.ENOENT),
    "lock of nothing": (lambda folder: oscalls.lock_byte(-1, 0, "p"), errno.EBADF),
    "locks of nothing": (lambda folder: oscalls.free_bytes(-1, [0], "p"), errno.EBADF),
    "shared lock of nothing": (lambda folder: oscalls.try_share(-1, "p"), errno.EBADF),
    "lock on nothing": (lambda folder: oscalls.try_lock(-1), errno.EBADF),
}


def with_fd(path: Path, action: Callable[[int], object]) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        action(fd)
    finally:
        os.close(fd)


def with_pipe(action: Callable[[int], object]) -> None:
    ends = os.pipe()
    try:
        action(ends[0])
    finally:
        for end in ends:
            os.close(end)


@pytest.mark.parametrize("what", REFUSED)
def test_what_the_kernel_refuses_has_a_name(folder: Path, what: str) -> None:
    (folder / "file").write_bytes(b"content")
    action, code = REFUSED[what]
    with pytest.raises(StorageError) as caught:
        action(folder)
    assert caught.value.errno == code
    assert (folder / "file").read_bytes() == b"content"


def test_what_nothing_is(folder: Path) -> None:
    none = str(folder / "none")
    assert oscalls.identity(none) is None
    assert oscalls.file_stamp(none) is None
    assert oscalls.entry_kind(none) is None
    assert oscalls.read_file(none) is None
    assert not oscalls.remove(none)
    assert not oscalls.remove_directory(none)


def test_processes_that_cannot_be_looked_at() -> None:
    """Who began when is not known then, and nobody waits for an end that cannot be seen."""
    own = oscalls.process_id()
    began, space = oscalls.process_start_time(own), oscalls.pid_namespace()
    assert began > 0 and space > 0
    assert oscalls.process_start_time(1 << 30) == 0
    with failing("open", errno.EACCES):
        assert oscalls.process_start_time(own) == 0
    with failing("fstat", errno.EACCES):
        assert oscalls.pid_namespace() == 0
    with failing("pidfd_open", errno.ENOSYS):
        assert oscalls.open_process(own) is None
    assert oscalls.open_process(own) is not None


def test_a_pipe_that_is_full_is_full_enough() -> None:
    reader, writer = oscalls.open_pipe()
    for _ in range(100_000):
        oscalls.fill_pipe(writer)
    assert oscalls.wait_for_files([reader], 0) == [reader]
    oscalls.empty_pipe(reader)
    assert oscalls.wait_for_files([reader], 0) == []
    oscalls.empty_pipe(reader)  # of what is empty
    oscalls.fill_pipe(writer)
    assert oscalls.wait_for_files([reader], 1000) == [reader]


def test_a_disk_that_gives_no_blocks_ahead(folder: Path) -> None:
    """Plain writes go on where room cannot be asked for."""
    with fastlog.PartitionLog.open(folder / "events-0", durability="os") as log:
        log.append([b"v" * 1000] * 1200)
        with failing("fallocate", errno.EOPNOTSUPP):
            log.append([b"w" * 1000] * 100)
        before = oscalls.call_counts()["fallocate"]
        log.append([b"x" * 1000] * 100)
        assert oscalls.call_counts()["fallocate"] == before, "asked again"
        assert log.verify().ok
        assert log.end_offset == 1400
