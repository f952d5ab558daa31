"""Fetching a page for a model: a checked address, pinned; size, time and type capped; every redirect checked again."""

from __future__ import annotations

import http.client
import socket
import ssl
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from urllib.parse import quote, urljoin

from minnow.agent.addresses import SAFE, AddressError, Resolve, Target, system_resolve, target_of

_REDIRECTS = (301, 302, 303, 307, 308)
_TYPES = ("text/", "application/xhtml", "application/xml", "application/json", "application/pdf")
_CHUNK = 1 << 16


class FetchError(Exception):
    """Nothing was fetched: one sentence for the model.

    Attributes:
        again: another try may help, ``after`` seconds at least.
    """

    def __init__(self, sentence: str, again: bool = False, after: float = 0.0) -> None:
        super().__init__(sentence)
        self.again, self.after = again, after


@dataclass(frozen=True)
class FetchLimits:
    """What one page may cost; ``seconds`` from the look-up of its host to the last byte, redirects included."""

    bytes: int = 4 << 20
    seconds: float = 20.0
    redirects: int = 5


@dataclass(frozen=True)
class Fetched:
    """What came back from ``url``, the last of all redirects; ``cut`` where it was longer than allowed."""

    url: str
    content_type: str
    charset: str | None
    body: bytes
    cut: bool


@dataclass(frozen=True)
class Fetcher:
    """Fetches pages; environment variables for proxies and credentials have no say.

    Attributes:
        resolve, connect: the system's, but for tests.
    """

    limits: FetchLimits = FetchLimits()
    resolve: Resolve = system_resolve
    connect: Callable[[tuple[str, int], float], socket.socket] = socket.create_connection
    context: ssl.SSLContext = field(default_factory=ssl.create_default_context)

    def get(self, url: str) -> Fetched:
        """A page that a model asks for.

        Raises:
            FetchError: an address that is refused (:mod:`minnow.agent.addresses`), no answer, or no page.
        """
        deadline = time.monotonic() + self.limits.seconds
        for _ in range(self.limits.redirects + 1):
            target = self._target(url, False)
            with self._reply(
                target, "GET", None, {"Accept": "text/html,text/plain,application/pdf"}, deadline
            ) as reply:
                place = reply.getheader("Location")
                if reply.status in _REDIRECTS and place:
                    url = urljoin(url, quote(place.encode("latin-1"), safe=SAFE))  # as headers are read
                    continue
                return self._page(url, reply)
        raise FetchError(f"more than {self.limits.redirects} redirects.")

    def ask(self, url: str, headers: Mapping[str, str], data: bytes | None = None) -> Fetched:
        """What the API of a search engine says; the user named it, so it may be on this machine. Redirects are refused.

        Raises:
            FetchError: no answer, or one that is no success.
        """
        deadline = time.monotonic() + self.limits.seconds
        target = self._target(url, True)
        with self._reply(target, "GET" if data is None else "POST", data, headers, deadline) as reply:
            return self._page(url, reply)

    def _target(self, url: str, named_by_user: bool) -> Target:
        try:
            return target_of(url, self.resolve, named_by_user)
        except AddressError as error:
            raise FetchError(f"{url[:200]} is not fetched: {error}") from error

    @contextmanager
    def _reply(
        self, target: Target, method: str, data: bytes | None, headers: Mapping[str, str], deadline: float
    ) -> Iterator[http.client.HTTPResponse]:
        connection = http.client.HTTPConnection(target.host, target.port)
        watchdog = None
        late = threading.Event()
        try:
            connection.sock = self._open(target, deadline)
            # A server that sends a byte now and then meets every timeout of single reads.
            watchdog = threading.Timer(max(0.0, deadline - time.monotonic()), _give_up, (connection.sock, late))
            watchdog.daemon = True
            watchdog.start()
            connection.request(
                method,
                target.path,
                data,
                {
                    "Host": target.authority,
                    "User-Agent": "minnow",
                    "Accept-Encoding": "identity",
                    "Connection": "close",
                    **headers,
                },
            )
            yield connection.getresponse()
            if late.is_set():  # to who reads on, a connection that was shut looks like the end of the page
                raise TimeoutError
        except (OSError, http.client.HTTPException, zlib.error) as error:
            if late.is_set() or isinstance(error, TimeoutError):
                raise FetchError(f"{target.host} took longer than {self.limits.seconds:g} s.", again=True) from error
            again = not isinstance(error, (ssl.SSLCertVerificationError, zlib.error))
            raise FetchError(f"{target.host} gave no answer ({error or type(error).__name__}).", again) from error
        finally:
            if watchdog is not None:
                watchdog.cancel()
            connection.close()

    def _open(self, target: Target, deadline: float) -> socket.socket:
        """A connection to one of the addresses that were checked; the name is for the certificate only."""
        failure: OSError | None = None
        for address in target.addresses:
            try:
                sock = self.connect((address, target.port), max(0.01, deadline - time.monotonic()))
                sock.settimeout(max(0.01, deadline - time.monotonic()))
                return self.context.wrap_socket(sock, server_hostname=target.host) if target.scheme == "https" else sock
            except OSError as error:
                failure = error
        raise failure or OSError("no address")

    def _page(self, url: str, reply: http.client.HTTPResponse) -> Fetched:
        if not 200 <= reply.status < 300:
            after = reply.getheader("Retry-After") or ""
            raise FetchError(
                f"HTTP {reply.status} {reply.reason}.",
                again=reply.status in (408, 425, 429) or reply.status >= 500,
                after=float(after) if after.isdecimal() else 0.0,
            )
        kind = reply.headers.get_content_type() if reply.getheader("Content-Type") else ""
        if kind and not kind.startswith(_TYPES):
            raise FetchError(f"it is {kind}, not a page of text.")
        body, cut = _read(reply, self.limits.bytes)
        if not kind and b"\x00" in body[:1024]:
            raise FetchError("it is not a page of text.")
        return Fetched(url, kind, reply.headers.get_content_charset(), body, cut)


def _read(reply: http.client.HTTPResponse, most: int) -> tuple[bytes, bool]:
    """The body up to ``most`` bytes, unpacked if it came packed, and whether there was more."""
    encoding = (reply.getheader("Content-Encoding") or "identity").lower()
    if encoding not in ("identity", "gzip", "x-gzip", "deflate"):
        raise FetchError(f"its encoding {encoding} was not asked for.")
    unpack = None if encoding == "identity" else zlib.decompressobj(zlib.MAX_WBITS | 32)  # finds out which of the two
    body = bytearray()
    while len(body) <= most and (chunk := reply.read(_CHUNK)):
        # Packed zeros grow a thousandfold, so what may come out is bounded too.
        body += chunk if unpack is None else unpack.decompress(chunk, most + 1 - len(body))
    return bytes(body[:most]), len(body) > most


def _give_up(sock: socket.socket, late: threading.Event) -> None:
    late.set()
    with suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)
