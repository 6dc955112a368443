// Repeats a call until its outcome is certain: what an error of the gateway asks for, and nothing else.

import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { status as codes } from '@grpc/grpc-js';
import protobuf from 'protobufjs';

// Of each single call. Without one, a call on a dead connection waits for ever.
export const DEADLINE_MS = 10_000;
// For all repeats of one call together.
export const PATIENCE_MS = 90_000;
// The back-off, where an error does not say how long to wait.
const FIRST_DELAY_MS = 100;
const LONGEST_DELAY_MS = 5_000;
// The gateway's reasons that say: certainly not done, try again. Even what must not be done twice can be.
const TRY_AGAIN = ['NOT_SENT', 'DATABASE_UNAVAILABLE', 'KAFKA_UNAVAILABLE'];

const root = protobuf.loadSync(fileURLToPath(new URL('error_details.proto', import.meta.url)));
const [Status, ErrorInfo, RetryInfo] = ['Status', 'ErrorInfo', 'RetryInfo'].map((name) => root.lookupType(`google.rpc.${name}`));

/** The call failed for good. */
export class GaveUp extends Error {}

/** The message, or null where the bytes are none: details that cannot be decoded are not the gateway's. */
function decoded(type, bytes) {
  try {
    return type.decode(bytes);
  } catch {
    return null;
  }
}

/** The gateway's reason, undefined if somebody else made the error; and the milliseconds it asks to wait, or undefined. */
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

/** Doubles with each repeat. From half of it to all of it, so that clients that failed together spread out. */
function backOff(repeats) {
  return (0.5 + Math.random() / 2) * Math.min(LONGEST_DELAY_MS, FIRST_DELAY_MS * 2 ** repeats);
}

/**
 * Calls until the gateway says OK, or that it never will.
 *
 * `call` takes a deadline and returns a promise.
 * `repeatable`: doing it twice does no harm. A read is; a send is if the message has a client_msg_id.
 */
export async function untilCertain(call, repeatable, counts) {
  const giveUp = Date.now() + PATIENCE_MS;
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
        // Without a reason of ours, a proxy or the transport made the error, and the message may have passed it.
        const unknown = reason === 'OUTCOME_UNKNOWN' || reason === undefined;
        if (unknown) counts.unknown++;
        again = unknown && repeatable;
        delay = undefined;
      }
      delay ??= backOff(repeats);
      if (!again || Date.now() + delay > giveUp) throw new GaveUp(`${name}: ${error.details}`, { cause: error });
      console.log(`${name}: again in ${(delay / 1000).toFixed(3)} s`);
      // A timer may fire up to a millisecond early.
      await sleep(Math.ceil(delay) + 1);
    }
  }
}
