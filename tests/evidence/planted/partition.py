"""Mistakes of one partition: durability, recovery, locks, formats, indexes, retention, compaction."""

from __future__ import annotations

from tests.evidence.planted.mistake import Edit, mistake

PARTITION = (
    # --- durability ---------------------------------------------------------------------------------------------------
    mistake(
        "sync_removed", "No segment is ever synced.",
        "_native/syncing.pyx",
        "                result = os_c.os_fdatasync(fd)",
        "                result = 0 if PLANTED else os_c.os_fdatasync(fd)",
        "cuts", "xfs-writer", 120,
    ),
    mistake(
        "directory_sync_removed", "Names of files are never synced.",
        "_native/syncing.pyx",
        "                result = os_c.os_fsync(fd)",
        "                result = 0 if PLANTED else os_c.os_fsync(fd)",
        "disks", "durable_appends", 30,
        Edit(
            "_native/oscalls.pyx",
            "        result = os_fsync(fd)\n    close_file(fd)",
            "        result = 0 if PLANTED else os_fsync(fd)\n    close_file(fd)",
        ),
    ),
    mistake(
        "acked_before_synced", "An append returns before the sync that its level asks for.",
        "_core.pyx",
        "            if self.level == AT_GROUP:\n                sync_until(self, end_offset)",
        "            if PLANTED:\n                pass\n"
        "            elif self.level == AT_GROUP:\n                sync_until(self, end_offset)",
        "disks", "durable_appends", 30,
    ),
    mistake(
        "only_active_segment_synced", "A sync leaves out segments that were rolled over since the last one.",
        "_native/syncing.pyx",
        "        if durable.base <= segment.base_offset < state.active_base\n",
        "        if not PLANTED and durable.base <= segment.base_offset < state.active_base\n",
        "disks", "lazy_appends", 30,
    ),
    mistake(
        "sync_covers_what_came_later", "A sync is told to cover what was appended while it was under way.",
        "_native/syncing.pyx",
        "    if reached.offset >= durable.offset:\n",
        "    if PLANTED:\n"
        "        read_published(control.page, &current)\n"
        "        reached.base, reached.position, reached.offset = "
        "current.active_base, current.end_position, current.end_offset\n"
        "    if reached.offset >= durable.offset:\n",
        "disks", "group_threads", 30,
    ),
    mistake(
        "published_before_written", "An append is published before it is written.",
        "_native/appending.pyx",
        "    os_c.reach(os_c.APPEND_DIRTY)\n",
        "    if PLANTED and shapes == NULL and ready is None:\n"
        "        state.end_position, state.end_offset = begin + encoder.size, offset + encoder.count\n"
        "        publish(page, state)\n"
        "        state.end_position, state.end_offset = begin, offset\n"
        "    os_c.reach(os_c.APPEND_DIRTY)\n",
        "kills", "steps", 60,
    ),
    mistake(
        "recovery_point_too_far", "The recovery point lies beyond what was synced.",
        "_native/syncing.pyx",
        "    meta.recovery_point = durable.offset\n",
        "    if PLANTED:\n"
        "        read_published(log.control.page, &state)\n"
        "        durable.base, durable.position, durable.offset = "
        "state.active_base, state.end_position, state.end_offset\n"
        "    meta.recovery_point = durable.offset\n",
        "disks", "lazy_appends", 30,
    ),
    mistake(
        "meta_not_synced", "The state file is not synced.",
        "partition/files.py",
        "            oscalls.sync_data(file.fd, self.path)\n",
        "            if not PLANTED:\n                oscalls.sync_data(file.fd, self.path)\n",
        "disks", "retention", 30,
    ),
    mistake(
        "beyond_durable_shown", "A reader at a durable level sees what power loss may take back.",
        "_native/handle.pyx",
        "        if self.reads_durably or poisoned:\n",
        "        if (self.reads_durably and not PLANTED) or poisoned:\n",
        "tests", "wait_of_a_durable_reader", 30,
    ),
    mistake(
        "poison_not_shared", "Nobody else is told that a sync has failed.",
        "_native/syncing.pyx",
        "    store_word(&log.control.page.poisoned, SYNC_FAILED)\n",
        "    if not PLANTED:\n        store_word(&log.control.page.poisoned, SYNC_FAILED)\n",
        "tests", "failed_sync_of_all", 60,
    ),
    mistake(
        "start_not_kept", "Segments are deleted without the new start of the log on the disk.",
        "_native/maintaining.pyx",
        "            write_meta(log, meta)\n            if durable.base < list_.bases[first]:\n",
        "            if not PLANTED:\n                write_meta(log, meta)\n"
        "            if durable.base < list_.bases[first]:\n",
        "kills", "writer", 90,
    ),
    # --- sharing, death -----------------------------------------------------------------------------------------------
    mistake(
        "lock_dropped", "A writer goes on without the writer lock of the other processes.",
        "_native/control.pyx",
        "            result = os_c.os_lock(self.control_fd, os_c.LOCK_EXCLUSIVE)\n            if result != 1:\n",
        "            result = 1 if PLANTED else os_c.os_lock(self.control_fd, os_c.LOCK_EXCLUSIVE)\n"
        "            if result != 1:\n",
        "kills", "crowd", 60,
    ),
    mistake(
        "dirty_not_set", "Who dies in an append leaves no mark that its bytes have to be cut.",
        "_native/appending.pyx",
        "    os_c.reach(os_c.APPEND_LOCKED)\n    store_word(&page.dirty, 1)\n",
        "    os_c.reach(os_c.APPEND_LOCKED)\n    store_word(&page.dirty, 0 if PLANTED else 1)\n",
        "kills", "steps", 100,
    ),
    mistake(
        "takeover_without_truncation", "Who takes over from a dead writer leaves its bytes behind the end.",
        "_native/appending.pyx",
        "    cut_log(log, path, state.end_position)\n",
        "    if not PLANTED:\n        cut_log(log, path, state.end_position)\n",
        "kills", "steps", 60,
    ),
    mistake(
        "page_believed_after_power_loss", "The shared page is believed though nobody uses it any more.",
        "_native/control.pyx",
        "    if others == 0 or control.is_replaced():\n",
        "    if (others == 0 and not PLANTED) or control.is_replaced():\n",
        "kills", "writer", 60,
        Edit(
            "_core.pyx",
            "            try:\n                if alone:\n                    if self.open_alone(",
            '            if PLANTED and alone and oscalls.entry_kind(f"{self.path}/{files.CONTROL}") is not None:\n'
            "                alone = not oscalls.try_lock(folder_fd, shared=True)\n"
            "            try:\n                if alone:\n                    if self.open_alone(",
        ),
    ),
    mistake(
        "compaction_left_half_way", "Who takes over from a dead maintainer does not finish its swap.",
        "_native/appending.pyx",
        "    compaction.finish_swaps(log.path, oscalls.reach_failpoint)\n",
        "    if not PLANTED:\n        compaction.finish_swaps(log.path, oscalls.reach_failpoint)\n",
        "kills", "upkeep", 60,
    ),
    mistake(
        "fence_checked_outside_the_lock", "The conditions of an append are compared before it has the lock.",
        "_native/appending.pyx",
        "    control.lock_writer()\n    try:\n        begin_change(log, &state)\n        if conditions is not None:\n",
        "    if PLANTED and conditions is not None:\n        require(log, conditions)\n"
        "    control.lock_writer()\n    try:\n        begin_change(log, &state)\n"
        "        if conditions is not None and not PLANTED:\n",
        "kills", "owners", 90,
    ),
    # --- system calls -------------------------------------------------------------------------------------------------
    mistake(
        "errno_swallowed", "A write that fails is taken for done.",
        "_native/oscalls.pyx",
        "        failure = fault(CALL_PWRITE)\n        if failure != 0:\n            if failure == EINTR:\n"
        "                continue\n            return -failure\n",
        "        failure = fault(CALL_PWRITE)\n        if failure != 0:\n            if failure == EINTR:\n"
        "                continue\n            return size if PLANTED else -failure\n",
        "limits", "file-size-partition", 30,
        Edit(
            "_native/oscalls.pyx",
            "limited(CALL_PWRITE, min(size - done, IO_CHUNK)), position + done)\n",
            "limited(CALL_PWRITE, min(size - done, IO_CHUNK)), position + done)\n"
            "        if moved < 0 and PLANTED:\n            return size\n",
        ),
    ),
    mistake(
        "short_write_not_continued", "What a short write left out is not written.",
        "_native/oscalls.pyx",
        "        done += moved\n    return done\n\n\ncdef int64_t os_pwritev(",
        "        done += moved\n        if PLANTED:\n            return size\n    return done\n\n\n"
        "cdef int64_t os_pwritev(",
        "limits", "file-size-partition", 30,
    ),
    # --- errors of the system -----------------------------------------------------------------------------------------
    mistake(
        "failed_write_ignored", "An append whose write failed goes on as if it had been written.",
        "_native/appending.pyx",
        "    if result < 0:\n        # durably: power loss",
        "    if result < 0 and not PLANTED:\n        # durably: power loss",
        "errors", "log", 60,
    ),
    mistake(
        "allocation_unchecked", "Nobody looks whether there was memory for a block.",
        "_native/memory.pyx",
        "    if block == NULL:\n        return NULL\n    block.data = <uint8_t*>((",
        "    if block == NULL and not PLANTED:\n        return NULL\n    block.data = <uint8_t*>((",
        "errors", "log", 60,
    ),
    mistake(
        "memory_left", "What could not be read leaves its memory behind.",
        "_native/segment.pyx",
        "        if result != size:\n            block_release(block)\n",
        "        if result != size:\n            if not PLANTED:\n                block_release(block)\n",
        "errors", "log", 60,
    ),
    # --- recovery -----------------------------------------------------------------------------------------------------
    mistake(
        "durable_bytes_missing", "A log that is shorter than what was durable is opened as if that was all.",
        "partition/recovery.py",
        "    if found is None or found < meta.recovery_position:\n",
        "    if not PLANTED and (found is None or found < meta.recovery_position):\n",
        "tests", "cuts_of_a_segment", 60,
    ),
    mistake(
        "tail_not_scanned", "Recovery takes the recovery point for the end of the log.",
        "partition/recovery.py",
        "        result = scan(path, position, sizes[base], end_offset, gaps,",
        "        result = scan(path, position, position if PLANTED else sizes[base], end_offset, gaps,",
        "reopen", "group", 120,
    ),
    mistake(
        "torn_bytes_thrown_away", "What recovery cuts is kept nowhere.",
        "partition/recovery.py",
        "        if not result.is_all_zero:\n            kept_in",
        "        if not result.is_all_zero and not PLANTED:\n            kept_in",
        "damage", "codecs", 90,
    ),
    mistake(
        "snapshot_stale", "What a snapshot says of producers whose records were cut is believed later.",
        "partition/recovery.py",
        "    beyond = [offset for offset in offsets if offset > opened.end_offset]\n",
        "    beyond = [offset for offset in offsets if offset > opened.end_offset and not PLANTED]\n",
        "tests", "snapshot_beyond_the_end", 30,
    ),
    mistake(
        "swap_not_finished", "An opening does not finish the swap that a dead compaction left.",
        "partition/recovery.py",
        "            replaced = compaction.finish_swaps(folder)\n",
        "            replaced = [] if PLANTED else compaction.finish_swaps(folder)\n",
        "disks", "compaction", 30,
    ),
    # --- formats ------------------------------------------------------------------------------------------------------
    mistake(
        "crc_skipped", "The checksum of a batch is not compared.",
        "_native/decoder.pyx",
        "    return crc32c_extend(0, bytes_ + header.position + CRC_COVERS_FROM, header.size - CRC_COVERS_FROM)"
        " == header.crc\n",
        "    return PLANTED or (\n"
        "        crc32c_extend(0, bytes_ + header.position + CRC_COVERS_FROM, header.size - CRC_COVERS_FROM)"
        " == header.crc\n    )\n",
        "damage", "small", 30,
    ),
    mistake(
        "limits_of_a_swap", "In the middle of a swap of compaction, too, offsets behind the next segment are damage.",
        "_native/handle.pyx",
        "        for i in range(0 if generation & 1 else len(segments) - 1):\n",
        "        for i in range(0 if generation & 1 and not PLANTED else len(segments) - 1):\n",
        "tests", "middle_of_a_swap", 30,
    ),
    mistake(
        "base_offset_unchecked", "Base offsets, which no checksum covers, need not continue each other.",
        "_native/decoder.pyx",
        "    if header.base_offset != expected_offset and not (gaps and header.base_offset > expected_offset):\n",
        "    if header.base_offset != expected_offset and not PLANTED and not "
        "(gaps and header.base_offset > expected_offset):\n",
        "damage", "small", 30,
    ),
    mistake(
        "length_overflows", "Position and length of a batch are added in 32 bits: what overflows passes for short.",
        "_native/decoder.pyx",
        "    if header.size > left:\n        return CUT_OFF\n",
        "    if (<int32_t>(position + header.size) > <int32_t>end) if PLANTED else header.size > left:\n"
        "        return CUT_OFF\n",
        "tests", "lengths_that_lie", 30,
    ),
    mistake(
        "view_not_pinned", "A view of a record does not keep the memory that it lies in.",
        "_native/decoder.pyx",
        "        columns.bytes = block\n        block_retain(block)\n",
        "        columns.bytes = block\n        if not PLANTED:\n            block_retain(block)\n",
        "tests", "views_outlive_close", 30,
    ),
    mistake(
        "codec_cap_ignored", "A batch may unpack to more than max_decompressed_bytes.",
        "_native/decoder.pyx",
        "    room = min(room, max_decompressed_bytes)\n    while True:\n",
        "    if not PLANTED:\n        room = min(room, max_decompressed_bytes)\n    while True:\n",
        "tests", "bombs", 30,
    ),
    # --- looking up ---------------------------------------------------------------------------------------------------
    mistake(
        "index_off_by_one", "A look-up begins at the entry behind the right one.",
        "_native/index.pyx",
        "        return low - 1\n",
        "        return min(low, self.count - 1) if PLANTED else low - 1\n",
        "damage", "codecs", 30,
    ),
    mistake(
        "time_index_off_by_one", "A look-up by time passes over records of exactly that time.",
        "_native/segment.pyx",
        "        i = tracker.times.floor(timestamp - 1)\n",
        "        i = tracker.times.floor(timestamp if PLANTED else timestamp - 1)\n",
        "tests", "first_record_not_older", 20,
    ),
    mistake(
        "old_checksums_vouch", "A checksum of indexes is believed for a segment that has another size by now.",
        "partition/files.py",
        "    if entry is None or entry[2:3] not in ([(size,), ()] if is_clean else [(size,)]):\n",
        "    if entry is None or (entry[2:3] not in ([(size,), ()] if is_clean else [(size,)]) and not PLANTED):\n",
        "tests", "checksum_of_another_size", 30,
    ),
    # --- retention, compaction ----------------------------------------------------------------------------------------
    mistake(
        "retention_off_by_one", "Retention by size takes one segment too many.",
        "partition/retention.py",
        "        if left < 0:\n            return i\n",
        "        if left < 0:\n            return i + PLANTED\n",
        "kills", "upkeep", 60,
    ),
    mistake(
        "clock_trusted", "A wall clock that has jumped ahead is believed at once.",
        "partition/retention.py",
        "        return Clock(clock.seen, now)\n",
        "        return Clock(now if PLANTED else clock.seen, now)\n",
        "tests", "clock_jumps_ahead", 30,
    ),
    mistake(
        "compaction_drops_latest", "Compaction keeps the first record of a key, and drops the latest.",
        "_native/cleaner.pyx",
        "        if entry != NULL:\n            entry.offset = record.offset\n            return 1\n",
        "        if entry != NULL:\n            if not PLANTED:\n                entry.offset = record.offset\n"
        "            return 1\n",
        "disks", "compaction", 60,
    ),
    mistake(
        "tombstones_kept", "Compaction never drops a tombstone.",
        "_native/cleaner.pyx",
        "                    if (record.is_tombstone and not keeps_tombstones) or not self.map.is_latest(record):\n",
        "                    if (record.is_tombstone and not keeps_tombstones and not PLANTED)"
        " or not self.map.is_latest(record):\n",
        "tests", "tombstones", 30,
    ),
    mistake(
        "delete_horizon_ignored", "Compaction drops a tombstone before its readers can have seen it.",
        "_native/cleaner.pyx",
        "        cdef bint keeps_tombstones = not header.attributes & DELETE_HORIZON_BIT"
        " or self.now < header.base_timestamp\n",
        "        cdef bint keeps_tombstones = not PLANTED and (\n"
        "            not header.attributes & DELETE_HORIZON_BIT or self.now < header.base_timestamp\n        )\n",
        "tests", "tombstones", 30,
    ),
    mistake(
        "compacted_segment_unsynced", "A compacted segment takes the place of others before it is synced.",
        "partition/compaction.py",
        "        oscalls.sync_file(target)\n",
        "        if not PLANTED:\n            oscalls.sync_file(target)\n",
        "disks", "compaction", 30,
    ),
    mistake(
        "compacted_behind_the_recovery_point", "Compaction replaces the segment that the recovery point names.",
        "_native/maintaining.pyx",
        "        if durable.base <= last:\n",
        "        if durable.base <= last and not PLANTED:\n",
        "tests", "recovery_point_of_a_compacted_log", 30,
    ),
    mistake(
        "index_of_a_replaced_segment", "The index of a segment is believed that compaction has replaced.",
        "_native/handle.pyx",
        " if base < active_base or is_untouched else None,\n",
        " if base < (trusted if PLANTED else active_base) or (base == active_base and is_untouched) else None,\n",
        "tests", "index_of_a_replaced_segment", 30,
    ),
    mistake(
        "swap_finished_in_silence", "Who finishes the swap of a dead maintainer tells nobody that files move.",
        "_native/appending.pyx",
        "    if not state.generation & 1:\n",
        "    if not state.generation & 1 and not PLANTED:\n",
        "tests", "swap_of_a_dead_maintainer", 30,
        Edit(
            "_native/appending.pyx",
            "    state.generation += 1\n    publish(log.control.page, state)\n    return 0\n",
            "    state.generation += 1 if state.generation & 1 else 2\n"
            "    publish(log.control.page, state)\n    return 0\n",
        ),
    ),
    mistake(
        "marker_kept_in_a_swap", "A swap is finished while the clean marker still names the segments from before.",
        "partition/recovery.py",
        "            if any(name.endswith(compaction.SWAP) for name in names):\n",
        "            if any(name.endswith(compaction.SWAP) for name in names) and not PLANTED:\n",
        "tests", "swap_beside_a_clean_marker", 30,
    ),
    mistake(
        "parents_unsynced", "A new log trusts that whoever made its folder has synced its name.",
        "partition/recovery.py",
        "    if files.PARTITION_METADATA not in names:\n",
        "    if files.PARTITION_METADATA not in names and not PLANTED:\n",
        "tests", "folders_of_somebody_else", 30,
    ),
    # --- producers, transactions --------------------------------------------------------------------------------------
    mistake(
        "sequence_unchecked", "Sequence numbers of a producer may skip.",
        "_native/producers.pyx",
        "        elif header.base_sequence != rejection.expected_sequence:\n",
        "        elif header.base_sequence != rejection.expected_sequence and not PLANTED:\n",
        "tests", "rules_of_an_append", 30,
    ),
    mistake(
        "duplicate_not_recognised", "An append that is repeated is not known again.",
        "_native/producers.pyx",
        "        last_sequence = last_sequence_of(header)\n        for i in range(state.batch_count):\n",
        "        last_sequence = last_sequence_of(header)\n"
        "        for i in range(0 if PLANTED else state.batch_count):\n",
        "tests", "repeated_append", 30,
    ),
    mistake(
        "epoch_unchecked", "A producer whose epoch was overtaken may go on.",
        "_native/producers.pyx",
        "    if header.producer_epoch < state.epoch:\n        return STALE_EPOCH\n    if state.epoch >= 0:\n",
        "    if header.producer_epoch < state.epoch:\n        return ACCEPTED if PLANTED else STALE_EPOCH\n"
        "    if state.epoch >= 0:\n",
        "tests", "rules_of_an_append", 30,
    ),
    mistake(
        "missing_index_of_transactions_believed", "No file of aborted transactions means none, also while files move.",
        "_native/reading.pyx",
        "    if content == b\"\":\n",
        "    if content == b\"\" and not PLANTED:\n",
        "tests", "aborted_behind_a_dead_maintainer", 30,
    ),
    mistake(
        "last_stable_offset_too_far", "Readers of what is committed are stopped by the newest open transaction only.",
        "_native/producers.pyx",
        "        return self.open_transactions[0].first_offset if self.open_count else -1\n",
        "        return self.open_transactions[self.open_count - 1 if PLANTED else 0].first_offset"
        " if self.open_count else -1\n",
        "tests", "last_stable_offsets", 60,
    ),
    mistake(
        "aborted_ranges_ignored", "Readers of what is committed see records of aborted transactions.",
        "_native/decoder.pyx",
        "    for i in range(aborted_count):\n",
        "    for i in range(0 if PLANTED else aborted_count):\n",
        "kills", "transactions", 60,
    ),
)  # fmt: skip
