from __future__ import annotations

import gzip
import http.server
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from ipaddress import ip_address
from typing import Any

import pytest

from minnow.agent.addresses import AddressError, is_public, target_of
from minnow.agent.fetch import Fetcher, FetchError, FetchLimits

PUBLIC = "93.184.216.34"

LITERALS = [
    # loopback, in every spelling that some parser takes
    "http://127.0.0.1/", "http://127.0.0.1:8080/", "http://127.1/", "http://127.0.1/", "http://127.255.255.254/",
    "http://2130706433/", "http://017700000001/", "http://0x7f000001/", "http://0x7f.0.0.1/", "http://0x7f.1/",
    "http://0177.0.0.1/", "http://0177.0.0.01/", "http://00000177.1/", "http://127.0.0.0x1/", "http://127.0.0.01/",
    "http://0x7F.0x0.0x0.0x1/", "http://4294967297/", "http://127.0.0.1./", "http://①②⑦.⓪.⓪.①/", "http://１２７.0.0.1/",
    "http://127。0。0。1/", "http://127｡0｡0｡1/", "http://%31%32%37.0.0.1/", "http://127.0.0.1%00.example.com/",
    "http://0/", "http://0.0.0.0/", "http://0x0/", "http://00/", "http://0.0.0.1/", "http://localhost/", "http://LOCALHOST/",
    "http://localhost./", "http://foo.localhost/", "http://localhost.localdomain/", "http://ⓛocalhost/",
    "http://[::1]/", "http://[0:0:0:0:0:0:0:1]/", "http://[::]/", "http://[::127.0.0.1]/", "http://[::ffff:127.0.0.1]/",
    "http://[::ffff:7f00:1]/", "http://[0:0:0:0:0:ffff:127.0.0.1]/", "http://[::ffff:0:127.0.0.1]/",
    "http://[64:ff9b::127.0.0.1]/", "http://[64:ff9b::7f00:1]/", "http://[2002:7f00:1::]/", "http://[::1%25lo]/",
    # private networks
    "http://10.0.0.1/", "http://10.255.255.255/", "http://172.16.0.1/", "http://172.31.255.255/", "http://192.168.0.1/",
    "http://192.168.1.1:8443/", "http://167772161/", "http://0xa000001/", "http://0x0a.0.0.1/", "http://012.0.0.1/",
    "http://3232235777/", "http://0xc0a80101/", "http://192.168.257/", "http://192.11010305/",
    "http://[::ffff:10.0.0.1]/", "http://[::ffff:192.168.1.1]/", "http://[::ffff:c0a8:101]/", "http://[fc00::1]/",
    "http://[fd00::1]/", "http://[fec0::1]/", "http://[64:ff9b::10.0.0.1]/", "http://[2002:c0a8:101::1]/",
    "http://printer.local/", "http://router.lan/", "http://nas.home/", "http://wiki.corp/", "http://box.home.arpa/",
    "http://db.internal/", "http://wiki.intranet/",
    # link-local and metadata
    "http://169.254.169.254/latest/meta-data/", "http://169.254.0.1/", "http://2852039166/", "http://0xa9fea9fe/",
    "http://0251.0376.0251.0376/", "http://0xa9.0xfe.0xa9.0xfe/", "http://169.254.43518/", "http://169.16689662/",
    "http://[::ffff:169.254.169.254]/", "http://[::ffff:a9fe:a9fe]/", "http://[64:ff9b::a9fe:a9fe]/",
    "http://[fe80::1]/", "http://[fe80::1%25eth0]/", "http://[fd00:ec2::254]/", "http://metadata.google.internal/",
    "http://168.63.129.16/", "http://192.0.0.192/", "http://100.100.100.200/", "http://[2002:a9fe:a9fe::]/",
    # CGNAT, tests, multicast, reserved
    "http://100.64.0.1/", "http://100.127.255.254/", "http://1681915905/", "http://192.0.2.1/", "http://198.51.100.7/",
    "http://203.0.113.9/", "http://198.18.0.1/", "http://198.19.255.255/", "http://224.0.0.1/", "http://239.255.255.250/",
    "http://240.0.0.1/", "http://255.255.255.255/", "http://192.88.99.1/", "http://[ff02::1]/", "http://[2001:db8::1]/",
    "http://[2001::1]/", "http://[2001:0:4136:e378:8000:63bf:3fff:fdd2]/", "http://[100::1]/", "http://[3fff::1]/",
    "http://[4000::1]/", "http://[5f00::1]/",
    # readers of URLs disagree
    "http://example.com@127.0.0.1/", "http://127.0.0.1@example.com/", "http://user:word@example.com/", "http://@example.com/",
    "http://example.com\\@127.0.0.1/", "http:\\\\127.0.0.1\\", "http://exam ple.com/", "http://example.com\t/",
    "http://example.com\r\nHost: a/", "http://example.com\x00/", " http://example.com/", "http://[::1/", "http://[v1.x]/",
    "http://example.com:99999/", "http://example.com:x/", "http:///", "http://", "http://.", "http://..", "http://a..b/",
    "http://-a.com/", "http://" + "a" * 64 + ".com/", "http://example.com:22/", "http://example.com:6379/",
    "http://example.com:25/", "http://example.com:0/", "http://" + "a" * 5000,
    # other schemes
    "file:///etc/passwd", "ftp://example.com/", "gopher://127.0.0.1:70/", "data:text/html,hi", "javascript:alert(1)",
    "dict://127.0.0.1:11211/", "ldap://example.com/", "jar:http://example.com/", "unix:///var/run/docker.sock",
    "view-source:http://example.com/", "ws://example.com/", "//example.com/", "example.com", "", "about:blank",
]  # fmt: skip


