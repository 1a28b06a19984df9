"""Files over http and https from addresses that anybody may have written. No torch.

The name is resolved here, every address that it has must be allowed, and the connection is made to the one that was
looked at, so what a name means cannot change in between. Each redirect is looked at in the same way. One clock runs
from the first step to the last: every wait is given what is left of it. Nothing is taken from the environment (no
proxy, no cookies, no passwords) but the certificates that the system trusts.
"""

import base64
import http.client
import io
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from typing import Any
from urllib.parse import SplitResult, quote, unquote, urljoin, urlsplit

from lorax_vlm.errors import InterruptedTransfer, RemoteError
from lorax_vlm.fetching.addresses import is_public, system_addresses

Resolve = Callable[[str, int], Sequence[str]]
"""Host and port to IP addresses."""
_BLOCK = 1 << 16
_REDIRECTS = {301, 302, 303, 307, 308}
_PORTS = {"http": 80, "https": 443}
_USER_AGENT = "lorax-vlm"
_SAFE = "/%:@!$&'()*+,;=~-._?[]"


class Private(Enum):
    """Whether addresses that are not public are fetched from."""

    REFUSED = "refused"
    TYPED = "typed"
    """As long as no public address has led there: what a person named themselves, and where that leads."""
    ALLOWED = "allowed"


@dataclass(frozen=True)
class Rules:
    """What a fetch may do."""

    timeout_s: float
    """For all of it."""
    answer_s: float | None = None
    """For each host until its answer begins. None: what is left of all."""
    wait_s: float | None = None
    """For the next bytes. None: what is left of all."""
    least_bytes: int = 0
    """That must arrive in ``least_s`` while a body is read."""
    least_s: float = 30.0
    private: Private = Private.REFUSED
    private_hint: str = ""
    """What to do about a private address, for the error."""
    https_only: bool = False
    max_redirects: int = 10
    resolve: Resolve | None = None
    """None: the system's."""


class Answer:
    """What a server sends back, while it is open."""

    def __init__(self, url: str, response: http.client.HTTPResponse, clock: "_Clock") -> None:
        self.url, self.status, self._response, self._clock = url, response.status, response, clock

    @property
    def phrase(self) -> str:
        """The status with its name."""
        return f"{self.status} {http.client.responses.get(self.status, '')}".strip()

    def header(self, name: str) -> str:
        """Empty when there is none."""
        return str(self._response.headers.get(name, ""))

    @property
    def length(self) -> int | None:
        """Bytes of the body, as announced.

        Raises:
            RemoteError: What is announced is no number.
        """
        text = self.header("Content-Length").strip()
        if not text or self._response.chunked:
            return None
        if not re.fullmatch(r"[0-9]{1,18}", text):
            raise RemoteError(self.url, f"its Content-Length is {text[:40]!r}, not a number")
        return int(text)

    def blocks(self) -> Iterator[bytes]:
        """The body, as it arrives.

        Raises:
            RemoteError: It takes too long.
            InterruptedTransfer: It breaks off.
        """
        received, announced = 0, self.length
        with _guarded(self.url, self._clock, "the download broke off"):
            while block := self._response.read1(_BLOCK):
                received += len(block)
                self._clock.count(len(block))
                yield block
            if announced is not None and received < announced:
                raise InterruptedTransfer(self.url, f"the download broke off after {received:,} of {announced:,} bytes")


def fetch_bytes(url: str, rules: Rules, max_bytes: int, accept: str = "*/*") -> bytes:
    """The whole of a file.

    Raises:
        RemoteError: It cannot be fetched, is not allowed, takes too long, or has more bytes than allowed.
    """
    with opened(url, rules, {"Accept": accept}) as answer:
        if answer.status != http.HTTPStatus.OK:
            raise RemoteError(url, f"the server answered {answer.phrase}")
        if (answer.length or 0) > max_bytes:
            raise RemoteError(url, f"the download has {answer.length:,} bytes, the limit is {max_bytes:,}")
        received = bytearray()
        for block in answer.blocks():
            received += block
            if len(received) > max_bytes:
                raise RemoteError(url, f"the download exceeds the limit of {max_bytes:,} bytes")
        return bytes(received)


