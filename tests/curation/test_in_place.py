"""Text files changed where they lie, and given back what they held."""

from pathlib import Path

import pytest

from lorax_vlm import make_scene
from lorax_vlm.curation import in_place
from lorax_vlm.curation.edit import replace_in_texts
from lorax_vlm.curation.in_place import edit_text_files, undo_edit
from lorax_vlm.data.sources import read_parts
from lorax_vlm.errors import DataError, PathError, UsageError

TEXTS = {
    "a.txt": b"a photo of a cat\r\n",
    "b.caption": "\ufeffa photo of \u00e9t\u00e9".encode(),
    "sub/c.txt": b"nothing of it",
    "d.txt": b"a photo of ",
    "notes.txt": b"a photo of nobody's image",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "own" / "sub").mkdir(parents=True)
    for number, name in enumerate(("a", "b", "sub/c", "d")):
        make_scene(number).image.save(tmp_path / "own" / f"{name}.png")
    for name, content in TEXTS.items():
        (tmp_path / "own" / name).write_bytes(content)
    return tmp_path / "own"


def contents(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in TEXTS}


def test_captions_are_changed_and_given_back_byte_for_byte(folder: Path) -> None:
    planned = edit_text_files(folder, "a photo of ", "", dry_run=True)
    assert (contents(folder), planned.undo) == (TEXTS, None)
    done = edit_text_files(folder, "a photo of ", "")
    assert done.changes == planned.changes
    assert done.changes[0] == ("a.txt", "a photo of a cat", "a cat")
    assert [name for name, _, _ in done.changes] == ["a.txt", "b.caption"]
    assert edit_text_files(folder, "nothing of it", "", dry_run=True).emptied == ("sub/c.txt",)
    now = contents(folder)
    assert now["a.txt"] == b"a cat\r\n"
    assert {name for name in TEXTS if now[name] != TEXTS[name]} == {"a.txt", "b.caption"}
    captions = {example.target for part in read_parts(folder).parts().values() for example in part}
    assert {"a cat", "\u00e9t\u00e9"} <= captions
    assert done.undo is not None
    undone = undo_edit(done.undo)
    assert (undone.restored, undone.left) == (("a.txt", "b.caption"), ())
    assert contents(folder) == TEXTS
    assert not done.undo.exists()


def test_what_was_changed_since_stays_and_the_rest_can_still_be_taken_back(folder: Path) -> None:
    done = edit_text_files(folder, r"photo of (a|\w+)", r"picture of \1", regex=True)
    assert done.undo is not None
    (folder / "a.txt").write_text("by hand")
    (folder / "b.caption").unlink()
    undone = undo_edit(done.undo)
    assert set(undone.left) == {"a.txt", "b.caption"}
    assert (folder / "a.txt").read_text() == "by hand"
    assert done.undo.exists()


