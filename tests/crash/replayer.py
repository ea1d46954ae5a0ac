"""What a disk may hold after power was lost at some moment of a record.

The rules, which promise no more than POSIX and less than any file system of today:

- A sync of a file keeps what was written to it, and the size it had, before the sync began. It keeps no name.
- A sync of a directory keeps the names that were made, moved and removed in it before the sync began. It keeps no
  content.
- Of everything else any part may be there, whatever the order: a write as a whole or in pieces of 512 bytes or 4 KiB,
  only the size of it (zeros, or whatever was on those blocks), a later one without an earlier one, a name or not.
- Renaming happens to both names or to none. A folder that is renamed takes along what is in it.
- Memory that is mapped for writing may reach the disk at any time: its file holds anything that it ever held.

A ``Disk`` is told by a moment and its ``losses``: what happened to each operation that no sync had kept. Operations
that are not mentioned are there as a whole.
"""

from __future__ import annotations

import contextlib
import os
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from fastlog._native import oscalls
from tests.crash.recording import Entry, Kind, Record

ROOT = -1  # folders have numbers below zero, files the others
SECTOR = 512
PAGE = 4096
MOST_ENUMERATED = 5  # so many unsynced operations are lost in every combination; more of them at random
MOST_SCRAMBLED = 1 << 16  # mapped files that are larger hold one of the contents that they had

Name = tuple[int, str]  # a folder, and a name in it


@dataclass(frozen=True, slots=True)
class DataOperation:
    """A write to a file, or (``data`` is None) its cut or extension to ``position`` bytes."""

    number: int
    file: int
    position: int
    data: bytes | None


@dataclass(frozen=True, slots=True)
class NameOperation:
    """Names that change at once: each to a file or folder, or to nothing. A sync of any of their folders keeps it."""

    number: int
    changes: tuple[tuple[Name, int | None], ...]


Operation = DataOperation | NameOperation
# number of an operation -> "lost" | "size" | "garbage:<seed>" | "<unit>:<one digit per piece>[+ for the size]";
# minus the number of a mapped file, less one -> "absent" | "zeros" | "random:<seed>" | "mixed:<seed>" | "page:<number>"
Losses = dict[int, str]


@dataclass(slots=True)
class Moment:
    """The disk between two entries: what is kept for certain, and the operations that may be lost.

    ``at`` entries of the record have happened.
    """

    at: int
    names: Mapping[Name, int]
    images: Mapping[int, bytes]
    pending: tuple[Operation, ...]
    pages: Mapping[int, tuple[bytes, ...]]


@dataclass(frozen=True, slots=True)
class Disk:
    """Paths of folders and of files, by number, and the files' contents by number.

    ``inodes`` are those that the folders had when they were recorded: a log knows its own. ``mapped`` are the files
    that anything may be in: disks that differ in them only are equal.
    """

    folders: Mapping[str, int]  # what contains others comes first
    names: Mapping[str, int]
    contents: Mapping[int, bytes]
    inodes: Mapping[str, int]
    mapped: frozenset[int]

    def __hash__(self) -> int:
        mapped = self.mapped
        files = ((name, None if file in mapped else self.contents[file]) for name, file in self.names.items())
        return hash((frozenset(self.folders), frozenset(files)))

    def files(self) -> dict[str, bytes]:
        """Content of each file by name."""
        return {name: self.contents[file] for name, file in self.names.items()}