@contextmanager
def opened(url: str, rules: Rules, headers: Mapping[str, str] | None = None) -> Iterator[Answer]:
    """Ask for an address and for where it redirects to; the answer that is no redirect is open during the block.

    Args:
        url: An ``http`` or ``https`` address; user and password in it are sent to its own host alone.
        rules: What may be done.
        headers: Of the request besides the usual ones.

    Raises:
        RemoteError: It cannot be reached or is not allowed.
        InterruptedTransfer: The connection broke; another try may help.
    """
    clock = _Clock(url, rules)
    hop, seen_public = url, False
    for _ in range(rules.max_redirects + 1):
        clock.begin_answer()
        with _guarded(url, clock):
            parts, host, port = _parsed(hop, url, rules)
            addresses, public = _allowed(url, host, port, rules, clock, seen_public)
            connection = _Connection(parts, host, port, addresses, clock)
        try:
            with _guarded(url, clock):
                response = connection.ask(parts, headers or {})
                location = response.headers.get("Location") if response.status in _REDIRECTS else None
            if location is None:
                with _guarded(url, clock):
                    encoding = str(response.headers.get("Content-Encoding", "")).strip().lower()
                    if encoding not in ("", "identity"):
                        raise RemoteError(url, f"the server sends it compressed ({encoding[:40]!r}), unasked")
                clock.begin_body()
                yield Answer(url, response, clock)
                return
        finally:
            connection.hang_up()
        seen_public = seen_public or public
        hop = _next(hop, location)
    raise RemoteError(url, f"it is redirected more than {rules.max_redirects} times")


class _Clock:
    """The time that is left, and whether enough arrives in it."""

    def __init__(self, url: str, rules: Rules) -> None:
        self._url, self._rules = url, rules
        self._end = time.monotonic() + rules.timeout_s
        self._answer_end: float | None = None
        self._counted, self._since = 0, 0.0

    def begin_answer(self) -> None:
        limit = self._rules.answer_s
        self._answer_end = None if limit is None else time.monotonic() + limit

    def begin_body(self) -> None:
        self._answer_end, self._counted, self._since = None, 0, time.monotonic()

    def count(self, size: int) -> None:
        """Raise when too little has arrived for too long, or the time is over."""
        self._counted += size
        passed = time.monotonic() - self._since
        if self._rules.least_bytes and passed >= self._rules.least_s:
            if self._counted < self._rules.least_bytes:
                raise RemoteError(self._url, f"only {self._counted:,} bytes came in {passed:.0f} s")
            self._counted, self._since = 0, time.monotonic()
        self.left()

    def left(self) -> float:
        """Seconds that the next step may take; raises when there are none."""
        now = time.monotonic()
        ends = [self._end] if self._answer_end is None else [self._end, self._answer_end]
        rest = min(ends) - now
        if rest <= 0:
            raise self.over()
        return rest if self._rules.wait_s is None else min(rest, self._rules.wait_s)

    def over(self) -> RemoteError:
        """What to raise when a step took too long."""
        now = time.monotonic()
        if self._answer_end is not None and self._answer_end <= now < self._end:
            return RemoteError(self._url, f"no answer began within {self._rules.answer_s:g} s")
        if self._rules.wait_s is not None and now < self._end:
            return InterruptedTransfer(self._url, f"nothing came for {self._rules.wait_s:g} s")
        return RemoteError(self._url, f"the download took longer than {self._rules.timeout_s:g} s")


class _Reader(io.RawIOBase):
    """What arrives; every wait gets what is left of the time."""

    def __init__(self, connected: socket.socket, clock: _Clock) -> None:
        self._socket, self._clock = connected, clock

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self._socket.settimeout(self._clock.left())
        return self._socket.recv_into(buffer)


class _Socket:
    """As much of a socket as ``http.client`` uses, which closes it when there is a body to be read yet."""

    def __init__(self, connected: socket.socket, clock: _Clock) -> None:
        self._socket, self._clock = connected, clock

    def sendall(self, data: bytes) -> None:
        self._socket.settimeout(self._clock.left())
        self._socket.sendall(data)

    def makefile(self, _: str) -> io.BufferedReader:
        return io.BufferedReader(_Reader(self._socket, self._clock), _BLOCK)

    def close(self) -> None:
        """``_Connection.hang_up`` does."""


class _Connection(http.client.HTTPConnection):
    """To the addresses that were looked at, for one request."""

    def __init__(self, parts: SplitResult, host: str, port: int, addresses: Sequence[str], clock: _Clock) -> None:
        super().__init__(host, port)
        self.default_port = _PORTS[parts.scheme]  # which is not said in the request
        self._secure, self._addresses, self._clock = parts.scheme == "https", addresses, clock
        self._connected: socket.socket | None = None

    def hang_up(self) -> None:
        """Close the connection."""
        self.close()
        if self._connected is not None:
            self._connected.close()

    def connect(self) -> None:
        """To the first address that answers."""
        last: OSError = OSError("it has no address")
        for number, address in enumerate(self._addresses):
            share = self._clock.left() / (len(self._addresses) - number)
            try:
                self._connected = socket.create_connection((address, self.port), timeout=share)
                break
            except OSError as error:
                last = error
        else:
            raise last
        if self._secure:
            self._connected.settimeout(self._clock.left())
            self._connected = ssl.create_default_context().wrap_socket(self._connected, server_hostname=self.host)
        self.sock = _Socket(self._connected, self._clock)

    def ask(self, parts: SplitResult, headers: Mapping[str, str]) -> http.client.HTTPResponse:
        target = quote(parts.path or "/", _SAFE) + (f"?{quote(parts.query, _SAFE)}" if parts.query else "")
        sent = {"User-Agent": _USER_AGENT, "Accept-Encoding": "identity", "Connection": "close", **headers}
        if parts.username or parts.password:
            pair = f"{unquote(parts.username or '')}:{unquote(parts.password or '')}"
            sent["Authorization"] = f"Basic {base64.b64encode(pair.encode()).decode()}"
        self.request("GET", target, headers=sent)
        return self.getresponse()


