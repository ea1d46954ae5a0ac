"""Tests of the suite, one at a time, in a process of their own: for what no engine can show.

A scenario is a test, by a short name. A turn runs it once: its seed is the one that the test draws from.
"""

from __future__ import annotations

import contextlib
import functools
import re
import signal
import subprocess
import sys
from collections.abc import Iterator

from tests.evidence.run import ROOT, NotHere, Scenario, Turn, environment

TIMEOUT = 60  # seconds for a test
LAST_WORDS = 1500  # characters of what a failing test said

TESTS = {
    # one partition
    "wait_of_a_durable_reader": "tests/test_sharing.py::test_wait_of_a_durable_reader",
    "snapshot_beyond_the_end": "tests/test_transactions.py::test_I6_a_snapshot_beyond_the_end_is_not_believed_later",
    "lengths_that_lie": "tests/test_hostile_batches.py::test_I13_a_length_that_lies_in_our_own_log_is_named",
    "views_outlive_close": "tests/test_partition_log.py::test_I8_views_outlive_close_and_deletion",
    "bombs": "tests/test_codecs.py::test_a_bomb_is_refused_by_the_name_of_the_option",
    "first_record_not_older": "tests/test_partition_log.py::test_offset_for_time_finds_the_first_record_not_older",
    "checksum_of_another_size": "tests/test_partition_log.py::test_I7_a_checksum_speaks_for_the_size_of_its_segment",
    "clock_jumps_ahead": "tests/test_retention.py::test_I11_a_clock_that_jumps_ahead_deletes_nothing_at_once",
    "tombstones": "tests/test_compaction.py::test_tombstones_go_when_their_horizon_has_passed",
    "recovery_point_of_a_compacted_log": "tests/test_dead_maintainers.py"
    "::test_I3_the_recovery_point_names_no_segment_that_is_compacted",
    "index_of_a_replaced_segment": "tests/test_dead_maintainers.py"
    "::test_I7_the_index_of_a_segment_that_was_replaced_is_believed_by_nobody",
    "swap_of_a_dead_maintainer": "tests/test_dead_maintainers.py"
    "::test_whoever_finishes_the_swap_of_a_dead_maintainer_may_die_in_it_too",
    "aborted_behind_a_dead_maintainer": "tests/test_dead_maintainers.py"
    "::test_aborted_records_stay_hidden_when_a_maintainer_dies",
    "swap_beside_a_clean_marker": "tests/test_compaction_crash.py"
    "::test_I4_a_swap_beside_a_clean_marker_is_finished_by_who_may_die",
    "folders_of_somebody_else": "tests/messaging/test_store.py"
    "::test_folders_that_somebody_else_makes_just_now_are_synced_before_anything_is_promised",
    "rules_of_an_append": "tests/test_producers.py::test_each_rule_of_an_append",
    "repeated_append": "tests/messaging/test_accumulator.py::test_an_append_that_is_repeated_is_stored_once",
    "failed_sync_of_all": "tests/test_sharing.py::test_a_failed_sync_poisons_the_log_for_all",
    "cuts_of_a_segment": "tests/test_sweeps.py::test_I6_every_cut_of_a_segment",
    "last_stable_offsets": "tests/test_producers.py::test_open_transactions_hold_the_last_stable_offset",
    # groups
    "members_that_are_gone": "tests/messaging/test_membership.py::test_a_member_that_nobody_refers_to_is_gone",
    "partitions_let_go": "tests/messaging/test_membership.py::test_a_partition_is_taken_when_its_owner_has_let_go",
    "word_of_another_partition": "tests/messaging/test_membership.py"
    "::test_a_word_of_another_partition_is_not_taken_by_an_old_document",
    "commit_not_taken_back": "tests/messaging/test_consumer_groups.py"
    "::test_an_automatic_commit_does_not_take_back_what_commit_has_said",
    "offsets_of_a_deleted_topic": "tests/messaging/test_offsets.py"
    "::test_offsets_of_a_deleted_topic_are_not_those_of_its_successor",
    "later_commit_not_undone": "tests/messaging/test_offsets.py::test_a_transaction_does_not_undo_a_later_commit",
    # transactions
    "middle_of_a_swap": (
        "tests/test_compaction_crash.py::test_a_reader_among_others_sees_the_whole_log_in_the_middle_of_a_swap"
    ),
    "partition_that_is_made": (
        "tests/messaging/test_store_backup.py::test_decisions_in_a_partition_that_is_made_meanwhile"
    ),
    "two_who_decide": "tests/messaging/test_messaging_transactions.py::test_of_two_who_decide_at_once_one_does",
    "decision_of_the_last_transaction": "tests/messaging/test_transaction_power.py"
    "::test_records_of_the_next_transaction_do_not_get_the_last_ones_decision",
    # the store
    "idle_logs_are_bounded": "tests/messaging/test_store.py::test_idle_logs_are_bounded_and_leased_ones_stay",
    # handlers
    "gaps_are_told": "tests/delivery/test_work.py::test_no_more_is_begun_than_the_commit_can_tell_of",
    "released_with_something_in_hand": "tests/delivery/test_work.py"
    "::test_an_unclean_release_while_something_is_in_hand",
    "retried_and_dead": "tests/delivery/test_app.py"
    "::test_a_failing_record_is_tried_again_when_it_is_due_and_then_a_dead_letter",
    "suspects_are_counted": "tests/delivery/test_work.py::test_suspects_run_alone_and_counted",
    "keys_wait": "tests/delivery/test_app.py::test_records_of_a_key_wait_behind_the_one_that_failed",
    "moves_with_offsets": "tests/delivery/test_moving.py::test_records_go_where_they_belong_with_the_offsets",
    "known_events": "tests/delivery/test_app.py::test_known_events_are_not_handled_again",
    "dead_letters_block": "tests/delivery/test_app.py::test_a_dead_letter_blocks_its_key_until_it_is_redriven",
    "ids_all_or_none": "tests/delivery/test_deduplicator.py::test_kill_9_keeps_what_was_told_and_no_half_of_a_call",
}


@contextlib.contextmanager
def suite() -> Iterator[list[Scenario]]:
    """One scenario for each test."""
    yield [Scenario(name, functools.partial(run_test, node=node)) for name, node in TESTS.items()]


def run_test(turn: Turn, node: str) -> None:
    """Run a test; AssertionError when it fails, or ends its process."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "--timeout", f"{TIMEOUT}"]
    settings = environment(
        FASTLOG_SEED=f"{turn.seed}", HYPOTHESIS_STORAGE_DIRECTORY=str(turn.folder / "hypothesis"),
        HYPOTHESIS_PROFILE="dev", FASTLOG_FAILURES=str(turn.folder / "failures"), FASTLOG_KEEP=str(turn.folder),
    )  # fmt: skip
    ran = subprocess.run([*command, node], cwd=ROOT, env=settings, capture_output=True, text=True, check=False)
    said = (ran.stdout + ran.stderr)[-LAST_WORDS:]
    if ran.returncode < 0:
        raise AssertionError(f"{node} ended by {signal.Signals(-ran.returncode).name}: {said}")
    if ran.returncode == 1:
        failed = re.search(r"^(?:E  .*|FAILED .*)$", ran.stdout, re.MULTILINE)
        raise AssertionError(f"{node} failed: {failed[0] if failed is not None else said}")
    passed = re.search(r"(\d+) passed", ran.stdout)
    if ran.returncode != 0 or passed is None:
        raise NotHere(f"{node} cannot be run here: {said}")
    turn.count("tests", int(passed[1]))
