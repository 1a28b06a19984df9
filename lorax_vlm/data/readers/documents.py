"""JSON files of rows, as published data sets come: recognised by what is in them.

| what | looks like |
|---|---|
| COCO captions | ``{"images": [{"id", "file_name"}], "annotations": [{"image_id", "caption"}]}`` |
| Karpathy's splits | ``{"images": [{"filepath", "filename", "sentences": [{"raw"}], "split"}]}`` |
| VQAv2 | ``{"questions": [{"question_id", "image_id", "question"}]}``, with the annotations in a second file |
| TextVQA | ``{"data": [{"image_id", "question", "answers"}]}`` |
| GQA | ``{"question id": {"imageId", "question", "answer"}}`` |
| VQA-RAD, VizWiz, CLEVR, one's own | a list of rows, or ``{"questions": [...]}`` whose rows have answers |

No torch.
"""

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Unpack

from lorax_vlm.data.examples import DataSplits
from lorax_vlm.data.readers.coco import COCO_HINT, name_of, take_captions
from lorax_vlm.data.readers.gathering import Gathering, ReadKeywords, ReadOptions, read_options
from lorax_vlm.data.readers.image_files import ImageFiles
from lorax_vlm.data.readers.rows import Spot, find_image
from lorax_vlm.data.readers.table_files import part_by_folder
from lorax_vlm.data.readers.tables import json_lines, read_whole
from lorax_vlm.data.readers.vqa_pairs import VQA_HINT, take_pairs
from lorax_vlm.errors import DataError, MalformedRow
from lorax_vlm.foreign import parse_json, quoted

_LIST_HINT = (
    'Rows are objects such as {"image": "cat.jpg", "caption": "a cat on a mat"} or '
    '{"image": "cat.jpg", "question": "What animal is it?", "answer": "cat"}.'
)
_LISTS = ("questions", "images", "data", "annotations")
NO_IMAGES_HINT = "Pass their folder: --images."


def read_vqav2(
    questions: str | Path, annotations: str | Path, images: str | Path, **options: Unpack[ReadKeywords]
) -> DataSplits:
    """Read a pair of VQAv2 files; see ``read_document``."""
    answers, folder = Path(annotations).expanduser(), Path(images).expanduser()
    return read_document(Path(questions).expanduser(), read_options(**options), images=folder, annotations=answers)


def read_coco_captions(captions: str | Path, images: str | Path, **options: Unpack[ReadKeywords]) -> DataSplits:
    """Read a COCO captions file; see ``read_document``."""
    folder = Path(images).expanduser()
    return read_document(Path(captions).expanduser(), read_options(**options), images=folder, only="coco")


def read_document(
    path: Path,
    options: ReadOptions,
    *,
    images: Path | None = None,
    annotations: Path | None = None,
    only: str | None = None,
) -> DataSplits:
    """Read a JSON file.

    Args:
        path: The file.
        options: What is asked for.
        images: Folder of the images. None: they are beside the file, which only lists of rows may leave out.
        annotations: VQAv2's annotations.
        only: What it has to be.

    Raises:
        DataError: It is none of these, or rows are malformed; every row is listed.
    """
    document = _parse(path)
    kind = _recognise(path, document, annotations is not None)
    if only is not None and kind != only:
        raise DataError(str(path), ["it has no list 'images' and no list 'annotations'"], COCO_HINT)
    if images is None and kind in ("coco", "karpathy", "pairs"):
        raise DataError(str(path), ["a JSON file does not say where its images are"], NO_IMAGES_HINT)
    if images is not None and not images.is_dir():
        raise DataError(str(images), ["there is no such image folder"], NO_IMAGES_HINT)
    files = ImageFiles(path.parent if images is None else images, sub_folders=images is not None)
    hint = {"coco": COCO_HINT, "pairs": VQA_HINT}.get(kind, _LIST_HINT)
    shown_hint = hint if images else f"{hint} {NO_IMAGES_HINT}"
    gathering = Gathering(str(path), path.name, options, shown_hint, part_by_folder(files.folder))
    if kind == "coco":
        take_captions(gathering, document, files, path)
    elif annotations is not None:
        take_pairs(gathering, document, read_json(annotations, VQA_HINT), files, (path, annotations))
    else:
        _take_rows(gathering, _rows(document, kind), files, path)
    return gathering.splits(files.notes)


def unlabelled_rows(path: Path) -> Iterator[tuple[str, Any]]:
    """The images or questions of a JSON file with their places, whether or not anything is said of them.

    Rows are as those of a list: COCO's and Karpathy's images are called by ``file_name``.

    Raises:
        DataError: It is none of the files that are read, or VQAv2's answers without their questions.
    """
    document = _parse(path)
    lists = [key for key in _LISTS if isinstance(document, dict) and isinstance(document.get(key), list)]
    if "questions" in lists or lists == ["data"]:
        yield from _rows(document, lists[0])
    elif "images" in lists:
        for index, row in enumerate(document["images"]):
            named = isinstance(row, dict) and "sentences" not in row
            yield f"images[{index}]", {**row, "file_name": name_of(row)} if named else _karpathy(row)
    else:
        yield from _rows(document, _recognise(path, document, annotated=False))


