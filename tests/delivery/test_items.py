"""What is kept of a failure."""

from __future__ import annotations

import traceback

import pytest

from fastlog.delivery.items import MESSAGE_CHARACTERS, TRACEBACK_CHARACTERS, Failure


class Odd(Exception):
    def __str__(self) -> str:
        raise RuntimeError("not even that")


def caught(error: BaseException, cause: BaseException | None = None) -> BaseException:
    def handler() -> None:
        if cause is None:
            raise error
        raise error from cause

    try:
        handler()
    except BaseException as found:
        return found
    raise AssertionError("it raises")


@pytest.mark.parametrize("error", [ValueError("no address"), KeyError(), ValueError("two\nlines"), OSError(28, "full")])
def test_the_traceback_is_as_python_prints_it(error: Exception) -> None:
    found = caught(error)
    told = Failure.of(found, 5)
    plain = [line for line in traceback.format_exception(found) if line]
    ours = [line for line in "".join(plain).splitlines() if line.strip(" ^~")]
    assert told.traceback.splitlines() == ours
    assert (told.exception, told.message, told.at) == (type(error).__name__, str(error), 5)


def test_causes_notes_and_groups_are_kept() -> None:
    chained = Failure.of(caught(ValueError("outer"), KeyError("inner")), 0).traceback
    assert "KeyError: 'inner'" in chained and "direct cause" in chained and chained.endswith("ValueError: outer\n")
    noted = caught(ValueError("it"))
    noted.add_note("a note")
    assert "a note" in Failure.of(noted, 0).traceback
    group = Failure.of(caught(ExceptionGroup("many", [KeyError("one of them")])), 0)
    assert "one of them" in group.traceback


def test_what_is_long_or_cannot_be_printed_is_kept_as_far_as_it_goes() -> None:
    long = Failure.of(caught(ValueError("x" * 10_000)), 0)
    assert len(long.message) == MESSAGE_CHARACTERS and len(long.traceback) <= TRACEBACK_CHARACTERS
    odd = Failure.of(caught(Odd()), 0)
    assert odd.exception == f"{__name__}.Odd" and odd.message == ""
    assert "in handler" in odd.traceback

    def deep(left: int) -> None:
        if left:
            deep(left - 1)
        raise RecursionError

    with pytest.raises(RecursionError) as caught_deep:
        deep(300)
    assert len(Failure.of(caught_deep.value, 0).traceback) <= TRACEBACK_CHARACTERS
