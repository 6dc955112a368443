"""Senders, the comparison of their responses with the stored messages, and the faults in between."""

import base64
import json
import random
import re
import threading
import time

from compose.stack import ACCEPTED_WITHIN, READY_WITHIN, REPORT, STORED_WITHIN, Failed, docker, wait_until


class Senders:
    """People who send to a few inboxes until `stopping` is set. Each sends a message again until it has its OK, and only then
    the next one. Every tenth message is sent once more after its OK."""

    def __init__(self, gateway, name, people=4, inboxes=3):
        self.gateway, self.name = gateway, name
        self.inboxes = [f"{name}-inbox-{i}" for i in range(inboxes)]
        # Per message, by (recv_id, client_msg_id): sender, content, the ids in its OKs.
        self.sent = {}
        # Per (sender, inbox): client_msg_ids in the order of sending.
        self.order = {}
        self.counts = {"OK": 0, "sent again on purpose": 0}
        self.problems = []
        self.last_ok, self.longest_silence = time.monotonic(), 0.0
        self.lock, self.stopping = threading.Lock(), threading.Event()
        self.threads = [threading.Thread(target=self.write, args=(i,), daemon=True) for i in range(people)]

    def __enter__(self):
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, failed, *_):
        self.stopping.set()
        for thread in self.threads if failed is None else ():
            thread.join(ACCEPTED_WITHIN)

    def ok(self):
        with self.lock:
            return self.counts["OK"]

    def wait_for_more(self, count):
        """Waits until `count` more messages have their OK."""
        target = self.ok() + count

        wait_until(
            f"{count} more OK", lambda: self.problems or self.ok() >= target, READY_WITHIN, every=0.1
        )
        if self.problems:
            raise Failed(self.problems[0])

    def write(self, person):
        dice = random.Random(person)
        send_id = f"{self.name}-person-{person}"
        number = 0
        while not self.stopping.is_set():
            number += 1
            # A few dozen messages per second are enough, and leave the machine to the containers.
            time.sleep(0.1)
            recv_id, client_msg_id = dice.choice(self.inboxes), f"{send_id}-{number}"
            content = base64.b64encode(f"{client_msg_id} ✓ ".encode() + dice.randbytes(dice.choice((0, 20, 3000)))).decode()
            with self.lock:
                self.sent[recv_id, client_msg_id] = {"send_id": send_id, "content": content, "msg_ids": set()}
                self.order.setdefault((send_id, recv_id), []).append(client_msg_id)
            try:
                self.send(send_id, recv_id, client_msg_id, content)
                if number % 10 == 0:
                    self.send(send_id, recv_id, client_msg_id, content)
                    self.count("sent again on purpose")
            except Exception as error:  # the main thread reports it
                self.problems.append(f"{client_msg_id}: {error}")
                return

    def send(self, send_id, recv_id, client_msg_id, content):
        msg = {
            "recvId": recv_id, "sendId": send_id, "clientMsgId": client_msg_id, "content": content,
            "sessionType": "SESSION_TYPE_GROUP", "contentType": "text/plain",
        }
        deadline = time.monotonic() + ACCEPTED_WITHIN
        error = ""
        while time.monotonic() < deadline:
            response, error = self.gateway.call("SendMsg", {"msg": msg})
            if response is not None:
                with self.lock:
                    now = time.monotonic()
                    self.longest_silence = max(self.longest_silence, now - self.last_ok)
                    self.last_ok = now
                    self.counts["OK"] += 1
                    self.sent[recv_id, client_msg_id]["msg_ids"].add(response["placement"]["msgId"])
                return
            reason = re.search(r'"reason":\s*"(\w+)"', error)
            reason = reason.group(1) if reason else "no reason"
            if reason in ("INVALID_FIELDS", "TOO_LARGE", "NOT_IMPLEMENTED", "BAD_REQUEST"):
                raise Failed(error.strip()[:500])
            self.count(reason)
            time.sleep(0.2)
        raise Failed(f"no OK within {ACCEPTED_WITHIN} s; last: {error.strip()[:500]}")

    def count(self, what):
        with self.lock:
            self.counts[what] = self.counts.get(what, 0) + 1


def stored(senders, gateway):
    """Returns whether the inboxes have as many messages as were sent."""
    return sum(gateway.max_seqs(senders.inboxes).values()) >= len(senders.sent)


