"""What is finished behind the committed offset: as metadata and back, and while it changes."""

from __future__ import annotations

import base64
import itertools
import logging
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastlog.delivery.finished import METADATA_CHARACTERS, Finished, Mark, Progress

MOST = 2**63 - 1
CLOSE = st.integers(0, 300)
lengths = st.lists(st.tuples(st.integers(1, 2**40), st.integers(1, 2**40)), max_size=30)


@st.composite
def finished(draw: st.DrawFn) -> Finished:
    prefix = position = draw(st.integers(0, 2**50))
    runs = []
    for gap, length in draw(lengths):
        runs.append((position + gap, position + gap + length))
        position += gap + length
    mark = draw(st.none() | st.builds(Mark, st.integers(prefix, 2**60), CLOSE, st.integers(0, 2**45), CLOSE))
    return Finished(prefix, tuple(runs), draw(st.booleans()), mark)


@given(finished())
def test_what_is_encoded_is_decoded(known: Finished) -> None:
    text = known.encode()
    assert len(text) <= METADATA_CHARACTERS and text.isascii()
    assert Finished.decode(known.prefix, text) == known


def test_no_gaps_and_clean_is_no_text() -> None:
    assert Finished(7).encode() == "" and Finished.decode(7, "") == Finished(7)
    assert Finished.decode(7, Finished(7, clean=False).encode()) == Finished(7, clean=False)


@given(st.integers(0, 2**40), st.integers(1, 2**34), st.integers(300, 5000))
def test_what_does_not_fit_is_left_out_from_the_end(prefix: int, gap: int, count: int) -> None:
    runs = tuple((prefix + (gap + 1) * n - 1, prefix + (gap + 1) * n) for n in range(1, count))
    mark = Mark(prefix, 2**31, 2**50, 2**50)
    text = Finished(prefix, runs, False, mark).encode()
    assert len(text) <= METADATA_CHARACTERS
    read = Finished.decode(prefix, text)
    assert read.mark == mark and not read.clean
    assert read.runs == runs[: len(read.runs)]
    if len(read.runs) < len(runs):
        assert len(text) > METADATA_CHARACTERS - 40


@given(st.integers(0, MOST), st.text(max_size=50) | st.from_regex(r"fl1:[A-Za-z0-9+/]*={0,2}", fullmatch=True))
def test_metadata_of_others_says_nothing(offset: int, text: str) -> None:
    read = Finished.decode(offset, text)
    assert read.prefix == offset
    # what can be read is what would have been written
    assert read == Finished(offset) or read.encode() == text


@given(st.integers(0, MOST), st.binary(max_size=60))
def test_hostile_payloads(offset: int, payload: bytes) -> None:
    text = "fl1:" + base64.b64encode(payload).decode()
    read = Finished.decode(offset, text)
    position = offset
    for start, stop in read.runs:
        assert position < start < stop <= MOST
        position = stop
    assert read.mark is None or read.mark.offset <= MOST
    assert read == Finished(offset) or read.encode() == text


@given(finished(), st.data())
def test_a_damaged_text_is_never_an_error(known: Finished, data: st.DataObject) -> None:
    text = known.encode()
    at = data.draw(st.integers(0, len(text)))
    cut = text[:at] + data.draw(st.text(max_size=3)) + text[data.draw(st.integers(at, len(text))) :]
    assert Finished.decode(known.prefix, cut).prefix == known.prefix


def test_what_cannot_be_read_is_logged_without_its_content(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "fastlog.delivery"):
        assert Finished.decode(12, "secret of another tool") == Finished(12)
    assert "committed offset 12" in caplog.text and "secret" not in caplog.text


@given(st.integers(0, 20), st.lists(st.tuples(CLOSE, st.integers(1, 5)), max_size=80))
def test_progress_is_a_set_of_offsets(prefix: int, spans: list[tuple[int, int]]) -> None:
    progress, model = Progress(Finished(prefix)), set(range(prefix))
    for start, length in spans:
        progress.finish(start, start + length)
        model |= set(range(start, start + length))
        assert progress.prefix == next(offset for offset in range(400) if offset not in model)
        assert {offset for offset in range(400) if offset in progress} == model
        runs = progress.runs()
        assert all(stop < start for (_, stop), (start, _) in itertools.pairwise(runs))
        assert progress.size == Progress(Finished(progress.prefix, runs)).size
        assert len(Finished(progress.prefix, runs, clean=False).encode()) == 4 + (progress.size + 1 + 2) // 3 * 4


@given(finished(), st.lists(st.integers(1, 3), min_size=1, max_size=50), st.randoms())
def test_what_is_no_record_is_finished_with_the_record_before_it(
    known: Finished, steps: list[int], rng: Random
) -> None:
    progress, offset, waiting = Progress(known), known.prefix - 1, []
    for step in steps:
        offset += step
        is_finished = any(start <= offset < stop for start, stop in known.runs)
        assert progress.reach(offset) is not is_finished
        if not is_finished:
            waiting.append(offset)
        assert progress.size <= Progress(known).size + 2 * 9
    assert not progress.reach(offset)  # read twice
    progress.pass_over(offset + 4)
    assert progress.position == offset + 4
    rng.shuffle(waiting)
    while waiting:
        before = progress.copy()
        progress.finish_record(record := waiting.pop())
        assert record not in before and record in progress
        assert all(other not in progress for other in waiting)
        assert progress.prefix == min(waiting) if waiting else progress.prefix >= offset + 4


def test_what_was_finished_before_is_no_news_when_the_gap_before_it_closes() -> None:
    progress = Progress(Finished(3, ((4, 9),)))
    assert progress.reach(3)
    progress.finish(3, 4)
    assert not progress.reach(5) and not progress.reach(8) and progress.reach(9)
