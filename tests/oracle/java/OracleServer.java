import java.io.BufferedReader;
import java.io.ByteArrayOutputStream;
import java.io.File;
import java.io.IOException;
import java.io.InputStreamReader;
import java.io.OutputStream;
import java.io.PrintStream;
import java.io.StringWriter;
import java.nio.ByteBuffer;
import java.nio.charset.StandardCharsets;
import java.util.Arrays;
import java.util.HexFormat;
import org.apache.kafka.common.header.Header;
import org.apache.kafka.common.record.FileRecords;
import org.apache.kafka.common.record.FileLogInputStream.FileChannelRecordBatch;
import org.apache.kafka.common.record.Record;

/**
 * Runs Kafka's code on request, many times in one virtual machine.
 *
 * A request is one line: a command and its arguments, separated by tabs.
 *   dump ARGUMENTS...   kafka.tools.DumpLogSegments with these arguments
 *   records FILE...     every record of the segment files, read by Kafka's FileRecords, all bytes in hexadecimal
 *   recompress FROM TO CODEC   the batches of a segment file, written anew by Kafka's builders
 * The answer is a line "OUTPUT_BYTES ERROR_BYTES", followed by these bytes.
 */
public final class OracleServer {
    /** A stream whose target changes: Scala's println keeps the System.out it first met. */
    private static final class Switch extends OutputStream {
        ByteArrayOutputStream target = new ByteArrayOutputStream();

        @Override
        public void write(int octet) {
            target.write(octet);
        }

        @Override
        public void write(byte[] bytes, int from, int count) {
            target.write(bytes, from, count);
        }
    }

    private static String hex(ByteBuffer bytes) {
        if (bytes == null) {
            return "-";
        }
        byte[] copy = new byte[bytes.remaining()];
        bytes.duplicate().get(copy);
        return "x" + HexFormat.of().formatHex(copy);
    }

    private static void records(String path) throws IOException {
        StringBuilder lines = new StringBuilder("file\t" + path + "\n");
        try (FileRecords file = FileRecords.open(new File(path), false)) {
            long position = 0;
            for (FileChannelRecordBatch batch : file.batches()) {
                batch.ensureValid();
                position += batch.sizeInBytes();
                lines.append("batch\t" + batch.baseOffset() + "\t" + batch.lastOffset() + "\t" + batch.maxTimestamp()
                    + "\t" + batch.timestampType() + "\t" + batch.isControlBatch() + "\n");
                for (Record record : batch) {
                    record.ensureValid();
                    lines.append("record\t" + record.offset() + "\t" + record.timestamp() + "\t" + hex(record.key())
                        + "\t" + hex(record.value()));
                    for (Header header : record.headers()) {
                        byte[] value = header.value();
                        lines.append("\t" + hex(ByteBuffer.wrap(header.key().getBytes(StandardCharsets.UTF_8)))
                            + "=" + hex(value == null ? null : ByteBuffer.wrap(value)));
                    }
                    lines.append('\n');
                }
            }
            lines.append("end\t" + (file.sizeInBytes() - position) + "\n");
        }
        System.out.print(lines);
    }

    private static void run(String[] words) throws IOException {
        String[] arguments = Arrays.copyOfRange(words, 1, words.length);
        switch (words[0]) {
            case "dump" -> kafka.tools.DumpLogSegments.main(arguments);
            case "records" -> {
                for (String path : arguments) {
                    records(path);
                }
            }
            case "recompress" -> Recompressor.recompress(words[1], words[2], words[3]);
            default -> System.err.println("unknown command " + words[0]);
        }
    }

    public static void main(String[] unused) throws IOException {
        PrintStream answers = System.out;
        Switch output = new Switch();
        Switch errors = new Switch();
        System.setOut(new PrintStream(output, true, StandardCharsets.UTF_8));
        System.setErr(new PrintStream(errors, true, StandardCharsets.UTF_8));
        BufferedReader requests = new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8));
        for (String line = requests.readLine(); line != null; line = requests.readLine()) {
            output.target = new ByteArrayOutputStream();
            errors.target = new ByteArrayOutputStream();
            try {
                run(line.split("\t"));
            } catch (Throwable problem) {
                StringWriter trace = new StringWriter();
                problem.printStackTrace(new java.io.PrintWriter(trace));
                System.err.println("EXCEPTION " + trace);
            }
            System.out.flush();
            System.err.flush();
            answers.println(output.target.size() + " " + errors.target.size());
            answers.write(output.target.toByteArray());
            answers.write(errors.target.toByteArray());
            answers.flush();
        }
    }
}
