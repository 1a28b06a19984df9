"""Fetching from addresses that anybody may have written, against real servers on loopback."""

import base64
import ipaddress
import itertools
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import trustme

from lorax_vlm.errors import InterruptedTransfer, RemoteError
from lorax_vlm.fetching.addresses import is_public, system_addresses
from lorax_vlm.fetching.client import Private, Rules, fetch_bytes
from tests.servers import redirect, response, serve_raw, tls_for

OPEN = Rules(timeout_s=5.0, private=Private.ALLOWED)
LIMIT = 100_000


def resolver(**names: str | list[str]) -> Callable[[str, int], list[str]]:
    """Names (``_`` for a dot) to addresses; where there are several lists, one after the other."""
    table = {name.replace("_", "."): [found] if isinstance(found, str) else found for name, found in names.items()}
    return lambda host, port: table[host]


# --- which addresses are public ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "address",
    [
        *("127.0.0.1", "127.8.9.1", "0.0.0.0", "0.1.2.3", "10.1.2.3", "172.16.0.1", "172.31.255.255", "192.168.1.1"),
        *("169.254.169.254", "100.64.0.1", "100.127.255.255", "192.0.0.8", "192.0.2.1", "198.18.0.1", "198.19.255.1"),
        *("198.51.100.7", "203.0.113.7", "224.0.0.1", "239.255.255.255", "240.0.0.1", "255.255.255.255"),
        *("::", "::1", "::127.0.0.1", "fe80::1", "fe80::1%eth0", "fec0::1", "fc00::1", "fd12::1", "ff02::1", "ff0e::1"),
        *("::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:169.254.169.254", "::ffff:0:127.0.0.1"),
        *("64:ff9b::7f00:1", "64:ff9b::a00:1", "64:ff9b:1::1", "2002:7f00:1::1", "2002:5db8:d822::1"),
        *(
            "2001::1",
            "2001:0:4136:e378:8000:63bf:3fff:fdd2",
            "2001:db8::1",
            "2001:10::1",
            "100::1",
            "3fff::1",
            "5f00::1",
        ),
        *("localhost", "", "1.2.3", "12345", "93.184.216.34/8", "no address"),
    ],
)
def test_not_public(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize(
    "address",
    [
        *("93.184.216.34", "8.8.8.8", "172.15.0.1", "172.32.0.1", "100.63.255.255", "100.128.0.1", "192.0.1.1"),
        *("2606:2800:220:1:248:1893:25c8:1946", "2a00:1450:4001:81b::200e", "::ffff:8.8.8.8", "64:ff9b::808:808"),
    ],
)
def test_public(address: str) -> None:
    assert is_public(address)


def test_whatever_is_public_here_is_global_in_the_library() -> None:
    """Another list of the same registries: ours must not be wider, but where an address of version 4 is embedded."""
    firsts = (0, 1, 9, 10, 11, 100, 126, 127, 169, 172, 192, 198, 203, 223, 224, 239, 240, 255)
    for four in itertools.product(firsts, (0, 2, 16, 18, 51, 64, 88, 127, 128, 168, 254), (0, 2, 99, 100, 113), (0, 7)):
        address = ".".join(map(str, four))
        if is_public(address):
            assert ipaddress.ip_address(address).is_global, address
    for first in range(0, 1 << 16, 211):
        for second in (0, 1, 2, 0xDB8, 0x7F00, 0xFFFF):
            address = f"{first:x}:{second:x}::5"
            if is_public(address):
                assert ipaddress.ip_address(address).is_global, address


def test_the_system_knows_this_machine() -> None:
    assert set(system_addresses("localhost", 80)) <= {"127.0.0.1", "::1"}


# --- what is fetched --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "answer",
    [
        response(b"hello"),
        b"HTTP/1.0 200 OK\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhe\r\n3;x=y\r\nllo\r\n0\r\n\r\n",
        response(b"hello", Connection="close"),
        response(b"hello", Content_Encoding="identity"),
        b"HTTP/1.1 100 Continue\r\n\r\n" + response(b"hello"),
    ],
)
def test_every_way_to_send_a_body(answer: bytes) -> None:
    with serve_raw(answer) as server:
        assert fetch_bytes(f"http://127.0.0.1:{server.port}/", OPEN, LIMIT) == b"hello"


