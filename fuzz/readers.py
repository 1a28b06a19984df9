"""Data of other people: rows, documents and folders, damaged in structure, in values and in bytes.

What must hold of whatever is taken: nothing is learnt that nobody wrote, no image comes from outside of the folder,
every image can be opened, no image is on two sides, and the rows that are missing are exactly those that are listed.
"""

import copy
import csv
import io
import json
import os
import random
import re
import sys
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

from PIL import Image

from fuzz.harness import Fuzzer, main
from lorax_vlm.data.examples import DataSplits, Example
from lorax_vlm.data.image_facts import RowImage
from lorax_vlm.data.images import content_digest
from lorax_vlm.data.readers.unlabelled import read_unlabelled
from lorax_vlm.data.readers.values import written_out
from lorax_vlm.data.sources import read_parts
from lorax_vlm.errors import DataError

IMAGES = ("0.png", "1.png", "2.png", "sub/3.png", "COCO_val2014_000000000004.jpg")
_VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, 4, -1, 2.5, 3.0, 1e308, 10**400, "", " ", "\u200b", "\ud83d", "a\0b", "7", "x" * 5000),
    *([], {}, [[]], ["a", None], ["a", ""], ["a", ["b"]], {"answer": "x"}, {"answer": ["a", 2]}, [{"answer": "b"}, {}]),
    *("../private.png", "sub/../../private.png", "..\\private.png", "sub\\3.png", "C:\\0.png", "./0.png", ".", "/"),
    *("data:image/png;base64,AAAA", "http://127.0.0.1:9/x.png", "loop.png", "folder.png", "zero.png", "pipe.png"),
    *("cut.png", "text.png", "linked.png", "gone.png", "~/x.png", "caf\u00e9.png", "cafe\u0301.png", "test", "val"),
)
_TEXTS = (
    '{"file_name": "0.png", "caption": ' + "[" * 3000 + "]" * 3000 + "}",
    '{"file_name": "0.png", "caption": "a", "n": ' + "9" * 5000 + "}",
    '{"file_name": "0.png", "caption": "a", "caption": "b"}',
    '{"file_name": "0.png", "caption": NaN}',
    "[1, 2]",
    '"text"',
    "{",
)


@cache
def _picture(name: str) -> bytes:
    data = io.BytesIO()
    color = tuple(random.Random(name).randrange(256) for _ in range(3))
    Image.new("RGB", (5, 4), color).save(data, "JPEG" if name.endswith("jpg") else "PNG")
    return data.getvalue()


def _folder_of_images(rng: random.Random, parent: Path) -> Path:
    root = parent / "data"
    (root / "sub").mkdir(parents=True)
    for name in IMAGES:
        (root / name).write_bytes(_picture(name))
    (parent / "private.png").write_bytes(_picture("private.png"))
    (parent / "owned.png").write_bytes(_picture("owned.png"))
    makers = {
        "loop.png": lambda path: path.symlink_to(path.name),
        "zero.png": lambda path: path.symlink_to("/dev/zero"),
        "linked.png": lambda path: path.symlink_to(parent / "owned.png"),
        "folder.png": lambda path: path.mkdir(),
        "pipe.png": os.mkfifo,
        "cut.png": lambda path: path.write_bytes(_picture("cut.png")[:40]),
        "text.png": lambda path: path.write_text("no picture"),
        "cafe\u0301.png": lambda path: path.write_bytes(_picture("cafe")),
        "thumb_001.png": lambda path: path.write_bytes(_picture("thumb")),
        "._0.png": lambda path: path.write_bytes(b"\0\5\x16\7"),
    }
    for name in rng.sample(sorted(makers), rng.randrange(len(makers))):
        makers[name](root / name)
    return root


def _rows(rng: random.Random) -> list[dict[str, Any]]:
    captions = rng.random() < 0.5
    rows: list[dict[str, Any]] = []
    for number in range(rng.randrange(1, 8)):
        row: dict[str, Any] = {"file_name": rng.choice(IMAGES)}
        if captions:
            row["caption"] = rng.choice([f"caption {number}", [f"caption {number}", "another"]])
        else:
            row |= {"question": f"question {number}?", "answer": rng.choice(["yes", ["no", "no", "yes"], 3, True])}
        if rng.random() < 0.1:
            row["split"] = rng.choice(["train", "val", "test", "left"])
        rows.append(row)
    return rows


