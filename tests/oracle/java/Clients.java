import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.ObjectMapper;
import com.fasterxml.jackson.databind.node.ArrayNode;
import com.fasterxml.jackson.databind.node.JsonNodeFactory;
import com.fasterxml.jackson.databind.node.ObjectNode;
import java.time.Duration;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.HexFormat;
import java.util.List;
import java.util.Map;
import java.util.Properties;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.Future;
import java.util.concurrent.TimeUnit;
import org.apache.kafka.clients.admin.Admin;
import org.apache.kafka.clients.admin.AlterConfigOp;
import org.apache.kafka.clients.admin.ConfigEntry;
import org.apache.kafka.clients.admin.ListOffsetsOptions;
import org.apache.kafka.clients.admin.ListOffsetsResult;
import org.apache.kafka.clients.admin.NewTopic;
import org.apache.kafka.clients.admin.OffsetSpec;
import org.apache.kafka.clients.admin.ProducerState;
import org.apache.kafka.clients.admin.TransactionDescription;
import org.apache.kafka.clients.admin.RecordsToDelete;
import org.apache.kafka.clients.consumer.ConsumerGroupMetadata;
import org.apache.kafka.clients.consumer.ConsumerRecord;
import org.apache.kafka.clients.consumer.KafkaConsumer;
import org.apache.kafka.clients.consumer.OffsetAndMetadata;
import org.apache.kafka.clients.producer.KafkaProducer;
import org.apache.kafka.clients.producer.ProducerRecord;
import org.apache.kafka.clients.producer.RecordMetadata;
import org.apache.kafka.common.IsolationLevel;
import org.apache.kafka.common.TopicPartition;
import org.apache.kafka.common.config.ConfigResource;
import org.apache.kafka.common.header.Header;
import org.apache.kafka.common.header.internals.RecordHeader;
import org.apache.kafka.common.serialization.ByteArrayDeserializer;
import org.apache.kafka.common.serialization.ByteArraySerializer;

/**
 * Kafka's own clients, driven step by step. A step is a JSON object with the name of what is to be "do"ne; bytes are
 * hexadecimal text, or null; a record is [timestamp, key, value, [[header, value], ...]], with its offset before it
 * when it was consumed. Producers stay open from one step to the next, under the names that they were given.
 */
final class Clients {
    private static final HexFormat HEX = HexFormat.of();
    private static final JsonNodeFactory NODES = JsonNodeFactory.instance;
    private static final Duration PATIENCE = Duration.ofSeconds(30);

    private final Map<String, KafkaProducer<byte[], byte[]>> producers = new HashMap<>();
    private final Map<String, Admin> admins = new HashMap<>();

    /** Do the steps in order; one answer for each. */
    ArrayNode run(String script) throws Exception {
        ArrayNode answers = NODES.arrayNode();
        for (JsonNode step : new ObjectMapper().readTree(script)) {
            answers.add(run(step));
        }
        return answers;
    }

    private JsonNode run(JsonNode step) throws Exception {
        return switch (text(step, "do")) {
            case "producer" -> producer(step);
            case "begin" -> {
                producers.get(text(step, "producer")).beginTransaction();
                yield NODES.nullNode();
            }
            case "send" -> send(step);
            case "commit" -> {
                producers.get(text(step, "producer")).commitTransaction();
                yield NODES.nullNode();
            }
            case "abort" -> {
                producers.get(text(step, "producer")).abortTransaction();
                yield NODES.nullNode();
            }
            case "close" -> {
                // without waiting, which would abort a transaction that is open
                producers.remove(text(step, "producer")).close(Duration.ZERO);
                yield NODES.nullNode();
            }
            case "consume" -> consume(step);
            case "create" -> create(step);
            case "configure" -> configure(step);
            case "delete_records" -> deleteRecords(step);
            case "committed" -> committed(step);
            case "commit_offsets" -> commitOffsets(step);
            case "resume" -> resume(step);
            case "transactions" -> transactions(step);
            case "delete_topic" -> {
                get(admin(step).deleteTopics(List.of(text(step, "topic"))).all());
                yield NODES.nullNode();
            }
            case "offsets" -> offsets(step);
            case "offset_for_time" -> NODES.numberNode(
                offset(step, OffsetSpec.forTimestamp(step.get("timestamp").asLong()), IsolationLevel.READ_UNCOMMITTED));
            case "producers" -> activeProducers(step);
            case "forget" -> forget(step);
            default -> throw new IllegalArgumentException("unknown step " + step);
        };
    }