def test_what_is_asked() -> None:
    with serve_raw(response(b"x")) as server:
        fetch_bytes(f"http://localhost:{server.port}/ä b%20c?q=ü&r=1#part", OPEN, LIMIT, accept="image/*")
        assert server.asked[0].split(b"\r\n")[0] == b"GET /%C3%A4%20b%20c?q=%C3%BC&r=1 HTTP/1.1"
        assert b"Accept: image/*\r\n" in server.asked[0]
        assert f"Host: localhost:{server.port}\r\n".encode() in server.asked[0]


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (b"hello\n", "does not speak HTTP"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "does not speak HTTP"),
        (b"", "cannot be reached"),
        (b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 200 + b"\r\n", "does not speak HTTP"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"y" * 70_000 + b"\r\n\r\n", "does not speak HTTP"),
        (response(b"not here", "404 Not Found"), "404 Not Found"),
        (response(b"", "302 Found"), "302 Found"),
        (response(b"x" * 10, Content_Length="500"), "broke off after 10 of 500 bytes"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhel", "broke off"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nhello", "broke off"),
        *((response(b"hello", Content_Length=text), "not a number") for text in ("abc", "-5", "+5", "5, 5", "0x5")),
        (response(b"", Content_Length=str(10**12)), "has 1,000,000,000,000 bytes, the limit is 100,000"),
        (b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * (LIMIT + 1), "exceeds the limit of 100,000"),
        (response(b"\x1f\x8b" + b"0" * 100, Content_Encoding="gzip"), "sends it compressed"),
        (redirect("ftp://localhost/x"), "leads to an address of 'ftp'"),
        (redirect("file:///etc/passwd"), "leads to an address of 'file'"),
        (redirect("http://:80/"), "no host"),
        (redirect("http://[::1"), "well-formed"),
    ],
)
def test_answers_that_are_refused(answer: bytes, reason: str) -> None:
    with serve_raw(answer) as server, pytest.raises(RemoteError, match=reason):
        fetch_bytes(f"http://127.0.0.1:{server.port}/x", OPEN, LIMIT)


@pytest.mark.parametrize(
    "url",
    [
        *("http://[::1", "http://h:port/", "http://h:99999/", "http://", "http:///x", "https://?", "http://a b/"),
        *("http://\ud83d/", "http://x/\ud83d", "http://x\ty\x00/", "http://" + "a" * 300 + "/", "http://..../"),
        *("ftp://localhost/", "file:///etc/passwd", "data:,x", "", "x", "//localhost/"),
    ],
)
def test_addresses_that_lead_nowhere(url: str) -> None:
    with pytest.raises(RemoteError):
        fetch_bytes(url, Rules(timeout_s=5.0, private=Private.ALLOWED, resolve=resolver()), LIMIT)


def test_a_port_where_nobody_listens() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        with pytest.raises(InterruptedTransfer, match="cannot be reached: Connection refused"):
            fetch_bytes(f"http://127.0.0.1:{unused.getsockname()[1]}/", OPEN, LIMIT)


# --- where it is fetched from -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "host",
    [
        *("127.0.0.1", "localhost", "LOCALHOST", "localhost.", "[::1]", "[::ffff:127.0.0.1]", "2130706433", "0x7f.1"),
        *("0177.0.0.1", "127.1", "0.0.0.0", "[::]", "user:word@127.0.0.1"),
    ],
)
def test_this_machine_under_every_name(host: str) -> None:
    with serve_raw(response(b"inside")) as server:
        with pytest.raises(RemoteError, match=r"not public|cannot be reached: host"):
            fetch_bytes(f"http://{host}:{server.port}/", Rules(timeout_s=5.0), LIMIT)
        assert not server.asked


def test_an_error_does_not_tell_whether_anybody_listens() -> None:
    with serve_raw(response(b"inside")) as server, socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        said = set()
        for port in (server.port, unused.getsockname()[1]):
            with pytest.raises(RemoteError) as caught:
                fetch_bytes(f"http://127.0.0.1:{port}/", Rules(timeout_s=5.0), LIMIT)
            said.add(caught.value.reason)
        assert len(said) == 1