class Replayer:
    """All moments of a record. ``moments[i]`` is after ``i`` entries."""

    def __init__(self, recorded: Record) -> None:
        self.entries = recorded.entries
        self._files = 0
        self._folders = -1
        self._inodes = {ROOT: recorded.inodes.get("", 0)}  # of folders
        self._sizes: dict[int, int] = {}  # as the program sees them
        self._by_inode: dict[int, int] = {}
        self._now: dict[Name, int] = {}  # names as the program sees them
        self._syncing: dict[int, int | None] = {}  # number of the beginning of a folder's sync -> folder
        images: dict[int, bytes] = {}
        for path, inode in sorted(recorded.inodes.items()):
            if path:
                self._now[self._name(path)] = self._new_folder(inode)
        for path, content in recorded.files.items():
            inode = recorded.file_inodes[path]
            file = self._by_inode.get(inode)
            if file is None:
                file = self._new_file(inode)
            self._now[self._name(path)] = file
            images[file] = content
            self._sizes[file] = len(content)
        moment = Moment(0, dict(self._now), images, (), {})
        self.moments = [moment]
        for at, entry in enumerate(self.entries, 1):
            moment = self._after(moment, at, entry)
            self.moments.append(moment)

    def _new_file(self, inode: int) -> int:
        self._by_inode[inode] = self._files
        self._sizes[self._files] = 0
        self._files += 1
        return self._files - 1

    def _new_folder(self, inode: int) -> int:
        self._folders -= 1
        self._inodes[self._folders] = inode
        return self._folders

    def _folder(self, path: str) -> int | None:
        """The folder at a path as the program sees it; None when there is none (any more)."""
        folder: int | None = ROOT
        for part in path.split("/") if path else ():
            folder = None if folder is None else self._now.get((folder, part))
        return folder

    def _name(self, path: str) -> Name:
        above, _, name = path.rpartition("/")
        folder = self._folder(above)
        assert folder is not None, f"{path} lies in a folder that nobody has made"
        return folder, name

    def _change(self, number: int, *changes: tuple[str, int | None]) -> NameOperation:
        """The program has changed names."""
        operation = NameOperation(number, tuple((self._name(path), node) for path, node in changes))
        rename(self._now, operation)
        return operation

    def _after(self, moment: Moment, at: int, entry: Entry) -> Moment:
        kind = entry.kind
        number = entry.number
        if kind == Kind.SYNC_END:
            return self._synced(moment, at, entry)
        if kind == Kind.PAGE:
            file = self._by_inode[entry.inode]
            pages = dict(moment.pages)
            known = pages.get(file, ())
            if not known or known[-1] != entry.data:  # each process notes what it had not seen
                pages[file] = (*known, entry.data)
            return Moment(at, moment.names, moment.images, moment.pending, pages)
        operation: Operation
        images = moment.images
        if kind == Kind.WRITE:
            file = self._by_inode[entry.inode]
            self._sizes[file] = max(self._sizes[file], entry.position + len(entry.data))
            operation = DataOperation(number, file, entry.position, entry.data)
        elif kind == Kind.TRUNCATE:
            file = self._by_inode[entry.inode]
            if self._sizes[file] == entry.position:
                # frees blocks, and changes nothing that can be read
                return Moment(at, moment.names, images, moment.pending, moment.pages)
            self._sizes[file] = entry.position
            operation = DataOperation(number, file, entry.position, None)
        elif kind == Kind.CREATE:
            file = self._new_file(entry.inode)
            images = {**images, file: b""}
            operation = self._change(number, (entry.path, file))
        elif kind == Kind.MKDIR:
            operation = self._change(number, (entry.path, self._new_folder(entry.inode)))
        elif kind == Kind.LINK:
            operation = self._change(number, (entry.target, self._by_inode[entry.inode]))
        elif kind == Kind.RENAME:
            moved = self._now[self._name(entry.path)]
            if moved == self._now.get(self._name(entry.target)):
                # two names of one file: nothing happens
                return Moment(at, moment.names, images, moment.pending, moment.pages)
            operation = self._change(number, (entry.path, None), (entry.target, moved))
        elif kind in (Kind.UNLINK, Kind.RMDIR):
            operation = self._change(number, (entry.path, None))
        else:
            if kind == Kind.SYNC_BEGIN and entry.is_directory:
                self._syncing[number] = self._folder(entry.path)
            return Moment(at, moment.names, images, moment.pending, moment.pages)
        return Moment(at, moment.names, images, (*moment.pending, operation), moment.pages)

    def _synced(self, moment: Moment, at: int, entry: Entry) -> Moment:
        """What a sync keeps: everything of its file or directory from before it began."""
        begin = entry.position
        kept: list[Operation] = []
        if entry.is_directory:
            folder = self._syncing.pop(begin)
            names = dict(moment.names)
            for operation in moment.pending:
                if (
                    isinstance(operation, NameOperation)
                    and operation.number < begin
                    and any(where == folder for (where, _), _ in operation.changes)
                ):
                    rename(names, operation)
                else:
                    kept.append(operation)
            return Moment(at, names, moment.images, tuple(kept), moment.pages)
        file = self._by_inode[entry.inode]
        image = bytearray(moment.images[file])
        for operation in moment.pending:
            if isinstance(operation, DataOperation) and operation.file == file and operation.number < begin:
                apply(image, operation, "")
            else:
                kept.append(operation)
        return Moment(at, moment.names, {**moment.images, file: bytes(image)}, tuple(kept), moment.pages)

    def disk(self, at: int, losses: Losses) -> Disk:
        """The disk at a moment, with these losses."""
        moment = self.moments[at]
        names = dict(moment.names)
        changed: dict[int, bytearray] = {}
        for operation in moment.pending:
            outcome = losses.get(operation.number, "")
            if outcome == "lost":
                continue
            if isinstance(operation, NameOperation):
                rename(names, operation)
                continue
            image = changed.get(operation.file)
            if image is None:
                image = changed[operation.file] = bytearray(moment.images[operation.file])
            apply(image, operation, outcome)
        for file, pages in moment.pages.items():
            outcome = losses.get(-1 - file, "")
            image = changed.get(file)
            if image is None:
                image = changed[file] = bytearray(moment.images[file])
            if outcome == "absent":
                for name in [name for name, held in names.items() if held == file]:
                    del names[name]
            else:
                scramble(image, pages, outcome)
        return self._reachable(names, moment, changed)

    def _reachable(self, names: dict[Name, int], moment: Moment, changed: dict[int, bytearray]) -> Disk:
        """What can be found from the root. A file whose folder was lost is lost with it."""
        within: dict[int, list[tuple[str, int]]] = {}
        for (folder, name), node in names.items():
            within.setdefault(folder, []).append((name, node))
        folders: dict[str, int] = {}
        files: dict[str, int] = {}
        ahead = [("", ROOT)]
        for path, folder in ahead:
            for name, node in sorted(within.get(folder, ())):
                if node >= 0:
                    files[path + name] = node
                else:
                    folders[path + name] = node
                    ahead.append((f"{path}{name}/", node))
        contents = {
            file: bytes(changed[file]) if file in changed else moment.images[file] for file in set(files.values())
        }
        inodes = {path: self._inodes[folder] for path, folder in folders.items()}
        inodes[""] = self._inodes[ROOT]
        return Disk(folders, files, contents, inodes, frozenset(moment.pages))

    def describe(self, at: int, losses: Losses) -> str:
        """What happened last before the cut, and what became of everything that was not kept."""
        lines = [f"power was lost after {at} of {len(self.entries)} entries:"]
        lines += [f"      {entry}" for entry in self.entries[max(at - 6, 0) : at]]
        lines.append("no sync had kept these:")
        numbers = {entry.number: entry for entry in self.entries}
        lines += [
            f"  {losses.get(operation.number, 'kept'):>6}  {numbers[operation.number]}"
            for operation in self.moments[at].pending
        ]
        lines += [f"  {outcome}  the mapped file {-1 - file}" for file, outcome in losses.items() if file < 0]
        return "\n".join(lines)