def test_what_an_interrupted_edit_did_is_taken_back(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The list is written first: of files that were not reached nothing changes."""
    original, written = in_place.rewrite, list[Path]()

    def fail(path: Path, content: bytes) -> None:
        written.append(path)
        if len(written) == 2:
            raise KeyboardInterrupt
        original(path, content)

    with monkeypatch.context() as patch:
        patch.setattr(in_place, "rewrite", fail)
        with pytest.raises(KeyboardInterrupt):
            edit_text_files(folder, "a photo of ", "")
    assert contents(folder) != TEXTS
    [undo] = (folder / ".lorax-vlm").glob("undo-*.jsonl")
    assert undo_edit(undo).left == ()
    assert contents(folder) == TEXTS


def test_captions_that_are_not_in_text_files_are_not_changed(folder: Path, tmp_path: Path) -> None:
    (folder / "metadata.jsonl").write_text('{"file_name": "a.png", "caption": "a photo of a cat"}\n')
    with pytest.raises(UsageError, match=r"in metadata\.jsonl: write a copy"):
        edit_text_files(folder, "a", "b")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="has a text beside it"):
        edit_text_files(tmp_path / "empty", "a", "b")


ODD = [
    '{"file": "../a.txt", "before": "YQ==", "after": ""}',
    '{"file": "/etc/x", "before": "YQ==", "after": ""}',
    '{"file": "a.txt", "before": "?", "after": ""}',
    '{"file": "a.txt"}',
    "[]",
    "{",
]


@pytest.mark.parametrize("record", ODD)
def test_what_is_no_list_of_an_edit_changes_nothing(folder: Path, record: str) -> None:
    undo = folder / ".lorax-vlm" / "undo-odd.jsonl"
    undo.parent.mkdir()
    undo.write_text(f"{record}\n")
    with pytest.raises(DataError, match="line 1"):
        undo_edit(undo)
    assert contents(folder) == TEXTS


@pytest.mark.parametrize(("find", "put"), [("$", ", ohwx"), ("^", "x "), (r"\.$", ""), (r"\s+", "_"), ("cat", "dog\n")])
def test_in_place_is_what_a_copy_would_be(tmp_path: Path, find: str, put: str) -> None:
    """White space around a caption is not its own, whatever ends its lines."""
    texts = [b"a cat\n", b"a cat.\r\n", b"  a cat.", b"a\r\ncat. \n\n"]
    own = tmp_path / "own"
    own.mkdir()
    for number, text in enumerate(texts):
        make_scene(number).image.save(own / f"{number}.png")
        (own / f"{number}.txt").write_bytes(text)
    copied = replace_in_texts(read_parts(own), find, put, regex=True).splits
    expected = {e.image_digest(): e.target for part in copied.parts().values() for e in part}
    edit_text_files(own, find, put, regex=True)
    found = {e.image_digest(): e.target for part in read_parts(own).parts().values() for e in part}
    assert found == {digest: text.strip() for digest, text in expected.items()}
    ends = [(own / f"{number}.txt").read_bytes() for number in range(4)]
    assert [end.endswith(b"\n") for end in ends] == [True, True, False, True]


def test_links_and_rights_stay_and_what_changes_meanwhile_too(folder: Path, tmp_path: Path) -> None:
    (folder / "a.txt").rename(tmp_path / "elsewhere.txt")
    (folder / "a.txt").symlink_to(tmp_path / "elsewhere.txt")
    (tmp_path / "elsewhere.txt").chmod(0o600)
    done = edit_text_files(folder, "a photo of ", "")
    assert (folder / "a.txt").is_symlink()
    assert (tmp_path / "elsewhere.txt").read_bytes() == b"a cat\r\n"
    assert (tmp_path / "elsewhere.txt").stat().st_mode & 0o777 == 0o600
    assert done.undo is not None
    undo_edit(done.undo)
    assert (folder / "a.txt").is_symlink()
    assert (tmp_path / "elsewhere.txt").read_bytes() == TEXTS["a.txt"]


def test_what_somebody_corrects_meanwhile_stays(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replaced = in_place.rewrite

    def correct(path: Path, content: bytes) -> None:
        (folder / "b.caption").write_text("corrected")
        replaced(path, content)

    monkeypatch.setattr(in_place, "rewrite", correct)
    done = edit_text_files(folder, "a photo of ", "")
    assert (done.left, [name for name, _, _ in done.changes]) == (("b.caption",), ["a.txt"])
    assert (folder / "b.caption").read_text() == "corrected"


def test_tables_of_parts_folders_that_are_none_and_texts_that_are_none(folder: Path, tmp_path: Path) -> None:
    (folder / "a.txt").write_bytes(b"\xff\xfe\x00")
    assert edit_text_files(folder, "a photo of ", "").left == ("a.txt",)
    for part in ("train", "test"):
        (folder / part).mkdir()
        (folder / part / "metadata.jsonl").write_text('{"file_name": "x.png", "caption": "a"}\n')
    with pytest.raises(UsageError, match="write a copy"):
        edit_text_files(folder, "a", "b")
    with pytest.raises(PathError, match="no such folder"):
        edit_text_files(tmp_path / "nowhere", "a", "b")