@pytest.mark.parametrize(
    "addresses", [["127.0.0.1"], ["93.184.216.34", "127.0.0.1"], ["10.0.0.1", "93.184.216.34"], ["fe80::1%lo"], []]
)
def test_a_name_all_of_whose_addresses_must_be_public(addresses: list[str]) -> None:
    with serve_raw(response(b"inside")) as server:
        rules = Rules(timeout_s=5.0, resolve=resolver(photos_example=addresses))
        with pytest.raises(RemoteError, match="not public" if addresses else "no address"):
            fetch_bytes(f"http://photos.example:{server.port}/", rules, LIMIT)
        assert not server.asked


def test_a_name_that_changes_its_meaning_is_asked_once_for_each_hop() -> None:
    """The address that was looked at is the one that is dialled; nothing resolves the name again."""
    asked: list[str] = []

    def rebinding(host: str, port: int) -> list[str]:
        asked.append(host)
        return ["127.0.0.1"]

    with serve_raw(response(b"x")) as server:
        rules = Rules(timeout_s=5.0, private=Private.ALLOWED, resolve=rebinding)
        assert fetch_bytes(f"http://no-such-name.invalid:{server.port}/", rules, LIMIT) == b"x"
        assert server.hosts == ["no-such-name.invalid"]
    assert asked == ["no-such-name.invalid"]


def test_the_next_address_is_tried() -> None:
    with serve_raw(response(b"x")) as server:
        rules = Rules(timeout_s=5.0, private=Private.ALLOWED, resolve=resolver(two_example=["127.0.0.2", "127.0.0.1"]))
        assert fetch_bytes(f"http://two.example:{server.port}/", rules, LIMIT) == b"x"


@pytest.fixture
def public(monkeypatch: pytest.MonkeyPatch) -> str:
    """A loopback address that counts as public."""
    monkeypatch.setattr("lorax_vlm.fetching.client.is_public", lambda address: address == "127.0.0.2")
    return "127.0.0.2"


@pytest.mark.parametrize(
    ("private", "allowed"), [(Private.REFUSED, False), (Private.TYPED, False), (Private.ALLOWED, True)]
)
def test_a_public_address_that_leads_to_a_private_one(public: str, private: Private, allowed: bool) -> None:
    names = resolver(photos_example=public, inside_example="127.0.0.1")
    with serve_raw(response(b"inside")) as inside:
        with serve_raw(redirect(f"http://inside.example:{inside.port}/meta-data"), address=public) as outside:
            rules = Rules(timeout_s=5.0, private=private, resolve=names)
            url = f"http://photos.example:{outside.port}/a.png"
            if allowed:
                assert fetch_bytes(url, rules, LIMIT) == b"inside"
                return
            with pytest.raises(RemoteError, match="not public"):
                fetch_bytes(url, rules, LIMIT)
            assert len(outside.asked) == 1
        assert not inside.asked


def test_a_private_address_that_was_typed_may_lead_on_to_others(public: str) -> None:
    names = resolver(store_example="127.0.0.1", files_example="127.0.0.1", cdn_example=public)
    typed = Rules(timeout_s=5.0, private=Private.TYPED, resolve=names)
    with serve_raw(response(b"x")) as files, serve_raw(response(b"y"), address=public) as cdn:
        with serve_raw(redirect(f"http://files.example:{files.port}/")) as store:
            assert fetch_bytes(f"http://store.example:{store.port}/", typed, LIMIT) == b"x"
        with serve_raw(redirect(f"http://cdn.example:{cdn.port}/")) as store:
            assert fetch_bytes(f"http://store.example:{store.port}/", typed, LIMIT) == b"y"


def test_redirects_are_counted() -> None:
    with serve_raw(redirect("/again")) as server:
        with pytest.raises(RemoteError, match="more than 3 times"):
            fetch_bytes(f"http://127.0.0.1:{server.port}/", Rules(5.0, private=Private.ALLOWED, max_redirects=3), LIMIT)
        assert len(server.asked) == 4