def rename(names: dict[Name, int], operation: NameOperation) -> None:
    for name, file in operation.changes:
        if file is None:
            names.pop(name, None)
        else:
            names[name] = file


def apply(image: bytearray, operation: DataOperation, outcome: str) -> None:
    """Do to a file what an operation, or what was left of it, does."""
    data, position = operation.data, operation.position
    if data is None:
        if outcome == "":
            resize(image, position)
        return
    end = position + len(data)
    what, _, detail = outcome.partition(":")
    if what == "":
        if len(image) < end:
            resize(image, end)
        image[position:end] = data
    elif what == "size":
        resize(image, max(end, len(image)))
    elif what == "garbage":
        size = len(image)
        if end > size:
            begin = max(position, size)
            resize(image, end)
            image[begin:end] = random.Random(detail).randbytes(end - begin)
    else:
        unit = int(what)
        first = position // unit
        for piece, digit in enumerate(detail.rstrip("+"), first):
            if digit == "1":
                begin, stop = max(position, piece * unit), min(end, (piece + 1) * unit)
                if len(image) < stop:
                    resize(image, stop)
                image[begin:stop] = data[begin - position : stop - position]
        if detail.endswith("+") and len(image) < end:
            resize(image, end)


def resize(image: bytearray, size: int) -> None:
    if size < len(image):
        del image[size:]
    else:
        image.extend(bytes(size - len(image)))


