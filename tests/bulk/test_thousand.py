"""A thousand drawn scenes, fifty of them broken in ten ways, by the base and two adapters, on the miniature itself."""

import csv
import io
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from lorax_vlm.captioning import BLIP2CaptioningSystem
from lorax_vlm.data.scenes import iterate_scenes
from lorax_vlm.models.loading import LoadedModel
from tests.adapters_for_tests import write_manifest, write_random_adapter
from tests.workspaces_for_tests import shared_workspace


def encoded(image: Image.Image, kind: str) -> bytes:
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, kind)
    return buffer.getvalue()


def bomb() -> bytes:
    """A PNG that says it has ten thousand million pixels."""
    header = b"IHDR" + struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))


def broken(path: Path, image: Image.Image, kind: int) -> None:
    """Leave something in the place of an image that is none."""
    png, jpeg = encoded(image, "PNG"), encoded(image, "JPEG")
    content = (
        b"",
        os.urandom(5000),
        b"<html><body>404 Not Found</body></html>",
        png[: len(png) // 2],
        jpeg[: len(jpeg) // 3],
        bytes(4096),
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        bomb(),
        png[:40] + os.urandom(200) + png[240:],
    )
    if kind == len(content):
        path.symlink_to("nowhere.png")
    else:
        path.write_bytes(content[kind])


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_thousand_scenes_with_fifty_broken_ones(
    mini: LoadedModel, load_shared: Callable[[str], LoadedModel], tmp_path: Path
) -> None:
    photos, bad = tmp_path / "photos", {}
    photos.mkdir()
    for number, scene in enumerate(iterate_scenes("test", 1000)):
        path = photos / f"scene {number}.png"
        if number % 20 == 7:
            bad[path.name] = number // 20 % 10
            broken(path, scene.image, bad[path.name])
        else:
            scene.image.save(path)
    assert sorted(bad.values()) == sorted([*range(10)] * 5)
    with shared_workspace(load_shared, tmp_path / "store") as workspace:
        for seed, name in enumerate(("one", "two")):
            folder = write_random_adapter(mini, tmp_path / name, seed=seed, scale=0.1)
            workspace.store.add(name, folder, write_manifest(mini, folder))
        report = workspace.bulk(photos, ["base", "one", "two"], base="blip2_opt", write=["txt", "csv"]).run()
        assert (report.images, report.texts, report.failed) == (950, 3 * 950, 50)
        captions = BLIP2CaptioningSystem("blip2-opt-mini", workspace=workspace)
        sound = [path for path in sorted(photos.glob("*.png")) if path.name not in bad]
        for name in (None, "one", "two"):
            alone = [str(text) for text in captions.caption_images(sound, name)]
            assert [path.with_suffix(f".{name or 'base'}.txt").read_text() for path in sound] == alone
    with (photos / "failed.csv").open() as file:
        listed = {row["file_name"]: row["reason"] for row in csv.DictReader(file)}
    assert listed.keys() == bad.keys()
    assert all(reason for reason in listed.values())
    with (photos / "captions.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 950
    assert not list(photos.glob(".writing-*"))