def test_nothing_of_the_environment_is_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with serve_raw(response(b"x")) as server, serve_raw(response(b"proxy")) as proxy:
        for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
        (tmp_path / ".netrc").write_text("machine 127.0.0.1 login me password word\n")
        monkeypatch.setenv("HOME", str(tmp_path))
        for _ in range(2):
            assert fetch_bytes(f"http://127.0.0.1:{server.port}/", OPEN, LIMIT) == b"x"
        assert not proxy.asked
        assert b"Authorization" not in server.asked[0]


def test_user_and_password_stay_with_their_host() -> None:
    pair = base64.b64encode(b"me:a:b@c").decode()
    with serve_raw(response(b"x")) as other, serve_raw(response(b"y")) as last:
        places = {"/away": f"http://127.0.0.1:{other.port}/", "/here": "/there"}
        for path, place in places.items():
            with serve_raw(
                redirect(place) if path == "/away" else redirect(f"http://127.0.0.1:{last.port}/")
            ) as server:
                fetch_bytes(f"http://me:a%3Ab%40c@127.0.0.1:{server.port}{path}", OPEN, LIMIT)
                assert f"Authorization: Basic {pair}".encode() in server.asked[0]
        assert b"Authorization" not in other.asked[0]
        assert b"Authorization" not in last.asked[0]
    with serve_raw(redirect("/again")) as server:
        with pytest.raises(RemoteError):
            fetch_bytes(f"http://me:a%3Ab%40c@127.0.0.1:{server.port}/", OPEN, LIMIT)
        assert all(pair.encode() in asked for asked in server.asked), "the same host keeps them"


@pytest.mark.parametrize("answer", [b"hello\n", response(b"", "403 Forbidden"), redirect("ftp://x/"), b""])
def test_no_secret_is_in_an_error(answer: bytes) -> None:
    with serve_raw(answer) as server, pytest.raises(RemoteError) as caught:
        fetch_bytes(f"http://me:passw0rd@127.0.0.1:{server.port}/a?X-Amz-Signature=s3cret#fr4g", OPEN, LIMIT)
    for shown in (str(caught.value), repr(caught.value), caught.value.url):
        assert f"127.0.0.1:{server.port}/a" in shown or shown.startswith("RemoteError")
        assert not any(secret in shown for secret in ("passw0rd", "s3cret", "fr4g"))


@pytest.mark.parametrize(
    ("url", "shown"),
    [("http://a@127.0.0.1/", "http://127.0.0.1/"), ("http://a:t@127.0.0.1/?e", "http://127.0.0.1/?...")],
)
def test_short_secrets_do_not_make_holes_in_a_message(url: str, shown: str) -> None:
    reason = f"it leads to an address that is not public; {url} did not answer"
    message = str(RemoteError(url, reason))
    assert message.startswith(f"{shown}: it leads to an address that is not public; http://")
    assert url.partition("//")[2].partition("@")[0] + "@" not in message


# --- time -------------------------------------------------------------------------------------------------------------

DRIP = tuple(itertools.chain(*[(b"a", 0.1)] * 200))


@pytest.mark.timeout(15)
@pytest.mark.parametrize(
    "parts",
    [
        (30.0,),
        (b"HTTP/1.1 200 OK\r\nX: ", *DRIP),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5;", *DRIP),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n\r\n", *DRIP),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n\r\n", 30.0),
        tuple(itertools.chain(*[(b"HTTP/1.1 100 Continue\r\n\r\n", 0.05)] * 400)),
    ],
    ids=["silent", "headers", "chunk size", "body", "stops", "continue"],
)
@pytest.mark.parametrize("secure", [False, True])
def test_one_clock_for_all_of_it(
    parts: tuple[bytes | float, ...], secure: bool, authority: tuple[trustme.CA, Path]
) -> None:
    tls = tls_for(authority[0], "127.0.0.1") if secure else None
    with serve_raw(*parts, tls=tls) as server, pytest.raises(RemoteError, match=r"longer than 0\.5 s"):
        fetch_bytes(
            f"http{'s' if secure else ''}://127.0.0.1:{server.port}/", Rules(0.5, private=Private.ALLOWED), LIMIT
        )