def compare(label, stack, senders, gateway):
    """Compares the responses with the stored messages."""
    seconds = wait_until("all messages are stored", lambda: stored(senders, gateway), STORED_WITHIN)
    REPORT.say(f"all messages are stored, {seconds:.1f} s after the last response")
    problems, seen, rows = list(senders.problems), set(), 0
    max_seqs = gateway.max_seqs(senders.inboxes)
    for recv_id in senders.inboxes:
        messages = gateway.inbox(recv_id)
        rows += len(messages)
        seqs = [int(message["seq"]) for message in messages]
        if seqs != list(range(1, len(seqs) + 1)):
            problems.append(f"{recv_id}: seq is not 1, 2, 3 …: {seqs[:20]}")
        if max_seqs[recv_id] != len(seqs):
            problems.append(f"{recv_id}: GetMaxSeqs returns {max_seqs[recv_id]}, PullMsgs returns {len(seqs)}")
        order = {}
        for message in messages:
            msg = message["msg"]
            key = recv_id, msg["clientMsgId"]
            sent = senders.sent.get(key)
            if key in seen:
                problems.append(f"{key} is stored twice")
            seen.add(key)
            if sent is None:
                problems.append(f"{key} was never sent")
                continue
            if (msg["sendId"], msg["content"]) != (sent["send_id"], sent["content"]):
                problems.append(f"{key} is stored with another sender or content")
            if sent["msg_ids"] != {message["msgId"]}:
                problems.append(f"{key} has {sent['msg_ids']} in its responses, and is stored as {message['msgId']}")
            order.setdefault(msg["sendId"], []).append(msg["clientMsgId"])
        for send_id, ids in order.items():
            if ids != senders.order.get((send_id, recv_id)):
                problems.append(f"{recv_id}: the messages of {send_id} are stored in another order")
    problems += [f"{key} had its OK, and is not stored" for key in senders.sent.keys() - seen]
    counts = ", ".join(f"{count} {what}" for what, count in senders.counts.items())
    REPORT.check(f"{label}: each OK is a row, once, in order, byte for byte", not problems, f"{rows} rows; {counts}")
    for problem in problems[:10]:
        REPORT.say(f"        {problem}")
    # Check the table itself too.
    mine = f"recv_id LIKE '{senders.name}-inbox-%'"
    found = stack.sql(
        f"SELECT count(*), count(DISTINCT (recv_id, msg_id)), count(DISTINCT (recv_id, client_msg_id)) FROM messages WHERE {mine};"
        f" SELECT count(*) FROM (SELECT 1 FROM messages WHERE {mine} GROUP BY recv_id HAVING max(seq) <> count(*) OR min(seq) <> 1) gaps;"
        " SELECT count(*) FROM dead_letters"
    ).split()
    n = len(senders.sent)
    totals = dict(zip(("rows|messages|client's ids", "inboxes with gaps", "dead letters"), found))
    REPORT.check(
        f"{label}: the table agrees",
        found == [f"{n}|{n}|{n}", "0", "0"],
        ", ".join(f"{count} {what}" for what, count in totals.items()),
    )


def fault(stack, senders, service, how, sends_succeed):
    """Stops a container under load, starts it again, and waits until sends succeed again."""
    senders.wait_for_more(20)
    container = stack.container(service)
    before = senders.ok()
    senders.longest_silence = 0.0
    begin = time.monotonic()
    if how == "kill":
        docker("kill", "-s", "KILL", container)
    else:
        docker("stop", container, timeout=90)
    ended = time.monotonic() - begin
    exit_code = json.loads(docker("inspect", "-f", "{{json .State}}", container))["ExitCode"]
    if sends_succeed:
        # Sends succeed without the container.
        senders.wait_for_more(20)
    else:
        time.sleep(3)
    meanwhile = senders.ok() - before
    begin = time.monotonic()
    docker("start", container)
    wait_until(f"{service} is healthy again", lambda: stack.healthy(service), READY_WITHIN)
    healthy = time.monotonic() - begin
    senders.wait_for_more(20)
    REPORT.say(
        f"{how} {service}: {meanwhile} OK while it was down, healthy again {healthy:.1f} s after its start;"
        f" longest time without an OK {senders.longest_silence:.1f} s"
    )
    return exit_code, ended