def scramble(image: bytearray, pages: tuple[bytes, ...], outcome: str) -> None:
    """Give a mapped file one of the contents that it may have."""
    what, _, detail = outcome.partition(":")
    if what == "":
        image[: len(pages[-1])] = pages[-1][: len(image)]
    elif what == "page":
        page = pages[int(detail)]
        image[: len(page)] = page[: len(image)]
    elif what == "zeros":
        image[:] = bytes(len(image))
    elif what == "random":
        image[:] = random.Random(detail).randbytes(len(image))
    elif what == "mixed":
        chance = random.Random(detail)
        for begin in range(0, len(image), SECTOR):
            piece = chance.choice(pages)[begin : begin + SECTOR]
            image[begin : begin + len(piece)] = piece[: len(image) - begin]


# --- which disks ------------------------------------------------------------------------------------------------------


def random_tear(operation: DataOperation, chance: random.Random) -> str:
    """A part of a write: by sectors or pages, a beginning, an end or any of them; or only its size."""
    assert operation.data is not None
    style = chance.random()
    if style < 0.2:
        return "size"
    if style < 0.25:
        return f"garbage:{chance.randrange(1 << 30)}"
    unit = chance.choice([SECTOR, PAGE])
    end = operation.position + len(operation.data)
    count = (end - 1) // unit - operation.position // unit + 1
    if style < 0.55:
        kept = chance.randint(0, count)
        digits = "1" * kept + "0" * (count - kept)
    elif style < 0.7:
        kept = chance.randint(0, count)
        digits = "0" * (count - kept) + "1" * kept
    else:
        digits = "".join(chance.choice("01") for _ in range(count))
    return f"{unit}:{digits}{chance.choice(['', '+'])}"


def may_tear(operation: Operation) -> bool:
    return isinstance(operation, DataOperation) and bool(operation.data)


def moves_segment(operation: Operation) -> bool:
    """Whether a segment loses a name or gets another one."""
    return isinstance(operation, NameOperation) and any(
        file is None and ".log" in name for (_, name), file in operation.changes
    )


def random_losses(moment: Moment, chance: random.Random) -> Losses:
    """One way to lose power at a moment."""
    losses: Losses = {}
    pending = moment.pending
    style = chance.randrange(9)
    if style == 0:
        # as a journal that writes everything in order would leave it, the last write torn
        kept = chance.randint(0, len(pending))
        losses = {operation.number: "lost" for operation in pending[kept:]}
        if kept and isinstance(last := pending[kept - 1], DataOperation) and last.data:
            losses[last.number] = random_tear(last, chance)
    elif style == 1 and pending:
        losses = {chance.choice(pending).number: "lost"}
    elif style == 2 and pending:
        kept = chance.randrange(len(pending))
        losses = {operation.number: "lost" for index, operation in enumerate(pending) if index != kept}
    elif style == 3:
        # all names, and some of the contents
        losses = {
            operation.number: random_tear(operation, chance) if operation.data and chance.random() < 0.7 else "lost"
            for operation in pending
            if isinstance(operation, DataOperation) and chance.random() < 0.6
        }
    elif style == 4:
        # all contents, and some of the names
        losses = {
            operation.number: "lost"
            for operation in pending
            if isinstance(operation, NameOperation) and chance.random() < 0.5
        }
    elif style == 5:
        # whole files as they were at the last sync
        files = {operation.file for operation in pending if isinstance(operation, DataOperation)}
        forgotten = {file for file in files if chance.random() < 0.5}
        losses = {
            operation.number: "lost"
            for operation in pending
            if isinstance(operation, DataOperation) and operation.file in forgotten
        }
    else:
        share = chance.choice([0.1, 0.5, 0.9])
        torn = chance.choice([0.0, 0.3, 1.0])
        for operation in pending:
            if chance.random() < share:
                tears = isinstance(operation, DataOperation) and operation.data and chance.random() < torn
                losses[operation.number] = random_tear(operation, chance) if tears else "lost"  # type: ignore[arg-type]
    for file, pages in moment.pages.items():
        seed = chance.randrange(1 << 30)
        options = ["", "absent", "zeros", f"page:{seed % len(pages)}"]
        if len(pages[-1]) <= MOST_SCRAMBLED:
            options += [f"random:{seed}", f"mixed:{seed}"]
        losses[-1 - file] = chance.choice(options)
    return {number: outcome for number, outcome in losses.items() if outcome}


