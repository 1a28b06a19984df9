"""A data set written anew, in the layout that somebody needs; images are copied as they are. No torch."""

import csv
import io
import json
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from PIL import Image

from lorax_vlm.adapters.durable import own_folder
from lorax_vlm.data.examples import DataSplits, Example
from lorax_vlm.data.image_facts import RowImage
from lorax_vlm.data.images import load_image
from lorax_vlm.data.readers.listing import FORMAT_SUFFIXES, is_image_name, text_stems
from lorax_vlm.data.splitting import DEFAULT_HELD_OUT
from lorax_vlm.errors import UsageError
from lorax_vlm.foreign import quoted
from lorax_vlm.paths import naming, require_empty_folder

Layout = Literal["folder", "sidecars", "csv", "parquet", "coco", "vqav2"]
LAYOUTS: tuple[Layout, ...] = ("folder", "sidecars", "csv", "parquet", "coco", "vqav2")
IMAGES = "images"


@dataclass(frozen=True)
class Exported:
    """What was written, and how it is read again."""

    folder: Path
    rows: int
    images: int
    read_by: tuple[str, ...]
    """Options of ``lorax-vlm train``, one set for each part that the layout keeps apart."""


@dataclass(frozen=True)
class _Row:
    """An example on its way."""

    example: Example
    part: str
    """Empty where the data bring no parts along: reading divides them the same way again."""
    image: str
    """Name of the copy."""


def export_data(splits: DataSplits, out: Path, layout: Layout) -> Exported:
    """Write a data set to a new folder.

    Args:
        splits: The data; a stream is read to its end.
        out: New or empty.
        layout: ``folder``, images with a ``metadata.jsonl``; ``sidecars``, a text beside each image; ``csv`` or
            ``parquet``, a table and a folder of images; ``coco``, captions; ``vqav2``, questions and annotations.

    Raises:
        UsageError: The layout is unknown, or cannot hold such data: it is for the other kind, or holds one text a row.
        PathError: It cannot be written; nothing is left of it.
        ImageError: An image cannot be read.
    """
    if layout not in LAYOUTS:
        raise UsageError(f"A layout is one of {', '.join(LAYOUTS)}, got {quoted(layout)}.")
    _require_holding(splits, layout)
    out = require_empty_folder(out)
    with naming(out), own_folder(out.parent) as scratch:
        place = scratch if layout in ("folder", "sidecars") else scratch / IMAGES
        rows = _with_images(splits, place, numbered=layout == "vqav2", apart=layout == "sidecars")
        read_by = [f"{options}{_dividing(splits)}" for options in _WRITERS[layout](rows, scratch)]
        scratch.chmod(0o755)
        scratch.replace(out)
    return Exported(out, len(rows), len({row.image for row in rows}), tuple(options.format(out) for options in read_by))


def _require_holding(splits: DataSplits, layout: Layout) -> None:
    kind = splits.kind
    if kind == "questions" and layout in ("sidecars", "coco"):
        raise UsageError(f"{layout} holds captions, and {splits.source} questions; take folder, csv, parquet or vqav2.")
    if kind == "captions" and layout == "vqav2":
        raise UsageError(f"vqav2 holds questions, and {splits.source} captions; take another layout.")
    examples = list(splits.select("all"))
    if layout in ("sidecars", "coco", "vqav2") and (grouped := next((e for e in examples if e.group), None)):
        raise UsageError(f"{layout} has no place for groups, as that of {grouped.name}; take folder, csv or parquet.")
    if layout == "csv" and (several := next((e for e in examples if len(e.answers) > 1), None)):
        raise UsageError(f"A cell of CSV holds one answer, and {several.name} has {len(several.answers)}; take folder.")
    first: dict[str, Example] = {}
    for example in examples if layout == "sidecars" else ():
        before = first.setdefault(example.image_digest(), example)
        if before is not example:
            raise UsageError(
                f"A text file holds one caption, and the image of {before.name} is that of {example.name}, too; take "
                "folder or coco, or remove equal images: lorax-vlm data dedupe."
            )


def _dividing(splits: DataSplits) -> str:
    """The options by which reading divides the data as they are divided."""
    share = splits.held_out
    grouped = any(example.group for example in splits.select("all"))
    held_out = f" --held-out {share:g}" if share not in (None, DEFAULT_HELD_OUT) else ""
    return held_out + (" --group-by group" if grouped else "")


def _with_images(splits: DataSplits, folder: Path, *, numbered: bool, apart: bool) -> list[_Row]:
    """Rows with the names of their images, which are copied into a folder, or into one for each part."""
    drawn = splits.held_out is not None
    parts: dict[str, Iterable[Example]] = {**splits.parts(), "train": [*splits.train, *splits.shared]}
    names: dict[str, str] = {}
    rows, taken = [], set[str]()
    for name_of_part, examples in parts.items():
        part = name_of_part
        if drawn and part != "test":  # reading draws the validation part from all of these again
            part = "train" if splits.test else ""
        for example in examples:
            digest = example.image_digest()
            if digest not in names:
                data, ending = _content(example)
                stem = f"{len(names) + 1:012}" if numbered else _stem(example, digest)
                name = f"{stem}{ending}"
                if name.casefold() in taken:
                    name = f"{stem}-{digest[:12]}{ending}"
                taken.add(name.casefold())
                names[digest] = f"{part}/{name}" if apart and part else name
                place = folder / names[digest]
                place.parent.mkdir(parents=True, exist_ok=True)
                if isinstance(data, Path):
                    shutil.copyfile(data, place)
                elif isinstance(data, bytes):
                    place.write_bytes(data)
                else:
                    data.save(place)
            rows.append(_Row(example, part, names[digest]))
    return rows


