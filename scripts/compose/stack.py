"""The containers of a Compose project, and calls to its gateway."""

import json
import os
import re
import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
TAG = "compose-test"
IMAGES = {"msg-gateway": f"msg-gateway:{TAG}", "msg-transfer": f"msg-transfer:{TAG}"}
MAX_IMAGE_BYTES = 60_000_000
GRPCURL = "github.com/fullstorydev/grpcurl/cmd/grpcurl@v1.9.3"
# The seconds until a container is healthy. A Java process on a busy machine needs that long.
READY_WITHIN = 240
# The seconds until a message has its OK, with retries.
ACCEPTED_WITHIN = 240
# The seconds until all accepted messages are stored.
STORED_WITHIN = 120


class Failed(Exception):
    """A step failed, and the next ones cannot run."""


class Report:
    """The checks and their results."""

    def __init__(self):
        self.rows = []
        self.begin = time.monotonic()

    def say(self, text):
        print(f"{time.monotonic() - self.begin:6.1f} s  {text}", flush=True)

    def check(self, name, holds, detail=""):
        self.rows.append((name, bool(holds), str(detail)))
        self.say(f"{'ok' if holds else 'FAILED'}: {name}{f' ({detail})' if detail else ''}")
        return holds

    def holds(self):
        return bool(self.rows) and all(holds for _, holds, _ in self.rows)

    def table(self):
        width = max((len(name) for name, _, _ in self.rows), default=0)
        print()
        for name, holds, detail in self.rows:
            first_line = (detail.splitlines() or [""])[0]
            print(f"  {'ok    ' if holds else 'FAILED'}  {name:<{width}}  {first_line}".rstrip())


REPORT = Report()


def run(*args, timeout=120, check=True, **options):
    done = subprocess.run(args, capture_output=True, text=True, timeout=timeout, cwd=ROOT, **options)
    if check and done.returncode != 0:
        raise Failed(f"{' '.join(args)}\nended with {done.returncode}\n{(done.stdout + done.stderr).strip()[-3000:]}")
    return done


def docker(*args, **options):
    return run("docker", *args, **options).stdout.strip()


def wait_until(what, probe, within, every=0.5):
    """Polls until the probe returns true, and returns the seconds that it took. A probe that fails is retried."""
    begin, last = time.monotonic(), None
    while time.monotonic() - begin < within:
        try:
            last = probe()
            if last:
                return time.monotonic() - begin
        except (Failed, subprocess.TimeoutExpired, ValueError) as error:
            last = error
        time.sleep(every)
    raise Failed(f"{what}: not within {within} s (last: {last})")


def free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def find_grpcurl():
    found = shutil.which("grpcurl")
    if found:
        return found
    cache = ROOT / ".tools" / "bin"
    if not (cache / "grpcurl").exists():
        if not shutil.which("go"):
            raise Failed(f"grpcurl is missing, and Go, which can build it, is missing too. With Go: go install {GRPCURL}")
        REPORT.say(f"installing {GRPCURL}")
        run("go", "install", GRPCURL, timeout=900, env={**os.environ, "GOBIN": str(cache)})
    return str(cache / "grpcurl")


class Stack:
    """The containers of one project."""

    def __init__(self, project, files, services):
        self.project, self.files, self.services = project, files, services
        ports = free_ports(3)
        self.gateway, *self.admin = (f"127.0.0.1:{port}" for port in ports)
        names = ("GATEWAY_PORT", "GATEWAY_ADMIN_PORT", "TRANSFER_ADMIN_PORT")
        self.env = {**os.environ, **dict(zip(names, map(str, ports))), "MSG_TAG": TAG, "COMPOSE_PROJECT_NAME": project}
        # Do not use the settings of the caller's own deployment.
        for name in ("COMPOSE_FILE", "COMPOSE_PROFILES", "SECRETS_DIR"):
            self.env.pop(name, None)

    def run(self, *args, **options):
        files = [word for file in self.files for word in ("-f", file)]
        return run("docker", "compose", "-p", self.project, *files, *args, env=self.env, **options)

    def compose(self, *args, **options):
        return self.run(*args, **options).stdout.strip()

    def container(self, service):
        found = self.compose("ps", "-a", "-q", service)
        if not found:
            raise Failed(f"{service} has no container")
        return found.split()[0]

    def state(self, service):
        return json.loads(docker("inspect", "-f", "{{json .State}}", self.container(service)))

    def healthy(self, service):
        return (self.state(service).get("Health") or {}).get("Status") == "healthy"

    def up(self):
        # Without --wait, which reports a step that has ended as a failure.
        begin = time.monotonic()
        self.compose("up", "-d", timeout=2 * READY_WITHIN)
        for service in self.services:
            wait_until(f"{service} is healthy", lambda: self.healthy(service), READY_WITHIN)
        return time.monotonic() - begin

    def down(self, *args):
        self.compose("down", "--remove-orphans", *args, timeout=180)

    def sql(self, query):
        return self.compose("exec", "-T", "postgres", "psql", "-U", "msg", "-d", "msg", "-At", "-c", query)

    def logs(self):
        text = self.compose("logs", "--no-color", "--tail", "40", check=False)
        return re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", text)


