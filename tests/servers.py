"""Servers on loopback that tests talk to over real connections: files by https, and as much of the hub as is needed."""

import base64
import hashlib
import json
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import trustme


class _Quiet(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *arguments: Any) -> None:
        pass

    def reply(self, content: bytes, status: int = 200, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def json(self, value: Any, status: int = 200) -> None:
        self.reply(json.dumps(value).encode(), status, Content_Type="application/json")


class FileServer:
    """Files by https. It can break off, change its files, and remembers what was asked."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.break_off_after: list[int] = []
        """Bytes after which the next answers end."""
        self.redirect: dict[str, str] = {}
        self.ranges: list[str | None] = []
        self.etags = True
        self.url = ""

    def answer(self, request: _Quiet) -> None:
        if request.path in self.redirect:
            request.reply(b"", 302, Location=self.redirect[request.path])
            return
        content = self.files.get(request.path)
        if content is None:
            request.reply(b"nothing", 404)
            return
        wanted = request.headers.get("Range")
        self.ranges.append(wanted)
        tag = f'"{hashlib.sha256(content).hexdigest()[:16]}"'
        start, status = 0, 200
        if wanted and request.headers.get("If-Range") in (None, tag):
            start, status = int(wanted.removeprefix("bytes=").rstrip("-")), 206
        part = content[start:]
        request.send_response(status)
        if self.etags:
            request.send_header("ETag", tag)
        if status == 206:
            request.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        request.send_header("Content-Length", str(len(part)))
        request.end_headers()
        if self.break_off_after:
            request.wfile.write(part[: self.break_off_after.pop(0)])
            request.wfile.flush()
            request.close_connection = True
            request.connection.close()
            return
        request.wfile.write(part)


@contextmanager
def serve_files(folder: Path) -> Iterator[tuple[FileServer, Path]]:
    """An https server with a certificate of its own authority, whose PEM file is the second thing yielded."""
    served, authority = FileServer(), trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    authority.cert_pem.write_to_path(str(folder / "authority.pem"))

    class Handler(_Quiet):
        def do_GET(self) -> None:
            served.answer(self)

    with _running(Handler, context) as port:
        served.url = f"https://localhost:{port}"
        yield served, folder / "authority.pem"


class Hub:
    """Repositories with commits, as far as creating, uploading and downloading go."""

    def __init__(self) -> None:
        self.repositories: dict[str, dict[str, dict[str, bytes]]] = {}
        """Files by commit by repository."""
        self.heads: dict[str, str] = {}
        self.objects: dict[str, bytes] = {}
        self.private: set[str] = set()
        self.url = ""

    def commit(self, repository: str, files: dict[str, bytes]) -> str:
        """Add a commit with these files on top; returns its name."""
        commits = self.repositories.setdefault(repository, {})
        content = {**commits.get(self.heads.get(repository, ""), {}), **files}
        facts = [(name, hashlib.sha1(data).hexdigest()) for name, data in sorted(content.items())]
        name = hashlib.sha1(json.dumps([len(commits), facts]).encode()).hexdigest()
        commits[name], self.heads[repository] = content, name
        return name

    def remove(self, repository: str, path: str) -> None:
        """Let a file be missing from the next commit on."""
        commits = self.repositories[repository]
        content = {name: data for name, data in commits[self.heads[repository]].items() if name != path}
        name = hashlib.sha1(json.dumps([len(commits), path]).encode()).hexdigest()
        commits[name], self.heads[repository] = content, name

    def resolve(self, repository: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        """The commit and files of a revision."""
        name = self.heads.get(repository) if revision == "main" else revision
        found = self.repositories.get(repository, {}).get(name or "")
        return (str(name), found) if found is not None else None


@contextmanager
def serve_hub() -> Iterator[Hub]:
    """A stand-in for the hub's API."""
    hub = Hub()

    class Handler(_Quiet):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            parts = self.path.split("?")[0].strip("/").split("/")
            if parts[:2] == ["api", "repos"]:
                wanted = json.loads(body)
                name = f"{wanted['organization']}/{wanted['name']}" if wanted.get("organization") else wanted["name"]
                if name in hub.repositories:
                    self.json({"error": "exists", "url": f"{hub.url}/{name}"}, 409)
                    return
                hub.commit(name, {})
                if wanted.get("private") or wanted.get("visibility") == "private":
                    hub.private.add(name)
                self.json({"url": f"{hub.url}/{name}", "name": name, "id": name})
            elif parts[:2] == ["api", "validate-yaml"]:
                self.json({"errors": [], "warnings": []})
            elif parts[-2] == "preupload":
                files = [
                    {
                        "path": f["path"],
                        "uploadMode": "lfs" if f["path"].endswith(".safetensors") else "regular",
                        "shouldIgnore": False,
                    }
                    for f in json.loads(body)["files"]
                ]
                self.json({"files": files})
            elif parts[-2:] == ["objects", "batch"]:
                wanted = json.loads(body)["objects"]
                uploads = [
                    {**o, "actions": {"upload": {"href": f"{hub.url}/upload/{o['oid']}", "header": {}}}} for o in wanted
                ]
                self.json({"transfer": "basic", "objects": uploads})
            elif parts[-2] == "commit":
                self.commit(f"{parts[2]}/{parts[3]}", body)
            else:
                self.json({"error": f"no {self.path}"}, 404)

        def commit(self, repository: str, body: bytes) -> None:
            files = {}
            for line in body.decode().splitlines():
                row = json.loads(line)
                value = row["value"]
                if row["key"] == "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                elif row["key"] == "lfsFile":
                    files[value["path"]] = hub.objects[value["oid"]]
                elif row["key"] == "deletedFile":
                    hub.remove(repository, value["path"])
            name = hub.commit(repository, files)
            self.json({"success": True, "commitOid": name, "commitUrl": f"{hub.url}/{repository}/commit/{name}"})

        def do_PUT(self) -> None:
            content = self.rfile.read(int(self.headers["Content-Length"]))
            assert hashlib.sha256(content).hexdigest() == self.path.rsplit("/", 1)[-1]
            hub.objects[self.path.rsplit("/", 1)[-1]] = content
            self.reply(b"")

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            parts = self.path.split("?")[0].strip("/").split("/")
            if parts[:2] == ["api", "models"]:
                found = hub.resolve("/".join(parts[2:4]), parts[5] if len(parts) > 5 else "main")
                if found is None:
                    self.reply(b'{"error": "not found"}', 404, X_Error_Code="RepoNotFound")
                    return
                if parts[4:5] == ["tree"]:
                    rows = [(name, len(data), hashlib.sha1(data).hexdigest()) for name, data in found[1].items()]
                    self.json([{"type": "file", "path": n, "size": size, "oid": oid} for n, size, oid in rows])
                    return
                siblings = [{"rfilename": name, "size": len(data)} for name, data in found[1].items()]
                self.json({"id": "/".join(parts[2:4]), "sha": found[0], "siblings": siblings})
                return
            found = hub.resolve("/".join(parts[:2]), parts[3]) if parts[2:3] == ["resolve"] else None
            content = found[1].get("/".join(parts[4:])) if found else None
            if found is None or content is None:
                self.reply(b"", 404, X_Error_Code="EntryNotFound")
                return
            self.reply(
                content, ETag=f'"{hashlib.sha1(content).hexdigest()}"', X_Repo_Commit=found[0], Accept_Ranges="bytes"
            )

    with _running(Handler) as port:
        hub.url = f"http://127.0.0.1:{port}"
        yield hub


class RawServer:
    """Sends given bytes to whoever asks, by TLS or not, and remembers the requests."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.asked: list[bytes] = []
        self.hosts: list[str] = []
        """By which names it was asked, without port."""


@contextmanager
def serve_raw(
    *parts: bytes | float, tls: ssl.SSLContext | None = None, address: str = "127.0.0.1"
) -> Iterator[RawServer]:
    """A server that answers everybody with the bytes, waiting where there is a number of seconds between them."""
    listener = socket.create_server((address, 0))
    served = RawServer(listener.getsockname()[1])
    over = threading.Event()

    def answer(connection: socket.socket) -> None:
        with connection, suppress(OSError):
            secured = tls.wrap_socket(connection, server_side=True) if tls else connection
            with secured:
                request = secured.recv(65536)
                served.asked.append(request)
                served.hosts += [
                    line.split(b":")[1].strip().decode() for line in request.split(b"\r\n") if line.startswith(b"Host:")
                ]
                for part in parts:
                    if isinstance(part, bytes):
                        secured.sendall(part)
                    elif over.wait(part):
                        return

    def accept() -> None:
        with suppress(OSError):
            while True:
                threading.Thread(target=answer, args=(listener.accept()[0],), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield served
    finally:
        over.set()
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()


def tls_for(authority: trustme.CA, *names: str) -> ssl.SSLContext:
    """What a server of these names needs."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(*names).configure_cert(context)
    return context


def response(body: bytes = b"", status: str = "200 OK", **headers: str) -> bytes:
    """An answer with its length."""
    named = {"Content-Length": str(len(body))} | {name.replace("_", "-"): value for name, value in headers.items()}
    head = "".join(f"{name}: {value}\r\n" for name, value in named.items())
    return f"HTTP/1.1 {status}\r\n{head}\r\n".encode() + body


def redirect(url: str) -> bytes:
    """An answer that leads there."""
    return response(status="302 Found", Location=url)


@contextmanager
def _running(handler: type[BaseHTTPRequestHandler], context: ssl.SSLContext | None = None) -> Iterator[int]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    if context is not None:
        server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
