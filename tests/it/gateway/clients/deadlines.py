"""The outcomes that a Python caller, whose gRPC is the C core, gets at its deadlines. Prints them as JSON.

    deadlines.py unary ADDRESS TIMEOUT...   makes 8 calls per timeout, SendMsg and BatchSendMsg, while Kafka is frozen
    deadlines.py stream ADDRESS TIMEOUT     opens a stream whose reader pauses for 40 ms after each response
"""

import json
import pathlib
import sys
import tempfile
import threading
import time

import grpc

sys.path.insert(0, ".")
from client import generate  # noqa: E402
from retry import explain  # noqa: E402

CALLS = 8
PAUSE_SECONDS = 0.04


def message(pb, recv_id, client_msg_id):
    return pb.Msg(
        recv_id=recv_id,
        send_id="alice",
        client_msg_id=client_msg_id,
        session_type=pb.SESSION_TYPE_SINGLE,
        content_type="text/plain",
        content=b"x",
    )


def unary(pb, stub, timeouts):
    outcomes = []

    def call(timeout, number):
        msg = message(pb, f"inbox-{number}", f"{timeout}-{number}")
        try:
            if number % 2:
                results = stub.BatchSendMsg(pb.BatchSendMsgRequest(msgs=[msg]), timeout=timeout).results
                outcomes.append((timeout, "ENTRY" if results[0].HasField("error") else "OK"))
            else:
                stub.SendMsg(pb.SendMsgRequest(msg=msg), timeout=timeout)
                outcomes.append((timeout, "OK"))
        except grpc.RpcError as error:
            outcomes.append((timeout, explain(error)[0] or "BARE"))

    threads = [threading.Thread(target=call, args=(float(t), n)) for t in timeouts for n in range(CALLS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return outcomes


def stream(pb, stub, timeout):
    sent, results = [], []

    def requests():
        for number in range(10_000):
            entry = pb.StreamSendEntry(correlation_id=number, msg=message(pb, f"inbox-{number % 4}", str(number)))
            sent.append(number)
            yield pb.StreamSendMsgRequest(entries=[entry])
            time.sleep(0.005)

    try:
        for response in stub.StreamSendMsg(requests(), timeout=float(timeout)):
            results += [result.correlation_id for result in response.results]
            time.sleep(PAUSE_SECONDS)
        reason = "OK"
    except grpc.RpcError as error:
        reason = explain(error)[0] or "BARE"
    return {"reason": reason, "sent": len(sent), "results": len(results)}


def main():
    mode, address, *timeouts = sys.argv[1:]
    with tempfile.TemporaryDirectory() as out, grpc.insecure_channel(address) as channel:
        pb, pb_grpc = generate(pathlib.Path("proto"), out)
        grpc.channel_ready_future(channel).result(timeout=30)
        stub = pb_grpc.MsgGatewayStub(channel)
        print(json.dumps(unary(pb, stub, timeouts) if mode == "unary" else stream(pb, stub, *timeouts)))


main()
