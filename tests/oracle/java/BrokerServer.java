import java.io.BufferedReader;
import java.io.FileInputStream;
import java.io.IOException;
import java.io.InputStreamReader;
import java.io.PrintStream;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Properties;
import kafka.server.KafkaConfig;
import kafka.server.KafkaRaftServer;
import org.apache.kafka.common.utils.Time;

/**
 * A broker that is started and stopped many times in one virtual machine: BrokerServer PROPERTIES CLUSTER_ID.
 *
 * A request is one line: "start" (formats the folder the first time) or "stop" (a clean shutdown). The answer is a
 * line "ok" or "failed ...". The end of its input kills the broker at once, so that it does not outlive its parent.
 */
public final class BrokerServer {
    private BrokerServer() {
    }

    private static KafkaRaftServer start(Path file, String cluster) throws IOException {
        Properties properties = new Properties();
        try (FileInputStream input = new FileInputStream(file.toFile())) {
            properties.load(input);
        }
        if (!Files.exists(Path.of(properties.getProperty("log.dirs"), "meta.properties"))) {
            String[] format = {"format", "--cluster-id", cluster, "--config", file.toString()};
            if (kafka.tools.StorageTool.execute(format, System.err) != 0) {
                throw new IOException("the storage tool could not format the folder");
            }
        }
        KafkaRaftServer server = new KafkaRaftServer(KafkaConfig.fromProps(properties), Time.SYSTEM);
        server.startup();
        return server;
    }

    public static void main(String[] arguments) throws IOException {
        PrintStream answers = System.out;
        System.setOut(System.err);
        KafkaRaftServer server = null;
        BufferedReader requests = new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8));
        for (String line = requests.readLine(); line != null; line = requests.readLine()) {
            try {
                if (line.equals("start")) {
                    server = start(Path.of(arguments[0]), arguments[1]);
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
