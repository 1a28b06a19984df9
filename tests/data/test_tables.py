"""Tables in other formats: JSON lines as people save them, CSV, texts beside images, parquet."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest

from lorax_vlm.data.sources import read_data, read_parts
from lorax_vlm.errors import DataError
from tests.data_for_tests import (
    all_examples,
    captioned,
    image_names,
    numbered,
    png,
    targets,
    write_pictures,
    write_rows,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "photos"
    write_pictures(root, numbered(6))
    return root


# --- JSON lines -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_encodings(folder: Path, encoding: str) -> None:
    texts = ["caf\u00e9", "\U0001f600", "one\u2028line", "a\u0085b", "\u4e2d\u6587", "plain"]
    rows = [{"file_name": f"{n}.png", "caption": text} for n, text in enumerate(texts)]
    mark = "\ufeff" if encoding in ("utf-16-le", "utf-16-be") else ""
    content = mark + "\r\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    (folder / "metadata.jsonl").write_bytes(content.encode(encoding))
    assert sorted(targets(all_examples(read_data(folder)))) == sorted(texts)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"file_name": "0.png", "caption": ' + "[" * 100_000, "too deep"),
        ('{"file_name": "0.png", "caption": "x", "n": ' + "9" * 5000 + "}", "thousands of digits"),
        ('{"file_name": "0.png", "caption": "x", "n": 1e999}', "too large for a number"),
        ('{"file_name": "0.png", "caption": NaN}', "NaN is no number"),
        ('{"file_name": "0.png", "caption": "x", "caption": "y"}', "occurs twice"),
        ('{"file_name": "0.png", "caption": "half \\ud83d"}', "half of a character"),
        ('{"file_name": "0.png", "caption": "null \\u0000"}', "null character"),
        ('{"file_name": "0.png", "caption": "x"},', "not JSON"),
        ('"text"', "expected an object, found str"),
        ("null", "expected an object, found NoneType"),
        ("\0", "not JSON"),
        ('{"file_name": "0.png", "caption": "\u200b"}', "the caption is empty"),
        ('{"file_name": {"path": "0.png"}, "caption": "x"}', "expected the name of a file"),
        ('{"": 1, "' + "k" * 5000 + '": 2}', "no 'file_name' (columns: "),
    ],
)
def test_lines_that_are_no_rows(folder: Path, line: str, reason: str) -> None:
    write_rows(folder, [*captioned(numbered(6)), line])
    with pytest.raises(DataError) as caught:
        read_data(folder)
    assert len(caught.value.problems) == 1
    assert reason in caught.value.problems[0]
    assert caught.value.problems[0].startswith(f"{folder / 'metadata.jsonl'}:7: ")
    assert len(str(caught.value)) < 1500
    splits = read_data(folder, skip_bad_rows=True)
    assert (len(all_examples(splits)), len(splits.skipped)) == (6, 1)


def test_bytes_of_another_encoding_are_named_with_line_and_place(folder: Path) -> None:
    rows = [json.dumps(row).encode() for row in captioned(numbered(6))]
    rows[3] = '{"file_name": "3.png", "caption": "caf\u00e9"}'.encode("latin-1")
    (folder / "metadata.jsonl").write_bytes(b"\n".join(rows))
    with pytest.raises(DataError, match=r"metadata\.jsonl:4: not UTF-8 text: .* at byte 38"):
        read_data(folder)


# --- CSV --------------------------------------------------------------------------------------------------------------


def write_csv(folder: Path, text: str, encoding: str = "utf-8") -> Path:
    (folder / "metadata.csv").write_bytes(text.encode(encoding))
    return folder


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_csv(folder: Path, encoding: str, separator: str, end: str) -> None:
    lines = [f"file_name{separator}text{separator}note", f'0.png{separator}"a, b; c ""d"""{separator}', ""]
    lines += [f'1.png{separator}"two{end}lines"{separator}x', f"2.png{separator}caf\u00e9{separator}x"]
    splits = read_data(write_csv(folder, end.join(lines), encoding))
    assert sorted(targets(all_examples(splits))) == ['a, b; c "d"', "caf\u00e9", f"two{end}lines"]


def test_lines_of_csv_are_counted_where_a_row_begins(folder: Path) -> None:
    write_csv(folder, 'file_name,text\n0.png,"one\ntwo\nthree"\n\ngone.png,x\n1.png,a, b\n2.png\n3.png,\n4.png,fine\n')
    with pytest.raises(DataError) as caught:
        read_data(folder)
    assert [problem.partition("metadata.csv:")[2] for problem in caught.value.problems] == [
        "6: file 'gone.png' does not exist",
        "7: 3 cells, the first line names 2; a text with commas needs quotes",
        "8: 1 cells, the first line names 2; a text with commas needs quotes",
        "9: the caption is empty or not text: None",
    ]
    splits = read_data(folder, skip_bad_rows=True)
    assert sorted(targets(all_examples(splits))) == ["fine", "one\ntwo\nthree"]


