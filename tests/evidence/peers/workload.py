"""The records of every peer, and the judge: what was acknowledged is there, and nothing that was never appended."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Self

VALUE_BYTES = 100
BATCH = 100  # records of a large append; the small ones have one
NUMBER_BYTES = 8
SURPLUS = 1000  # records beyond all that were appended after which a judge has seen enough


class StuckError(Exception):
    """A store that neither answers nor fails."""


def value_of(seed: int, number: int) -> bytes:
    """The value of one record: its number, and bytes that only this number has."""
    name = number.to_bytes(NUMBER_BYTES, "big")
    return name + hashlib.shake_128(b"%d %d" % (seed, number)).digest(VALUE_BYTES - NUMBER_BYTES)


def values(seed: int, first: int, count: int) -> list[bytes]:
    """The values of ``count`` records from the number ``first`` on."""
    return [value_of(seed, number) for number in range(first, first + count)]


def sizes(chance: random.Random) -> Iterator[int]:
    """How many records each append has: as many large ones as small ones."""
    while True:
        yield chance.choice((1, BATCH))


@dataclass
class Told:
    """What a writer was told of its appends: ranges of numbers, in order."""

    acked: list[tuple[int, int]] = field(default_factory=list)  # first, end
    end: int = 0  # of all that was tried

    def hear(self, line: str) -> None:
        """A line of the server: ``try FIRST COUNT`` or ``ack FIRST COUNT``."""
        word, *numbers = line.split()
        if word not in ("try", "ack"):
            return
        first, end = int(numbers[0]), int(numbers[0]) + int(numbers[1])
        self.end = max(self.end, end)
        if word == "ack":
            if self.acked and self.acked[-1][1] == first:
                first = self.acked.pop()[0]
            self.acked.append((first, end))

    @classmethod
    def of(cls, lines: Iterable[str]) -> Self:
        """What these lines tell."""
        told = cls()
        for line in lines:
            told.hear(line)
        return told

    def as_json(self) -> dict[str, Any]:
        return {"acked": self.acked, "end": self.end}

    def count(self) -> int:
        """Records that were acknowledged."""
        return sum(end - first for first, end in self.acked)

    def numbers(self) -> Iterator[int]:
        """The numbers that were acknowledged, in order."""
        for first, end in self.acked:
            yield from range(first, end)


@dataclass
class Verdict:
    """What came of reading a store from front to back.

    ``lost`` were acknowledged and did not come, ``holes`` are those of them before something that did. ``wrong`` came,
    and were never appended, or with other bytes, or again, or in another order, or at another position.
    """

    found: int = 0
    lost: int = 0
    holes: int = 0
    wrong: int = 0
    error: str | None = None
    is_stuck: bool = False
    example: str = ""  # of what is lost or wrong

    def outcome(self) -> str:
        """One word for all of it; an error outweighs what came before it, for then nobody was left in the dark."""
        if self.error is not None:
            return "hung" if self.is_stuck else "refused"
        if self.wrong:
            return "wrong"
        return "missing" if self.lost else "same"

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def judge(
    records: Iterable[tuple[int, bytes]], seed: int, told: Told, positions: Sequence[int] | None = None
) -> Verdict:
    """Compare what a store holds with what its writers were told.

    Records that were tried and never acknowledged may be there, each of them, or not. ``positions`` are those of the
    records 0, 1, 2 …, where they are known; else positions only have to rise. An error ends the reading: what came
    before it counts as read, the rest is not lost in silence.
    """
    verdict = Verdict()
    seen: set[int] = set()
    last_number, last_position = -1, -1
    try:
        for position, value in records:
            number = number_in(seed, value, told.end)
            is_right = number is not None and number > last_number and position > last_position
            if is_right and positions is not None and number is not None:
                is_right = position == positions[number]
            verdict.found += 1
            if is_right and number is not None:
                seen.add(number)
                last_number, last_position = number, position
            else:
                verdict.wrong += 1
                what = "a value that nobody appended" if number is None else f"record {number}, again or out of place"
                verdict.example = verdict.example or f"at position {position}: {what}"
            if verdict.found > told.end + SURPLUS:
                break
    except StuckError as problem:
        verdict.error, verdict.is_stuck = describe(problem), True
    except Exception as problem:  # noqa: BLE001 - whatever a peer raises, it has said so
        verdict.error = describe(problem)
    missing = [number for number in told.numbers() if number not in seen]
    verdict.holes = sum(number < last_number for number in missing)
    verdict.lost = len(missing) if verdict.error is None else verdict.holes
    if missing:
        verdict.example = verdict.example or f"{len(missing)} records, the first is {missing[0]} of {told.end}"
    return verdict


def number_in(seed: int, value: object, end: int) -> int | None:
    """The number of the record whose value this is, None when no record below ``end`` has it."""
    if not isinstance(value, bytes) or len(value) != VALUE_BYTES:
        return None
    number = int.from_bytes(value[:NUMBER_BYTES], "big")
    return number if number < end and value == value_of(seed, number) else None


def describe(problem: BaseException) -> str:
    """An error in one line: its class, and the beginning of what it says."""
    kind = type(problem)
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    text = " ".join(str(problem).split())
    return f"{name}: {text[:200]}"
