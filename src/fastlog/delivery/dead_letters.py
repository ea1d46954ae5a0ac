"""Dead letters: looked at, sent back to where they are tried again, or discarded; each of them once.

Nothing is ever deleted from a dead-letter topic. A letter that was handled is named by an audit record in its own
partition, which is committed in one transaction with what was done: so a redrive that dies half-way has done a part of
it, and the next one goes on behind that. Two operators fence each other by the transactional id of the topic: who was
there first gets a ProducerFencedError, and what that one had not committed is not done.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Final, Literal, TypeAlias, TypedDict, Unpack

import numpy

from fastlog._native import oscalls
from fastlog.clients.producer import Producer
from fastlog.config import parse_duration_ms
from fastlog.errors import ConfigError, InvalidRecordError, NotSupportedError, ProducerFencedError, UnknownTopicError
from fastlog.records import TopicPartition, is_offset
from fastlog.store.places import aware
from fastlog.transactions import Coordinator

from .audits import AUDIT_PAIRS, Audit, Handled, audit_value, audits_in
from .headers import DEAD_LETTER_PREFIX, DeadLetter, letter_of, redriven_headers
from .items import name_of
from .naming import DEAD_LETTER, RETRY, dead_letter_topics, owned_topic, require_topic

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fastlog._core import PartitionLog, RecordBatch
    from fastlog.clients.store import Store
    from fastlog.clients.transaction import Transaction
    from fastlog.records import Headers
    from fastlog.store.directory import Directory

__all__ = ["DeadLetterReport", "DeadLetterSurvey", "DeadLetters", "LetterFilters", "operator_id"]

logger = logging.getLogger("fastlog.delivery")

MOST_AT_ONCE: Final = 500
MOST_BYTES_AT_ONCE: Final = 16 * 1024 * 1024
# a batch of a store may be as large as this, and has to fit into the producer's buffer
BUFFER_MEMORY: Final = "256MiB"
READ_BYTES: Final = 4 * 1024 * 1024
NAP_MS: Final = 50
STATES: Final = ("open", "handled", "all")
TARGETS: Final = ("retry", "source")
HANDLED: Final = {"redrive": "redriven", "discard": "discarded"}
_ID: Final = re.compile(r".+-([0-9]{1,6})-[0-9]+", re.DOTALL)

Moment: TypeAlias = "datetime | timedelta | str | int"
Progress: TypeAlias = Callable[[int], object]
Letters: TypeAlias = "list[DeadLetter]"
Send: TypeAlias = Callable[["Transaction", int, Letters], object]


class LetterFilters(TypedDict, total=False):
    """Which dead letters; all conditions have to hold, one that is not given holds.

    Attributes:
        partition: a number, or several.
        offsets: of the dead-letter topic: a ``range``, or any numbers.
        ids: an id, or several: the origin's ``topic-partition-offset``.
        key: the record's key, as it is stored.
        exception: the class: its name, with or without the module, or the class itself.
        message: what the message contains.
        since, until: when it became a dead letter, ``until`` excluded: an aware datetime, milliseconds since the epoch,
            or a span before now such as ``"-1h"``.
    """

    partition: int | Iterable[int] | None
    offsets: range | Iterable[int] | None
    ids: str | Iterable[str] | None
    key: bytes | None
    exception: str | type[BaseException] | None
    message: str | None
    since: Moment | None
    until: Moment | None


@dataclass(frozen=True, slots=True)
class DeadLetterSurvey:
    """How many dead letters there are.

    Attributes:
        letters: how many.
        exceptions: how many of each class, the most frequent first.
        partitions: how many in each partition that has some.
        oldest, newest: when the first and the last of them were put there, ms since the epoch; None without any.
        ends: the end of each partition at that time: bounds for what is to act on just these.
    """

    letters: int
    exceptions: Mapping[str, int]
    partitions: Mapping[int, int]
    oldest: int | None
    newest: int | None
    ends: Mapping[int, int] = field(repr=False)


@dataclass(frozen=True, slots=True)
class DeadLetterReport:
    """What was done with dead letters.

    Attributes:
        action: ``"redrive"`` or ``"discard"``.
        topic: the dead-letter topic.
        target: the topic that they were sent to; None when they were discarded.
        letters: how many.
        transactions: in how many transactions, each of which is whole whatever happens.
    """

    action: str
    topic: str
    target: str | None
    letters: int
    transactions: int


def operator_id(topic: str) -> str:
    """The transactional id of whoever redrives or discards letters of a dead-letter topic."""
    return f"fastlog-dlq-{topic}"


class DeadLetters:
    """The dead letters of a topic and a group, from ``DeadLetters.open``. Any thread may look; one at a time acts.

    Attributes:
        topic: the dead-letter topic.
        source: the topic whose records they are.
        group: the group that could not handle them.
        by: who acts, as the audit says.
    """

    def __init__(self, directory: Directory, topic: str, source: str, group: str, by: str) -> None:
        self._directory = directory
        self.topic = topic
        self.source = source
        self.group = group
        self.by = by

    @staticmethod
    def open(store: Store, topic: str, group: str | None = None, *, by: str | None = None) -> DeadLetters:
        """The dead letters in a dead-letter topic; or, with a group, those that the group has of a topic.

        Nothing is opened that would have to be closed: it is valid for as long as the store is.

        Args:
            store: the store; to list and show it may be read-only.
            topic: the dead-letter topic, or the topic whose records the group handles.
            group: the group.
            by: the name of the operator for the audit; by default the number of the process.

        Raises UnknownTopicError when there is no such dead-letter topic; it names those that there are.
        """
        directory = store.directory
        told = f"process {oscalls.process_id()}" if by is None else by
        if group is not None:
            found = owned_topic(directory, topic, group, DEAD_LETTER)
            if found is None:
                directory.topic(topic)
                raise UnknownTopicError(
                    f"group {group!r} has no dead-letter topic for topic {topic!r}: {_known(directory)}", topic
                )
            return DeadLetters(directory, found.name, topic, group, told)
        owner = directory.topic(topic).owner
        if owner is None or owner.kind != DEAD_LETTER:
            raise UnknownTopicError(
                f"the topic {topic!r} is no dead-letter topic: name one, or the group too; {_known(directory)}", topic
            )
        return DeadLetters(directory, topic, owner.topic, owner.group, told)

    @staticmethod
    def topics(store: Store) -> Mapping[str, tuple[str, str]]:
        """Every dead-letter topic of a store, with its source topic and its group; sorted by name."""
        return {name: (owner.topic, owner.group) for name, owner in dead_letter_topics(store.directory).items()}

    # --- looking ------------------------------------------------------------------------------------------------------

    def list(
        self, *, state: Literal["open", "handled", "all"] = "open", **filters: Unpack[LetterFilters]
    ) -> Iterator[DeadLetter]:
        """The dead letters, partition after partition in the order in which they got there, up to the end as it is now.

        Args:
            state: ``"open"`` (default), ``"handled"``: redriven or discarded, or ``"all"``.
            filters: see ``LetterFilters``.

        Raises ConfigError for a filter that cannot be, InvalidRecordError when an audit record is unreadable.
        """
        if state not in STATES:
            raise ConfigError(f"state={state!r}: expected one of {', '.join(map(repr, STATES))}")
        return self._listed(self._selection(filters), state)

    def _listed(self, selection: Selection, state: str) -> Iterator[DeadLetter]:
        for number in selection.partitions:
            with self._log(number) as log:
                if log is not None:
                    end = log.readable_offset
                    yield from self._letters(log, number, selection, self._handled(log, end), end, state)

    def show(self, id: str) -> DeadLetter:
        """The dead letter with this id: the open one, or else the one that was handled last.

        Raises ConfigError when there is none.
        """
        best = None
        for letter in self.list(state="all", ids=id):
            if best is None or best.state != "open" or letter.state == "open":
                best = letter
        if best is None:
            raise ConfigError(
                f"there is no dead letter {id!r} in {self.topic!r}: an id is the origin's topic-partition-offset, such "
                f"as {self.source}-0-42; list those that are there"
            )
        return best

    def survey(self, **filters: Unpack[LetterFilters]) -> DeadLetterSurvey:
        """How many open dead letters there are, and of what kind: what a redrive or a discard with these filters would
        take. ``before=survey.ends`` lets them take no more."""
        selection = self._selection(filters)
        exceptions: Counter[str] = Counter()
        partitions: Counter[int] = Counter()
        ends: dict[int, int] = {}
        oldest: int | None = None
        newest: int | None = None
        for number in selection.partitions:
            with self._log(number) as log:
                if log is None:
                    ends[number] = 0
                    continue
                ends[number] = end = log.readable_offset
                for letter in self._letters(log, number, selection, self._handled(log, end), end):
                    exceptions[letter.exception] += 1
                    partitions[number] += 1
                    if letter.timestamp is not None:
                        oldest = letter.timestamp if oldest is None else min(oldest, letter.timestamp)
                        newest = letter.timestamp if newest is None else max(newest, letter.timestamp)
        return DeadLetterSurvey(
            partitions.total(), dict(exceptions.most_common()), dict(partitions), oldest, newest, ends
        )

    def count(self) -> int:
        """How many open dead letters there are, counted without looking into them."""
        total = 0
        for number in self._selection({}).partitions:
            with self._log(number) as log:
                if log is None:
                    continue
                end = log.readable_offset
                handled = self._handled(log, end)
                for batch in log.batches(None, end, READ_BYTES):
                    total += len(batch) - int((handled.mask(batch.offsets) | handled.audit_mask(batch.offsets)).sum())
        return total

    def audits(self) -> Iterator[Audit]:
        """What was done with dead letters so far, partition after partition, the oldest first."""
        for number in self._selection({}).partitions:
            with self._log(number) as log:
                if log is not None:
                    yield from self._handled(log, log.readable_offset).audits

    def _selection(self, filters: LetterFilters) -> Selection:
        return Selection(self._directory.topic(self.topic).partitions, **filters)

    @contextmanager
    def _log(self, number: int) -> Iterator[PartitionLog | None]:
        """A partition; None for one that was never written to."""
        if not self._directory.is_created(self.topic, number):
            yield None
            return
        with self._directory.lease(self.topic, number) as lease:
            if not self._directory.read_only and lease.log.last_stable_offset < lease.log.end_offset:
                # what a dead one left open would hide what comes behind it
                Coordinator.of(self._directory).attach()
            yield lease.log

    def _handled(self, log: PartitionLog, end: int) -> Handled:
        return Handled([audit for batch in log.batches(None, end, READ_BYTES) for audit in audits_in(batch)])

    def _letters(
        self, log: PartitionLog, number: int, selection: Selection, handled: Handled, end: int, state: str = "open"
    ) -> Iterator[DeadLetter]:
        """The letters of a partition below ``end`` that are selected."""
        strange = 0
        for batch in log.batches(selection.start_of(log, end), end, READ_BYTES):
            offsets = batch.offsets
            is_handled = handled.mask(offsets)
            chosen = selection.mask(batch) & ~handled.audit_mask(offsets)
            if state != "all":
                chosen &= is_handled if state == "handled" else ~is_handled
            headers = batch.headers
            for index in numpy.flatnonzero(chosen).tolist():
                if selection.looks_into_headers and not selection.may_fit(headers[index]):
                    continue
                try:
                    letter = self._own_letter(batch, index)
                except InvalidRecordError as error:
                    strange += 1
                    logger.debug("passed over: %s", error)
                    continue
                if not selection.fits(letter):
                    continue
                if is_handled[index]:
                    action = handled.action_at(letter.offset) or ""
                    letter = replace(letter, state=HANDLED.get(action, action))
                yield letter
        if strange:
            logger.warning("%s-%d has %d records that are no dead letters of its group", self.topic, number, strange)

    def _own_letter(self, batch: RecordBatch, index: int) -> DeadLetter:
        letter = letter_of(batch[index])
        if letter.origin_topic != self.source or letter.group != self.group:
            raise InvalidRecordError(
                f"{letter.topic}-{letter.partition}, offset {letter.offset}: a dead letter of topic "
                f"{letter.origin_topic!r} and group {letter.group!r}, expected {self.source!r} and {self.group!r}"
            )
        return letter

    # --- acting -------------------------------------------------------------------------------------------------------

    def redrive(
        self,
        *,
        to: Literal["retry", "source"] = "retry",
        rate: float | None = None,
        limit: int | None = None,
        before: Mapping[int, int] | None = None,
        progress: Progress | None = None,
        **filters: Unpack[LetterFilters],
    ) -> DeadLetterReport:
        """Let open dead letters be handled again. Each is sent once, however often this is called or interrupted.

        Letters that come while it runs are left for the next call, also those that fail again.

        Args:
            to: ``"retry"`` (default), the group's retry topic: only this group sees them again, as new: with all its
                attempts. ``"source"``: the topic where they came from, with their own timestamps: every group does.
            rate: how many a second, at most.
            limit: how many, at most.
            before: only letters below these offsets, by partition: ``survey().ends``.
            progress: called with how many are done so far.
            filters: see ``LetterFilters``.

        Raises:
            ProducerFencedError: another operator has begun; what was done before is done.
            StorageFullError and others, as a transaction raises them: what was done before is done, call again.
            ConfigError: an argument cannot be.
            UnknownTopicError: the topic that they came from is gone.
            NotSupportedError: the store is read-only.
        """
        if to not in TARGETS:
            raise ConfigError(f"to={to!r}: expected one of {', '.join(map(repr, TARGETS))}")
        self._require_writable()
        selection = self._selection(filters)
        if to == "source":
            return self._act("redrive", self.source, self._send_to_source, selection, rate, limit, before, progress)
        present = owned_topic(self._directory, self.source, self.group, RETRY)
        target = require_topic(
            self._directory, self.source, self.group, RETRY, None if present is None else present.name
        ).name
        return self._act("redrive", target, sender_to_retry(target), selection, rate, limit, before, progress)

    def discard(
        self,
        *,
        rate: float | None = None,
        limit: int | None = None,
        before: Mapping[int, int] | None = None,
        progress: Progress | None = None,
        **filters: Unpack[LetterFilters],
    ) -> DeadLetterReport:
        """Give open dead letters up: they are not listed as open any more, and never redriven.

        Their records stay in the dead-letter topic until its retention takes them.

        Arguments and errors as of ``redrive``. Without filters it is all of them.
        """
        self._require_writable()
        return self._act("discard", None, None, self._selection(filters), rate, limit, before, progress)

    def _require_writable(self) -> None:
        if self._directory.read_only:
            raise NotSupportedError("the store was opened with read_only=True: open it without to handle dead letters")

    def _send_to_source(self, transaction: Transaction, number: int, letters: Letters) -> None:
        count = self._directory.topic(self.source).partitions
        if number >= count:
            raise ConfigError(
                f"the topic {self.source!r} has {count} partitions by now, and the letters came from number {number}: "
                f"send them by hand, or redrive them to the retry topic"
            )
        transaction.send_many(
            self.source,
            [letter.value for letter in letters],
            keys=[letter.key for letter in letters],
            timestamps=[letter.origin_timestamp for letter in letters],
            headers=[letter.headers for letter in letters],
            partition=number,
        )

    def _act(
        self,
        action: str,
        target: str | None,
        send: Send | None,
        selection: Selection,
        rate: float | None,
        limit: int | None,
        before: Mapping[int, int] | None,
        progress: Progress | None,
    ) -> DeadLetterReport:
        pace = Pace(rate, limit)
        done = transactions = 0
        if self._is_idle(selection):
            return DeadLetterReport(action, self.topic, target, 0, 0)
        with self._operator() as producer:
            try:
                for number, letters in self._portions(selection, before or {}, pace):
                    with producer.transaction() as transaction:
                        if send is not None:
                            send(transaction, number, letters)
                        offsets = [letter.offset for letter in letters]
                        value = audit_value(action, target, offsets, oscalls.wall_clock(), self.by)
                        transaction.send(self.topic, value, headers=AUDIT_PAIRS, partition=number)
                    done += len(letters)
                    transactions += 1
                    if progress is not None:
                        progress(done)
            except ProducerFencedError as error:
                raise ProducerFencedError(
                    f"another operator has begun on {self.topic!r}: {done} dead letters were handled before that, look "
                    f"at what is left when it is done ({error})",
                    error.producer_id,
                    error.producer_epoch,
                    error.current_epoch,
                ) from error
        return DeadLetterReport(action, self.topic, target, done, transactions)

    def _is_idle(self, selection: Selection) -> bool:
        """Whether there is nothing to do, so that nobody has to be fenced for it."""
        if next(self._listed(selection, "open"), None) is not None:
            return False
        for number in selection.partitions:
            with self._log(number) as log:
                if log is not None and log.last_stable_offset < log.end_offset:
                    return False  # what lies behind an open transaction cannot be seen yet
        return True

    def _operator(self) -> Producer:
        """Whoever acted before is fenced, and what he had open or decided is at its end, when this returns."""
        return Producer(self._directory, transactional_id=operator_id(self.topic), buffer_memory=BUFFER_MEMORY)

    def _portions(self, selection: Selection, before: Mapping[int, int], pace: Pace) -> Iterator[tuple[int, Letters]]:
        """Letters for one transaction each, with their partition. What is audited by now is seen: the operator is open.

        The ends are taken before anything is sent, else those that fail again at once would be sent for ever.
        """
        ends = {}
        for number in selection.partitions:
            with self._log(number) as log:
                if log is not None:
                    ends[number] = min(log.end_offset, before.get(number, log.end_offset))
        for number, end in ends.items():
            with self._log(number) as log:
                if log is None:
                    continue
                # audits of operators before may lie behind what a move has open: then they are not readable yet
                Coordinator.of(self._directory).wait_until_stable(
                    TopicPartition(self.topic, number), log, now := log.end_offset
                )
                letters = self._letters(log, number, selection, self._handled(log, now), end)
                for portion in pace.portions(letters):
                    yield number, portion

    def __repr__(self) -> str:
        return f"<DeadLetters {self.topic!r} of topic {self.source!r} and group {self.group!r}>"


def sender_to_retry(target: str) -> Send:
    """What sends letters to a retry topic, as new heads that are due at once."""

    def send(transaction: Transaction, number: int, letters: Letters) -> None:
        transaction.send_many(
            target,
            [letter.value for letter in letters],
            keys=[letter.key for letter in letters],
            headers=[redriven_headers(letter) for letter in letters],
            partition=number,
        )

    return send


def _known(directory: Directory) -> str:
    names = ", ".join(map(repr, dead_letter_topics(directory))) or "none"
    return f"dead-letter topics of this store: {names}"


# --- how many at once -------------------------------------------------------------------------------------------------


class Pace:
    """Portions of letters: as many as one transaction takes, as many as there shall be in all, and no faster."""

    def __init__(self, rate: float | None, limit: int | None) -> None:
        """Raises ConfigError."""
        if rate is not None and (isinstance(rate, bool) or not isinstance(rate, (int, float)) or not rate > 0):
            raise ConfigError(f"rate={rate!r}: expected a number of dead letters per second, above 0, or None")
        if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 1):
            raise ConfigError(f"limit={limit!r}: expected a number of dead letters, 1 or more, or None")
        self._rate = rate
        self._left = limit
        # a few transactions a second are smooth enough
        self._most = MOST_AT_ONCE if rate is None else max(1, min(MOST_AT_ONCE, int(rate / 4)))
        self._began: int | None = None
        self._done = 0

    def portions(self, letters: Iterator[DeadLetter]) -> Iterator[Letters]:
        """Cut ``letters`` up; each portion comes when its time has come."""
        portion: Letters = []
        size = 0
        while self._left is None or len(portion) < self._left:
            letter = next(letters, None)
            if letter is None:
                break
            portion.append(letter)
            size += len(letter.key or b"") + len(letter.value or b"")
            if len(portion) >= self._most or size >= MOST_BYTES_AT_ONCE:
                yield self._due(portion)
                portion, size = [], 0
        if portion:
            yield self._due(portion)

    def _due(self, portion: Letters) -> Letters:
        if self._left is not None:
            self._left -= len(portion)
        if self._rate is not None:
            if self._began is None:
                self._began = oscalls.steady_clock()
            due = self._began + int(1000 * self._done / self._rate)
            while (missing := due - oscalls.steady_clock()) > 0:
                oscalls.nap(min(missing, NAP_MS))
            self._done += len(portion)
        return portion


# --- which ones -------------------------------------------------------------------------------------------------------


class Selection:
    """Filters, checked; what columns can tell is told by columns.

    Attributes:
        partitions: numbers, ascending.
        looks_into_headers: whether headers have to tell.
    """

    def __init__(
        self,
        count: int,
        *,
        partition: int | Iterable[int] | None = None,
        offsets: range | Iterable[int] | None = None,
        ids: str | Iterable[str] | None = None,
        key: bytes | None = None,
        exception: str | type[BaseException] | None = None,
        message: str | None = None,
        since: Moment | None = None,
        until: Moment | None = None,
    ) -> None:
        """``count``: how many partitions there are. Raises ConfigError, UnknownTopicError."""
        self._ids = None if ids is None else _texts(ids, "ids")
        self.partitions = _partitions(partition, count)
        if self._ids is not None:
            # a letter lies in the partition that its record came from
            named = {int(match[1]) for match in map(_ID.fullmatch, self._ids) if match}
            self.partitions = [number for number in self.partitions if number in named]
        self._span = offsets if isinstance(offsets, range) and offsets.step == 1 else None
        self._offsets = None if offsets is None or self._span is not None else _numbers(offsets)
        if key is not None and not isinstance(key, (bytes, bytearray, memoryview)):
            raise ConfigError(f"key={key!r}: expected bytes, as the record has it")
        self._key = None if key is None else bytes(key)
        self._exception = exception if exception is None or isinstance(exception, str) else class_name(exception)
        if message is not None and not isinstance(message, str):
            raise ConfigError(f"message={message!r}: expected text")
        self._message = message
        self.looks_into_headers = any(one is not None for one in (self._ids, self._exception, self._message))
        self._id_bytes = frozenset(_bytes(one) for one in self._ids or ())
        self._exception_bytes, self._message_bytes = _bytes(self._exception or ""), _bytes(message or "")
        self._since = None if since is None else _milliseconds(since, "since")
        self._until = None if until is None else _milliseconds(until, "until")

    def start_of(self, log: PartitionLog, end: int) -> int:
        """Where to begin reading."""
        start = log.start_offset
        if self._span is not None:
            start = max(start, self._span.start)
        if self._since is not None:
            found = log.offset_for_time(max(self._since, 0))
            start = max(start, end if found is None else found)
        return min(start, max(end, log.start_offset))

    def mask(self, batch: RecordBatch) -> NDArray[numpy.bool_]:
        """Which records may be wanted, as far as columns tell."""
        offsets, timestamps = batch.offsets, batch.timestamps
        chosen = numpy.ones(len(batch), dtype=numpy.bool_)
        if self._span is not None:
            chosen &= (offsets >= self._span.start) & (offsets < self._span.stop)
        if self._offsets is not None:
            chosen &= numpy.isin(offsets, self._offsets)
        if self._since is not None:
            chosen &= timestamps >= self._since
        if self._until is not None:
            chosen &= timestamps < self._until
        if self._key is not None:
            chosen &= batch.keys.sizes == len(self._key)
            keys = batch.keys
            for index in numpy.flatnonzero(chosen).tolist():
                chosen[index] = bytes(keys[index] or b"") == self._key
        return chosen

    def may_fit(self, headers: Headers) -> bool:
        """Whether these headers may be those of a wanted letter; ``fits`` says for sure. Spares making the letter."""
        # of several the last one counts: ours stand behind those of the origin
        told = dict(headers)
        name = told.get(DEAD_LETTER_PREFIX + "id")
        if self._ids is not None and name is not None and name not in self._id_bytes:
            return False
        exception, message = told.get(DEAD_LETTER_PREFIX + "exception"), told.get(DEAD_LETTER_PREFIX + "message")
        if exception is not None and not exception.endswith(self._exception_bytes):
            return False
        return message is None or self._message_bytes in message

    def fits(self, letter: DeadLetter) -> bool:
        """Whether what the headers say is wanted."""
        if self._ids is not None and letter.id not in self._ids:
            return False
        if self._message is not None and self._message not in letter.message:
            return False
        wanted, found = self._exception, letter.exception
        return wanted is None or found == wanted or found.rpartition(".")[2] == wanted


def class_name(exception: type[BaseException]) -> str:
    """The name of an exception's class as dead letters have it."""
    if not isinstance(exception, type) or not issubclass(exception, BaseException):
        raise ConfigError(f"exception={exception!r}: expected the class of an exception, or its name")
    return name_of(exception)


