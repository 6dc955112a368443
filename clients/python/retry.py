"""Retries a call until its outcome is known, exactly as the errors of the gateway require."""

import random
import time

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2
from grpc_status import rpc_status

# The timeout of one attempt. Without it, a call on a dead connection waits without limit.
DEADLINE_SECONDS = 10
# The timeout of all attempts of one call together.
TOTAL_TIMEOUT_SECONDS = 90
# The backoff, if an error has no delay.
FIRST_DELAY_SECONDS = 0.1
MAX_DELAY_SECONDS = 5
# The gateway's reasons that mean: certainly not done. These calls can be retried even if they must not be done twice.
TRY_AGAIN = ("NOT_SENT", "DATABASE_UNAVAILABLE", "KAFKA_UNAVAILABLE")


# The reasons that mean: the message was accepted, whatever earlier attempts reported.
ACCEPTED = ("NOT_STORED_YET", "DEAD_LETTERED")


class GaveUp(Exception):
    """The call failed, and a retry cannot change that, or the total timeout has passed.

    `unknown`: the outcome is unknown, because one of the attempts may have been done. The last error alone does not say that.
    """

    def __init__(self, message: str, unknown: bool = False):
        super().__init__(message + ("; the outcome is unknown" if unknown else ""))
        self.unknown = unknown


def explain(error: grpc.RpcError):
    """Returns the gateway's reason, or None if the error has none; and the delay that it asks for in seconds, or None.

    Details that cannot be decoded are not the gateway's: the outcome is unknown.
    """
    reason, delay = None, None
    try:
        status = rpc_status.from_call(error)
    except (DecodeError, ValueError):
        return None, None
    for detail in status.details if status else ():
        info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
        try:
            if detail.Unpack(info) and info.domain == "msg.v1":
                reason = info.reason
            elif detail.Unpack(retry):
                delay = max(0.0, retry.retry_delay.seconds + retry.retry_delay.nanos / 1e9)
        except DecodeError:
            continue
    return reason, delay


def back_off(repeats: int) -> float:
    """The delay doubles with each attempt. A random share of it, between half and all, spreads clients that failed together."""
    return random.uniform(0.5, 1) * min(MAX_DELAY_SECONDS, FIRST_DELAY_SECONDS * 2**repeats)


def until_certain(call, request, repeatable: bool, counts: dict):
    """Calls until the gateway returns OK, or an error that a retry cannot change.

    `repeatable`: a second call does no harm. This holds for a read, and for a send whose message has a client_msg_id.
    """
    give_up = time.monotonic() + TOTAL_TIMEOUT_SECONDS
    repeats, may_be_done = 0, False
    while True:
        try:
            return call(request, timeout=DEADLINE_SECONDS)
        except grpc.RpcError as error:
            reason, delay = explain(error)
            name = reason or getattr(error.code(), "name", "UNKNOWN")
            if reason in TRY_AGAIN:
                counts["not_sent"] += 1
                again = True
            else:
                # Without a reason of ours, the error comes from a proxy or the transport, and the gateway may have the message.
                unknown = reason in ("OUTCOME_UNKNOWN", None)
                counts["unknown"] += unknown
                may_be_done = unknown or (may_be_done and reason not in ACCEPTED)
                again, delay = unknown and repeatable, None
            if delay is None:
                delay = back_off(repeats)
            if not again or time.monotonic() + delay > give_up:
                raise GaveUp(f"{name}: {error.details()}", unknown=may_be_done) from error
            print(f"{name}: again in {delay:.3f} s", flush=True)
            time.sleep(delay)
            repeats += 1
