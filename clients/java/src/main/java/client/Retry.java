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

/** Retries a call until its outcome is known, exactly as the errors of the gateway require. */
final class Retry {
  /** The timeout of one attempt. Without it, a call on a dead connection waits without limit. */
  static final long DEADLINE_SECONDS = 10;

  /** The timeout of all attempts of one call together. */
  static final long TOTAL_TIMEOUT_MS = 90_000;

  // The backoff, if an error has no delay.
  private static final long FIRST_DELAY_MS = 100;
  private static final long MAX_DELAY_MS = 5_000;

  /** The gateway's reasons that mean: certainly not done. These calls can be retried even if they must not be done twice. */
  private static final List<String> TRY_AGAIN = List.of("NOT_SENT", "DATABASE_UNAVAILABLE", "KAFKA_UNAVAILABLE");

  /** The reasons that mean: the message was accepted, whatever earlier attempts reported. */
  private static final List<String> ACCEPTED = List.of("NOT_STORED_YET", "DEAD_LETTERED");

  /** The call failed, and a retry cannot change that, or the total timeout has passed. */
  static final class GaveUp extends RuntimeException {
    /** The outcome is unknown, because one of the attempts may have been done. The last error alone does not say that. */
    final boolean unknown;

    GaveUp(String message, boolean unknown, Throwable cause) {
      super(unknown ? message + "; the outcome is unknown" : message, cause);
      this.unknown = unknown;
    }
  }

  /**
   * What an error says.
   *
   * @param reason the gateway's, or null if the error has none
   * @param delayMs the delay that the error asks for, or null
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
            long seconds = Math.min(delay.getSeconds(), TOTAL_TIMEOUT_MS);
            delayMs = Math.max(0, seconds * 1000 + (delay.getNanos() + 999_999) / 1_000_000);
          }
        } catch (InvalidProtocolBufferException unreadable) {
          // This detail is not the gateway's either.
        }
      }
      return new Explained(reason, delayMs);
    }
  }

  /** The number of retries after NOT_SENT, and after an unknown outcome. */
  int notSent;

  int unknown;

  /**
   * Calls until the gateway returns OK, or an error that a retry cannot change.
   *
   * @param repeatable a second call does no harm: a read, or a send whose message has a client_msg_id
   * @param beforeRepeat run before each retry
   */
  <T> T untilCertain(boolean repeatable, Runnable beforeRepeat, Supplier<T> call) throws InterruptedException {
    long giveUp = System.nanoTime() / 1_000_000 + TOTAL_TIMEOUT_MS;
    boolean mayBeDone = false;
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
          // Without a reason of ours, the error comes from a proxy or the transport, and the gateway may have the message.
          boolean isUnknown = reason == null || reason.equals("OUTCOME_UNKNOWN");
          unknown += isUnknown ? 1 : 0;
          mayBeDone = isUnknown || (mayBeDone && !ACCEPTED.contains(reason));
          again = isUnknown && repeatable;
        }
        if (delayMs == null) {
          delayMs = backOff(repeats);
        }
        if (!again || System.nanoTime() / 1_000_000 + delayMs > giveUp) {
          throw new GaveUp(name + ": " + error.getStatus().getDescription(), mayBeDone, error);
        }
        System.out.printf(Locale.ROOT, "%s: again in %.3f s%n", name, delayMs / 1000.0);
        Thread.sleep(delayMs);
        beforeRepeat.run();
      }
    }
  }

  /** The delay doubles with each attempt. A random share of it, between half and all, spreads clients that failed together. */
  private static long backOff(int repeats) {
    long delayMs = Math.min(MAX_DELAY_MS, FIRST_DELAY_MS << Math.min(repeats, 20));
    return ThreadLocalRandom.current().nextLong(delayMs / 2, delayMs + 1);
  }
}
