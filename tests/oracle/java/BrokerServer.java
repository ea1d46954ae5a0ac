import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.ObjectMapper;
import java.io.BufferedReader;
import java.io.FileInputStream;
import java.io.IOException;
import java.io.InputStreamReader;
import java.io.PrintStream;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.Properties;
import kafka.server.KafkaConfig;
import kafka.server.KafkaRaftServer;
import org.apache.kafka.common.Uuid;
import org.apache.kafka.common.config.ConfigResource;
import org.apache.kafka.common.metadata.ConfigRecord;
import org.apache.kafka.common.metadata.PartitionRecord;
import org.apache.kafka.common.metadata.TopicRecord;
import org.apache.kafka.common.utils.Time;
import org.apache.kafka.metadata.LeaderConstants;
import org.apache.kafka.metadata.bootstrap.BootstrapDirectory;
import org.apache.kafka.metadata.bootstrap.BootstrapMetadata;
import org.apache.kafka.server.common.ApiMessageAndVersion;

/**
 * A broker that is started and stopped many times in one virtual machine: BrokerServer PROPERTIES CLUSTER_ID [TOPICS].
 *
 * TOPICS is a JSON file with topics that the cluster is to begin with, under ids that are given: their partitions are
 * expected in the log directory. The controller takes them from the bootstrap checkpoint, as it takes the first users.
 *
 * A request is one line: "start" (formats the folder the first time) or "stop" (a clean shutdown). The answer is a
 * line "ok" or "failed ...". The end of its input kills the broker at once, so that it does not outlive its parent.
 */
public final class BrokerServer {
    private BrokerServer() {
    }

    private static KafkaRaftServer start(Path file, String cluster, Path topics) throws Exception {
        Properties properties = new Properties();
        try (FileInputStream input = new FileInputStream(file.toFile())) {
            properties.load(input);
        }
        String metadata = properties.getProperty("metadata.log.dir", properties.getProperty("log.dirs"));
        if (!Files.exists(Path.of(metadata, "meta.properties"))) {
            List<String> format = new ArrayList<>(
                List.of("format", "--ignore-formatted", "--cluster-id", cluster, "--config", file.toString()));
            if (topics != null) {
                // with this feature the controller believes no replica of a broker that comes for the first time
                format.addAll(List.of("--feature", "eligible.leader.replicas.version=0"));
            }
            if (kafka.tools.StorageTool.execute(format.toArray(String[]::new), System.err) != 0) {
                throw new IOException("the storage tool could not format the folder");
            }
            if (topics != null) {
                begin(metadata, new ObjectMapper().readTree(topics.toFile()));
            }
        }
        KafkaRaftServer server = new KafkaRaftServer(KafkaConfig.fromProps(properties), Time.SYSTEM);
        server.startup();
        return server;
    }

    /** Let the cluster begin with topics: {name, id, directory, partitions, options}. */
    private static void begin(String metadata, JsonNode topics) throws Exception {
        BootstrapDirectory folder = new BootstrapDirectory(metadata);
        BootstrapMetadata bootstrap = folder.read();
        short version = bootstrap.metadataVersion().partitionRecordVersion();
        List<ApiMessageAndVersion> records = new ArrayList<>(bootstrap.records());
        for (JsonNode topic : topics) {
            String name = topic.get("name").asText();
            Uuid id = Uuid.fromString(topic.get("id").asText());
            records.add(new ApiMessageAndVersion(new TopicRecord().setName(name).setTopicId(id), (short) 0));
            for (int partition = 0; partition < topic.get("partitions").asInt(); partition++) {
                // without a leader: the controller elects the node when it has come
                records.add(new ApiMessageAndVersion(new PartitionRecord().setTopicId(id).setPartitionId(partition)
                    .setReplicas(List.of(1)).setIsr(List.of(1)).setLeader(LeaderConstants.NO_LEADER)
                    .setLeaderEpoch(0).setPartitionEpoch(0)
                    .setDirectories(List.of(Uuid.fromString(topic.get("directory").asText()))), version));
            }
            topic.get("options").properties().forEach(option -> records.add(new ApiMessageAndVersion(new ConfigRecord()
                .setResourceType(ConfigResource.Type.TOPIC.id()).setResourceName(name)
                .setName(option.getKey()).setValue(option.getValue().asText()), (short) 0)));
        }
        folder.writeBinaryFile(BootstrapMetadata.fromRecords(records, "the topics of a store"));
    }

    public static void main(String[] arguments) throws IOException {
        PrintStream answers = System.out;
        System.setOut(System.err);
        KafkaRaftServer server = null;
        BufferedReader requests = new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8));
        for (String line = requests.readLine(); line != null; line = requests.readLine()) {
            try {
                if (line.equals("start")) {
                    Path topics = arguments.length > 2 ? Path.of(arguments[2]) : null;
                    server = start(Path.of(arguments[0]), arguments[1], topics);
                } else {
                    server.shutdown();
                    server.awaitShutdown();
                }
                answers.println("ok");
            } catch (Throwable problem) {
                problem.printStackTrace();
                answers.println("failed " + problem);
            }
            answers.flush();
        }
        Runtime.getRuntime().halt(1);
    }
}
