package client;

import com.google.protobuf.Any;
import com.google.protobuf.Duration;
import com.google.protobuf.InvalidProtocolBufferException;
import com.google.rpc.ErrorInfo;
import com.google.rpc.RetryInfo;
import com.google.rpc.Status;
import io.grpc.StatusRuntimeException;
import io.grpc.protobuf.StatusProto;
import java.util.List;
import java.util.Locale;
import java.util.concurrent.ThreadLocalRandom;
import java.util.function.Supplier;

/** Repeats a call until its outcome is certain: what an error of the gateway asks for, and nothing else. */
final class Retry {
  /** Of each single call, in seconds. Without one, a call on a dead connection waits for ever. */
  static final long DEADLINE_SECONDS = 10;

  /** For all repeats of one call together. */
  static final long PATIENCE_MS = 90_000;

  // The back-off, where an error does not say how long to wait.
  private static final long FIRST_DELAY_MS = 100;
  private static final long LONGEST_DELAY_MS = 5_000;

  /** The gateway's reasons that say: certainly not done, try again. Even what must not be done twice can be. */
  private static final List<String> TRY_AGAIN = List.of("NOT_SENT", "DATABASE_UNAVAILABLE", "KAFKA_UNAVAILABLE");

  /** The call failed for good. */
  static final class GaveUp extends RuntimeException {
    GaveUp(String message, Throwable cause) {
      super(message, cause);
    }
  }

  /**
   * What an error says.
   *
   * @param reason the gateway's, or null if somebody else made the error
   * @param delayMs how long it asks to wait, or null
   */
  private record Explained(String reason, Long delayMs) {
    static Explained of(StatusRuntimeException error) {
      String reason = null;
      Long delayMs = null;
      Status status;
      try {
        status = StatusProto.fromThrowable(error);
      } catch (IllegalArgumentException unreadable) {
        // Details that cannot be decoded are not the gateway's: the outcome is unknown.
        return new Explained(null, null);
      }
      for (Any detail : status == null ? List.<Any>of() : status.getDetailsList()) {
        try {
          if (detail.is(ErrorInfo.class)) {
            ErrorInfo info = detail.unpack(ErrorInfo.class);
            if (info.getDomain().equals("msg.v1")) {
              reason = info.getReason();
            }
          } else if (detail.is(RetryInfo.class)) {
            Duration delay = detail.unpack(RetryInfo.class).getRetryDelay();
            long seconds = Math.min(delay.getSeconds(), PATIENCE_MS);
            delayMs = Math.max(0, seconds * 1000 + (delay.getNanos() + 999_999) / 1_000_000);
          }
        } catch (InvalidProtocolBufferException unreadable) {
          // Nor is this one.
        }
      }
      return new Explained(reason, delayMs);
    }
  }

  /** How often calls were repeated after NOT_SENT, and after an unknown outcome. */
  int notSent;

  int unknown;

  /**
   * Calls until the gateway says OK, or that it never will.
   *
   * @param repeatable doing it twice does no harm: a read is, a send is if the message has a client_msg_id
   * @param beforeRepeat run before each repeat
   */
  <T> T untilCertain(boolean repeatable, Runnable beforeRepeat, Supplier<T> call) throws InterruptedException {
    long giveUp = System.nanoTime() / 1_000_000 + PATIENCE_MS;
    for (int repeats = 0; ; repeats++) {
      try {
        return call.get();
      } catch (StatusRuntimeException error) {
        Explained explained = Explained.of(error);
        String reason = explained.reason();
        String name = reason != null ? reason : error.getStatus().getCode().name();
        boolean again;
        Long delayMs = null;
        if (reason != null && TRY_AGAIN.contains(reason)) {
          notSent++;
          again = true;
          delayMs = explained.delayMs();
        } else {
          // Without a reason of ours, a proxy or the transport made the error, and the message may have passed it.
          boolean isUnknown = reason == null || reason.equals("OUTCOME_UNKNOWN");
          unknown += isUnknown ? 1 : 0;
          again = isUnknown && repeatable;
        }
        if (delayMs == null) {
          delayMs = backOff(repeats);
        }
        if (!again || System.nanoTime() / 1_000_000 + delayMs > giveUp) {
          throw new GaveUp(name + ": " + error.getStatus().getDescription(), error);
        }
        System.out.printf(Locale.ROOT, "%s: again in %.3f s%n", name, delayMs / 1000.0);
        Thread.sleep(delayMs);
        beforeRepeat.run();
      }
    }
  }

  /** Doubles with each repeat. From half of it to all of it, so that clients that failed together spread out. */
  private static long backOff(int repeats) {
    long delayMs = Math.min(LONGEST_DELAY_MS, FIRST_DELAY_MS << Math.min(repeats, 20));
    return ThreadLocalRandom.current().nextLong(delayMs / 2, delayMs + 1);
  }
}
