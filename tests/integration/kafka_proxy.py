"""A TCP proxy on loopback before a Kafka broker, that knows requests by their kind: it cuts, freezes and slows connections, holds
requests back, and loses or changes answers.

The broker has to advertise the proxy's port (`proxied_broker`, `BrokerSpec.proxied`), or clients would go past it.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal

from pipeline.kafka.embedded import BrokerSpec, EmbeddedBroker
from pipeline.kafka.embedded.ports import free_ports

HOST = "127.0.0.1"
PRODUCE, OFFSET_COMMIT, INIT_PRODUCER_ID, END_TXN, TXN_OFFSET_COMMIT = 0, 8, 22, 26, 28
Verdict = Literal["pass", "lose answer", "lose request", "hold"]
"""`lose answer`: the broker does it, and the connection ends in place of the answer. `lose request`: the connection ends. `hold`: the
client's connection ends, and the broker gets the request when it is released.
"""


@dataclass(frozen=True, slots=True)
class Request:
    """The head of a request: kind, version of the protocol, number on its connection, and who sends it."""

    kind: int
    version: int
    number: int
    client_id: str


@dataclass(slots=True)
class _Line:
    """One client's connection and its counterpart; `lost` are the numbers of requests whose answer ends it."""

    client: socket.socket
    broker: socket.socket
    asked: dict[int, Request] = field(default_factory=dict)
    lost: set[int] = field(default_factory=set)
    held: list[bytes] = field(default_factory=list)
    silent: bool = False

    def cut(self) -> None:
        for end in (self.client, self.broker):
            if end is self.broker and self.held:
                continue  # what it holds still has to get there
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def release(self) -> int:
        held, self.held = self.held, []
        with contextlib.suppress(OSError):
            for frame in held:
                self.broker.sendall(struct.pack(">i", len(frame)) + frame)
        return len(held)


def _read(source: socket.socket, count: int) -> bytes:
    found = bytearray()
    while len(found) < count:
        part = source.recv(count - len(found))
        if not part:
            raise ConnectionError
        found += part
    return bytes(found)


def _frame(source: socket.socket) -> bytes:
    return _read(source, struct.unpack(">i", _read(source, 4))[0])


def _request(frame: bytes) -> Request:
    kind, version, number, length = struct.unpack_from(">hhih", frame)
    return Request(kind, version, number, frame[10 : 10 + max(0, length)].decode())


class KafkaProxy:
    """`judge` says of each request what becomes of it; `rewrite` may change an answer. Both are called in the proxy's threads.

    `delay_s` holds up every request and answer; `refusing` ends new connections at once.
    """

    def __init__(self, port: int, broker_port: int) -> None:
        self.judge: Callable[[Request], Verdict] = lambda _request: "pass"
        self.rewrite: Callable[[Request, bytes], bytes] = lambda _request, answer: answer
        self.seen: Counter[tuple[int, Verdict]] = Counter()
        self.delay_s = 0.0
        self.refusing = False
        self._flowing = threading.Event()
        self._flowing.set()
        self._broker_port = broker_port
        self._lines: list[_Line] = []
        self._server = socket.create_server((HOST, port))
        threading.Thread(target=self._accept, name="kafka-proxy", daemon=True).start()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        self.thaw()
        for line in self._lines:
            line.held.clear()
        self.cut()

    def cut(self) -> int:
        """End every connection; how many there were."""
        lines, self._lines = self._lines, [line for line in self._lines if line.held]
        for line in lines:
            line.cut()
        return len(lines)

    def freeze(self) -> None:
        """Connections stay and nothing comes through, as when a network is parted; `thaw` delivers what came meanwhile."""
        self._flowing.clear()

    def thaw(self) -> None:
        self._flowing.set()

    def silence(self) -> int:
        """Half-open: what is connected now stays connected and gets nothing through any more, for good; new connections work."""
        lines = list(self._lines)
        for line in lines:
            line.silent = True
        return len(lines)

    def release(self) -> int:
        """Held requests go to the broker now, in their order; how many."""
        return sum(line.release() for line in list(self._lines))

    @property
    def held(self) -> int:
        return sum(len(line.held) for line in list(self._lines))

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._server.accept()
            except OSError:
                return
            if self.refusing:
                client.close()
                continue
            try:
                broker = socket.create_connection((HOST, self._broker_port), 5)
            except OSError:
                client.close()
                continue
            broker.settimeout(None)
            for end in (client, broker):
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            line = _Line(client, broker)
            self._lines.append(line)
            for work in (self._forth, self._back):
                threading.Thread(target=self._until_cut, args=(work, line), daemon=True).start()

    @staticmethod
    def _until_cut(work: Callable[[_Line], None], line: _Line) -> None:
        with contextlib.suppress(OSError):
            work(line)
        line.cut()

    def _through(self, line: _Line) -> bool:
        """Wait as the network does; False: this connection is half-open."""
        self._flowing.wait()
        if self.delay_s:
            time.sleep(self.delay_s)
        return not line.silent

    def _forth(self, line: _Line) -> None:
        while True:
            frame = _frame(line.client)
            request = _request(frame)
            if not self._through(line):
                continue
            verdict = self.judge(request)
            self.seen[request.kind, verdict] += 1
            if verdict == "lose request":
                return
            if verdict == "hold":
                line.held.append(frame)
                return
            if verdict == "lose answer":
                line.lost.add(request.number)
            line.asked[request.number] = request
            line.broker.sendall(struct.pack(">i", len(frame)) + frame)

    def _back(self, line: _Line) -> None:
        while True:
            frame = _frame(line.broker)
            (number,) = struct.unpack_from(">i", frame)
            if number in line.lost:
                return  # the broker has done it; nobody hears of it
            request = line.asked.pop(number, None)
            if request is not None:
                frame = self.rewrite(request, frame)
            if not self._through(line):
                continue
            line.client.sendall(struct.pack(">i", len(frame)) + frame)


@contextlib.contextmanager
def proxied_broker() -> Iterator[tuple[str, KafkaProxy]]:
    """A Kafka of one node that is reached through a proxy only: its address, and the proxy."""
    front, behind = free_ports(2)
    proxy = KafkaProxy(front, behind)
    try:
        spec = BrokerSpec(port=behind, extra={"advertised.listeners": f"PLAINTEXT://{HOST}:{front}"})
        with EmbeddedBroker(spec, mirror=os.environ.get("PIPELINE_MAVEN_MIRROR")):
            yield f"{HOST}:{front}", proxy
    finally:
        proxy.close()
