"""Texts inside image files: read by another library, the pixels as they were, nothing of anybody's lost."""

import csv
import hashlib
import os
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pyexiv2
import pytest
from PIL import Image

from lorax_vlm.adapters.store import AdapterStore
from lorax_vlm.bulk import xmp
from lorax_vlm.bulk.answering import LocalAnswers, Pace
from lorax_vlm.bulk.folder import ImageFolder
from lorax_vlm.bulk.job import BulkJob
from lorax_vlm.bulk.order import BulkOrder, bulk_order
from lorax_vlm.bulk.wording import Wording
from lorax_vlm.errors import MissingExtra, UsageError
from lorax_vlm.models.catalog import get_model_entry
from tests.bulk.test_bulk_job import ONE, TWO, Bench

FORMATS = {"a.jpg": "JPEG", "b.png": "PNG", "c.webp": "WEBP", "d.tif": "TIFF"}
_DC, _RDF = "{http://purl.org/dc/elements/1.1/}", "{http://www.w3.org/1999/02/22-rdf-syntax-ns#}"


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    """Images of four formats with a picture that compression would change, one of them a level deeper."""
    noise = np.random.default_rng(3).integers(0, 255, (24, 30, 3), dtype=np.uint8)
    (tmp_path / "photos" / "deep").mkdir(parents=True)
    for number, (name, kind) in enumerate(FORMATS.items()):
        noise[:2] = number + 1
        place = "photos/deep" if name == "b.png" else "photos"
        Image.fromarray(noise).save(tmp_path / place / name, kind)
    return Bench(tmp_path / "photos")


def told(path: Path) -> tuple[str, list[str]]:
    """Description and keywords, as another library and a parser of XML find them."""
    with Image.open(path) as image:
        packet = image.info.get("xmp") or image.tag_v2.get(700)  # type: ignore[attr-defined]
    if not packet:
        return "", []
    root = ElementTree.fromstring(packet.decode() if isinstance(packet, bytes) else packet)
    texts = [item.text or "" for item in root.iterfind(f".//{_DC}description//{_RDF}li")]
    return "".join(texts), [item.text or "" for item in root.iterfind(f".//{_DC}subject//{_RDF}li")]


def pixels(path: Path) -> bytes:
    with Image.open(path) as image:
        return np.asarray(image).tobytes()


def red(path: Path) -> int:
    """Of the first pixel, which a JPEG does not keep as it was."""
    with Image.open(path) as image:
        return int(image.convert("RGB").getpixel((0, 0))[0])  # type: ignore[index]


def images(root: Path) -> list[Path]:
    return sorted(path for path in root.rglob("*.*") if path.suffix in (".jpg", ".png", ".webp", ".tif"))


def copies(bench: Bench, out: Path, *columns: Any, **wanted: Any) -> Any:
    order = BulkOrder(
        ImageFolder(bench.root, recursive=True), columns or (ONE,), out, ("xmp",), source=str(bench.root), **wanted
    )
    return BulkJob(order, LocalAnswers(bench._open, Pace(batch_size=4, threads=2))).run()


def test_copies_hold_the_text_and_the_same_pixels(bench: Bench, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in images(bench.root)}
    report = copies(bench, tmp_path / "out", wording=Wording(prefix="ohwx, "))
    assert (report.described, report.failed) == (4, 0)
    for path, content in before.items():
        copy = tmp_path / "out" / path.relative_to(bench.root)
        text = f"ohwx, {red(path)} by one@1"
        assert told(copy) == (text, text.split(", "))
        assert pixels(copy) == pixels(path)
        assert path.read_bytes() == content, "the original is as it was"
    again = copies(bench, tmp_path / "out", wording=Wording(prefix="ohwx, "))
    assert (again.described, again.texts) == (0, 0)
    other = copies(bench, tmp_path / "out")
    assert (other.described, other.texts) == (4, 0), "other words ask no model"
    assert told(tmp_path / "out" / "deep" / "b.png") == ("2 by one@1", [])


