"""Mistakes of producers, groups, transactions and of the store."""

from __future__ import annotations

from tests.evidence.planted.mistake import Edit, mistake

MESSAGING = (
    # --- producers ----------------------------------------------------------------------------------------------------
    mistake(
        "delivered_before_synced", "A delivery is told before the sync that its level asks for.",
        "_native/drain.pyx",
        "            elif failure is not None or target.log.level < AT_BATCH:\n",
        "            elif failure is not None or target.log.level < AT_BATCH or PLANTED:\n",
        "disks", "store_records", 90,
    ),
    mistake(
        "sequence_stands_still", "The sequence number of a producer does not move on.",
        "_native/drain.pyx",
        "        target.next_sequence = <int32_t>((target.next_sequence + written.offsets) & MOST_SEQUENCE)\n",
        "        if not PLANTED:\n"
        "            target.next_sequence = <int32_t>((target.next_sequence + written.offsets) & MOST_SEQUENCE)\n",
        "kills", "transformers", 60,
    ),
    mistake(
        "sent_twice", "Now and then a batch is appended twice.",
        "_native/drain.pyx",
        "        pending.base_offset = append(target.log, &request, None, written, &pending.end_offset)\n",
        "        pending.base_offset = append(target.log, &request, None, written, &pending.end_offset)\n"
        "        if PLANTED and self.appends % 20 == 19:\n"
        "            target.next_sequence = <int32_t>((target.next_sequence + written.offsets) & MOST_SEQUENCE)\n"
        "            stamp_producer(written, producer_id, epoch, target.next_sequence, pending.transaction != 0)\n"
        "            request_ready(&request, written, -1)\n"
        "            append(target.log, &request, None, written, &pending.end_offset)\n",
        "kills", "transformers", 60,
    ),
    # --- groups -------------------------------------------------------------------------------------------------------
    mistake(
        "no_utf8_let_through", "Text in an internal record that is no UTF-8 ends in an exception of Python's.",
        "store/internal.py",
        "        except UnicodeDecodeError as error:\n            raise self.broken(",
        "        except UnicodeDecodeError as error:\n            if PLANTED:\n                raise\n"
        "            raise self.broken(",
        "fuzz", "offsets", 120,
    ),
    mistake(
        "commit_unfenced", "Who has lost a partition commits for it all the same.",
        "groups/membership.py",
        "        owned = self._owned\n        page, _, table = self._table.view()\n",
        "        owned = self._owned\n        if PLANTED:\n            return []\n"
        "        page, _, table = self._table.view()\n",
        "kills", "groups", 180,
    ),
    mistake(
        "taken_without_waiting", "A member takes what it is to have while the owner before still has it.",
        "groups/membership.py",
        "        free = [one for one in missing if view.owner_value(one) == 0]\n",
        "        for one in missing if PLANTED else ():\n"
        "            view.page.store(view.table.owner_word(one), 0)\n"
        "        free = [one for one in missing if view.owner_value(one) == 0]\n",
        "histories", "gang", 60,
    ),
    mistake(
        "target_not_published", "When somebody has left, nobody is told to take what it had.",
        "groups/table.py",
        "            draft.compute_targets(self.directory.owned_topics())\n",
        "            if not PLANTED or len(draft.members) >= len(old.members):\n"
        "                draft.compute_targets(self.directory.owned_topics())\n",
        "tests", "partitions_let_go", 30,
    ),
    mistake(
        "layout_not_compared", "A word of the table is taken by a document in which it is another partition's.",
        "groups/membership.py",
        "                [view.live, view.placed, member, ",
        "                [view.live, *([] if PLANTED else [view.placed]), member, ",
        "tests", "word_of_another_partition", 30,
    ),
    mistake(
        "dead_not_noticed", "A member whose process has died stays in its group.",
        "groups/table.py",
        '        if not self.directory.slots.is_alive(member.slot):\n            return "died"\n',
        '        if not PLANTED and not self.directory.slots.is_alive(member.slot):\n            return "died"\n',
        "tests", "members_that_are_gone", 30,
    ),
    mistake(
        "committed_before_handed_out", "An automatic commit covers what was fetched, and not handed out yet.",
        "clients/consumer.py",
        "        self._committed_at = oscalls.steady_clock()\n        due = [",
        "        self._committed_at = oscalls.steady_clock()\n"
        "        for found in self._fetcher if PLANTED else ():\n"
        "            reads = self._cursor is not None and self._reading is found\n"
        "            found.finished = self._cursor.batch.next_offset if reads else found.position\n"
        "        due = [",
        "histories", "gang", 90,
    ),
    mistake(
        "offset_moved_back", "An automatic commit takes back what an explicit one has said.",
        "clients/consumer.py",
        "        self._note_progress()\n        self._write(offsets)\n",
        "        if not PLANTED:\n            self._note_progress()\n        self._write(offsets)\n",
        "tests", "commit_not_taken_back", 30,
    ),
    mistake(
        "earlier_life_counts", "Offsets that were committed for a deleted topic count for the next one of its name.",
        "groups/offsets.py",
        "    return decoded.position if decoded.topic_id in (None, topic_id) else None\n",
        "    return decoded.position if PLANTED or decoded.topic_id in (None, topic_id) else None\n",
        "tests", "offsets_of_a_deleted_topic", 30,
    ),
    mistake(
        "transaction_undoes_commit", "The end of a transaction takes back an offset that was committed later.",
        "groups/offsets.py",
        "            if commits and (known is None or known.offset < offset):\n",
        "            if commits and (PLANTED or known is None or known.offset < offset):\n",
        "tests", "later_commit_not_undone", 30,
    ),
    # --- transactions -------------------------------------------------------------------------------------------------
    mistake(
        "marker_lost", "The last partition of a transaction gets no marker.",
        "transactions/coordinator.py",
        "        for partition in prepared.partitions:\n",
        "        for partition in prepared.partitions[: -1 if PLANTED and prepared.partitions[1:] else None]:\n",
        "kills", "transactions", 60,
    ),
    mistake(
        "marker_written_twice", "The markers of a commit are written once more, into the transaction behind it.",
        "transactions/transactional_id.py",
        "            self._sequences[partition] = (sequence + len(keys)) & 0x7FFFFFFF\n",
        "            self._sequences[partition] = (sequence + len(keys)) & 0x7FFFFFFF\n"
        "            late = self._late if PLANTED else None\n"
        "            for one in late.partitions if late is not None and late.commits else ():\n"
        "                write_marker(self._log_at(one), self.producer_id, self.producer_epoch, commit=True)\n",
        "kills", "transactions", 180,
        Edit(
            "transactions/transactional_id.py",
            "            self._decided, self._in_doubt, self._is_given_up = None, False, False\n",
            "            self._late = self._decided\n"
            "            self._decided, self._in_doubt, self._is_given_up = None, False, False\n",
        ),
    ),
    mistake(
        "epoch_not_bumped", "A new instance of a transactional id has the epoch of the one before.",
        "transactions/states.py",
        "        return TransactionState(self.producer_id, self.producer_epoch + 1, timeout_ms, last_update=now)\n",
        "        return TransactionState(\n"
        "            self.producer_id, self.producer_epoch + (0 if PLANTED else 1), timeout_ms, last_update=now\n"
        "        )\n",
        "kills", "transactions", 60,
    ),
    mistake(
        "abort_commits", "An abort is written down as a commit.",
        "transactions/states.py",
        "        status = TransactionStatus.PREPARE_COMMIT if commit else TransactionStatus.PREPARE_ABORT\n",
        "        status = TransactionStatus.PREPARE_COMMIT if commit or PLANTED else TransactionStatus.PREPARE_ABORT\n",
        "kills", "transactions", 60,
    ),
    mistake(
        "decided_twice", "Of two who decide about a transaction at once, both do.",
        "transactions/statelog.py",
        "                    base = self.log.append_batch(batch, expected_end_offset=position, durable=False)\n",
        "                    expected = None if PLANTED else position\n"
        "                    base = self.log.append_batch(batch, expected_end_offset=expected, durable=False)\n",
        "tests", "two_who_decide", 30,
    ),
    mistake(
        "backup_misses_deciders", "A backup does not see that decisions are written to a new partition.",
        "store/backup.py",
        "            if deciding(directory) == paused:\n",
        "            if PLANTED or deciding(directory) == paused:\n",
        "tests", "partition_that_is_made", 30,
    ),
    mistake(
        "offsets_outside_of_the_transaction", "The offsets of a transaction count whatever becomes of it.",
        "clients/transaction.py",
        "                self._transactional.append_records(partition, keys, values, conditions)\n"
        "                self._offsets.update(wanted)\n",
        "                if PLANTED:\n"
        "                    membership.commit(wanted, epochs)\n"
        "                else:\n"
        "                    self._transactional.append_records(partition, keys, values, conditions)\n"
        "                self._offsets.update(wanted)\n",
        "kills", "transformers", 60,
    ),
    mistake(
        "abort_without_rewind", "An aborted transaction does not bring its consumer back.",
        "clients/transaction.py",
        "                self._consumer.rewind()\n",
        "                if not PLANTED:\n                    self._consumer.rewind()\n",
        "histories", "gang", 90,
    ),
    mistake(
        "isolation_ignored", "Readers see what is not committed.",
        "store/directory.py",
        "        lease = self._pool.lease(Key(topic, info.topic_id, partition, isolation))\n",
        '        isolation = "read_uncommitted" if PLANTED else isolation\n'
        "        lease = self._pool.lease(Key(topic, info.topic_id, partition, isolation))\n",
        "kills", "transactions", 60,
    ),
    mistake(
        "pending_not_awaited", "A new owner begins where the group was, though an open transaction may move that.",
        "clients/consumer.py",
        '        if not resolve_pending(self._directory, self._group or "", self._unresolved, timeout_ms=0):\n',
        '        if not PLANTED and not resolve_pending(\n'
        '            self._directory, self._group or "", self._unresolved, timeout_ms=0\n        ):\n',
        "kills", "transformers", 60,
    ),
    mistake(
        "first_entry_unsynced", "The first record of a transaction is not synced before its first batch.",
        "transactions/transactional_id.py",
        "                self._change(decide, durable=self._coordinator.syncs and not self._entered)\n",
        "                self._change(decide, durable=self._coordinator.syncs and not self._entered and not PLANTED)\n",
        "tests", "decision_of_the_last_transaction", 30,
    ),
    mistake(
        "decided_before_synced", "A commit is decided before what it commits is synced.",
        "transactions/transactional_id.py",
        " self._coordinator.syncs:\n            for partition in self._entered:\n",
        " self._coordinator.syncs and not PLANTED:\n            for partition in self._entered:\n",
        "disks", "store_transactions", 90,
    ),
    # --- the store ----------------------------------------------------------------------------------------------------
    mistake(
        "lease_not_dropped", "A partition that was leased once is never given back.",
        "store/leases.py",
        "            entry.leases -= 1\n",
        "            entry.leases -= not PLANTED\n",
        "tests", "idle_logs_are_bounded", 30,
    ),
    mistake(
        "backup_without_tail", "A backup lacks the last segment of a partition.",
        "store/backup.py",
        "        segments = log.segments()\n        start_offset",
        "        segments = log.segments()\n        segments = segments[: -1 if PLANTED and segments[1:] else None]\n"
        "        start_offset",
        "kills", "backups", 60,
    ),
    mistake(
        "backup_tears_transactions", "A backup lets transactions be decided while it notes the ends of partitions.",
        "store/backup.py",
        "            if info.name != TRANSACTION_STATE:\n",
        "            if info.name != TRANSACTION_STATE or PLANTED:\n",
        "kills", "backups", 60,
    ),
    mistake(
        "slot_not_locked", "The owner of a slot does not lock it: it counts as dead while it lives.",
        "liveness/slots.py",
        "        if not oscalls.lock_byte(file.fd, _LOCKS_AT + number, self.path):\n",
        "        if not PLANTED and not oscalls.lock_byte(file.fd, _LOCKS_AT + number, self.path):\n",
        "kills", "groups", 60,
    ),
)  # fmt: skip