class Secrets:
    """Certificates, passwords and tokens, in a folder of their own."""

    def __init__(self):
        # Below the project, because some engines cannot mount what is in the system's folder for temporary files.
        (ROOT / ".state").mkdir(exist_ok=True)
        self.folder = tempfile.mkdtemp(prefix="compose-test-", dir=ROOT / ".state")
        self.env = {**os.environ, "SECRETS_DIR": self.folder}
        self.tokens = []

    def make(self):
        run("deploy/dev-certificates", env=self.env)

    def file(self, name):
        return str(Path(self.folder) / name)

    def text(self, name):
        return Path(self.file(name)).read_text().strip()

    def bearer(self, subject, scope="", seconds=3600):
        """Returns the options of grpcurl for a token."""
        token = run("deploy/dev-token", subject, scope, str(seconds), env=self.env).stdout.strip()
        self.tokens.append(token)
        return ["-H", f"authorization: Bearer {token}"]

    def secrets(self):
        """Returns texts that no container may show, by name."""
        names = sorted(name for name in os.listdir(self.folder) if "password" in name or name.endswith(".key"))
        # A line in the middle of a key's text.
        texts = {name: self.text(name).splitlines()[-2 if name.endswith(".key") else 0] for name in names}
        return {**texts, **{f"token {number}": token for number, token in enumerate(self.tokens)}}

    def remove(self):
        shutil.rmtree(self.folder, ignore_errors=True)


class Gateway:
    """Calls through grpcurl."""

    def __init__(self, grpcurl, address, options=("-plaintext",)):
        self.grpcurl, self.address, self.options = grpcurl, address, options

    def call(self, method, request, seconds=5):
        """Returns the response and an empty text, or None and the error."""
        args = [*self.options, "-connect-timeout", "3", "-max-time", str(seconds), "-format-error", "-d", "@"]
        done = run(
            self.grpcurl, *args, self.address, f"msg.v1.MsgGateway/{method}",
            input=json.dumps(request), check=False, timeout=seconds + 10,
        )
        return (json.loads(done.stdout), "") if done.returncode == 0 else (None, done.stderr)

    def read(self, method, request):
        response, error = self.call(method, request, seconds=10)
        if response is None:
            raise Failed(f"{method}: {error.strip()[:500]}")
        return response

    def inbox(self, recv_id):
        messages, token = [], ""
        while True:
            page = self.read("PullMsgs", {"recvId": recv_id, "pageSize": 97, "pageToken": token})
            messages += page.get("msgs", [])
            token = page.get("nextPageToken", "")
            if not token:
                return messages

    def max_seqs(self, recv_ids):
        response = self.read("GetMaxSeqs", {"recvIds": recv_ids})
        return {entry["recvId"]: int(entry.get("maxSeq", 0)) for entry in response["inboxes"]}


def check_published(stack):
    bound, open_to_all = [], []
    for container in stack.compose("ps", "-q").split():
        ports = json.loads(docker("inspect", "-f", "{{json .NetworkSettings.Ports}}", container)) or {}
        for target, bindings in ports.items():
            for binding in bindings or []:
                bound.append(target)
                if binding["HostIp"] != "127.0.0.1":
                    open_to_all.append(f"{target} on {binding['HostIp']}")
    REPORT.check("published on loopback only", bound and not open_to_all, ", ".join(open_to_all or sorted(bound)))


def check_volumes(stack):
    names = set()
    for container in stack.compose("ps", "-a", "-q").split():
        mounts = json.loads(docker("inspect", "-f", "{{json .Mounts}}", container)) or []
        names |= {mount["Name"] for mount in mounts if mount["Type"] == "volume"}
    unnamed = [name for name in names if not name.startswith(f"{stack.project}_")]
    REPORT.check("every volume has a name", names and not unnamed, ", ".join(sorted(names)))
