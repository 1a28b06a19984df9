"""Adapters over real connections on loopback: https, S3, the hub's API, and fsspec's own."""

import dataclasses
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from lorax_vlm.adapters.manifest import MANIFEST_FILE
from lorax_vlm.adapters.pair import WEIGHTS_FILE
from lorax_vlm.adapters.store import AdapterStore
from lorax_vlm.adapters.stored import StoredAdapter
from lorax_vlm.errors import AdapterExists, DamagedAdapter, InterruptedTransfer, RemoteError
from lorax_vlm.models.loading import LoadedModel
from lorax_vlm.sharing.bundle import pack
from lorax_vlm.sharing.downloads import upload
from lorax_vlm.sharing.remotes import is_remote, pull, push
from lorax_vlm.skills import caption
from tests.adapters_for_tests import write_manifest, write_random_adapter
from tests.servers import FileServer, Hub, serve_files, serve_hub


@pytest.fixture
def stored(mini: LoadedModel, tmp_path: Path) -> StoredAdapter:
    folder = write_random_adapter(mini, tmp_path / "source" / "light", "light")
    return AdapterStore(tmp_path / "theirs").add("light", folder, write_manifest(mini, folder))


@pytest.fixture
def theirs(stored: StoredAdapter, tmp_path: Path) -> AdapterStore:
    return AdapterStore(tmp_path / "theirs")


# --- https ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def https(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stored: StoredAdapter) -> Iterator[FileServer]:
    with serve_files(tmp_path) as (server, authority):
        monkeypatch.setenv("SSL_CERT_FILE", str(authority))
        server.files["/a.lorax"] = pack(stored, tmp_path / "served.lorax").read_bytes()
        yield server


def test_https(https: FileServer, store: AdapterStore, stored: StoredAdapter, isolated_home: Path) -> None:
    assert pull(store, f"{https.url}/a.lorax").manifest == stored.manifest
    assert list((isolated_home / "downloads").iterdir()) == [], "nothing is left"
    with pytest.raises(AdapterExists):
        pull(store, f"{https.url}/a.lorax")
    assert pull(store, f"{https.url}/a.lorax", "again", digest=stored.manifest.digest).name == "again"


def test_a_download_goes_on_where_it_broke_off(https: FileServer, store: AdapterStore) -> None:
    https.break_off_after = [5000, 700, 12_000]
    pull(store, f"{https.url}/a.lorax")
    assert https.ranges == [None, "bytes=5000-", "bytes=5700-", "bytes=17700-"]
    assert store.verify().problems == ()


def test_a_later_process_goes_on_too(https: FileServer, store: AdapterStore, isolated_home: Path) -> None:
    https.break_off_after = [3000, 0, 0, 0, 0]
    with pytest.raises(RemoteError, match="after 3,000 bytes, which are kept"):
        pull(store, f"{https.url}/a.lorax")
    assert store.names() == []
    pull(store, f"{https.url}/a.lorax")
    assert https.ranges[-1] == "bytes=3000-"


def test_another_file_is_not_continued(
    https: FileServer, store: AdapterStore, theirs: AdapterStore, tmp_path: Path
) -> None:
    https.break_off_after = [3000, 0, 0, 0, 0]
    with pytest.raises(RemoteError):
        pull(store, f"{https.url}/a.lorax")
    other = dataclasses.replace(theirs.get("light").manifest, skill=caption("other"), files={})
    newer = theirs.add("light", theirs.get("light").folder, other, replace=True)
    https.files["/a.lorax"] = pack(newer, tmp_path / "newer.lorax").read_bytes()
    assert pull(store, f"{https.url}/a.lorax").manifest.skill.name == "other"


def test_without_a_version_nothing_is_continued(https: FileServer, store: AdapterStore) -> None:
    https.etags, https.break_off_after = False, [3000]
    pull(store, f"{https.url}/a.lorax")
    assert https.ranges == [None, None], "nobody can know that it is still the same file"


@pytest.mark.parametrize(
    ("path", "reason"),
    [("/missing.lorax", "404"), ("/down", "not https"), ("/plain.lorax", "no bundle"), ("/cut.lorax", "no bundle")],
)
def test_what_cannot_be_fetched_changes_nothing(https: FileServer, store: AdapterStore, path: str, reason: str) -> None:
    with serve_hub() as hub:
        https.redirect["/down"] = f"{hub.url}/a/b/resolve/main/x"
        hub.commit("a/b", {"x": https.files["/a.lorax"]})
        https.files["/plain.lorax"] = b"hello"
        https.files["/cut.lorax"] = https.files["/a.lorax"][:-100]
        with pytest.raises((RemoteError, DamagedAdapter), match=reason):
            pull(store, f"{https.url}{path}")
    assert store.names() == []


