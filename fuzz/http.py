"""Answers of a hostile server: status lines, headers, chunks, redirects and endings that no standard knows."""

import random
import socket
import sys
import threading
from functools import lru_cache
from pathlib import Path

from fuzz.harness import Fuzzer, main
from lorax_vlm.errors import RemoteError
from lorax_vlm.fetching.client import Private, Rules, fetch_bytes

_MAX_BYTES = 20_000
_JUNK = (
    b"\0",
    b"\r",
    b"\n",
    b"\r\n",
    b":",
    b" ",
    b"\xff",
    b"5;a=b\r\n",
    b"-5\r\n",
    b"0\r\n",
    b"f" * 70_000,
    b"\xc3\xa9",
)
_LENGTHS = (b"5", b"-5", b"+5", b"5, 5", b"", b"abc", b"9" * 30, b"99999999999", b"0x5", b"\xd9\xa5")
_PLACES = (
    *("/x", "//", "x", "?", "#", "", "http://", "http://[::1", "http://host:port/", "ftp://localhost/x", "file:///etc"),
    *("https://localhost/", "http://10.0.0.1/", "http://a@b@c/", "data:,x", "http://\x00/", "/" + "a" * 70_000, "\xff"),
)


class _Server:
    """Sends what it was told last to whoever asks, and hangs up."""

    def __init__(self) -> None:
        self.answer = b""
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            connection, _ = self._listener.accept()
            with connection:
                try:
                    connection.settimeout(2)
                    connection.recv(65536)
                    connection.sendall(self.answer)
                except OSError:
                    continue  # the client has had enough


@lru_cache(maxsize=1)
def _server() -> _Server:
    return _Server()


def _resolve(host: str, _: int) -> list[str]:
    if host == "fails":
        raise OSError("no such host")
    return {"empty": [], "odd": ["no address"], "mixed": ["127.0.0.1", "93.184.216.34"]}.get(host, ["127.0.0.1"])


def _answer(rng: random.Random) -> bytes:
    status = rng.choice((*[b"200"] * 8, b"206", b"301", b"302", b"307", b"100", b"204", b"404", b"0", b"-1", b"x"))
    version = rng.choice((*[b"HTTP/1.1"] * 8, *[b"HTTP/1.0"] * 3, b"HTTP/9", b"http/1.1", b"ICY", b""))
    lines = [version + b" " + status + rng.choice((b" OK", b"", b" " + rng.randbytes(9)))]
    chunked = rng.randrange(3) == 0
    for name, value in (
        (b"Content-Length", rng.choice(_LENGTHS)),
        (b"Transfer-Encoding", rng.choice((b"chunked", b"gzip, chunked", b"identity")) if chunked else b""),
        (b"Content-Encoding", rng.choice((b"gzip", b"identity", b"br", b"\xff"))),
        (b"Location", rng.choice(_PLACES).encode("utf-8" if rng.randrange(2) else "latin-1")),
        (rng.choice((b"X", b"Content-Type", b"", rng.randbytes(3))), rng.choice((b"", rng.randbytes(20)))),
    ):
        if value and rng.randrange(4) == 0:
            lines += [name + b":" + b" " * rng.randrange(3) + value] * rng.choice((*[1] * 9, 2, 150))
    body = rng.randbytes(rng.choice((0, 5, 100, 30_000)))
    if chunked:
        body = b"".join(
            b"%x\r\n%b\r\n" % (rng.choice((len(part), 0, 10**6)), part) for part in (body[:3], body[3:50], b"")
        )
    data = bytearray(rng.choice((b"\r\n", b"\r\n", b"\n")).join(lines) + b"\r\n\r\n" + body)
    for _ in range(rng.choice((0, 0, 0, 0, 1, 1, 3))):
        place = rng.randrange(len(data) + 1)
        data[place : place + rng.choice((0, 1, 5, 1000))] = rng.choice(_JUNK) * rng.choice((1, 1, 2, 300))
    return bytes(data)


def attempt(rng: random.Random, folder: Path) -> None:
    """Fetch from it; no more arrives than is allowed, and from where it is allowed."""
    server = _server()
    server.answer = _answer(rng)
    host = rng.choice((*["localhost"] * 9, "a:b@localhost", "mixed", "fails", "empty", "odd"))
    url = f"http://{host}:{server.port}/{rng.choice(('', 'a b', 'ä', '%ff', '?q=secretsecret', '#'))}"
    private = rng.choice((*[Private.ALLOWED] * 6, Private.TYPED, Private.REFUSED))
    rules = Rules(timeout_s=2.0, private=private, max_redirects=3, resolve=_resolve)
    try:
        received = fetch_bytes(url, rules, _MAX_BYTES)
    except RemoteError as error:
        if "secretsecret" in str(error) or "a:b@" in str(error):
            raise AssertionError(f"a secret is shown: {error}") from error
        raise
    assert len(received) <= _MAX_BYTES
    assert private is not Private.REFUSED, "no address here is public"


FUZZER = Fuzzer("http", attempt)

if __name__ == "__main__":
    sys.exit(main(FUZZER))
