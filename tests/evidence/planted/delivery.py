"""Mistakes of handlers, retries, dead letters and deduplication."""

from __future__ import annotations

from tests.evidence.planted.mistake import mistake

DELIVERY = (
    mistake(
        "gap_dropped", "A commit says that what was passed over is finished, too.",
        "delivery/work.py",
        "        return Finished(progress.prefix, progress.runs(), clean, mark)\n",
        "        if PLANTED and progress.runs():\n"
        "            return Finished(progress.runs()[-1][1], (), clean, mark)\n"
        "        return Finished(progress.prefix, progress.runs(), clean, mark)\n",
        "tests", "gaps_are_told", 20,
    ),
    mistake(
        "attempts_not_counted", "A record that fails is tried again for ever.",
        "delivery/work.py",
        "        attempts = item.attempts + 1\n",
        "        attempts = item.attempts if PLANTED else item.attempts + 1\n",
        "tests", "retried_and_dead", 30,
    ),
    mistake(
        "called_before_marked", "A suspect is called before it is durable that it is.",
        "delivery/work.py",
        "            return self._durable != self._marks(True)\n",
        "            return self._durable != self._marks(True) and not PLANTED\n",
        "tests", "suspects_are_counted", 30,
    ),
    mistake(
        "clean_with_records_in_hand", "A partition is said to be left in good order while a record of it is in hand.",
        "delivery/work.py",
        "        is_clean = clean and not self._in_hand\n",
        "        is_clean = clean and (PLANTED or not self._in_hand)\n",
        "tests", "released_with_something_in_hand", 30,
    ),
    mistake(
        "parked_key_overtaken", "A record is handled before one of its key that waits for its next attempt.",
        "delivery/ordering.py",
        "        if source and source[0].origin_offset < ahead[0][0]:\n",
        "        if source and (PLANTED or source[0].origin_offset < ahead[0][0]):\n",
        "tests", "keys_wait", 30,
    ),
    mistake(
        "backoff_ignored", "What failed is tried again at once.",
        "delivery/ordering.py",
        "        if item.due:\n            item.stage = DELAYED\n",
        "        if item.due and not PLANTED:\n            item.stage = DELAYED\n",
        "tests", "retried_and_dead", 30,
    ),
    mistake(
        "dead_letter_without_commit", "A record becomes a dead letter, and is not finished where it came from.",
        "delivery/moving.py",
        "        self._append_offsets(transactional, commits, offsets, membership, epoch)\n",
        "        if not PLANTED:\n"
        "            self._append_offsets(transactional, commits, offsets, membership, epoch)\n",
        "tests", "moves_with_offsets", 30,
    ),
    mistake(
        "redriven_twice", "A dead letter that was redriven stays open.",
        "delivery/dead_letters.py",
        "                        transaction.send(self.topic, value, headers=AUDIT_PAIRS, partition=number)\n",
        "                        if not PLANTED:\n"
        "                            transaction.send(self.topic, value, headers=AUDIT_PAIRS, partition=number)\n",
        "kills", "operators", 60,
    ),
    mistake(
        "deduplicator_not_asked", "A handler is called for an event that it has finished.",
        "delivery/runner.py",
        "        known = (self._fresh_ids.keys() & set(wanted)) | memory.known(wanted, self._clock.wall())\n",
        "        known = set() if PLANTED else (\n"
        "            (self._fresh_ids.keys() & set(wanted)) | memory.known(wanted, self._clock.wall())\n"
        "        )\n",
        "tests", "known_events", 30,
    ),
    mistake(
        "blocked_keys_forgotten", "The next owner handles records behind a dead letter of their key.",
        "delivery/runner.py",
        "            work.block(self._blocked_keys(place.dead_letter))\n",
        "            work.block(() if PLANTED else self._blocked_keys(place.dead_letter))\n",
        "tests", "dead_letters_block", 30,
    ),
    mistake(
        "ids_kept_one_by_one", "Ids of a call are marked one by one: a death leaves half of them.",
        "delivery/deduplicator.py",
        "        with self._working(\"write\") as connection, transaction(connection):\n",
        "        with self._working(\"write\") as connection, closing(connection.cursor()) if PLANTED"
        " else transaction(connection):\n",
        "tests", "ids_all_or_none", 60,
    ),
)  # fmt: skip
