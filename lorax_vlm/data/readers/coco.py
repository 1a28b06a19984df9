"""COCO's captions: a list of images, and a list of captions that name them by id. No torch."""

from collections import defaultdict
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from lorax_vlm.data.image_facts import Stored
from lorax_vlm.data.readers.gathering import Gathering
from lorax_vlm.data.readers.image_files import ImageFiles
from lorax_vlm.data.readers.rows import Spot
from lorax_vlm.data.readers.values import add_differing, id_text
from lorax_vlm.errors import MalformedRow
from lorax_vlm.foreign import quoted

COCO_HINT = "COCO captions have images (id, file_name) and annotations (image_id, caption)."
_IMAGE_NAMES = ("id", "file_name", "coco_url", "flickr_url", "caption", "captions", "text", "question")


def take_captions(gathering: Gathering, document: dict[str, Any], files: ImageFiles, path: Path) -> None:
    """Give the rows of a document to a gathering."""
    images = _images_by_id(gathering, document["images"], path)
    for index, row in enumerate(document["annotations"]):
        place = f"annotations[{index}]"
        spot = Spot(f"{path}: {place}", f"{path.name}: {place}")
        if not isinstance(row, dict):
            gathering.take(spot, row, partial(_file_of, images=images, files=files))
            continue
        known = images.get(id_text(row.get("image_id")) or "", [])
        about_image = known[0] if len(known) == 1 else {}
        kept = {key: value for key, value in about_image.items() if key not in _IMAGE_NAMES}
        gathering.take(spot, {**kept, "image_id": None, **row}, partial(_file_of, images=images, files=files))


def _images_by_id(gathering: Gathering, rows: list[Any], path: Path) -> dict[str, list[dict[str, Any]]]:
    """Image rows by id, those that differ; more than one of an id is a problem, and so are its captions."""
    images: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for index, row in enumerate(rows):
        spot = Spot(f"{path}: images[{index}]", f"{path.name}: images[{index}]")
        if not isinstance(row, dict):
            found = type(row).__name__
            gathering.refuse(spot, MalformedRow(f"expected an object, found {found}", value=quoted(row)))
            continue
        number = id_text(row.get("id"))
        if number is None:
            value = quoted(row.get("id"))
            gathering.refuse(
                spot, MalformedRow("no 'id'" if "id" not in row else f"the id is {value}", field="id", value=value)
            )
        elif add_differing(row, images[number]):
            reason = f"id {number} a second time, with other values"
            gathering.refuse(spot, MalformedRow(reason, field="id", value=number, wanted="an id of its own"))
    return images


def _file_of(row: Mapping[str, Any], images: Mapping[str, list[dict[str, Any]]], files: ImageFiles) -> Stored:
    number = id_text(row.get("image_id"))
    found = images.get(number or "", [])
    if not found:
        value = quoted(row.get("image_id"))
        raise MalformedRow(f"no image of id {value}", field="image_id", value=value, wanted="the id of an image")
    names = {quoted(name): name for name in map(name_of, found)}
    if len(names) > 1:
        reason = f"image id {number} stands for {' and '.join(names)}"
        raise MalformedRow(reason, field="image_id", value=str(number), wanted="an id of one image")
    name = next(iter(names.values()))
    if name is None:
        raise MalformedRow(f"image id {number} has no 'file_name'", field="file_name", wanted="the name of a file")
    return files.named(name)


def name_of(image: Mapping[str, Any]) -> Any:
    """What an image row says of its file; of an address the last part."""
    name, address = image.get("file_name"), image.get("coco_url")
    if name is not None or not isinstance(address, str):
        return name
    try:
        return unquote(urlsplit(address).path).rpartition("/")[2] or None
    except ValueError:
        return None
