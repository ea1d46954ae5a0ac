import java.util.function.Supplier;
import org.apache.kafka.common.utils.Time;

/** A clock that stands at a chosen moment, so that nothing expires by itself. */
final class StoppedClock implements Time {
    private final long moment;

    StoppedClock(long moment) {
        this.moment = moment;
    }

    @Override
    public long milliseconds() {
        return moment;
    }

    @Override
    public long nanoseconds() {
        return System.nanoTime();
    }

    @Override
    public void sleep(long ms) {
        Time.SYSTEM.sleep(ms);
    }

    @Override
    public void waitObject(Object object, Supplier<Boolean> condition, long deadlineMs) throws InterruptedException {
        Time.SYSTEM.waitObject(object, condition, deadlineMs);
    }
}