def test_images_themselves_are_changed_once_and_known_again(bench: Bench) -> None:
    before = {path: pixels(path) for path in images(bench.root)}
    report = bench.run(write=("xmp", "csv"))
    assert (report.described, report.texts) == (4, 4)
    assert {path: pixels(path) for path in images(bench.root)} == before
    with (bench.root / "captions.csv").open() as file:
        for row in csv.DictReader(file):
            assert row["image_sha256"] == hashlib.sha256((bench.root / row["file_name"]).read_bytes()).hexdigest()
    again = bench.run(write=("xmp", "csv"))
    assert (again.described, again.texts, again.plan.done) == (0, 0, 4)
    for path in before:
        os.utime(path, (5, 5))
    assert bench.run(write=("xmp", "csv")).texts == 0, "the same images, copied or touched"


def test_a_description_of_somebody_stays_unless_it_is_to_go(bench: Bench) -> None:
    path = bench.root / "a.jpg"
    with pyexiv2.ImageData(path.read_bytes()) as image:
        image.modify_xmp({"Xmp.dc.description": {'lang="x-default"': "mine"}, "Xmp.dc.subject": ["kept"]})
        path.write_bytes(image.get_bytes())
    assert bench.run(write=("xmp",)).described_left == 1
    assert told(path) == ("mine", ["kept"])
    bench.run(write=("xmp",), existing="append")
    assert told(path)[0] == f"mine, {red(path)} by one@1"
    assert bench.run(write=("xmp",), existing="append").described == 0, "it is added once"
    bench.run(write=("xmp",), existing="overwrite-all", wording=Wording(prefix="a, "))
    assert told(path) == (f"a, {red(path)} by one@1", ["kept", "a", f"{red(path)} by one@1"])


def test_what_somebody_writes_into_a_copy_stays(bench: Bench, tmp_path: Path) -> None:
    copies(bench, tmp_path / "out")
    copy = tmp_path / "out" / "a.jpg"
    with pyexiv2.ImageData(copy.read_bytes()) as image:
        image.modify_xmp({"Xmp.dc.description": {'lang="x-default"': "by hand"}})
        copy.write_bytes(image.get_bytes())
    (tmp_path / "out" / "c.webp").unlink()
    report = copies(bench, tmp_path / "out", wording=Wording(suffix="!"))
    assert (report.described, report.described_left) == (3, 1)
    assert told(copy)[0] == "by hand"


def test_formats_that_hold_no_text_and_files_of_others_are_listed(bench: Bench, tmp_path: Path) -> None:
    Image.new("RGB", (8, 8), (9, 0, 0)).save(bench.root / "e.gif")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a.jpg").write_bytes(b"somebody's")
    report = copies(bench, tmp_path / "out", ONE, TWO, pick="first")
    assert (report.described, report.failed) == (3, 2)
    with (tmp_path / "out" / "failed.csv").open() as file:
        reasons = {row["file_name"]: row["reason"] for row in csv.DictReader(file)}
    assert "not written here" in reasons["a.jpg"]
    assert "no text can be written into it" in reasons["e.gif"]
    assert (tmp_path / "out" / "a.jpg").read_bytes() == b"somebody's"


def test_of_a_link_the_file_is_changed(bench: Bench, tmp_path: Path) -> None:
    (bench.root / "a.jpg").rename(tmp_path / "elsewhere.jpg")
    (bench.root / "a.jpg").symlink_to(tmp_path / "elsewhere.jpg")
    bench.run(write=("xmp",))
    assert (bench.root / "a.jpg").is_symlink()
    assert told(tmp_path / "elsewhere.jpg")[0].endswith(" by one@1")