def _damaged(rng: random.Random, value: Any) -> Any:
    """A copy with a few places changed."""
    value = json.loads(json.dumps(value))
    for _ in range(rng.choice([0, 1, 1, 2, 4])):
        places = list(_places(value))
        if not places:
            return value
        holder, key = rng.choice(places)
        way = rng.random()
        if way < 0.6:
            holder[key] = copy.deepcopy(rng.choice(_VALUES))
        elif way < 0.8:
            del holder[key]
        elif isinstance(holder, list):
            holder.insert(rng.randrange(len(holder) + 1), copy.deepcopy(holder[key]))
        else:
            holder[rng.choice(["text", "question", "answers", "image", "type", "split", "id", "caption"])] = (
                copy.deepcopy(holder[key])
            )
    return value


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    if isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield value, key
            yield from _places(inner)


def _encoded(rng: random.Random, text: str) -> bytes:
    """The text as bytes, sometimes of another encoding or with a few changed."""
    kind = rng.choice(["utf-8"] * 8 + ["utf-8-sig", "utf-16", "latin-1"])
    data = bytearray(text.encode(kind, "surrogatepass" if kind.startswith("utf") else "replace"))
    if data and rng.random() < 0.15:
        for _ in range(rng.randrange(1, 4)):
            data[rng.randrange(len(data))] = rng.choice(b'{}[]",:\n\\\0\xff1')
    return bytes(data)


def _write_lines(rng: random.Random, root: Path) -> tuple[Path, dict[str, Any]]:
    lines = [json.dumps(row, ensure_ascii=rng.random() < 0.5) for row in _damaged(rng, _rows(rng))]
    if rng.random() < 0.2:
        lines.insert(rng.randrange(len(lines) + 1), rng.choice(_TEXTS))
    (root / "metadata.jsonl").write_bytes(_encoded(rng, "\n".join(lines)))
    return rng.choice([root, root / "metadata.jsonl"]), {}


def _write_csv(rng: random.Random, root: Path) -> tuple[Path, dict[str, Any]]:
    rows = ["file_name,text,split" if rng.random() < 0.3 else "file_name,text"]
    for row in _rows(rng):
        cells = [
            str(row["file_name"]),
            *(str(rng.choice(["a", "b, c", 'say "x"', *_VALUES])) for _ in rows[0].split(",")[1:]),
        ]
        quotes = rng.random() < 0.8
        rows.append(",".join('"' + cell.replace('"', '""') + '"' if quotes else cell for cell in cells))
    (root / "metadata.csv").write_bytes(_encoded(rng, "\r\n".join(rows)))
    return root, {}


def _write_texts(rng: random.Random, root: Path) -> tuple[Path, dict[str, Any]]:
    for name in IMAGES:
        if rng.random() < 0.8:
            text = rng.choice(["a cat", "two\nlines", "", " ", "\u200b", "\ud83d", "a\0", "[red] b"])
            path = (root / name).with_suffix(rng.choice([".txt", ".caption", ".TXT"]))
            path.write_bytes(_encoded(rng, text))
    return root, {}


def _write_coco(rng: random.Random, root: Path) -> tuple[Path, dict[str, Any]]:
    images = [{"id": n, "file_name": name} for n, name in enumerate(IMAGES)]
    captions = [{"image_id": rng.randrange(len(IMAGES)), "caption": f"caption {n}"} for n in range(rng.randrange(1, 9))]
    return _document(rng, root, {"images": images, "annotations": captions})


def _write_pairs(rng: random.Random, root: Path) -> tuple[Path, dict[str, Any]]:
    numbers = range(rng.randrange(1, 7))
    questions = [{"question_id": n, "image_id": rng.choice([0, 1, "2", 4]), "question": f"q {n}?"} for n in numbers]
    answers: list[dict[str, Any]] = [
        {"question_id": n, "answers": [{"answer": "yes"}, {"answer": rng.choice(["no", "", 2])}]} for n in numbers
    ]
    (root / "a.json").write_bytes(_encoded(rng, json.dumps(_damaged(rng, {"annotations": answers}))))
    path, options = _document(rng, root, {"questions": questions})
    return path, {**options, "annotations": root / "a.json"}