def test_plain_http_and_unknown_certificates_are_refused(
    https: FileServer, store: AdapterStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(RemoteError, match="only https"):
        pull(store, https.url.replace("https", "http") + "/a.lorax")
    monkeypatch.delenv("SSL_CERT_FILE")
    with pytest.raises(RemoteError, match=r"(?i)certificate"):
        pull(store, f"{https.url}/a.lorax")
    assert store.names() == []


def test_a_pinned_digest_and_a_limit(https: FileServer, store: AdapterStore, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DamagedAdapter, match="has the digest"):
        pull(store, f"{https.url}/a.lorax", digest="0" * 64)
    monkeypatch.setattr("lorax_vlm.sharing.remotes._BUNDLE_LIMIT_BYTES", 1000)
    with pytest.raises(RemoteError, match="the limit is 1,000"):
        pull(store, f"{https.url}/a.lorax")
    assert store.names() == []


def test_https_cannot_be_pushed_to(theirs: AdapterStore) -> None:
    with pytest.raises(RemoteError, match="only be read"):
        push(theirs, "light", "https://example.org/a.lorax")


# --- fsspec -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An S3-compatible server on loopback; the address of a bucket in it."""
    import boto3
    import s3fs
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in {
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
    }.items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    boto3.client("s3", endpoint_url=f"http://{host}:{port}").create_bucket(Bucket="adapters")
    yield "s3://adapters"
    s3fs.S3FileSystem.clear_instance_cache()
    server.stop()


def test_s3(s3: str, theirs: AdapterStore, store: AdapterStore, stored: StoredAdapter) -> None:
    url = push(theirs, "light", f"{s3}/team/light.lorax")
    assert pull(store, url).manifest == stored.manifest
    with pytest.raises(RemoteError, match="already"):
        push(theirs, "light", url)
    with pytest.raises(RemoteError, match=r"missing\.lorax"):
        pull(store, f"{s3}/missing.lorax")


@pytest.mark.parametrize("scheme", ["file", "memory"])
def test_local_file_systems(scheme: str, theirs: AdapterStore, store: AdapterStore, tmp_path: Path) -> None:
    url = f"{scheme}://{tmp_path}/out/{scheme}/light.lorax"
    assert push(theirs, "light", url) == url
    assert pull(store, url).manifest == theirs.get("light").manifest
    if scheme == "file":
        assert [path.name for path in (tmp_path / "out" / "file").iterdir()] == ["light.lorax"]


@pytest.mark.parametrize(
    "url", ["nothing://x/a.lorax", "s3:", "file:///no/such/place/a.lorax", "hf://one", "hf://a/b/c"]
)
def test_addresses_that_lead_nowhere(url: str, store: AdapterStore) -> None:
    with pytest.raises(RemoteError):
        pull(store, url)
    assert store.names() == []


def test_what_is_wrong_with_a_bundle_is_said_of_its_address(store: AdapterStore, tmp_path: Path) -> None:
    """And not of the file that it was fetched into."""
    (tmp_path / "odd.lorax").write_bytes(b"PK")
    url = f"file://{tmp_path}/odd.lorax"
    with pytest.raises(DamagedAdapter) as caught:
        pull(store, url)
    assert str(caught.value).startswith(f"Adapter {url!r} in {url} is damaged")
    assert "downloads" not in str(caught.value)


def test_a_bundle_is_called_one(theirs: AdapterStore, tmp_path: Path) -> None:
    with pytest.raises(RemoteError, match=r"ends in \.lorax"):
        push(theirs, "light", f"file://{tmp_path}/light.zip")
    assert is_remote("s3://a/b") and not is_remote("a/b") and not is_remote("/tmp/a")  # noqa: PT018


# --- the hub ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def hub() -> Iterator[Hub]:
    with serve_hub() as running:
        yield running


def run_cli(hub: Hub, home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own, because the hub's client reads its settings when it is imported."""
    environment = {
        **os.environ,
        "HF_ENDPOINT": hub.url,
        "HF_HUB_OFFLINE": "0",
        "HF_TOKEN": "hf_test",
        "HF_HOME": str(home / "hub"),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "COLUMNS": "200",
    }
    command = [sys.executable, "-m", "lorax_vlm.cli.main", "adapters", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120, check=False)


def test_the_hub(hub: Hub, theirs: AdapterStore, store: AdapterStore, isolated_home: Path) -> None:
    done = run_cli(hub, isolated_home, "push", "light", "hf://team/light", "--private", "--store", str(theirs.root))
    assert done.returncode == 0, done.stderr
    first = hub.heads["team/light"]
    assert f"hf://team/light@{first}" in done.stdout
    assert hub.private == {"team/light"}
    files = hub.repositories["team/light"][first]
    assert {MANIFEST_FILE, WEIGHTS_FILE, "adapter_config.json", "README.md"} == set(files)
    card = files["README.md"].decode()
    for line in ("library_name: peft", "base_model: blip2-opt-mini", "base_model_relation: adapter"):
        assert line in card.splitlines()
    assert "- base_model:adapter:blip2-opt-mini" in card

    hub.commit("team/light", {WEIGHTS_FILE: b"changed meanwhile"})
    pulled = run_cli(hub, isolated_home, "pull", f"hf://team/light@{first}", "--store", str(store.root))
    assert pulled.returncode == 0, pulled.stderr
    assert store.get("light").manifest == theirs.get("light").manifest
    newest = run_cli(hub, isolated_home, "pull", "hf://team/light", "--name", "x", "--store", str(store.root))
    assert newest.returncode == 1
    assert "adapter_model.safetensors was changed" in newest.stderr
    missing = run_cli(hub, isolated_home, "pull", "hf://team/nothing", "--store", str(store.root))
    assert missing.returncode == 1
    assert "hf://team/nothing" in missing.stderr
    assert store.names() == ["light"]


def test_a_former_versions_signature_does_not_stay_on_the_hub(
    hub: Hub, theirs: AdapterStore, isolated_home: Path
) -> None:
    hub.commit("team/light", {"exchange.sig": b"of another version", "notes.txt": b"somebody's own"})
    done = run_cli(hub, isolated_home, "push", "light", "hf://team/light", "--store", str(theirs.root))
    assert done.returncode == 0, done.stderr
    files = hub.repositories["team/light"][hub.heads["team/light"]]
    assert "exchange.sig" not in files
    assert files["notes.txt"] == b"somebody's own"
    assert files[WEIGHTS_FILE] == (theirs.get("light").folder / WEIGHTS_FILE).read_bytes()


@pytest.mark.slow
def test_a_plain_peft_repository_is_imported_for_its_base(
    hub: Hub, store: AdapterStore, mini: LoadedModel, tmp_path: Path, isolated_home: Path
) -> None:
    folder = write_random_adapter(mini, tmp_path / "plain", "light")
    head = hub.commit("users/plain", {path.name: path.read_bytes() for path in folder.iterdir()})
    refused = run_cli(hub, isolated_home, "pull", "hf://users/plain", "--store", str(store.root))
    assert refused.returncode == 1
    assert "lorax-vlm adapters import hf://users/plain --model" in refused.stderr
    url = f"hf://users/plain@{head}"
    done = run_cli(
        hub, isolated_home, "import", url, "--name", "mine", "--model", "blip2-opt-mini", "--store", str(store.root)
    )
    assert done.returncode == 0, done.stderr
    assert "no manifest" in done.stderr
    assert store.read("mine")[1].ranks == [4]


def test_readers_never_see_half_of_it(https: FileServer, store: AdapterStore) -> None:
    """While it arrives, in many small parts, nobody finds it; then everybody finds all of it."""
    https.break_off_after = [4000] * 4
    seen: list[object] = []
    stop = threading.Event()

    def look() -> None:
        while not stop.is_set():
            for name in store.names():
                seen.append(store.read(name)[1].ranks)

    reader = threading.Thread(target=look)
    reader.start()
    pull(store, f"{https.url}/a.lorax")
    stop.set()
    reader.join()
    assert all(ranks == [4] for ranks in seen)


def test_a_disk_that_is_full_leaves_nothing_at_the_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is moved there from another disk: what fits is copied, then the copy fails."""

    def move(source: str, target: str) -> None:
        Path(target).write_bytes(Path(source).read_bytes()[:100])
        raise OSError(28, "No space left on device", target)

    monkeypatch.setattr("fsspec.implementations.local.shutil.move", move)
    (tmp_path / "adapter").write_bytes(bytes(1000))
    with pytest.raises(InterruptedTransfer, match="No space left"):
        upload(tmp_path / "adapter", f"file://{tmp_path}/there/a.lorax")
    assert list((tmp_path / "there").iterdir()) == []