def test_an_output_must_be_named_and_the_library_be_there(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    entry, store = get_model_entry("blip2-opt-mini"), None
    with pytest.raises(UsageError, match="Texts in images need a place"):
        bulk_order(entry, store, bench.root, [], write=["xmp"])  # type: ignore[arg-type]
    monkeypatch.setitem(__import__("sys").modules, "pyexiv2", None)
    with pytest.raises(MissingExtra, match=r"lorax-vlm\[xmp\]"):
        bench.run(write=("xmp",))
    assert not bench.engine.asked


def photo_manager(path: Path, **xmp: Any) -> None:
    with pyexiv2.ImageData(path.read_bytes()) as image:
        image.modify_xmp({f"Xmp.{name.replace('_', '.')}": value for name, value in xmp.items()})
        path.write_bytes(image.get_bytes())


def test_what_people_put_into_a_copy_stays_when_the_text_changes(bench: Bench, tmp_path: Path) -> None:
    copies(bench, tmp_path / "out")
    copy = tmp_path / "out" / "a.jpg"
    photo_manager(copy, xmp_Rating="5", dc_subject=["holiday"])
    assert copies(bench, tmp_path / "out", wording=Wording(prefix="x, ")).described == 4
    with pyexiv2.ImageData(copy.read_bytes()) as image:
        assert image.read_xmp()["Xmp.xmp.Rating"] == "5"
    assert told(copy) == (f"x, {red(bench.root / 'a.jpg')} by one@1", ["holiday", "x", f"{red(copy)} by one@1"])
    Image.new("RGB", (8, 8), (77, 0, 0)).save(bench.root / "a.jpg", quality=100)
    copies(bench, tmp_path / "out", wording=Wording(prefix="x, "))
    assert pixels(copy) == pixels(bench.root / "a.jpg"), "of another image it is a copy of that"


def test_keywords_that_were_ours_go_with_their_text(bench: Bench) -> None:
    path = bench.root / "a.jpg"
    photo_manager(path, dc_subject=["dog", "mine"])
    bench.run(write=("xmp",), wording=Wording(prefix="cat, dog, "))
    assert told(path)[1] == ["dog", "mine", "cat", f"{red(path)} by one@1"]
    bench.run(write=("xmp",), wording=Wording(prefix="bird, "))
    assert told(path)[1] == ["dog", "mine", "bird", f"{red(path)} by one@1"]
    bench.run(write=("xmp",))
    assert told(path) == (f"{red(path)} by one@1", ["dog", "mine"])


def test_texts_about_a_former_image_are_not_taken_for_texts_about_the_new_one(bench: Bench) -> None:
    bench.run(ONE, TWO, write=("csv",))
    Image.new("RGB", (8, 8), (200, 0, 0)).save(bench.root / "deep" / "b.png")
    bench.run(ONE, write=("xmp",))
    report = bench.run(ONE, TWO, write=("csv",), existing="overwrite-all")
    assert report.plan.texts == {"another image": 1}
    with (bench.root / "captions.csv").open() as file:
        [row] = [row for row in csv.DictReader(file) if row["file_name"] == "deep/b.png"]
    assert (row["caption_one"], row["caption_two"]) == ("200 by one@1", "200 by two@1")


@pytest.mark.parametrize("place", ["itself", "a copy"])
@pytest.mark.parametrize("moment", ["before", "after"])
def test_whoever_is_killed_while_an_image_is_written_loses_nothing(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, moment: str
) -> None:
    def again() -> Any:
        return bench.run(write=("xmp",)) if place == "itself" else copies(bench, tmp_path / "out")

    with monkeypatch.context() as patch:
        if moment == "before":
            patch.setattr(xmp, "rewrite", lambda *_: pytest.fail("killed"))
        else:
            patch.setattr(xmp, "_settled", lambda *_: pytest.fail("killed"))
        with pytest.raises(pytest.fail.Exception):
            again()
    bench.engine.asked.clear()
    report = again()
    assert (report.described_left, report.failed) == (0, 0)
    assert not bench.engine.asked, "nothing is said twice"
    root = bench.root if place == "itself" else tmp_path / "out"
    assert [told(path)[0] for path in images(root)] == [f"{red(path)} by one@1" for path in images(bench.root)]
    assert again().described == 0


def test_a_stop_while_images_are_written_is_one(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    job = bench.job(write=("xmp",))
    original = xmp._describe

    def once(*given: Any) -> None:
        original(*given)
        job.stop()

    monkeypatch.setattr(xmp, "_describe", once)
    report = job.run()
    assert (report.described, report.interrupted) == (1, True)
    plan = bench.job(write=("xmp",)).plan()
    assert (plan.to_describe, plan.done) == (3, 1)
    assert "to be written into 3 images" in "\n".join(plan.lines())


def test_rights_stay_and_outputs_that_make_no_sense_are_refused(bench: Bench) -> None:
    (bench.root / "a.jpg").chmod(0o600)
    bench.run(write=("xmp",))
    assert (bench.root / "a.jpg").stat().st_mode & 0o777 == 0o600
    entry: Any = get_model_entry("blip2-opt-mini")
    for wishes, said in (
        ({"out": bench.root / "out", "recursive": True}, "would be images of it"),
        ({"out": bench.root, "samples": 2, "decoding": {"temperature": 1.0}}, "say which of several"),
    ):
        with pytest.raises(UsageError, match=said):
            bulk_order(entry, AdapterStore(), bench.root, [], write=["xmp"], **wishes)  # type: ignore[arg-type]
