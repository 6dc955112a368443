"""Repeats a call until its outcome is certain: what an error of the gateway asks for, and nothing else."""

import random
import time

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2
from grpc_status import rpc_status

# Of each single call. Without one, a call on a dead connection waits for ever.
DEADLINE_SECONDS = 10
# For all repeats of one call together.
PATIENCE_SECONDS = 90
# The back-off, where an error does not say how long to wait.
FIRST_DELAY_SECONDS = 0.1
LONGEST_DELAY_SECONDS = 5
# The gateway's reasons that say: certainly not done, try again. Even what must not be done twice can be.
TRY_AGAIN = ("NOT_SENT", "DATABASE_UNAVAILABLE", "KAFKA_UNAVAILABLE")


class GaveUp(Exception):
    """The call failed for good."""


def explain(error: grpc.RpcError):
    """The gateway's reason, None if somebody else made the error; and the seconds it asks to wait, or None.

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
    """Doubles with each repeat. From half of it to all of it, so that clients that failed together spread out."""
    return random.uniform(0.5, 1) * min(LONGEST_DELAY_SECONDS, FIRST_DELAY_SECONDS * 2**repeats)


def until_certain(call, request, repeatable: bool, counts: dict):
    """Calls until the gateway says OK, or that it never will.

    `repeatable`: doing it twice does no harm. A read is; a send is if the message has a client_msg_id.
    """
    give_up = time.monotonic() + PATIENCE_SECONDS
    repeats = 0
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
                # Without a reason of ours, a proxy or the transport made the error, and the message may have passed it.
                unknown = reason in ("OUTCOME_UNKNOWN", None)
                counts["unknown"] += unknown
                again, delay = unknown and repeatable, None
            if delay is None:
                delay = back_off(repeats)
            if not again or time.monotonic() + delay > give_up:
                raise GaveUp(f"{name}: {error.details()}") from error
            print(f"{name}: again in {delay:.3f} s", flush=True)
            time.sleep(delay)
            repeats += 1
