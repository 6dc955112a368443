"""The stack with TLS on every connection, logins and tokens: what it accepts, and what it must refuse."""

import http.client
import ssl
import urllib.request

from compose.senders import Senders, compare, fault
from compose.stack import REPORT, STORED_WITHIN, Gateway, check_published, check_volumes, docker, wait_until

# A gateway that asks for tokens does not describe itself, so grpcurl reads the contract.
CONTRACT = ["-import-path", "proto", "-proto", "msg/v1/msg.proto", "-proto", "google/rpc/error_details.proto"]


def secure(stack, grpcurl, mine, other):
    """TLS on every connection, logins with SCRAM, and tokens. `other` has certificates of another CA."""
    mine.make()
    other.make()
    seconds = stack.up()
    REPORT.check("secure: is ready", True, f"{seconds:.0f} s")
    check_published(stack)
    check_volumes(stack)
    tls = ["-cacert", mine.file("ca.pem"), *CONTRACT]
    check_callers(stack, grpcurl, tls, mine, other)
    check_admin_ports(stack, mine.file("ca.pem"))
    check_kafka_logins(stack, mine)
    check_postgres_logins(stack, mine)
    command = "/usr/local/bin/msg-transfer", "check", "--allow-unsafe-topic"
    done = stack.run("exec", "-T", "msg-transfer", *command, check=False)
    if not REPORT.check("secure: msg-transfer check succeeds", done.returncode == 0, f"exit code {done.returncode}"):
        REPORT.say(done.stdout + done.stderr)
    gateway = Gateway(grpcurl, stack.gateway, [*tls, *mine.bearer("loader", "msg.send.any msg.read.any")])
    with Senders(gateway, "secure") as senders:
        fault(stack, senders, "msg-transfer", "kill", sends_succeed=True)
        fault(stack, senders, "msg-gateway", "kill", sends_succeed=False)
        fault(stack, senders, "kafka", "kill", sends_succeed=False)
    compare("secure", stack, senders, gateway)
    check_secrets(stack, mine)
    # New containers, same volumes.
    stack.down()
    stack.up()
    compare("secure, new containers", stack, senders, gateway)


def check_callers(stack, grpcurl, tls, mine, other):
    """Tries calls that must be refused, and the same ones as they should be."""
    alice, bob = mine.bearer("alice"), mine.bearer("bob")
    # An hour is more than the 30 s by which clocks may differ.
    expired, forged = mine.bearer("alice", seconds=-3600), other.bearer("alice")
    send = "SendMsg", {"msg": {
        "recvId": "bob", "sendId": "alice", "clientMsgId": "1", "sessionType": "SESSION_TYPE_SINGLE", "contentType": "text/plain",
    }}
    read = "PullMsgs", {"recvId": "bob"}
    for name, options, (method, request), expected in [
        ("without a token", tls, send, "UNAUTHENTICATED"),
        ("with an expired token", [*tls, *expired], send, "UNAUTHENTICATED"),
        ("with a token of another issuer", [*tls, *forged], send, "UNAUTHENTICATED"),
        ("as another sender", [*tls, *bob], send, "PERMISSION_DENIED"),
        ("to another inbox", [*tls, *alice], read, "PERMISSION_DENIED"),
        ("in plain text", ["-plaintext", *CONTRACT, *alice], send, ""),
        ("to a gateway of another CA", ["-cacert", other.file("ca.pem"), *CONTRACT, *alice], send, "unknown authority"),
    ]:
        response, error = Gateway(grpcurl, stack.gateway, options).call(method, request)
        REPORT.check(f"secure: a call {name} is refused", response is None and expected in error, expected or error.strip()[:80])
    stored = stack.sql("SELECT count(*) FROM messages")
    REPORT.check("secure: no refused call has sent anything", stored == "0", f"{stored} rows")
    response, error = Gateway(grpcurl, stack.gateway, [*tls, *alice]).call(*send)
    REPORT.check("secure: the sender of the message sends it", response is not None, error.strip()[:200])
    inbox = Gateway(grpcurl, stack.gateway, [*tls, *bob])
    seconds = wait_until("bob reads the message", lambda: len(inbox.inbox("bob")) == 1, STORED_WITHIN)
    REPORT.check("secure: its reader reads it", True, f"{seconds:.1f} s")


