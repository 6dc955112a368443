"""Sends messages, retries each until its outcome is known, and reads them back.

This program generates the code from proto/ at every start; a program of yours would generate it once. Generate only
msg/v1/msg.proto. google/rpc/status.proto in proto/ is a copy of a public definition, for the services' own build; in
Python, googleapis-common-protos has the same definition. A process can register each protobuf type only once, so do not
load code generated from the copy together with that package. The generated msg_pb2 imports `google.rpc.status_pb2`, and
finds the package's.

Prints one line per event, and a JSON object with the totals as the last line.
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
from grpc_tools import protoc

from retry import DEADLINE_SECONDS, TOTAL_TIMEOUT_SECONDS, GaveUp, until_certain

CHANNEL_OPTIONS = [
    # Detects a dead connection, also while there are no calls.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    # Reconnects within seconds of a gateway's restart. By default the waits between attempts grow to two minutes.
    ("grpc.max_reconnect_backoff_ms", 5_000),
]


def generate(proto: pathlib.Path, out: str):
    """Generates the contract's code and loads it."""
    well_known = pathlib.Path(grpc_tools.__file__).parent / "_proto"
    args = ["protoc", f"-I{proto}", f"-I{well_known}", f"--python_out={out}", f"--grpc_python_out={out}"]
    if protoc.main([*args, "msg/v1/msg.proto"]) != 0:
        sys.exit("protoc failed")
    sys.path.insert(0, out)
    return importlib.import_module("msg.v1.msg_pb2"), importlib.import_module("msg.v1.msg_pb2_grpc")


class Client:
    """Makes the calls and retries them as their errors require. With a service config, gRPC retries them instead."""

    def __init__(self, pb, stub, own_loop: bool):
        self.pb, self.stub, self.own_loop = pb, stub, own_loop
        self.counts = {"not_sent": 0, "unknown": 0}

    def _call(self, method, request, repeatable):
        if self.own_loop:
            return until_certain(method, request, repeatable, self.counts)
        return method(request, timeout=DEADLINE_SECONDS)

    def send(self, msg):
        """Returns when every in-sync Kafka replica has the message."""
        request = self.pb.SendMsgRequest(msg=msg)
        return self._call(self.stub.SendMsg, request, repeatable=msg.client_msg_id != "").placement

    def wait_for_inbox(self, recv_id, count):
        """Waits until `count` messages are stored: OK means that Kafka has a message, not that it can be read yet."""
        give_up = time.monotonic() + TOTAL_TIMEOUT_SECONDS
        request = self.pb.GetMaxSeqsRequest(recv_ids=[recv_id])
        while self._call(self.stub.GetMaxSeqs, request, repeatable=True).inboxes[0].max_seq < count:
            if time.monotonic() > give_up:
                raise GaveUp(f"{recv_id} has fewer than {count} messages")
            time.sleep(0.05)

    def pull_all(self, recv_id):
        """The whole inbox, page by page."""
        request = self.pb.PullMsgsRequest(recv_id=recv_id, page_size=30)
        while True:
            page = self._call(self.stub.PullMsgs, request, repeatable=True)
            yield from page.msgs
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token


def run(args, client: Client):
    pb, sent = client.pb, []
    for i in range(args.count):
        msg = pb.Msg(
            recv_id=args.recv_id,
            send_id=args.send_id,
            # Created once per message and kept with it: a retry must have the same ID.
            client_msg_id="" if args.no_client_msg_id else f"msg-{i}",
            session_type=pb.SESSION_TYPE_SINGLE,
            content_type="text/plain; charset=utf-8",
            content=f"Grüße {i} 👋".encode(),
            attributes={"lang": "de"},
        )
        # Send the next message only when the outcome of this one is known: that keeps their order.
        sent.append((client.send(msg).msg_id, msg))
        print(f"sent {len(sent)}", flush=True)
    client.wait_for_inbox(args.recv_id, args.count)
    pulled = list(client.pull_all(args.recv_id))
    return {
        "sent": len(sent),
        "pulled": len(pulled),
        "same": [(stored.msg_id, stored.msg) for stored in pulled] == sent,
        "seq_from_1": [stored.seq for stored in pulled] == list(range(1, len(pulled) + 1)),
        **client.counts,
    }


class TokenFile(grpc.AuthMetadataPlugin):
    """Adds our token to each call. The file is read each time, because another program renews the token."""

    def __init__(self, path: pathlib.Path):
        self.path = path

    def __call__(self, context, callback):
        try:
            callback((("authorization", f"Bearer {self.path.read_text().strip()}"),), None)
        except OSError as error:
            callback((), error)


def open_channel(args, options):
    """Plain text, or TLS if the CA of the gateway is given; with a certificate or token of our own if the gateway needs one."""
    if args.tls_ca is None:
        if args.token_file:
            sys.exit("a token is sent over TLS only: give --tls-ca")
        return grpc.insecure_channel(args.address, options)
    own = [file.read_bytes() if file else None for file in (args.tls_key, args.tls_cert)]
    credentials = grpc.ssl_channel_credentials(args.tls_ca.read_bytes(), *own)
    if args.token_file:
        token = grpc.metadata_call_credentials(TokenFile(args.token_file))
        credentials = grpc.composite_channel_credentials(credentials, token)
    return grpc.secure_channel(args.address, credentials, options)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--address", default="127.0.0.1:50051")
    parser.add_argument("--proto", type=pathlib.Path, default="proto", help="the folder proto/ of the contract")
    parser.add_argument("--send-id", default="alice")
    parser.add_argument("--recv-id", default="bob", help="an inbox with no other sender")
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--no-client-msg-id", action="store_true", help="fail if a retry could store a second message")
    parser.add_argument("--service-config", type=pathlib.Path, help="let gRPC retry instead of the loop, with this service config")
    parser.add_argument("--tls-ca", type=pathlib.Path, help="connect over TLS, and verify the gateway with these CAs")
    parser.add_argument("--tls-cert", type=pathlib.Path, help="our own certificate")
    parser.add_argument("--tls-key", type=pathlib.Path, help="the key of our own certificate")
    parser.add_argument("--token-file", type=pathlib.Path, help="our own token, which is read again for each call; needs --tls-ca")
    args = parser.parse_args()

    options = list(CHANNEL_OPTIONS)
    if args.service_config:
        options.append(("grpc.service_config", args.service_config.read_text()))
    with tempfile.TemporaryDirectory() as out, open_channel(args, options) as channel:
        pb, pb_grpc = generate(args.proto, out)
        client = Client(pb, pb_grpc.MsgGatewayStub(channel), own_loop=args.service_config is None)
        try:
            totals = run(args, client)
        except GaveUp as error:
            sys.exit(f"gave up: {error}")
    print(json.dumps(totals))
    if not (totals["same"] and totals["seq_from_1"]):
        sys.exit(1)


if __name__ == "__main__":
    main()