def literal(host: str, port: int) -> list[str]:
    """A resolver that takes every spelling that C's does, and sends names to a public address."""
    try:
        return [str(ip_address(host))]
    except ValueError:
        try:
            return [socket.inet_ntoa(socket.inet_aton(host))]
        except OSError:
            return [PUBLIC]


def test_there_are_a_hundred() -> None:
    assert len(set(LITERALS)) >= 140


@pytest.mark.parametrize("url", LITERALS, ids=lambda url: ascii(url)[1:40])
def test_an_address_that_is_not_public_is_refused(url: str) -> None:
    with pytest.raises(AddressError, match=r"\.$"):
        target_of(url, literal)
    with pytest.raises(FetchError, match="is not fetched"):
        Fetcher(resolve=literal, connect=_never).get(url)


@pytest.mark.parametrize(
    "resolved",
    ["127.0.0.1", "10.1.2.3", "169.254.169.254", "100.64.9.9", "::1", "fe80::1%eth0", "::ffff:10.0.0.1", "fd00::1", "0.0.0.0",
     "64:ff9b::a00:1", "2002:a00:1::", "rubbish"],
)  # fmt: skip
def test_a_name_that_leads_inside_is_refused_even_beside_a_public_address(resolved: str) -> None:
    for answer in ([resolved], [PUBLIC, resolved], [resolved, PUBLIC]):
        with pytest.raises(AddressError):
            target_of("http://rebind.example.com/", lambda host, port, answer=answer: answer)  # type: ignore[misc]


@pytest.mark.parametrize(
    ("url", "host", "port", "path"),
    [
        ("http://example.com", "example.com", 80, "/"),
        ("https://EXAMPLE.com./a/b?c=d#e", "example.com", 443, "/a/b?c=d"),
        ("http://bücher.example:8080/", "xn--bcher-kva.example", 8080, "/"),
        ("http://example.com/wiki/Zürich?q=ä%20b", "example.com", 80, "/wiki/Z%C3%BCrich?q=%C3%A4%20b"),
        ("http://93.184.216.34/x", PUBLIC, 80, "/x"),
        ("http://[2606:2800:220:1:248:1893:25c8:1946]/", "2606:2800:220:1:248:1893:25c8:1946", 80, "/"),
        ("http://[::ffff:93.184.216.34]/", "::ffff:5db8:d822", 80, "/"),
    ],
)
def test_public_addresses_are_let_through(url: str, host: str, port: int, path: str) -> None:
    target = target_of(url, literal)
    assert (target.host, target.port, target.path) == (host, port, path)


