"""The workloads of README.md over pyxs."""

import json
import socket
import struct
import sys
import time

# Not this file, which has the same name.
sys.path.pop(0)
import pyxs  # noqa: E402


def samples(turn, after=lambda: None):
    """How long each turn took in microseconds; the first tenth does not count."""
    each = []
    for _ in range(number("count")):
        begun = time.monotonic_ns()
        turn()
        each.append((time.monotonic_ns() - begun) / 1000)
        after()
    each = sorted(each[len(each) // 10:])
    last = len(each) - 1
    return {"median_us": each[last // 2], "p99_us": each[last * 99 // 100]}


def resident():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmRSS:"))


def watched():
    return [b"%s/%d/0/state" % (path("below"), node) for node in range(number("nodes"))]


def watch(monitor, events, nodes):
    """Watches the nodes, and takes the first event of each."""
    for token, node in enumerate(nodes):
        monitor.watch(node, b"%d" % token)
    for _ in nodes:
        next(events)


def read(client):
    return samples(lambda: client.read(path("node")))


def transaction(client):
    nodes = [b"%s/key%d" % (path("below"), key) for key in range(8)]

    def turn():
        client.transaction()
        for node in nodes:
            client.write(node, b"0123456789abcdef")
        if not client.commit():
            raise RuntimeError("the transaction conflicted")

    return samples(turn)


def watches(client):
    nodes, monitor = watched(), client.monitor()
    events = monitor.wait()
    monitor.watch(b"/warm", b"warm")
    next(events)
    before, begun = resident(), time.monotonic()
    watch(monitor, events, nodes)
    each = (time.monotonic() - begun) * 1e6 / len(nodes)
    return {"us_each": each, "kib": resident() - before}


def events(client):
    monitor = client.monitor()
    events = monitor.wait()
    watch(monitor, events, watched())
    monitor.watch(path("end"), b"end")
    next(events)
    print("ready", flush=True)
    begun, told = time.monotonic(), 0
    while next(events).token != b"end":
        told += 1
    return {"seconds": time.monotonic() - begun, "told": told}


def fanout(client):
    node, watchers, monitor = path("node"), number("watchers"), client.monitor()
    events = monitor.wait()
    watch(monitor, events, [node] * watchers)
    # A plain connection, so that the write costs the client nothing.
    payload = node + b"\x004"
    request = struct.pack("=4I", 11, 1, 0, len(payload)) + payload
    writer = socket.socket(socket.AF_UNIX)
    writer.connect(settings["socket"])

    def turn():
        writer.sendall(request)
        for _ in range(watchers):
            next(events)

    def take_reply():
        reply = writer.recv(19, socket.MSG_WAITALL)
        if not reply.endswith(b"OK\0"):
            raise RuntimeError("the write failed")

    return samples(turn, take_reply)


def path(key):
    return settings[key].encode()


def number(key):
    return int(settings[key])


WORKLOADS = {"read": read, "transaction": transaction, "watch": watches, "events": events, "fanout": fanout}
settings = dict(argument.split("=", 1) for argument in sys.argv[2:])
client = pyxs.Client(unix_socket_path=settings["socket"])
client.connect()
print(json.dumps(WORKLOADS[sys.argv[1]](client)))