def _write_list(rng: random.Random, root: Path) -> tuple[Path, dict[str, Any]]:
    rows = _rows(rng)
    ids = [{**row, "file_name": None, "image_id": rng.choice(["0", 1, "COCO_val2014_000000000004"])} for row in rows]
    document: Any = rng.choice([rows, ids])
    shape = rng.randrange(3)
    if shape == 1:
        document = {"data": document}
    elif shape == 2:
        document = {str(number): row for number, row in enumerate(document)}
    return _document(rng, root, document)


def _write_karpathy(rng: random.Random, root: Path) -> tuple[Path, dict[str, Any]]:
    rows = [
        {
            "filename": name,
            "split": rng.choice(["train", "restval", "val", "test"]),
            "sentences": [{"raw": f"about {n}"}],
        }
        for n, name in enumerate(IMAGES)
    ]
    return _document(rng, root, {"images": rows})


def _document(rng: random.Random, root: Path, document: Any) -> tuple[Path, dict[str, Any]]:
    text = json.dumps(_damaged(rng, document))
    if rng.random() < 0.1:
        parts = text.split('"')
        parts[rng.randrange(len(parts))] = rng.choice(["[" * 3000, "9" * 5000, "NaN", "1e999", '": "'])
        text = '"'.join(parts)
    (root / "d.json").write_bytes(_encoded(rng, text))
    return root / "d.json", {"images": root}


_WRITERS = (
    *(_write_lines, _write_lines, _write_csv, _write_texts, _write_coco, _write_pairs, _write_list, _write_karpathy),
)


def attempt(rng: random.Random, folder: Path) -> None:
    """Write a data set, read it, and look whether all that is promised holds."""
    root = _folder_of_images(rng, folder)
    if rng.random() < 0.1:
        _unlabelled(rng, root, folder)
        return
    source, options = rng.choice(_WRITERS)(rng, root)
    options["held_out"] = rng.choice([0.1, 0.5])
    splits = read_parts(source, skip_bad_rows=True, **options)
    examples = [example for part in splits.parts().values() for example in part]
    _check_examples(examples, root, folder)
    _check_texts(examples, root)
    _check_sides(splits)
    _check_listed(splits, source, options)
    _check_elsewhere(splits, source, root, options)
    for text in (*splits.describe(), splits.summary(), json.dumps(splits.identity())):
        assert folder.name not in text or text.startswith("left out"), "a path of this machine"
        text.encode()


def _unlabelled(rng: random.Random, root: Path, folder: Path) -> None:
    if rng.random() < 0.5:
        _write_lines(rng, root)
    examples = read_unlabelled(root, skip_bad_rows=rng.random() < 0.5)
    _check_examples(examples, root, folder)
    assert not any(example.target or example.answers for example in examples)


def _check_examples(examples: list[Example], root: Path, folder: Path) -> None:
    assert examples
    private = content_digest(folder / "private.png")
    for example in examples:
        assert isinstance(example.image, Path | bytes | RowImage)
        if isinstance(example.image, Path):
            assert os.path.normpath(example.image).startswith(f"{root}{os.sep}"), "an image from outside"
        assert example.image_digest() != private, "an image from outside"
        assert example.open_image().mode == "RGB"


def _check_texts(examples: list[Example], root: Path) -> None:
    written = set(_written(root))
    for example in examples:
        said = [answer for answer in example.answers if answer]  # empty for an annotator who said nothing
        for text in (example.target, *said, *([example.question] if example.question else [])):
            assert text in written, f"nobody wrote {text!r}"


def _written(root: Path) -> Iterator[str]:
    """Every text and number that stands in the files."""
    for path in root.rglob("*"):
        if path.suffix.lower() not in (".jsonl", ".json", ".csv", ".txt", ".caption"):
            continue
        data = path.read_bytes()
        wide = data[:2] in (b"\xff\xfe", b"\xfe\xff")
        text = data.decode("utf-16", "replace") if wide else data.decode("utf-8-sig", "surrogateescape")
        if path.suffix.lower() in (".txt", ".caption"):
            yield text.strip()
        elif path.suffix == ".csv":
            yield from _cells(text)
        else:
            for part in [text, *text.split("\n")]:
                try:
                    yield from _leaves(json.loads(part))
                except (ValueError, RecursionError):
                    continue