def _parsed(hop: str, url: str, rules: Rules) -> tuple[SplitResult, str, int]:
    try:
        hop.encode()  # half of a character
        parts = urlsplit(hop)
        port, host = parts.port, (parts.hostname or "").rstrip(".")
        host = host if host.isascii() else host.encode("idna").decode("ascii")
    except ValueError:  # whose text may quote a password
        raise RemoteError(url, "it is not a well-formed address") from None
    whence = "it leads to" if hop != url else "it is"
    if parts.scheme not in _PORTS:
        raise RemoteError(url, f"{whence} an address of {parts.scheme[:20]!r}; only http and https are fetched")
    if rules.https_only and parts.scheme != "https":
        hint = "anyone on the way could change what comes over http://"
        raise RemoteError(url, f"{whence} an address that is not https; only https:// is fetched: {hint}")
    if not host or re.search(r"[\s/\\@?#\x00-\x1f\x7f]", host):
        raise RemoteError(url, "the address has no host")
    return parts, host, port if port is not None else _PORTS[parts.scheme]


def _allowed(
    url: str, host: str, port: int, rules: Rules, clock: _Clock, seen_public: bool
) -> tuple[Sequence[str], bool]:
    """All addresses of a host and whether they are public, if it may be fetched from."""
    addresses = _resolved(url, host, port, rules.resolve or system_addresses, clock)
    public = all(is_public(address) for address in addresses)
    allowed = public or rules.private is Private.ALLOWED or (rules.private is Private.TYPED and not seen_public)
    if not allowed:
        # Said before anything is dialled, in the same words whatever is there: it tells nobody what there is.
        hint = f" {rules.private_hint}" if rules.private_hint else ""
        raise RemoteError(url, f"it leads to an address that is not public.{hint}".rstrip("."))
    return addresses, public


def _resolved(url: str, host: str, port: int, resolve: Resolve, clock: _Clock) -> Sequence[str]:
    """The addresses of a host. The system's resolver knows no time limit, so it is waited for elsewhere."""
    outcome: list[Sequence[str] | Exception] = []

    def look() -> None:
        try:
            outcome.append(resolve(host, port))
        except Exception as error:
            outcome.append(error)

    thread = threading.Thread(target=look, daemon=True, name="lorax-resolve")
    thread.start()
    thread.join(clock.left())
    if not outcome:
        raise clock.over()
    (found,) = outcome
    if isinstance(found, Exception) or not found:
        reason = getattr(found, "strerror", None) or "no address is known"
        raise RemoteError(url, f"it cannot be reached: host {host[:100]!r}: {reason}")
    return found


def _next(hop: str, location: str) -> str:
    """Where a redirect leads to. User and password go on to the same host only."""
    # http.client reads headers as Latin-1; servers that do not encode their addresses write UTF-8.
    location = location.encode("latin-1", "replace").decode("utf-8", "replace")
    try:
        there, here = urlsplit(urljoin(hop, location)), urlsplit(hop)
        same = (there.scheme, there.hostname, there.port) == (here.scheme, here.hostname, here.port)
    except ValueError:
        return location  # which is refused when it is read again
    if same and "@" in here.netloc and "@" not in there.netloc:
        there = there._replace(netloc=f"{here.netloc.rpartition('@')[0]}@{there.netloc}")
    return there.geturl()


@contextmanager
def _guarded(url: str, clock: _Clock, broken: str = "it cannot be reached") -> Iterator[None]:
    """Whatever a connection, or what comes over it, raises becomes a ``RemoteError``."""
    try:
        yield
    except (RemoteError, MemoryError):
        raise
    except TimeoutError:
        raise clock.over() from None
    except ssl.SSLCertVerificationError as error:
        raise RemoteError(url, f"its certificate is not accepted: {error.verify_message}") from None
    except http.client.IncompleteRead:
        raise InterruptedTransfer(url, "the download broke off") from None
    except OSError as error:  # http.client's RemoteDisconnected is one
        raise InterruptedTransfer(url, f"{broken}: {error.strerror or error}") from None
    except http.client.HTTPException as error:
        raise RemoteError(url, f"the server does not speak HTTP: {type(error).__name__}") from None
    except Exception as error:
        raise RemoteError(url, f"its answer cannot be read: {type(error).__name__}") from None