def test_questions_in_csv(folder: Path) -> None:
    rows = [f"{n}.png,What is {n}?,{n},number,{'train' if n < 4 else 'val'}" for n in range(6)]
    write_csv(folder, "\n".join(["image,question,answer,type,split", *rows]))
    splits = read_data(folder)
    assert [e.target for e in splits.train] == ["0", "1", "2", "3"]
    assert {e.kind for e in splits.train} == {"number"}
    assert splits.validation[0].question == "What is 4?"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('file_name,text\n0.png,"never closed\n1.png,x\n', "not CSV: unexpected end of data"),
        ('file_name,text\n0.png,"closed"too soon\n', "not CSV"),
        ("file_name,text,text\n0.png,a,b\n", "names the column 'text' twice"),
        ("", "it has no rows"),
        ("file_name,text\n", "it has no rows"),
        ("name\nx\n", "no 'file_name' (columns: name)"),
    ],
)
def test_what_is_no_csv(folder: Path, text: str, reason: str) -> None:
    with pytest.raises(DataError) as caught:
        read_data(write_csv(folder, text))
    assert reason in str(caught.value)


def test_csv_of_another_encoding(folder: Path) -> None:
    with pytest.raises(DataError, match=r"it is not UTF-8 text: .*\nSave it as UTF-8"):
        read_data(write_csv(folder, "file_name,text\n0.png,caf\u00e9\n", "latin-1"))


# --- texts beside images ----------------------------------------------------------------------------------------------


def test_texts_beside_images(folder: Path) -> None:
    write_pictures(folder, ["sub/6.JPG", "._0.png", "__MACOSX/0.png", ".thumbs/0.png", "@eaDir/0.png"], first=6)
    texts = ["a cat\n", "\ufeff a dog ", "two\nlines", "ohwx, [trigger]", "caf\u00e9", "six", "seven"]
    for n, (name, text) in enumerate(zip([*numbered(6), "sub/6.JPG"], texts, strict=True)):
        path = (folder / name).with_suffix(".caption" if n % 2 else ".txt")
        path.write_text(text, encoding="utf-8" if n != 4 else "utf-16")
    for junk in (".DS_Store", "Thumbs.db", "desktop.ini", "README.txt", "._1.txt", ".txt"):
        (folder / junk).write_text("junk")
    splits = read_data(folder)
    assert sorted(targets(all_examples(splits))) == sorted(text.strip("\ufeff \n") for text in texts)
    assert {e.name for e in all_examples(splits)} >= {"photos/0.png", "photos/sub/6.JPG"}


def test_texts_beside_images_in_parts(folder: Path) -> None:
    for part, count in (("train", 3), ("validation", 2), ("test", 1)):
        write_pictures(folder / part, [f"{part}{n}.png" for n in range(count)], first=20 + count * 7)
        for n in range(count):
            (folder / part / f"{part}{n}.txt").write_text(f"{part} {n}")
    for n in range(6):
        (folder / f"{n}.png").unlink()
    assert [len(part) for part in read_data(folder).parts().values()] == [3, 2, 1]


def test_what_is_wrong_with_texts_beside_images(folder: Path) -> None:
    (folder / "0.txt").write_text("fine")
    (folder / "1.txt").write_text(" \n")
    (folder / "2.txt").write_text("one")
    (folder / "2.caption").write_text("another")
    (folder / "3.txt").write_bytes(b"caf\xe9")
    (folder / "4.txt").write_text("which")
    (folder / "4.jpg").write_bytes(png(4))
    (folder / "6.png").write_bytes(b"no picture")
    (folder / "6.txt").write_text("fine")
    (folder / "7.png").write_bytes(png(7))
    (folder / "7.txt").write_text("a\0")
    with pytest.raises(DataError) as caught:
        read_parts(folder)
    found = {Path(line.partition(": ")[0]).name: line.partition(": ")[2] for line in caught.value.problems}
    assert found == {
        "1.png": "the caption is empty or not text: ''",
        "2.png": "the texts beside it differ: '2.caption', '2.txt'",
        "3.png": "'3.txt' is not UTF-8 text: unexpected end of data at byte 3",
        "4.jpg": "2 images have one text beside them: '4.jpg', '4.png'",
        "4.png": "2 images have one text beside them: '4.jpg', '4.png'",
        "5.png": "no text beside it",
        "6.png": found["6.png"],
        "7.png": "the caption has a null character at position 1",
    }
    assert "not a readable image" in found["6.png"]
    assert targets(all_examples(read_parts(folder, skip_bad_rows=True))) == ["fine"]


def test_images_without_any_text(folder: Path) -> None:
    with pytest.raises(DataError, match="there are 6 images that nothing is said about"):
        read_data(folder)


# --- parquet ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))


def write_parquet(path: Path, columns: dict[str, list[Any]]) -> Path:
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.table(columns), path)
    return path


