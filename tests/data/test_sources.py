"""One door: what is asked for is recognised, and what is not there is answered with what is near."""

from pathlib import Path
from typing import Any

import pytest

from lorax_vlm.data.readers.folder import read_image_folder
from lorax_vlm.data.sources import read_data, read_parts
from lorax_vlm.errors import DataError, LoraxError, UsageError
from tests.data_for_tests import all_examples, captioned, image_names, numbered, write_json, write_pictures, write_rows


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    write_pictures(folder, numbered(6))
    return write_rows(folder, captioned(numbered(6)))


def test_the_file_is_as_good_as_its_folder(photos: Path) -> None:
    folder, file = read_data(photos), read_data(photos / "metadata.jsonl")
    assert folder.identity()["sha256"] == file.identity()["sha256"]
    assert [e.target for e in folder.train] == [e.target for e in file.train]


def test_a_table_with_images_elsewhere(photos: Path, tmp_path: Path) -> None:
    table = tmp_path / "rows.jsonl"
    (photos / "metadata.jsonl").rename(table)
    with pytest.raises(DataError, match=r"does not exist[\s\S]*--images"):
        read_data(table)
    assert sorted(image_names(all_examples(read_data(table, images=photos)))) == numbered(6)
    with pytest.raises(DataError, match="no such image folder"):
        read_data(table, images=tmp_path / "nothing")


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("photo", "no such folder; did you mean {}/photos?"),
        ("photos/metadata.jsnl", "no such folder; did you mean {}/photos/metadata.jsonl?"),
        ("photos/metdata.jsonl", "no such file; did you mean {}/photos/metadata.jsonl?"),
        ("nothing/at/all", "no such folder"),
        ("photos/0.png", "it is a file of another kind; what is read: a folder, a .json,"),
        ("photos/notes.yaml", "it is a file of another kind"),
        ("photos\0", "null character"),
        ("\ud800", "half of a character"),
        ("~nobody_of_this_name/photos", "determine home directory"),
        ("p" * 5000, "File name too long"),
    ],
)
def test_what_is_not_there(photos: Path, tmp_path: Path, source: str, reason: str) -> None:
    (photos / "notes.yaml").write_text("a: b")
    given = source if source.startswith("~") else f"{tmp_path}/{source}"
    with pytest.raises(LoraxError) as caught:
        read_data(given)
    assert reason.format(tmp_path) in str(caught.value)


def test_a_hub_id_without_its_prefix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="a data set of the hub is hub:owner/name"):
        read_data("owner/name")


@pytest.mark.parametrize("held_out", [0, 1, -1, float("nan")])
def test_shares_are_checked_for_every_source(photos: Path, held_out: float) -> None:
    sources: list[tuple[Any, dict[str, Any]]] = [
        (photos, {}),
        (photos / "metadata.jsonl", {}),
        (write_json(photos / "d.json", captioned(numbered(6))), {}),
        (f"hub:{photos}", {}),
    ]
    for source, options in sources:
        with pytest.raises(LoraxError, match="--held-out"):
            read_parts(source, held_out=held_out, **options)


def test_one_image_can_be_measured_on_and_not_trained_on(tmp_path: Path) -> None:
    write_pictures(tmp_path, ["0.png"])
    write_rows(tmp_path, captioned(["0.png"] * 3))
    assert len(read_parts(tmp_path).select("held-out")) == 3
    with pytest.raises(DataError, match="0 training and 3 validation examples; both need at least one"):
        read_data(tmp_path)


@pytest.mark.parametrize("source", [None, 5, ["a.jpg"], {"a": "b"}, b"photos"])
def test_what_is_no_source(source: Any) -> None:
    with pytest.raises(UsageError, match="data must be a path, hub:owner/name or DataSplits, got "):
        read_data(source)


def test_options_that_a_source_does_not_know_are_refused(photos: Path) -> None:
    with pytest.raises(UsageError, match="--streaming reads data sets of the hub"):
        read_data(photos, streaming=True)
    with pytest.raises(UsageError, match="--images and --annotations belong to a file of rows"):
        read_data(photos, images=photos)


def test_an_option_that_nobody_knows_is_refused(tmp_path: Path) -> None:
    """Else a misspelt one would be read with the default, and nobody would know."""
    names = numbered(20)
    write_pictures(tmp_path, names)
    write_rows(tmp_path, captioned(names))
    for read in (read_parts, read_image_folder):
        with pytest.raises(UsageError, match=r"Unknown option 'held_ot'.*held_out"):
            read(tmp_path, held_ot=0.5)  # type: ignore[call-arg]
