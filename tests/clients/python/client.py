"""A client in another language: sends messages, each until its outcome is certain, and pulls them back.

The code is generated from proto/ at every start, as a user of the contract would generate it once. Only msg/v1/msg.proto is
generated. google/rpc/*.proto in proto/ are copies of public definitions, there for the services' own build; in Python the same
definitions come with googleapis-common-protos. A process can register each protobuf type only once, so code generated from the
copies must not be loaded beside that package. The generated msg_pb2 imports `google.rpc.status_pb2`, and finds the package's.

Prints a line for each event as it happens, and a JSON object with the totals as the last line.
"""

import argparse
import importlib
import json
import pathlib
import sys
import tempfile
import time

import grpc
import grpc_tools
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from grpc_tools import protoc

# Longer than any fault of a test lasts; past it the run fails.
PATIENCE_SECONDS = 90
# Where an error says nothing about when to try again.
DEFAULT_DELAY_SECONDS = 0.2


def generate(proto: pathlib.Path, out: str):
    """Generates the contract's code and loads it."""
    well_known = pathlib.Path(grpc_tools.__file__).parent / "_proto"
    args = ["protoc", f"-I{proto}", f"-I{well_known}", f"--python_out={out}", f"--grpc_python_out={out}"]
    if protoc.main([*args, "msg/v1/msg.proto"]) != 0:
        sys.exit("protoc failed")
    sys.path.insert(0, out)
    return importlib.import_module("msg.v1.msg_pb2"), importlib.import_module("msg.v1.msg_pb2_grpc")


def explain(error: grpc.RpcError):
    """The gateway's reason, if it is the gateway's error, and how long it asks to wait."""
    reason, delay = None, DEFAULT_DELAY_SECONDS
    status = rpc_status.from_call(error)
    for detail in status.details if status else ():
        info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
        if detail.Unpack(info) and info.domain == "msg.v1":
            reason = info.reason
        elif detail.Unpack(retry):
            delay = retry.retry_delay.ToTimedelta().total_seconds()
    return reason, delay


def send_until_certain(stub, request, counts):
    """Sends one message until Kafka has it. The same client_msg_id each time makes repeats harmless."""
    give_up = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            return stub.SendMsg(request, timeout=5).placement
        except grpc.RpcError as error:
            reason, delay = explain(error)
            if time.monotonic() > give_up:
                raise
            if reason == "NOT_SENT":
                counts["not_sent"] += 1
            elif reason in ("OUTCOME_UNKNOWN", None):
                # Without a reason somebody on the way made the error: unknown too.
                counts["unknown"] += 1
            else:
                raise
            print(f"{reason or error.code().name}: again in {delay:.3f} s", flush=True)
            time.sleep(delay)


def pull_all(stub, pb, recv_id):
    """The whole inbox, page by page."""
    request = pb.PullMsgsRequest(recv_id=recv_id, page_size=30)
    while True:
        page = stub.PullMsgs(request, timeout=10)
        yield from page.msgs
        if not page.next_page_token:
            return
        request.page_token = page.next_page_token


def wait_for_inbox(stub, pb, recv_id, count):
    """Waits until so many messages are stored: an OK says that Kafka has one, not that it can be read yet."""
    give_up = time.monotonic() + PATIENCE_SECONDS
    while stub.GetMaxSeqs(pb.GetMaxSeqsRequest(recv_ids=[recv_id]), timeout=10).inboxes[0].max_seq < count:
        if time.monotonic() > give_up:
            sys.exit(f"{recv_id} does not reach {count}")
        time.sleep(0.05)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--address", required=True)
    parser.add_argument("--proto", type=pathlib.Path, required=True, help="the folder proto/ of the contract")
    parser.add_argument("--send-id", default="alice")
    parser.add_argument("--recv-id", default="bob")
    parser.add_argument("--count", type=int, default=100)
    args = parser.parse_args()

    with tempfile.TemporaryDirectory() as out, grpc.insecure_channel(args.address) as channel:
        pb, pb_grpc = generate(args.proto, out)
        stub = pb_grpc.MsgGatewayStub(channel)
        counts = {"not_sent": 0, "unknown": 0}
        sent = []
        for i in range(args.count):
            msg = pb.Msg(
                recv_id=args.recv_id,
                send_id=args.send_id,
                client_msg_id=f"python-{i}",
                session_type=pb.SESSION_TYPE_SINGLE,
                content_type="text/plain; charset=utf-8",
                content=f"Grüße {i} 👋".encode(),
                attributes={"lang": "de"},
            )
            placement = send_until_certain(stub, pb.SendMsgRequest(msg=msg), counts)
            sent.append((placement.msg_id, msg))
            print(f"sent {len(sent)}", flush=True)
        wait_for_inbox(stub, pb, args.recv_id, args.count)
        pulled = list(pull_all(stub, pb, args.recv_id))
        print(
            json.dumps(
                {
                    "sent": len(sent),
                    "pulled": len(pulled),
                    "same": [(stored.msg_id, stored.msg) for stored in pulled] == sent,
                    "seq_from_1": [stored.seq for stored in pulled] == list(range(1, len(pulled) + 1)),
                    **counts,
                }
            )
        )


if __name__ == "__main__":
    main()