def all_losses(moment: Moment) -> Iterator[Losses]:
    """Every combination of whole operations that may be lost."""
    numbers = [operation.number for operation in moment.pending]
    for mask in range(1 << len(numbers)):
        yield {number: "lost" for index, number in enumerate(numbers) if mask >> index & 1}


def choose_disks(
    replayer: Replayer, count: int, chance: random.Random, at_least: int = 0
) -> Iterator[tuple[int, Losses, Disk]]:
    """Up to ``count`` different disks: (moment, losses, disk).

    First, for two fifths of them, moments in random order with every combination of lost operations where there are
    few; then random moments with random losses. Moments before ``at_least`` are left out.
    """
    moments = [
        moment
        for moment in replayer.moments[at_least:]
        # nothing happens to the disk, or to what was promised, when a sync begins
        if moment.at == 0 or replayer.entries[moment.at - 1].kind not in (Kind.SYNC_BEGIN, Kind.PAGE)
    ]
    seen: set[tuple[int, int]] = set()

    def is_new(at: int, disk: Disk) -> bool:
        # what was promised rises with marks only: the same disk between two of them is the same case
        key = (hash(disk), marks_before[at])
        if key in seen:
            return False
        seen.add(key)
        return True

    marks_before = [0]
    for entry in replayer.entries:
        marks_before.append(marks_before[-1] + (entry.kind == Kind.MARK))
    found = 0
    few = [moment for moment in moments if len(moment.pending) <= MOST_ENUMERATED]
    chance.shuffle(few)
    for moment in few:
        if found >= count * 2 // 5:
            break
        for losses in all_losses(moment):
            disk = replayer.disk(moment.at, losses)
            if is_new(moment.at, disk):
                found += 1
                yield moment.at, losses, disk
    # where names of segments change much depends on which of them are kept
    moving = [moment for moment in moments if any(moves_segment(operation) for operation in moment.pending)]
    fruitless = 0
    while found < count and fruitless < 200:
        moment = chance.choice(moving if moving and chance.random() < 0.3 else moments)
        losses = random_losses(moment, chance)
        disk = replayer.disk(moment.at, losses)
        if is_new(moment.at, disk):
            found += 1
            fruitless = 0
            yield moment.at, losses, disk
        else:
            fruitless += 1


# --- a disk as files --------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Place:
    """A folder that disks are put into, one after the other.

    A log believes its recovery point in the very folder that it was written in: within ``believed`` the folders have
    the inodes that they had when they were recorded.
    """

    root: Path
    inodes: dict[int, int] = field(default_factory=dict)  # of a folder: what it was recorded as

    def put(self, disk: Disk) -> None:
        """Make the folder hold exactly this disk."""
        root = str(self.root)
        clear(root, "", disk.folders)
        for path in disk.folders:
            with contextlib.suppress(FileExistsError):
                os.mkdir(f"{root}/{path}", 0o700)
        first: dict[int, str] = {}
        for name, file in disk.names.items():
            path = f"{root}/{name}"
            if file in first:
                os.link(first[file], path)
                continue
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            os.write(fd, disk.contents[file])
            os.close(fd)
            first[file] = path
        self.inodes.clear()
        for path, inode in disk.inodes.items():
            self.inodes[os.stat(f"{root}/{path}").st_ino] = inode

    @contextlib.contextmanager
    def believed(self) -> Iterator[None]:
        """Let fastlog see the folders in the place of the recorded ones."""
        with pretending(self.inodes):
            yield


@contextlib.contextmanager
def pretending(inodes: Mapping[int, int]) -> Iterator[None]:
    """Let fastlog see other inodes of folders."""
    real = oscalls.inode

    def pretended(path: str) -> int:
        found = int(real(path))
        return inodes.get(found, found)

    oscalls.inode = pretended
    try:
        yield
    finally:
        oscalls.inode = real


def clear(path: str, relative: str, kept: Mapping[str, int]) -> None:
    """Remove every file, and the folders that shall not stay."""
    with os.scandir(path) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                clear(entry.path, f"{relative}{entry.name}/", kept)
            else:
                os.unlink(entry.path)
    if relative and relative[:-1] not in kept:
        os.rmdir(path)