def _cells(text: str) -> Iterator[str]:
    for row in csv.reader(io.StringIO(text, newline="")):
        yield from row


def _leaves(value: Any) -> Iterator[str]:
    if isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _leaves(inner)
    elif value is not None and (text := written_out(value)) is not None:
        yield text


def _check_sides(splits: DataSplits) -> None:
    sides = [{example.image_digest() for example in part} for part in splits.parts().values()]
    assert not sides[0] & (sides[1] | sides[2]), "an image on two sides"


def _check_elsewhere(splits: DataSplits, source: Path, root: Path, options: dict[str, Any]) -> None:
    """The same rows are on the same sides wherever the folder is and whatever it is called."""
    root.with_name("another name").symlink_to(root)
    moved = root.with_name("another name") / source.relative_to(root)
    others: dict[str, Any] = {
        key: root.with_name("another name") if value == root else value for key, value in options.items()
    }
    again = read_parts(moved, skip_bad_rows=True, **others)
    assert [_told(part) for part in again.parts().values()] == [_told(part) for part in splits.parts().values()]


def _told(part: Iterable[Example]) -> list[tuple[Any, ...]]:
    return [(e.image_digest(), e.question, e.target, e.answers, e.kind) for e in part]


def _problems(splits: DataSplits, source: Path, options: dict[str, Any]) -> list[str]:
    """What is listed when no row may be left out."""
    try:
        again = read_parts(source, **options)
    except DataError as error:
        return [str(problem) for problem in error.problems]
    assert again == splits
    return []


def _check_listed(splits: DataSplits, source: Path, options: dict[str, Any]) -> None:
    """Without leaving rows out the same ones are listed; each row is kept or listed."""
    problems = _problems(splits, source, options)
    assert [str(problem) for problem in splits.skipped] == problems
    kept = {_place(example.name) for part in splits.parts().values() for example in part}
    listed = {_place(problem.place) for problem in splits.skipped}
    assert not kept & listed, "kept and listed"
    found = kept | listed
    expected = set(_expected(source, "annotations" in options))
    if expected and not splits.duplicates:
        assert found >= expected, f"missing: {sorted(expected - found)}"


def _place(name: str) -> str:
    """The line of a table, the place in a document, or the name of an image."""
    in_document = re.search(r"\.json: (\w*\[\d+\]|\[.*\])", name)
    return in_document[1] if in_document else name.rpartition("/")[2]


def _expected(source: Path, annotated: bool) -> Iterator[str]:
    """The places of all rows; nothing where a file cannot be told apart into rows."""
    if source.is_dir():
        tables = [source / name for name in ("metadata.jsonl", "metadata.csv") if (source / name).is_file()]
        source = tables[0] if tables else source
    if source.is_dir():
        found = (path for path in source.rglob("*") if path.suffix in (".png", ".jpg") and not path.is_dir())
        yield from (path.name for path in found if not path.name.startswith("."))
        return
    data = source.read_bytes()
    wide = data[:2] in (b"\xff\xfe", b"\xfe\xff")
    if source.suffix == ".jsonl" and not wide:
        yield from (f"{source.name}:{n}" for n, line in enumerate(data.split(b"\n"), 1) if line.strip())
    elif source.suffix == ".csv":
        lines = io.StringIO(data.decode("utf-16" if wide else "utf-8-sig"), newline="")
        reader, line = csv.reader(lines), 0
        for cells in reader:
            if cells and line:
                yield f"{source.name}:{line + 1}"
            line = reader.line_num
    elif source.suffix == ".json":
        yield from _document_places(json.loads(data), annotated)


def _document_places(document: Any, annotated: bool) -> Iterator[str]:
    if isinstance(document, list):
        yield from (f"[{n}]" for n in range(len(document)))
        return
    lists = [key for key, value in document.items() if isinstance(value, list)]
    key = "annotations" if {"images", "annotations"} <= {*lists} else lists[0] if len(lists) == 1 else ""
    if annotated:  # a question that stands there twice is taken once
        key = "questions"
    rows = document.get(key, [])
    yield from (f"{key}[{n}]" for n, row in enumerate(rows) if not annotated or rows.index(row) == n)


FUZZER = Fuzzer("readers", attempt)

if __name__ == "__main__":
    sys.exit(main(FUZZER))
