"""Pages of HTML that need no other file and no connection: one look, the templates beside this file. No torch."""

import base64
import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

from lorax_vlm.errors import LoraxError
from lorax_vlm.foreign import printable
from lorax_vlm.paths import WRITTEN_BY, replacing


def write_page(template: str, path: Path, title: str, **values: Any) -> Path:
    """Fill a template and write the page, piece by piece.

    Args:
        template: File in ``templates``.
        path: Where to write it; parents are created.
        title: Heading.
        values: What the template names. Texts are escaped, and nothing in them turns or hides other text.

    Raises:
        PathError: It cannot be written there.
    """
    templates = Environment(
        loader=PackageLoader("lorax_vlm.reports"), autoescape=True, undefined=StrictUndefined, finalize=_safe
    )
    text = templates.get_template(template).stream(written_by=WRITTEN_BY, title=title, **values)
    with replacing(path) as file:
        text.dump(file, encoding="utf-8", errors="backslashreplace")
    return path


def flat(record: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """A nested record as lines of names and texts."""
    for key, value in record.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{key}, ")
        else:
            yield f"{prefix}{key}".replace("_", " "), "none" if value is None else str(value)


def picture_address(data: bytes, kind: str) -> str:
    """A picture as an address that holds it; ``kind`` is ``png`` or ``jpeg``."""
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def thumbnail(images: Mapping[str, Image.Image], name: str, side_px: int, kind: str) -> str:
    """A small picture of an example as an address; empty where it cannot be read, as its report says."""
    try:
        small = images[name].copy()
    except LoraxError:
        return ""
    small.thumbnail((side_px, side_px))
    buffer = io.BytesIO()
    small.convert("RGB").save(buffer, kind)
    return picture_address(buffer.getvalue(), kind)


def _safe(value: object) -> object:
    return printable(value) if isinstance(value, str) else value