def test_parquet_with_images_in_the_rows(tmp_path: Path, own_cache: None) -> None:
    images = [{"bytes": png(n), "path": None} for n in range(6)]
    images[2] = {"bytes": png(2)[:30], "path": "2.png"}
    images[3] = {"bytes": None, "path": "/etc/hostname"}
    path = write_parquet(tmp_path / "rows.parquet", {"image": images, "text": [f"c{n}" for n in range(6)]})
    with pytest.raises(DataError) as caught:
        read_data(path)
    assert f"{path}[2]: the image is not a readable image: " in caught.value.problems[0]
    assert f"{path}[3]: image '/etc/hostname' leads out of the folder" in caught.value.problems[1]
    splits = read_data(path, skip_bad_rows=True)
    examples = all_examples(splits)
    assert sorted(targets(examples)) == ["c0", "c1", "c4", "c5"]
    assert {e.open_image().getpixel((0, 0)) for e in examples} == {(n, 0, 7) for n in (0, 1, 4, 5)}
    assert {e.image_digest() for e in examples} == {hashlib.sha256(png(n)).hexdigest() for n in (0, 1, 4, 5)}


def test_parquet_that_names_images(folder: Path, own_cache: None) -> None:
    write_parquet(folder / "metadata.parquet", {"file_name": numbered(6), "caption": [f"c{n}" for n in range(6)]})
    splits = read_data(folder)
    assert sorted(image_names(all_examples(splits))) == numbered(6)
    assert splits.source == "photos"
    assert read_data(folder / "metadata.parquet").identity()["sha256"] == splits.identity()["sha256"]


def test_parquet_columns_of_bytes_of_nulls_and_of_lists(tmp_path: Path, own_cache: None) -> None:
    columns = {
        "picture": [png(n) for n in range(4)],
        "question": ["q?"] * 4,
        "answers": [["yes", "no", "yes"], None, ["a"], []],
        "answer": [None, 2.0, None, 3.5],
        "other": [float("nan")] * 4,
    }
    splits = read_data(write_parquet(tmp_path / "rows.parquet", columns), columns={"image": "picture"})
    assert sorted(targets(all_examples(splits))) == ["2", "3.5", "a", "yes"]


def test_what_is_no_parquet(tmp_path: Path, own_cache: None) -> None:
    (tmp_path / "rows.parquet").write_bytes(b"PAR1 no parquet")
    with pytest.raises(DataError, match="it cannot be loaded"):
        read_data(tmp_path / "rows.parquet")


def test_a_changed_table_of_the_same_size_and_time_is_read_anew(tmp_path: Path, own_cache: None) -> None:
    read = []
    for word in ("one", "two"):
        path = write_parquet(tmp_path / "rows.parquet", {"image": [png(n) for n in range(3)], "text": [word] * 3})
        os.utime(path, (1e9, 1e9))
        read += [set(targets(all_examples(read_parts(path))))]
    assert read == [{"one"}, {"two"}]


@pytest.mark.parametrize(
    ("name", "header"),
    [
        ("rows.tsv", "file_name\tcaption\tnotes, if any"),
        ("rows.csv", "file_name\tcaption\tnotes, if any"),
        ("rows.csv", "file_name;caption;notes, if any"),
        ("rows.csv", 'file_name,caption,"a; b; c; d"'),
        ("rows.csv", 'file_name;caption;"a, b, c, d"'),
    ],
)
def test_names_with_marks_that_part_others(tmp_path: Path, name: str, header: str) -> None:
    mark = header.removeprefix("file_name")[0]
    write_pictures(tmp_path, numbered(3))
    lines = [header, *(mark.join([f"{n}.png", f"caption {n}", ""]) for n in range(3))]
    (tmp_path / name).write_text("\n".join(lines))
    assert sorted(targets(all_examples(read_data(tmp_path / name)))) == ["caption 0", "caption 1", "caption 2"]


def test_quotes_in_a_file_with_tabs(folder: Path) -> None:
    """A row is a line, whatever quotes stand in it; one that CSV programs wrote is read as theirs."""

    def read(*lines: str) -> dict[str, str]:
        text = "\n".join(["file_name\ttext", *lines])
        (folder / "metadata.tsv").write_text(text)
        return {Path(str(e.image)).name: e.target for e in all_examples(read_data(folder / "metadata.tsv"))}

    plain = ['0.png\t"open quote', '1.png\tb"', '2.png\t"Hi" he said', '3.png\t"a ""b"" c"', "4.png\tit's"]
    assert read(*plain) == {
        "0.png": '"open quote',
        "1.png": 'b"',
        "2.png": '"Hi" he said',
        "3.png": 'a "b" c',
        "4.png": "it's",
    }
    quoted = ['0.png\t"a\tb"', '1.png\t"c\nd"', "2.png\te"]
    assert read(*quoted) == {"0.png": "a\tb", "1.png": "c\nd", "2.png": "e"}