def check_admin_ports(stack, ca):
    context = ssl.create_default_context(cafile=ca)
    for service, address in zip(("msg-gateway", "msg-transfer"), stack.admin):
        with urllib.request.urlopen(f"https://{address}/readyz", context=context, timeout=10) as response:
            ready = response.status == 200
        try:
            urllib.request.urlopen(f"http://{address}/readyz", timeout=10)
            plain = True
        except (OSError, http.client.HTTPException):
            plain = False
        REPORT.check(f"secure: the admin port of {service} has TLS only", ready and not plain)


def check_kafka_logins(stack, secrets):
    settings_file = "/tmp/client.properties"
    tool = f"/opt/kafka/bin/kafka-topics.sh --bootstrap-server kafka:9092 --command-config {settings_file} --list"
    # With a small heap: a client in plain text takes the broker's TLS record for a response of hundreds of megabytes, and
    # the container's limit is for the broker too.
    script = f"export KAFKA_HEAP_OPTS=-Xmx128m; cat >{settings_file}; {tool}; code=$?; rm {settings_file}; exit $code"

    def topics(user, password, **more):
        settings = {
            "default.api.timeout.ms": 8000, "request.timeout.ms": 4000, "sasl.mechanism": "SCRAM-SHA-512",
            "security.protocol": "SASL_SSL", "ssl.truststore.type": "PEM", "ssl.truststore.location": "/run/secrets/ca.pem",
            "sasl.jaas.config": "org.apache.kafka.common.security.scram.ScramLoginModule required"
            f' username="{user}" password="{password}";',
            **more,
        }
        text = "".join(f"{key}={value}\n" for key, value in settings.items())
        done = stack.run("exec", "-T", "kafka", "bash", "-c", script, input=text, check=False)
        return done.returncode == 0, done.stdout + done.stderr

    password = secrets.text("kafka-password-gateway")
    accepted, text = topics("msg-gateway", password)
    seen = sorted(word for word in text.split() if word.startswith(("msgs", "__")))
    REPORT.check("secure: a user of Kafka sees the topics of its rights", accepted and seen == ["msgs", "msgs-hints"], " ".join(seen))
    accepted, text = topics("msg-gateway", "wrong")
    REPORT.check("secure: Kafka refuses a wrong password", not accepted and "Authentication failed" in text)
    accepted, text = topics("msg-gateway", password, **{"security.protocol": "PLAINTEXT"})
    REPORT.check("secure: Kafka refuses plain text", not accepted, (text.splitlines() or [""])[0][:80])


def check_postgres_logins(stack, secrets):
    def query(text, mode):
        url = f"host=127.0.0.1 user=gateway dbname=msg sslmode={mode}"
        password = f"PGPASSWORD={secrets.text('postgres-password-gateway')}"
        return stack.run("exec", "-T", "-e", password, "postgres", "psql", "-At", "-c", text, url, check=False)

    done = query("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()", "require")
    REPORT.check("secure: PostgreSQL accepts a login over TLS", done.stdout.strip() == "t", done.stderr.strip())
    done = query("SELECT 1", "disable")
    refused = done.returncode != 0 and "no encryption" in done.stderr
    REPORT.check("secure: PostgreSQL refuses plain text", refused, done.stderr.strip())
    done = query("DELETE FROM messages", "require")
    REPORT.check("secure: the gateway only reads tables", "permission denied" in done.stderr, done.stderr.strip())


def check_secrets(stack, secrets):
    """Looks for secrets in what the engine shows of the containers: environment, arguments, labels and logs."""
    shown = stack.compose("logs", "--no-color")
    for container in stack.compose("ps", "-a", "-q").split():
        shown += docker("inspect", container)
    found = [name for name, text in secrets.secrets().items() if text in shown]
    REPORT.check("secure: no container shows a secret", not found, ", ".join(found))