    private JsonNode producer(JsonNode step) {
        Properties properties = properties(step);
        KafkaProducer<byte[], byte[]> producer =
            new KafkaProducer<>(properties, new ByteArraySerializer(), new ByteArraySerializer());
        KafkaProducer<byte[], byte[]> former = producers.put(text(step, "producer"), producer);
        if (former != null) {
            former.close(Duration.ZERO);
        }
        if (properties.containsKey("transactional.id")) {
            producer.initTransactions();
        }
        return NODES.nullNode();
    }

    /** Send records and wait until the broker has them; answers with their offsets. */
    private JsonNode send(JsonNode step) throws Exception {
        KafkaProducer<byte[], byte[]> producer = producers.get(text(step, "producer"));
        List<Future<RecordMetadata>> sent = new ArrayList<>();
        for (JsonNode record : step.get("records")) {
            List<Header> headers = new ArrayList<>();
            record.get(3).forEach(header -> headers.add(new RecordHeader(header.get(0).asText(), bytes(header.get(1)))));
            sent.add(producer.send(new ProducerRecord<>(text(step, "topic"), step.get("partition").asInt(),
                record.get(0).asLong(), bytes(record.get(1)), bytes(record.get(2)), headers)));
        }
        producer.flush();
        ArrayNode offsets = NODES.arrayNode();
        for (Future<RecordMetadata> each : sent) {
            offsets.add(get(each).offset());
        }
        return offsets;
    }

    /** Everything from an offset (or the first one there is) to the end that the isolation level allows. */
    private JsonNode consume(JsonNode step) {
        TopicPartition partition = partition(step);
        Properties properties = properties(step);
        properties.putIfAbsent("isolation.level", "read_uncommitted");
        properties.putIfAbsent("auto.offset.reset", "none");
        properties.putIfAbsent("enable.auto.commit", "false");
        properties.putIfAbsent("fetch.max.wait.ms", "10");
        ArrayNode found = NODES.arrayNode();
        try (KafkaConsumer<byte[], byte[]> consumer =
                new KafkaConsumer<>(properties, new ByteArrayDeserializer(), new ByteArrayDeserializer())) {
            List<TopicPartition> partitions = List.of(partition);
            consumer.assign(partitions);
            long end = consumer.endOffsets(partitions, PATIENCE).get(partition);
            JsonNode from = step.get("from");
            if (from == null) {
                consumer.seekToBeginning(partitions);
            } else {
                consumer.seek(partition, from.asLong());
            }
            long patience = System.nanoTime() + PATIENCE.toNanos();
            while (consumer.position(partition, PATIENCE) < end) {
                if (System.nanoTime() > patience) {
                    throw new IllegalStateException("stuck at " + consumer.position(partition) + " before " + end);
                }
                for (ConsumerRecord<byte[], byte[]> record : consumer.poll(Duration.ofMillis(100))) {
                    found.add(json(record));
                }
            }
        }
        return found;
    }

    /** What a group has committed: [topic, partition, offset, metadata] each. */
    private JsonNode committed(JsonNode step) throws Exception {
        String group = text(step, "group");
        ArrayNode found = NODES.arrayNode();
        get(admin(step).listConsumerGroupOffsets(group).partitionsToOffsetAndMetadata(group)).forEach((partition, offset) ->
            found.addArray().add(partition.topic()).add(partition.partition()).add(offset.offset()).add(offset.metadata()));
        return found;
    }