@pytest.mark.timeout(15)
def test_redirects_and_names_are_in_the_time() -> None:
    def slow(host: str, port: int) -> list[str]:
        time.sleep(0.3 if host == "slow.example" else 30)
        return ["127.0.0.1"]

    rules = Rules(0.5, private=Private.ALLOWED, resolve=slow)
    with serve_raw(redirect("/again")) as server, pytest.raises(RemoteError, match=r"longer than 0\.5 s"):
        fetch_bytes(f"http://slow.example:{server.port}/", rules, LIMIT)
    with pytest.raises(RemoteError, match=r"longer than 0\.5 s"):
        fetch_bytes("http://slower.example/", rules, LIMIT)


def test_a_server_that_never_shakes_hands(authority: tuple[trustme.CA, Path]) -> None:
    with serve_raw(30.0) as server, pytest.raises(RemoteError, match=r"longer than 0\.5 s"):
        fetch_bytes(f"https://127.0.0.1:{server.port}/", Rules(0.5, private=Private.ALLOWED), LIMIT)


@pytest.mark.parametrize(
    ("rules", "parts", "reason", "error"),
    [
        (Rules(9.0, answer_s=0.3, private=Private.ALLOWED), (30.0,), "no answer began within 0.3 s", RemoteError),
        (
            Rules(9.0, wait_s=0.3, private=Private.ALLOWED),
            (response(b"", Content_Length="9"), 30.0),
            "nothing came for 0.3 s",
            InterruptedTransfer,
        ),
        (
            Rules(9.0, least_bytes=100, least_s=0.5, private=Private.ALLOWED),
            (response(b"", Content_Length="9000"), *DRIP),
            "bytes came in",
            RemoteError,
        ),
    ],
    ids=["answer", "wait", "least"],
)
def test_other_limits(rules: Rules, parts: tuple[bytes | float, ...], reason: str, error: type[RemoteError]) -> None:
    with serve_raw(*parts) as server, pytest.raises(error, match=reason) as caught:
        fetch_bytes(f"http://127.0.0.1:{server.port}/", rules, LIMIT)
    assert type(caught.value) is error


# --- TLS --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def authority(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[trustme.CA, Path]:
    made, path = trustme.CA(), tmp_path / "authority.pem"
    made.cert_pem.write_to_path(str(path))
    monkeypatch.setenv("SSL_CERT_FILE", str(path))
    return made, path


def test_the_certificate_is_that_of_the_name_and_not_of_the_address(authority: tuple[trustme.CA, Path]) -> None:
    names = Rules(5.0, private=Private.ALLOWED, resolve=resolver(good_example="127.0.0.1", other_example="127.0.0.1"))
    with serve_raw(response(b"x"), tls=tls_for(authority[0], "good.example")) as server:
        assert fetch_bytes(f"https://good.example:{server.port}/", names, LIMIT) == b"x"
        with pytest.raises(RemoteError, match="certificate is not accepted"):
            fetch_bytes(f"https://other.example:{server.port}/", names, LIMIT)
    with serve_raw(response(b"x"), tls=tls_for(trustme.CA(), "good.example")) as server:
        with pytest.raises(RemoteError, match="certificate is not accepted"):
            fetch_bytes(f"https://good.example:{server.port}/", names, LIMIT)
        assert not server.asked


def test_https_only_counts_for_every_hop(authority: tuple[trustme.CA, Path]) -> None:
    rules = Rules(5.0, private=Private.ALLOWED, https_only=True)
    tls = tls_for(authority[0], "127.0.0.1")
    with (
        serve_raw(response(b"attacker"), tls=tls) as last,
        serve_raw(redirect(f"https://127.0.0.1:{last.port}/")) as plain,
        serve_raw(redirect(f"http://127.0.0.1:{plain.port}/"), tls=tls) as first,
    ):
        with pytest.raises(RemoteError, match="leads to an address that is not https"):
            fetch_bytes(f"https://127.0.0.1:{first.port}/", rules, LIMIT)
        with pytest.raises(RemoteError, match="only https"):
            fetch_bytes(f"http://127.0.0.1:{plain.port}/", rules, LIMIT)
        assert not plain.asked
        assert not last.asked
