"""One POST to a URL, signed. Blocks; meant for a thread of its own.

Pipeline-Alert-Id: what an alert is about, the same whenever it is sent again
Pipeline-Job-Id, Pipeline-Delivery-Id: of the ending of a job; the second one is the same whenever it is sent again
Pipeline-Timestamp: seconds since the epoch
Pipeline-Signature: sha256= and the hex HMAC-SHA256 of `TIMESTAMP.BODY` with the shared secret (left out without one)
"""

from __future__ import annotations

import hashlib
import hmac
import http.client
import io
import json
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from pipeline.model.alerts import Alert
from pipeline.model.errors import ConfigurationError

AGAIN = frozenset({408, 425, 429})


class Refused(Exception):
    """The receiver does not want it, and never will."""


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A redirect could lead anywhere, and would turn the POST into a GET."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


class _Limited(io.RawIOBase):
    """What a socket gives within its timeout, all of it: a socket's own begins anew with each byte, and an answer could go on for ever."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._raw = sock.makefile("rb", buffering=0)
        self._until_s = time.monotonic() + (sock.gettimeout() or 0.0)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        left_s = self._until_s - time.monotonic()
        if left_s <= 0:
            raise TimeoutError("the answer took too long")
        self._sock.settimeout(left_s)
        return self._raw.readinto(buffer)

    def close(self) -> None:
        self._raw.close()
        super().close()


class _Answer(http.client.HTTPResponse):
    def __init__(self, sock: socket.socket, *args: Any, **options: Any) -> None:
        super().__init__(sock, *args, **options)
        limited = _Limited(sock)
        self.fp.close()
        self.fp = io.BufferedReader(limited)


class _Connection(http.client.HTTPConnection):
    response_class = _Answer


class _SafeConnection(http.client.HTTPSConnection):
    response_class = _Answer


class _Http(urllib.request.HTTPHandler):
    def http_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_Connection, req)


class _Https(urllib.request.HTTPSHandler):
    def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_SafeConnection, req)


def signature(secret: str, timestamp: str, body: bytes) -> str:
    """What a receiver compares (with `hmac.compare_digest`) to the header, after checking that the time is recent."""
    return "sha256=" + hmac.new(secret.encode(), timestamp.encode() + b"." + body, hashlib.sha256).hexdigest()


@dataclass(frozen=True)
class Webhook:
    """`url` may hold a secret (chat services do that): only `host` is ever shown. Raises ConfigurationError."""

    url: str = field(repr=False)
    secret: str = field(default="", repr=False)
    what: str = "alert_webhook (PIPELINE_ALERT_WEBHOOK)"

    def __post_init__(self) -> None:
        if urlsplit(self.url).scheme not in ("http", "https") or not self.host:
            raise ConfigurationError(f"{self.what} must be a URL such as https://alerts.example/hook")

    @property
    def host(self) -> str:
        return urlsplit(self.url).hostname or ""

    def post(self, alert: Alert, timeout_s: float) -> None:
        """An alert; raises as `send` does."""
        body = json.dumps(alert.as_json(), separators=(",", ":")).encode()
        self.send({"Pipeline-Alert-Id": alert.alert_id}, body, timeout_s)

    def send(self, about: Mapping[str, str], body: bytes, timeout_s: float) -> None:
        """JSON, with headers that say what it is about. Raises Refused for an answer that stays the same (most of 3xx and 4xx), OSError
        for one that may not."""
        timestamp = str(int(time.time()))
        headers = {
            "Content-Type": "application/json",
            "User-Agent": "agent-run-pipeline",
            "Pipeline-Timestamp": timestamp,
            **about,
        }
        if self.secret:
            headers["Pipeline-Signature"] = signature(self.secret, timestamp, body)
        request = urllib.request.Request(self.url, body, headers, method="POST")
        try:
            with urllib.request.build_opener(_NoRedirects, _Http, _Https).open(request, timeout=timeout_s):
                return
        except urllib.error.HTTPError as error:
            error.close()
            if error.code < 500 and error.code not in AGAIN:
                raise Refused(f"{self.host} answered {error.code}") from None
            raise ConnectionError(f"{self.host} answered {error.code}") from None