def _partitions(given: int | Iterable[int] | None, count: int) -> Sequence[int]:
    if given is None:
        return range(count)
    numbers = [given] if isinstance(given, int) else list(given)
    for number in numbers:
        if isinstance(number, bool) or not isinstance(number, int):
            raise ConfigError(f"partition={given!r}: expected a number, or several")
        if not 0 <= number < count:
            raise UnknownTopicError(f"the dead-letter topic has no partition {number}: it has {count}, numbered from 0")
    return sorted(set(numbers))


def _numbers(given: Iterable[int]) -> NDArray[numpy.int64]:
    numbers = list(given)
    if not all(map(is_offset, numbers)):
        raise ConfigError(f"offsets={numbers!r:.80}: expected a range, or numbers from 0")
    return numpy.array(numbers, dtype=numpy.int64)


def _bytes(text: str) -> bytes:
    """Text as it stands in headers."""
    return text.encode("utf-8", "backslashreplace")


def _texts(given: str | Iterable[str], name: str) -> frozenset[str]:
    texts = [given] if isinstance(given, str) else list(given)
    if not all(isinstance(one, str) for one in texts):
        raise ConfigError(f"{name}={texts!r:.80}: expected text, or several")
    return frozenset(texts)


def _milliseconds(moment: Moment, name: str) -> int:
    """A moment, ms since the epoch. Raises ConfigError."""
    if isinstance(moment, datetime):
        return int(aware(moment, name).timestamp() * 1000)
    if isinstance(moment, timedelta):
        return oscalls.wall_clock() + int(moment.total_seconds() * 1000)
    if isinstance(moment, str) and moment.startswith("-"):
        return oscalls.wall_clock() - parse_duration_ms(moment[1:], name)
    if isinstance(moment, int) and not isinstance(moment, bool):
        return moment
    raise ConfigError(
        f'{name}={moment!r}: expected an aware datetime, a span before now such as "-1h", or ms since the epoch'
    )
