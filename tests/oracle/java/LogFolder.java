import com.fasterxml.jackson.databind.ObjectMapper;
import com.fasterxml.jackson.databind.node.ArrayNode;
import com.fasterxml.jackson.databind.node.ObjectNode;
import java.io.File;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Arrays;
import java.util.Optional;
import java.util.OptionalLong;
import java.util.Properties;
import java.util.stream.Stream;
import org.apache.kafka.common.TopicPartition;
import org.apache.kafka.common.record.FileRecords;
import org.apache.kafka.common.record.RecordBatch;
import org.apache.kafka.common.utils.Time;
import org.apache.kafka.server.util.KafkaScheduler;
import org.apache.kafka.storage.internals.log.AbortedTxn;
import org.apache.kafka.storage.internals.log.AppendOrigin;
import org.apache.kafka.storage.internals.log.BatchMetadata;
import org.apache.kafka.storage.internals.log.CompletedTxn;
import org.apache.kafka.storage.internals.log.LogConfig;
import org.apache.kafka.storage.internals.log.LogDirFailureChannel;
import org.apache.kafka.storage.internals.log.LogSegment;
import org.apache.kafka.storage.internals.log.ProducerAppendInfo;
import org.apache.kafka.storage.internals.log.ProducerStateEntry;
import org.apache.kafka.storage.internals.log.ProducerStateManager;
import org.apache.kafka.storage.internals.log.ProducerStateManagerConfig;
import org.apache.kafka.storage.internals.log.TransactionIndex;
import org.apache.kafka.storage.internals.log.UnifiedLog;
import org.apache.kafka.storage.log.metrics.BrokerTopicStats;

/** A partition's folder as the classes of Kafka's broker see it. What is found is returned as JSON. */
final class LogFolder {
    private static final ObjectMapper JSON = new ObjectMapper();
    private static final int MAX_TRANSACTION_TIMEOUT_MS = 15 * 60 * 1000;

    private LogFolder() {
    }

    /** The entries of .txnindex files, in the order of the file. */
    static ArrayNode transactionIndex(String path) throws IOException {
        File file = new File(path);
        TransactionIndex index = new TransactionIndex(UnifiedLog.offsetFromFile(file), file);
        try {
            index.sanityCheck();
            ArrayNode entries = JSON.createArrayNode();
            index.allAbortedTxns().forEach(entry -> entries.add(json(entry)));
            return entries;
        } finally {
            index.close();
        }
    }

    /** The entries of a .snapshot file. */
    static ArrayNode snapshot(String path) throws IOException {
        ArrayNode entries = JSON.createArrayNode();
        for (ProducerStateEntry entry : ProducerStateManager.readSnapshot(new File(path))) {
            entries.add(json(entry));
        }
        return entries;
    }

    /**
     * The producer state after all batches of the .log files, as a broker has it that saw every append: five batches a
     * producer. Reads only; does not look at snapshots.
     */
    static ObjectNode replay(String path) throws IOException {
        Path scratch = Files.createTempDirectory("producers");
        ArrayNode aborted = JSON.createArrayNode();
        long end = 0;
        try {
            ProducerStateManager state = new ProducerStateManager(partition(path), scratch.toFile(),
                MAX_TRANSACTION_TIMEOUT_MS, new ProducerStateManagerConfig(Integer.MAX_VALUE, false), Time.SYSTEM);
            File[] segments = new File(path).listFiles((folder, name) -> name.endsWith(UnifiedLog.LOG_FILE_SUFFIX));
            Arrays.sort(segments);
            for (File segment : segments) {
                end = Math.max(end, UnifiedLog.offsetFromFile(segment));
                try (FileRecords file = FileRecords.open(segment, false)) {
                    for (RecordBatch batch : file.batches()) {
                        batch.ensureValid();
                        if (batch.hasProducerId()) {
                            ProducerAppendInfo update = state.prepareUpdate(batch.producerId(), AppendOrigin.REPLICATION);
                            Optional<CompletedTxn> completed = update.append(batch, Optional.empty());
                            state.update(update);
                            if (completed.isPresent()) {
                                long stable = state.lastStableOffset(completed.get());
                                if (completed.get().isAborted) {
                                    aborted.add(json(new AbortedTxn(completed.get().producerId,
                                        completed.get().firstOffset, completed.get().lastOffset, stable)));
                                }
                                state.completeTxn(completed.get());
                            }
                        }
                        end = batch.lastOffset() + 1;
                        state.updateMapEndOffset(end);
                    }
                }
            }
            ObjectNode found = JSON.createObjectNode().put("endOffset", end);
            found.put("lastStableOffset", state.firstUndecidedOffset().orElse(end));
            found.set("producers", producers(state));
            found.set("aborted", aborted);
            return found;
        } finally {
            remove(scratch);
        }
    }