    /** Commit for a group: with the transaction of a producer, when one is named. */
    private JsonNode commitOffsets(JsonNode step) throws Exception {
        Map<TopicPartition, OffsetAndMetadata> offsets = new HashMap<>();
        step.get("offsets").forEach(each -> offsets.put(new TopicPartition(each.get(0).asText(), each.get(1).asInt()),
            new OffsetAndMetadata(each.get(2).asLong(), each.get(3).asText())));
        if (step.has("producer")) {
            producers.get(text(step, "producer"))
                .sendOffsetsToTransaction(offsets, new ConsumerGroupMetadata(text(step, "group")));
        } else {
            get(admin(step).alterConsumerGroupOffsets(text(step, "group"), offsets).all());
        }
        return NODES.nullNode();
    }

    /**
     * What a member of a group gets of a topic, from the group's offsets on to the end, and commits: [partition, record]
     * each. Where nothing is committed it begins with the first record.
     */
    private JsonNode resume(JsonNode step) {
        Properties properties = properties(step);
        properties.setProperty("group.id", text(step, "group"));
        properties.putIfAbsent("isolation.level", "read_committed");
        properties.putIfAbsent("auto.offset.reset", "earliest");
        properties.putIfAbsent("enable.auto.commit", "false");
        properties.putIfAbsent("fetch.max.wait.ms", "10");
        ArrayNode found = NODES.arrayNode();
        try (KafkaConsumer<byte[], byte[]> consumer =
                new KafkaConsumer<>(properties, new ByteArrayDeserializer(), new ByteArrayDeserializer())) {
            consumer.subscribe(List.of(text(step, "topic")));
            long patience = System.nanoTime() + PATIENCE.toNanos();
            boolean atEnd = false;
            while (!atEnd) {
                if (System.nanoTime() > patience) {
                    throw new IllegalStateException("the group does not come to the end: " + consumer.assignment());
                }
                for (ConsumerRecord<byte[], byte[]> record : consumer.poll(Duration.ofMillis(100))) {
                    found.addArray().add(record.partition()).add(json(record));
                }
                atEnd = !consumer.assignment().isEmpty();
                for (Map.Entry<TopicPartition, Long> end : consumer.endOffsets(consumer.assignment()).entrySet()) {
                    atEnd &= consumer.position(end.getKey(), PATIENCE) >= end.getValue();
                }
            }
            consumer.commitSync();
        }
        return found;
    }

    /** What the coordinator knows of transactional ids: {id: [state, producer id, epoch]}. */
    private JsonNode transactions(JsonNode step) throws Exception {
        List<String> ids = new ArrayList<>();
        step.get("ids").forEach(id -> ids.add(id.asText()));
        ObjectNode found = NODES.objectNode();
        for (Map.Entry<String, TransactionDescription> each : get(admin(step).describeTransactions(ids).all()).entrySet()) {
            TransactionDescription told = each.getValue();
            found.putArray(each.getKey()).add(told.state().toString()).add(told.producerId()).add(told.producerEpoch());
        }
        return found;
    }

    private JsonNode create(JsonNode step) throws Exception {
        Map<String, String> options = new HashMap<>();
        step.get("options").properties().forEach(option -> options.put(option.getKey(), option.getValue().asText()));
        NewTopic topic = new NewTopic(text(step, "topic"), step.get("partitions").asInt(), (short) 1).configs(options);
        get(admin(step).createTopics(List.of(topic)).all());
        return NODES.nullNode();
    }

    private JsonNode configure(JsonNode step) throws Exception {
        List<AlterConfigOp> changes = new ArrayList<>();
        step.get("options").properties().forEach(option -> changes.add(
            new AlterConfigOp(new ConfigEntry(option.getKey(), option.getValue().asText()), AlterConfigOp.OpType.SET)));
        ConfigResource topic = new ConfigResource(ConfigResource.Type.TOPIC, text(step, "topic"));
        get(admin(step).incrementalAlterConfigs(Map.of(topic, changes)).all());
        return NODES.nullNode();
    }

    private JsonNode deleteRecords(JsonNode step) throws Exception {
        RecordsToDelete before = RecordsToDelete.beforeOffset(step.get("before").asLong());
        return NODES.numberNode(
            get(admin(step).deleteRecords(Map.of(partition(step), before)).lowWatermarks().get(partition(step))).lowWatermark());
    }