def _parse(path: Path) -> Any:
    data = read_whole(path)
    try:
        return parse_json(data, unique=True)
    except ValueError as error:
        lines = _as_lines(data)
        if lines is None:
            raise DataError(str(path), [f"it is {error}"], _LIST_HINT) from None
        return lines


def read_json(path: Path, hint: str) -> Any:
    """A JSON document that somebody named.

    Raises:
        DataError: It is none.
    """
    try:
        return parse_json(read_whole(path), unique=True)
    except DataError:
        raise
    except ValueError as error:
        raise DataError(str(path), [f"it is {error}"], hint) from None


def _as_lines(data: bytes) -> list[Any] | None:
    """JSON lines in a file that is called otherwise: one object a line."""
    rows = [row for _, row in json_lines(data)]
    return rows if rows and isinstance(rows[0], dict) and len(rows) > 1 else None


def _recognise(path: Path, document: Any, annotated: bool) -> str:
    """What a document is.

    Raises:
        DataError: Nothing that is read.
    """
    if isinstance(document, list) and annotated:
        problem = (
            "it is a list of rows, not VQAv2's questions; so a file of answers (--annotations) does not belong to it"
        )
        raise DataError(str(path), [problem], f"Leave --annotations out, or name the questions. {VQA_HINT}")
    if isinstance(document, list):
        return "list"
    lists = [key for key in _LISTS if isinstance(document, dict) and isinstance(document.get(key), list)]
    if annotated:
        kind = "pairs" if "questions" in lists else ""
    elif "questions" in lists:
        kind = "questions" if _any_has(document["questions"], "answer", "answers") else ""
    elif {"images", "annotations"} <= set(lists):
        kind = "coco"
    elif "images" in lists:
        kind = "karpathy" if _any_has(document["images"], "sentences") else ""
    elif "data" in lists:
        kind = "data"
    else:
        of_objects = isinstance(document, dict) and all(isinstance(row, dict) for row in document.values())
        kind = "by id" if document and of_objects else ""
    if not kind:
        raise _nothing_known(path, document, lists, annotated)
    return kind


def _any_has(rows: list[Any], *names: str) -> bool:
    return any(isinstance(row, dict) and not row.keys().isdisjoint(names) for row in rows[:1000])


def _nothing_known(path: Path, document: Any, lists: list[str], annotated: bool) -> DataError:
    if annotated:
        return DataError(str(path), ["it has no list 'questions'"], VQA_HINT)
    if "questions" in lists:
        return DataError(str(path), ["these are VQAv2 questions without answers"], "Pass the answers: --annotations.")
    if "annotations" in lists and _any_has(document["annotations"], "question_id"):
        return DataError(str(path), ["these are VQAv2 answers without questions"], VQA_HINT)
    missing = "annotations" if "images" in lists else "images"
    found = f"; it is {quoted(document)}" if not isinstance(document, dict) else ""
    return DataError(str(path), [f"it has no list {missing!r}, and no other list of rows{found}"], _LIST_HINT)


def _rows(document: Any, kind: str) -> Iterator[tuple[str, Any]]:
    """Rows with their places."""
    if kind == "by id":
        yield from ((f"[{quoted(key)}]", row) for key, row in document.items())
    elif kind == "list":
        yield from ((f"[{index}]", row) for index, row in enumerate(document))
    elif kind == "karpathy":
        yield from ((f"images[{index}]", _karpathy(row)) for index, row in enumerate(document["images"]))
    else:
        yield from ((f"{kind}[{index}]", row) for index, row in enumerate(document[kind]))


def _karpathy(row: Any) -> Any:
    """A row of Karpathy's as the rows of a list are."""
    if not isinstance(row, dict) or not isinstance(row.get("sentences"), list):
        return row
    said = [sentence.get("raw") if isinstance(sentence, dict) else sentence for sentence in row["sentences"]]
    name, folder = row.get("filename", row.get("file_name")), row.get("filepath")
    inside = f"{folder}/{name}" if isinstance(name, str) and isinstance(folder, str) and folder else name
    return {**row, "file_name": inside, "caption": said}


def _take_rows(gathering: Gathering, rows: Iterator[tuple[str, Any]], files: ImageFiles, path: Path) -> None:
    columns = gathering.options.columns
    for place, row in rows:
        spot = Spot(f"{path}: {place}", f"{path.name}: {place}{_id(row)}")
        if isinstance(row, MalformedRow):
            gathering.refuse(spot, row)
        else:
            gathering.take(spot, row, partial(find_image, columns=columns, files=files))


def _id(row: Any) -> str:
    """A row's own number, so that its name stays when rows are added before it."""
    if not isinstance(row, Mapping):
        return ""
    return next((f" ({key} {quoted(row[key])})" for key in ("question_id", "qid", "cocoid", "id") if key in row), "")
