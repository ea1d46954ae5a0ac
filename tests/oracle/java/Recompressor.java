import java.io.File;
import java.io.IOException;
import java.util.ArrayList;
import java.util.List;
import org.apache.kafka.common.compress.Compression;
import org.apache.kafka.common.record.CompressionType;
import org.apache.kafka.common.record.FileRecords;
import org.apache.kafka.common.record.FileLogInputStream.FileChannelRecordBatch;
import org.apache.kafka.common.record.MemoryRecords;
import org.apache.kafka.common.record.Record;
import org.apache.kafka.common.record.RecordBatch;
import org.apache.kafka.common.record.SimpleRecord;
import org.apache.kafka.common.record.TimestampType;

/** Writes the batches of a segment anew with Kafka's own builders and codecs. */
final class Recompressor {
    private Recompressor() {}

    static void recompress(String source, String target, String codec) throws IOException {
        Compression compression = Compression.of(CompressionType.forName(codec)).build();
        try (FileRecords from = FileRecords.open(new File(source), false); FileRecords to = FileRecords.open(new File(target))) {
            for (FileChannelRecordBatch batch : from.batches()) {
                List<SimpleRecord> records = new ArrayList<>();
                for (Record record : batch) {
                    records.add(new SimpleRecord(record.timestamp(), record.key(), record.value(), record.headers()));
                }
                to.append(MemoryRecords.withRecords(RecordBatch.MAGIC_VALUE_V2, batch.baseOffset(), compression,
                    TimestampType.CREATE_TIME, records.toArray(new SimpleRecord[0])));
            }
            to.flush();
        }
    }
}
