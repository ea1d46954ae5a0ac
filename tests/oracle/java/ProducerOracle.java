import java.io.File;
import java.io.IOException;
import java.util.Optional;
import org.apache.kafka.common.TopicPartition;
import org.apache.kafka.common.errors.ApiException;
import org.apache.kafka.common.protocol.Errors;
import org.apache.kafka.common.record.FileLogInputStream.FileChannelRecordBatch;
import org.apache.kafka.common.record.FileRecords;
import org.apache.kafka.common.record.RecordBatch;
import org.apache.kafka.common.utils.Time;
import org.apache.kafka.storage.internals.log.AbortedTxn;
import org.apache.kafka.storage.internals.log.AppendOrigin;
import org.apache.kafka.storage.internals.log.BatchMetadata;
import org.apache.kafka.storage.internals.log.CompletedTxn;
import org.apache.kafka.storage.internals.log.ProducerAppendInfo;
import org.apache.kafka.storage.internals.log.ProducerStateManager;
import org.apache.kafka.storage.internals.log.ProducerStateManagerConfig;
import org.apache.kafka.storage.internals.log.TransactionIndex;

/** What Kafka's own producer state says of batches that come one after the other, as a leader asks it. */
final class ProducerOracle {
    private ProducerOracle() {
    }

    /**
     * Offers each batch of a file to a fresh, or restored, ProducerStateManager of the folder and prints one line for it:
     * "ok FIRST_UNSTABLE_OFFSET", "duplicate OFFSET" or "refused CODE". Then the folder has a snapshot, and a txnindex.
     */
    static void run(String batches, String folder, long logStartOffset, long logEndOffset) throws IOException {
        ProducerStateManagerConfig config = new ProducerStateManagerConfig(Integer.MAX_VALUE, false);
        TopicPartition partition = new TopicPartition("events", 0);
        ProducerStateManager states =
            new ProducerStateManager(partition, new File(folder), 60_000, config, Time.SYSTEM);
        states.truncateAndReload(logStartOffset, logEndOffset, 0);
        TransactionIndex index = new TransactionIndex(0, new File(folder, "00000000000000000000.txnindex"));
        StringBuilder lines = new StringBuilder();
        try (FileRecords file = FileRecords.open(new File(batches), false)) {
            for (FileChannelRecordBatch batch : file.batches()) {
                lines.append(offer(states, index, batch)).append('\n');
            }
        }
        states.takeSnapshot();
        index.close();
        System.out.print(lines);
    }

    private static String offer(ProducerStateManager states, TransactionIndex index, RecordBatch batch) throws IOException {
        if (batch.hasProducerId()) {
            AppendOrigin origin = batch.isControlBatch() ? AppendOrigin.COORDINATOR : AppendOrigin.CLIENT;
            if (!batch.isControlBatch()) {
                Optional<BatchMetadata> earlier =
                    states.lastEntry(batch.producerId()).flatMap(entry -> entry.findDuplicateBatch(batch));
                if (earlier.isPresent()) {
                    return "duplicate " + earlier.get().firstOffset();
                }
            }
            ProducerAppendInfo info = states.prepareUpdate(batch.producerId(), origin);
            Optional<CompletedTxn> completed;
            try {
                completed = info.append(batch, Optional.empty());
            } catch (ApiException refusal) {
                return "refused " + Errors.forException(refusal).code();
            }
            states.update(info);
            if (completed.isPresent()) {
                if (completed.get().isAborted) {
                    index.append(new AbortedTxn(completed.get(), states.lastStableOffset(completed.get())));
                }
                states.completeTxn(completed.get());
            }
        }
        states.updateMapEndOffset(batch.lastOffset() + 1);
        states.onHighWatermarkUpdated(batch.lastOffset() + 1);
        return "ok " + states.firstUnstableOffset().map(found -> found.messageOffset).orElse(-1L);
    }
}