def _stem(example: Example, digest: str) -> str:
    return (example.image.stem.lstrip(".") if isinstance(example.image, Path) else "") or digest[:16]


def _content(example: Example) -> tuple[Path | bytes | Image.Image, str]:
    """An image as it is, and the ending of its name; what is no file is written as PNG."""
    image = example.image.read() if isinstance(example.image, RowImage) else example.image
    if isinstance(image, Path) and is_image_name(image.name):
        return image, image.suffix
    if isinstance(image, Path | bytes):  # of a name that no reader of folders takes for an image
        with Image.open(image if isinstance(image, Path) else io.BytesIO(image)) as opened:
            return image, FORMAT_SUFFIXES.get(opened.format or "", (".png",))[0]
    return load_image(image) if not callable(image) else example.open_image(), ".png"


# --- layouts --------------------------------------------------------------------------------------------------------


def _record(row: _Row, folder: str = "") -> dict[str, Any]:
    """A row of a table."""
    example, record = row.example, {"file_name": f"{folder}{row.image}"}
    if example.question:
        record["question"] = example.question
        several = {"answers": list(example.answers)} if len(example.answers) > 1 else {"answer": example.target}
        record |= several  # type: ignore[arg-type]
        record |= {"type": example.kind} if example.kind else {}
    else:
        record["caption"] = example.target
    return record | {name: value for name, value in (("split", row.part), ("group", example.group)) if value}


def _write_folder(rows: Sequence[_Row], folder: Path) -> list[str]:
    lines = (json.dumps(_record(row), ensure_ascii=False) for row in rows)
    (folder / "metadata.jsonl").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return ["--data {}"]


def _write_sidecars(rows: Sequence[_Row], folder: Path) -> list[str]:
    by_folder: dict[Path, list[_Row]] = {}
    for row in rows:
        by_folder.setdefault((folder / row.image).parent, []).append(row)
    for place, beside in by_folder.items():
        stems = text_stems([Path(row.image).name for row in beside])
        for row, stem in zip(beside, stems, strict=True):
            (place / f"{stem}.txt").write_text(row.example.target, encoding="utf-8")
    return ["--data {}"]


def _write_csv(rows: Sequence[_Row], folder: Path) -> list[str]:
    records = [_record(row, f"{IMAGES}/") for row in rows]
    names = list(dict.fromkeys(name for record in records for name in record))
    with (folder / "data.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, names, restval="")
        writer.writeheader()
        writer.writerows(records)
    return ["--data {}/data.csv"]


def _write_parquet(rows: Sequence[_Row], folder: Path) -> list[str]:
    import pyarrow
    from pyarrow import parquet

    records = [_record(row, f"{IMAGES}/") for row in rows]
    if any("answers" in record for record in records):  # of a column all values are of one type
        for record in records:
            record["answers"] = record.get("answers") or [record.pop("answer")]
    names = list(dict.fromkeys(name for record in records for name in record))
    parquet.write_table(
        pyarrow.table({name: [record.get(name) for record in records] for name in names}), folder / "data.parquet"
    )
    return ["--data {}/data.parquet"]


def _write_coco(rows: Sequence[_Row], folder: Path) -> list[str]:
    options = []
    for part, some in _by_part(rows).items():
        ids = {image: number for number, image in enumerate(dict.fromkeys(row.image for row in some), start=1)}
        document = {
            "images": [{"id": number, "file_name": image} for image, number in ids.items()],
            "annotations": [
                {"id": number, "image_id": ids[row.image], "caption": row.example.target}
                for number, row in enumerate(some, start=1)
            ],
        }
        name = f"captions{f'_{part}' if part else ''}.json"
        (folder / name).write_text(json.dumps(document, ensure_ascii=False), encoding="utf-8")
        options.append(f"--data {{0}}/{name} --images {{0}}/{IMAGES}")
    return options


def _write_vqav2(rows: Sequence[_Row], folder: Path) -> list[str]:
    options = []
    for part, some in _by_part(rows).items():
        asked, answered = [], []
        for number, row in enumerate(some, start=1):
            of = {"question_id": number, "image_id": int(Path(row.image).stem)}
            answers = row.example.answers or (row.example.target,)
            asked.append({**of, "question": row.example.question})
            answered.append(
                {
                    **of,
                    "multiple_choice_answer": row.example.target,
                    "answers": [{"answer_id": n, "answer": answer} for n, answer in enumerate(answers, start=1)],
                    **({"answer_type": row.example.kind} if row.example.kind else {}),
                }
            )
        end = f"{f'_{part}' if part else ''}.json"
        for name, listed in (("questions", asked), ("annotations", answered)):
            (folder / f"{name}{end}").write_text(json.dumps({name: listed}, ensure_ascii=False), encoding="utf-8")
        options.append(f"--data {{0}}/questions{end} --annotations {{0}}/annotations{end} --images {{0}}/{IMAGES}")
    return options


def _by_part(rows: Sequence[_Row]) -> dict[str, list[_Row]]:
    found: dict[str, list[_Row]] = {}
    for row in rows:
        found.setdefault(row.part, []).append(row)
    return found


_WRITERS: dict[Layout, Callable[[Sequence[_Row], Path], list[str]]] = {
    "folder": _write_folder,
    "sidecars": _write_sidecars,
    "csv": _write_csv,
    "parquet": _write_parquet,
    "coco": _write_coco,
    "vqav2": _write_vqav2,
}