def test_public_is_what_the_standard_library_calls_global_and_less() -> None:
    """``is_global`` is the reference: nothing it closes is open here."""
    import random

    rng = random.Random(0)
    for bits, kind in ((32, "v4"), (128, "v6")):
        for _ in range(20_000):
            number = rng.getrandbits(bits)
            if kind == "v6":
                number = number >> 3 | 1 << 125 if rng.random() < 0.7 else number
            address = ip_address(number.to_bytes(bits // 8, "big"))
            assert not is_public(address) or (address.is_global and not address.is_multicast)


def _never(*_: Any) -> socket.socket:
    raise AssertionError("a connection was opened")


class _Site:
    """A web server on this machine that stands for the public one at PUBLIC."""

    def __init__(self, answer: Callable[[http.server.BaseHTTPRequestHandler], None]) -> None:
        self.answer, self.paths, self.hosts, self.looked_up, self.connected = answer, [], [], [], []
        self.port = 0

    def resolve(self, host: str, port: int) -> list[str]:
        self.looked_up.append(host)
        return literal(host, port)

    def connect(self, address: tuple[str, int], timeout: float) -> socket.socket:
        self.connected.append(address)
        assert address[0] == PUBLIC
        return socket.create_connection(("127.0.0.1", self.port), timeout)

    def fetcher(self, **limits: Any) -> Fetcher:
        return Fetcher(replace(FetchLimits(seconds=5), **limits), self.resolve, self.connect)


@contextmanager
def site(answer: Callable[[http.server.BaseHTTPRequestHandler], None]) -> Iterator[_Site]:
    served = _Site(answer)

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            served.paths.append(self.path)
            served.hosts.append(self.headers["Host"])
            try:
                answer(self)
            except OSError:
                time.sleep(0)  # the client has gone

        def log_message(self, *_: Any) -> None: ...

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    served.port = server.server_port
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield served
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def say(handler: Any, body: bytes = b"", status: int = 200, **headers: str) -> None:
    handler.send_response(status)
    for name, value in {"Content_Type": "text/html; charset=latin-1", **headers}.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()
    handler.wfile.write(body)


def test_a_page_comes_from_the_address_that_was_checked() -> None:
    with site(lambda handler: say(handler, "é".encode("latin-1"))) as served:
        page = served.fetcher().get("http://example.com/a?b=c")
    assert (page.body, page.content_type, page.charset, page.cut) == (b"\xe9", "text/html", "latin-1", False)
    assert served.connected == [(PUBLIC, 80)] and served.hosts == ["example.com"] and served.paths == ["/a?b=c"]


def test_addresses_and_redirects_in_other_letters_are_fetched() -> None:
    def answer(handler: Any) -> None:
        there = "/Z%C3%BCrich" in handler.path
        say(handler, b"there") if there else say(handler, status=302, Location="/Zürich x".encode().decode("latin-1"))

    with site(answer) as served:
        assert served.fetcher().get("http://bücher.example/ä").body == b"there"
    assert served.paths == ["/%C3%A4", "/Z%C3%BCrich%20x"] and served.looked_up == ["xn--bcher-kva.example"] * 2


def test_a_name_is_looked_up_once_so_it_cannot_change_its_mind() -> None:
    answers = iter([[PUBLIC], ["127.0.0.1"]])
    with site(lambda handler: say(handler, b"ok")) as served:
        fetcher = Fetcher(FetchLimits(), lambda host, port: next(answers), served.connect)
        assert fetcher.get("http://rebind.example.com/").body == b"ok"
        with pytest.raises(FetchError, match="public internet"):
            fetcher.get("http://rebind.example.com/")
    assert served.connected == [(PUBLIC, 80)]


@pytest.mark.parametrize(
    "place",
    ["http://127.0.0.1/", "http://169.254.169.254/latest", "//127.0.0.1/x", "http://2130706433/", "file:///etc/passwd",
     "http://[::1]/", "http://localhost:8080/", "https://10.0.0.1/", "http://[::ffff:169.254.169.254]/", "gopher://x/"],
)  # fmt: skip
@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_inside_is_refused(place: str, status: int) -> None:
    with (
        site(lambda handler: say(handler, status=status, Location=place)) as served,
        pytest.raises(FetchError, match="is not fetched"),
    ):
        served.fetcher().get("http://example.com/")
    assert len(served.connected) == 1


def test_redirects_are_followed_up_to_a_bound_and_never_for_an_api() -> None:
    def answer(handler: Any) -> None:
        number = int(handler.path[1:])
        say(handler, b"there") if number == 3 else say(handler, status=302, Location=f"/{number + 1}")

    with site(answer) as served:
        page = served.fetcher().get("http://example.com/0")
        assert (page.body, page.url) == (b"there", "http://example.com/3") and served.looked_up == ["example.com"] * 4
        with pytest.raises(FetchError, match="more than 2 redirects"):
            served.fetcher(redirects=2).get("http://example.com/0")
        with pytest.raises(FetchError, match="HTTP 302"):
            Fetcher().ask(f"http://127.0.0.1:{served.port}/0", {"Authorization": "Bearer key"})


def test_sizes_are_capped_packed_or_not() -> None:
    big = b"x" * 300_000

    def answer(handler: Any) -> None:
        if handler.path == "/packed":
            say(handler, gzip.compress(big * 100), Content_Encoding="gzip")
        elif handler.path == "/endless":
            handler.send_response(200)
            handler.end_headers()
            while True:
                handler.wfile.write(big)
        else:
            say(handler, big, Content_Length=str(100 << 20))

    with site(answer) as served:
        for path in ("packed", "endless", "announced"):
            page = served.fetcher(bytes=100_000).get(f"http://example.com/{path}")
            assert (len(page.body), page.cut) == (100_000, True), path


@pytest.mark.parametrize("where", ["headers", "body", "silence"])
def test_a_slow_server_is_left_in_time(where: str) -> None:
    stop = threading.Event()

    def answer(handler: Any) -> None:
        if where == "headers":
            while not stop.is_set():
                handler.wfile.write(b"HTTP/1.1 200 OK\r\n" if stop.wait(0.05) else b"X")
        if where == "body":
            say(handler)
            while not stop.wait(0.05):
                handler.wfile.write(b"x")
        stop.wait(10)

    with site(answer) as served:
        started = time.monotonic()
        with pytest.raises(FetchError, match="took longer than 0.4 s") as caught:
            served.fetcher(seconds=0.4).get("http://example.com/")
        stop.set()
        assert time.monotonic() - started < 3 and caught.value.again


@pytest.mark.parametrize(
    ("headers", "status", "message", "again"),
    [
        ({"Content_Type": "image/png"}, 200, "image/png, not a page", False),
        ({"Content_Type": "application/zip"}, 200, "application/zip, not a page", False),
        ({"Content_Encoding": "br"}, 200, "was not asked for", False),
        ({"Content_Encoding": "gzip"}, 200, "gave no answer", False),
        ({}, 404, "HTTP 404", False),
        ({}, 503, "HTTP 503", True),
        ({"Retry_After": "7"}, 429, "HTTP 429", True),
        ({"Retry_After": "soon"}, 429, "HTTP 429", True),
    ],
)
def test_what_is_no_page_is_a_sentence(headers: dict[str, str], status: int, message: str, again: bool) -> None:
    with (
        site(lambda handler: say(handler, b"not packed", status, **headers)) as served,
        pytest.raises(FetchError, match=message) as caught,
    ):
        served.fetcher().get("http://example.com/")
    assert caught.value.again is again and caught.value.after == (7.0 if headers.get("Retry_After") == "7" else 0.0)


def test_a_closed_port_a_broken_name_and_rubbish_are_sentences() -> None:
    def refused(*_: Any) -> socket.socket:
        raise ConnectionRefusedError("refused")

    def unknown(host: str, port: int) -> list[str]:
        raise socket.gaierror("no such name")

    with pytest.raises(FetchError, match="gave no answer") as caught:
        Fetcher(resolve=literal, connect=refused).get("http://example.com/")
    assert caught.value.again
    with pytest.raises(FetchError, match="is not known"):
        Fetcher(resolve=unknown).get("http://example.com/")
    with site(lambda handler: handler.wfile.write(b"\x00\x01rubbish\r\n\r\n")) as served, pytest.raises(FetchError):
        served.fetcher().get("http://example.com/")


def test_proxies_of_the_environment_have_no_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1/")
    with site(lambda handler: say(handler, b"ok")) as served:
        assert served.fetcher().get("http://example.com/").body == b"ok"