    /** [first offset, last stable offset, end offset] */
    private JsonNode offsets(JsonNode step) throws Exception {
        ArrayNode found = NODES.arrayNode();
        found.add(offset(step, OffsetSpec.earliest(), IsolationLevel.READ_UNCOMMITTED));
        found.add(offset(step, OffsetSpec.latest(), IsolationLevel.READ_COMMITTED));
        found.add(offset(step, OffsetSpec.latest(), IsolationLevel.READ_UNCOMMITTED));
        return found;
    }

    private long offset(JsonNode step, OffsetSpec what, IsolationLevel isolation) throws Exception {
        ListOffsetsResult result = admin(step).listOffsets(Map.of(partition(step), what), new ListOffsetsOptions(isolation));
        return get(result.partitionResult(partition(step))).offset();
    }

    private JsonNode activeProducers(JsonNode step) throws Exception {
        ArrayNode found = NODES.arrayNode();
        List<TopicPartition> partitions = List.of(partition(step));
        for (ProducerState state : get(admin(step).describeProducers(partitions).partitionResult(partition(step))).activeProducers()) {
            ObjectNode node = found.addObject();
            node.put("producerId", state.producerId()).put("producerEpoch", state.producerEpoch());
            node.put("lastSequence", state.lastSequence()).put("lastTimestamp", state.lastTimestamp());
            node.put("coordinatorEpoch", state.coordinatorEpoch().orElse(-1));
            Long first = state.currentTransactionStartOffset().isPresent() ? state.currentTransactionStartOffset().getAsLong() : null;
            node.put("currentTxnFirstOffset", first);
        }
        return found;
    }

    /** Close everything that speaks to a broker. */
    private JsonNode forget(JsonNode step) {
        producers.values().forEach(producer -> producer.close(Duration.ZERO));
        producers.clear();
        admins.values().forEach(admin -> admin.close(Duration.ZERO));
        admins.clear();
        return NODES.nullNode();
    }

    private Admin admin(JsonNode step) {
        return admins.computeIfAbsent(text(step, "bootstrap"), address -> Admin.create(properties(step)));
    }

    private static Properties properties(JsonNode step) {
        Properties properties = new Properties();
        properties.setProperty("bootstrap.servers", text(step, "bootstrap"));
        // after a restart of the broker nobody waits long before looking again
        properties.setProperty("reconnect.backoff.ms", "20");
        properties.setProperty("reconnect.backoff.max.ms", "100");
        properties.setProperty("retry.backoff.ms", "20");
        properties.setProperty("retry.backoff.max.ms", "100");
        properties.setProperty("enable.metrics.push", "false");
        JsonNode more = step.get("config");
        if (more != null) {
            more.properties().forEach(option -> properties.setProperty(option.getKey(), option.getValue().asText()));
        }
        return properties;
    }

    private static ArrayNode json(ConsumerRecord<byte[], byte[]> record) {
        ArrayNode node = NODES.arrayNode().add(record.offset()).add(record.timestamp());
        node.add(hex(record.key())).add(hex(record.value()));
        ArrayNode headers = node.addArray();
        for (Header header : record.headers()) {
            headers.addArray().add(header.key()).add(hex(header.value()));
        }
        return node;
    }

    private static TopicPartition partition(JsonNode step) {
        return new TopicPartition(text(step, "topic"), step.get("partition").asInt());
    }

    private static String text(JsonNode step, String name) {
        return step.get(name).asText();
    }

    private static String hex(byte[] content) {
        return content == null ? null : HEX.formatHex(content);
    }

    private static byte[] bytes(JsonNode hex) {
        return hex.isNull() ? null : HEX.parseHex(hex.asText());
    }

    private static <T> T get(Future<T> future) throws Exception {
        try {
            return future.get(PATIENCE.toSeconds(), TimeUnit.SECONDS);
        } catch (ExecutionException problem) {
            throw problem.getCause() instanceof Exception cause ? cause : problem;
        }
    }
}