    /**
     * Open the folder as a broker does when it starts, look, and close it. This changes the folder: without the clean
     * mark everything from the recovery point on is scanned, what is damaged cut, the indexes rebuilt, a snapshot taken.
     * The clock stands at now: producers that did nothing for expirationMs before it are forgotten.
     */
    static ObjectNode load(String path, long startOffset, long recoveryPoint, boolean isClean, long now, int expirationMs,
            String... options) throws IOException {
        Properties chosen = new Properties();
        for (String option : options) {
            String[] parts = option.split("=", 2);
            chosen.setProperty(parts[0], parts[1]);
        }
        KafkaScheduler scheduler = new KafkaScheduler(1);
        scheduler.startup();
        try (UnifiedLog log = UnifiedLog.create(new File(path), new LogConfig(chosen), startOffset, recoveryPoint, scheduler,
                new BrokerTopicStats(), new StoppedClock(now), MAX_TRANSACTION_TIMEOUT_MS,
                new ProducerStateManagerConfig(expirationMs, false), 600_000, new LogDirFailureChannel(1), isClean, Optional.empty())) {
            log.updateHighWatermark(log.logEndOffset());
            ObjectNode found = JSON.createObjectNode();
            found.put("startOffset", log.logStartOffset());
            found.put("endOffset", log.logEndOffset());
            found.put("lastStableOffset", log.lastStableOffset());
            found.put("recoveryPoint", log.recoveryPoint());
            found.set("producers", producers(log.producerStateManager()));
            ArrayNode aborted = found.putArray("aborted");
            log.collectAbortedTransactions(log.logStartOffset(), log.logEndOffset()).forEach(entry -> aborted.add(json(entry)));
            ArrayNode epochs = found.putArray("leaderEpochs");
            log.leaderEpochCache().epochEntries().forEach(entry -> epochs.addArray().add(entry.epoch).add(entry.startOffset));
            ArrayNode segments = found.putArray("segments");
            for (LogSegment segment : log.logSegments()) {
                ObjectNode node = segments.addObject();
                node.put("baseOffset", segment.baseOffset()).put("size", segment.size());
                node.put("largestTimestamp", segment.maxTimestampSoFar());
                node.put("indexEntries", segment.offsetIndex().entries()).put("timeIndexEntries", segment.timeIndex().entries());
            }
            return found;
        } finally {
            try {
                scheduler.shutdown();
            } catch (InterruptedException interrupted) {
                Thread.currentThread().interrupt();
            }
        }
    }

    private static ArrayNode producers(ProducerStateManager state) {
        ArrayNode entries = JSON.createArrayNode();
        state.activeProducers().values().stream().sorted((a, b) -> Long.compare(a.producerId(), b.producerId()))
            .forEach(entry -> entries.add(json(entry)));
        return entries;
    }

    private static ObjectNode json(AbortedTxn entry) {
        return JSON.createObjectNode().put("version", entry.version()).put("producerId", entry.producerId())
            .put("firstOffset", entry.firstOffset()).put("lastOffset", entry.lastOffset())
            .put("lastStableOffset", entry.lastStableOffset());
    }

    private static ObjectNode json(ProducerStateEntry entry) {
        OptionalLong first = entry.currentTxnFirstOffset();
        ObjectNode node = JSON.createObjectNode().put("producerId", entry.producerId()).put("producerEpoch", entry.producerEpoch())
            .put("coordinatorEpoch", entry.coordinatorEpoch()).put("lastTimestamp", entry.lastTimestamp())
            .put("currentTxnFirstOffset", first.isPresent() ? first.getAsLong() : null)
            .put("lastSequence", entry.lastSeq()).put("lastOffset", entry.lastDataOffset());
        ArrayNode batches = node.putArray("batches");
        for (BatchMetadata batch : entry.batchMetadata()) {
            batches.addObject().put("firstSequence", batch.firstSeq()).put("lastSequence", batch.lastSeq)
                .put("firstOffset", batch.firstOffset()).put("lastOffset", batch.lastOffset)
                .put("timestamp", batch.timestamp);
        }
        return node;
    }

    private static TopicPartition partition(String path) throws IOException {
        return UnifiedLog.parseTopicPartitionName(new File(path));
    }

    private static void remove(Path folder) throws IOException {
        try (Stream<Path> files = Files.list(folder)) {
            for (Path file : (Iterable<Path>) files::iterator) {
                Files.delete(file);
            }
        }
        Files.delete(folder);
    }
}
