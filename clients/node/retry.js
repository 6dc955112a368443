// Retries a call until its outcome is known, exactly as the errors of the gateway require.

import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { status as codes } from '@grpc/grpc-js';
import protobuf from 'protobufjs';

// The timeout of one attempt. Without it, a call on a dead connection waits without limit.
export const DEADLINE_MS = 10_000;
// The timeout of all attempts of one call together.
export const TOTAL_TIMEOUT_MS = 90_000;
// The backoff, if an error has no delay.
const FIRST_DELAY_MS = 100;
const MAX_DELAY_MS = 5_000;
// The gateway's reasons that mean: certainly not done. These calls can be retried even if they must not be done twice.
const TRY_AGAIN = ['NOT_SENT', 'DATABASE_UNAVAILABLE', 'KAFKA_UNAVAILABLE'];

const root = protobuf.loadSync(fileURLToPath(new URL('error_details.proto', import.meta.url)));
const [Status, ErrorInfo, RetryInfo] = ['Status', 'ErrorInfo', 'RetryInfo'].map((name) => root.lookupType(`google.rpc.${name}`));

// The reasons that mean: the message was accepted, whatever earlier attempts reported.
const ACCEPTED = ['NOT_STORED_YET', 'DEAD_LETTERED'];

/**
 * The call failed, and a retry cannot change that, or the total timeout has passed.
 *
 * `unknown`: the outcome is unknown, because one of the attempts may have been done. The last error alone does not say that.
 */
export class GaveUp extends Error {
  constructor(message, { unknown = false, cause } = {}) {
    super(unknown ? `${message}; the outcome is unknown` : message, { cause });
    this.unknown = unknown;
  }
}

/** Returns the message, or null if the bytes cannot be decoded: such details are not the gateway's. */
function decoded(type, bytes) {
  try {
    return type.decode(bytes);
  } catch {
    return null;
  }
}

/** Returns the gateway's reason, if the error has one, and the delay that it asks for in milliseconds, if it has one. */
function explain(error) {
  let reason, delay;
  const [bytes] = error.metadata?.get('grpc-status-details-bin') ?? [];
  for (const detail of (bytes && decoded(Status, bytes)?.details) ?? []) {
    if (detail.type_url.endsWith('/google.rpc.ErrorInfo')) {
      const info = decoded(ErrorInfo, detail.value);
      if (info?.domain === 'msg.v1') reason = info.reason;
    } else if (detail.type_url.endsWith('/google.rpc.RetryInfo')) {
      const { seconds = 0, nanos = 0 } = decoded(RetryInfo, detail.value)?.retryDelay ?? {};
      delay = Math.max(0, Number(seconds) * 1000 + nanos / 1e6);
    }
  }
  return { reason, delay };
}

/** The delay doubles with each attempt. A random share of it, between half and all, spreads clients that failed together. */
function backOff(repeats) {
  return (0.5 + Math.random() / 2) * Math.min(MAX_DELAY_MS, FIRST_DELAY_MS * 2 ** repeats);
}

/**
 * Calls until the gateway returns OK, or an error that a retry cannot change.
 *
 * `call` gets a deadline and returns a promise.
 * `repeatable`: a second call does no harm. This holds for a read, and for a send whose message has a client_msg_id.
 */
export async function untilCertain(call, repeatable, counts) {
  const giveUp = Date.now() + TOTAL_TIMEOUT_MS;
  let mayBeDone = false;
  for (let repeats = 0; ; repeats++) {
    try {
      return await call(Date.now() + DEADLINE_MS);
    } catch (error) {
      let { reason, delay } = explain(error);
      const name = reason ?? codes[error.code] ?? String(error);
      let again;
      if (TRY_AGAIN.includes(reason)) {
        counts.not_sent++;
        again = true;
      } else {
        // Without a reason of ours, the error comes from a proxy or the transport, and the gateway may have the message.
        const unknown = reason === 'OUTCOME_UNKNOWN' || reason === undefined;
        if (unknown) counts.unknown++;
        mayBeDone = unknown || (mayBeDone && !ACCEPTED.includes(reason));
        again = unknown && repeatable;
        delay = undefined;
      }
      delay ??= backOff(repeats);
      if (!again || Date.now() + delay > giveUp) {
        throw new GaveUp(`${name}: ${error.details}`, { unknown: mayBeDone, cause: error });
      }
      console.log(`${name}: again in ${(delay / 1000).toFixed(3)} s`);
      // A timer may fire up to a millisecond early.
      await sleep(Math.ceil(delay) + 1);
    }
  }
}
