"""What a bulk job is to do. No torch."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypedDict, Unpack

from lorax_vlm.adapters.store import AdapterStore
from lorax_vlm.bulk.columns import Column, columns_for
from lorax_vlm.bulk.folder import ImageFolder, ImageList
from lorax_vlm.bulk.items import Item
from lorax_vlm.bulk.remote import Mirror, RemoteImages
from lorax_vlm.bulk.rows import FILES_OF_ROWS, FileRows, HubRows, Rows
from lorax_vlm.bulk.sidecars import EXISTING, Existing
from lorax_vlm.bulk.wording import PLAIN, Wording
from lorax_vlm.data.readers.columns import Columns
from lorax_vlm.data.readers.hub import HUB_PREFIX
from lorax_vlm.data.readers.listing import is_image_name
from lorax_vlm.errors import UsageError
from lorax_vlm.foreign import quoted
from lorax_vlm.models.catalog import CatalogEntry
from lorax_vlm.paths import OWN_FOLDER, named_path, naming
from lorax_vlm.settings import outputs_dir
from lorax_vlm.sharing.places import RemoteFolder, is_place
from lorax_vlm.types import require_known, require_texts, require_whole

Output = Literal["txt", "jsonl", "csv", "parquet", "xmp"]
OUTPUTS: tuple[Output, ...] = ("txt", "jsonl", "csv", "parquet", "xmp")
Pick = Literal["first", "longest", "likeliest"]
PICKS: tuple[Pick, ...] = ("first", "longest", "likeliest")
TABLES: dict[Output, str] = {"jsonl": "metadata.jsonl", "csv": "captions.csv", "parquet": "captions.parquet"}
"""What tables are called in the output; the first is what Hugging Face's image folders call theirs."""


class BulkWishes(TypedDict, total=False):
    """What may be said of texts about many images."""

    answers: bool
    """Of rows: their questions are answered, rather than captions written."""
    images: str | Path | None
    """Of rows of a file: the folder of their images, perhaps behind an address. None: that of the file."""
    columns: Columns
    """Of rows: which of their columns say what."""
    split: str | None
    """Of a data set of the hub: one of its splits. None: all."""
    recursive: bool
    """Of a folder: its sub folders, too."""
    follow_links: bool
    """Go into sub folders that are links."""
    out: str | Path | None
    """Folder of the outputs; of rows perhaps a file. None: beside the images; of rows, where we are."""
    write: Sequence[Output]
    """``txt`` by default, a text file for each image; of rows ``jsonl``. ``csv`` and ``parquet`` are tables, too;
    ``xmp`` writes into images, or into copies of them."""
    existing: Existing
    """What becomes of text files that are there: ``skip`` by default; see ``sidecars``."""
    prefix: str
    suffix: str
    template: str
    """See ``wording.Wording``."""
    pick: Pick | None
    """Write one of several captions."""
    likelihood: bool
    """Say of each text how likely the model finds it, in tables; see ``ScoringEngine.likelihoods``."""
    review: int
    """Show so many of the least likely texts with their images, on a page in the output."""
    samples: int
    """Captions by each adapter, with a temperature; their seeds count up."""
    decoding: Mapping[str, Any]
    """Fields of ``GenerationSettings`` to change."""


@dataclass(frozen=True)
class BulkOrder:
    """Texts about many images, and where they go."""

    items: Iterable[Item]
    """Gone through more than once."""
    columns: Sequence[Column]
    out: Path
    """Folder of the outputs and of the journal."""
    write: tuple[Output, ...] = ("txt",)
    existing: Existing = "skip"
    wording: Wording = field(default_factory=Wording)
    pick: Pick | None = None
    """Write one of several texts. None: all of them."""
    questions: bool = False
    """Whether questions are answered, rather than captions written."""
    likelihood: bool = False
    """Ask how likely texts are."""
    review: int = 0
    """Texts on the page of the least likely ones."""
    file: str = ""
    """Of rows: what tables are called, one alone with its ending. Empty: as in ``TABLES``."""
    mirror: Mirror | None = None
    """Of an output behind an address; ``out`` is its folder here."""
    source: str = ""
    """What the items are of, where outputs lie elsewhere. Empty: in the source itself."""

    def __post_init__(self) -> None:
        """Check them.

        Raises:
            UsageError: One is none of those that are known.
        """
        for name, value, known in (("existing", self.existing, EXISTING), ("pick", self.pick, (None, *PICKS))):
            if value not in known:
                raise UsageError(f"{name} must be one of {', '.join(map(str, known))}, got {quoted(value)}.")
        if unknown := [kind for kind in self.write if kind not in OUTPUTS]:
            raise UsageError(f"Outputs are {', '.join(OUTPUTS)}; got {quoted(unknown[0])}.")
        if not self.write:
            raise UsageError(f"Nothing is to be written; outputs are {', '.join(OUTPUTS)}.")

    @property
    def tables(self) -> tuple[Output, ...]:
        """The outputs that are tables."""
        return tuple(kind for kind in self.write if kind in TABLES)

    @property
    def all_asked(self) -> bool:
        """Whether every column is asked of every image, and not only where a text file lacks it."""
        return bool(self.tables) or "xmp" in self.write

    @property
    def journal(self) -> Path:
        """The file of what was said."""
        return self.out / OWN_FOLDER / f"{self.file or 'captions'}.sqlite"

    @property
    def failed(self) -> Path:
        """The list of what failed."""
        return self.out / (f"{self.file}.failed.csv" if self.file else "failed.csv")

    @property
    def review_page(self) -> Path:
        """The page of the least likely texts."""
        return self.out / (f"{self.file}.review.html" if self.file else "review.html")

    def table(self, kind: Output) -> Path:
        """Where a table goes."""
        if not self.file:
            return self.out / TABLES[kind]
        return self.out / (self.file if self.file.lower().endswith(f".{kind}") else f"{self.file}.{kind}")

    @cached_property
    def labels(self) -> tuple[str, ...]:
        """Of the columns."""
        return tuple(column.label for column in self.columns)

    def identity(self, names: str) -> str:
        """Of what is written of texts, beside the texts: of items by a digest of their ``names``."""
        facts = [names, self.labels, self.pick, self.likelihood, asdict(self.wording)]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()

    def text(self, item: Item, label: str, caption: str) -> str:
        """What is written of a caption."""
        name = item.stem or (item.image.stem if isinstance(item.image, Path) else item.name)
        return self.wording.text(caption, {"folder": item.folder, "name": name, "adapter": label})


Source = str | Path | Sequence[str]
"""A folder or a file of rows, perhaps behind an address; ``hub:owner/name``; or a list of image files."""


def is_source(text: str) -> bool:
    """Whether a text names many images rather than one."""
    if is_place(text):
        return not is_image_name(text)
    return text.startswith(HUB_PREFIX) or Path(text).suffix.lower() in FILES_OF_ROWS


def bulk_order(
    entry: CatalogEntry, store: AdapterStore, source: Source, adapters: Sequence[str], **wishes: Unpack[BulkWishes]
) -> BulkOrder:
    """Texts about many images; adapters are found now and stay those versions.

    Args:
        entry: The base.
        store: Of the adapters.
        source: The images.
        adapters: Their names, ``base`` for the base alone. None: the base alone.
        wishes: See ``BulkWishes``.

    Raises:
        PathError: There is no such folder or file, or no image in it.
        DataError: Rows cannot be read, or there are none.
        UsageError: Something is wished that is not known, or cannot be.
        AdapterError: An adapter cannot be found, or answers questions where captions are wanted.
    """
    require_known(wishes, BulkWishes.__annotations__)
    require_texts("adapters", adapters)
    items = _items(source, wishes)
    questions = isinstance(items, Rows) and items.questions
    out, write, file = _outputs(items, wishes)
    mirror = Mirror(RemoteFolder(out), outputs_dir()) if isinstance(out, str) else None
    place = mirror.folder if mirror is not None else Path(out)
    samples, decoding = wishes.get("samples", 1), wishes.get("decoding", {})
    require_whole("samples", samples, 1)
    review = wishes.get("review", 0)
    require_whole("review", review, 0)
    if wishes.get("existing") in ("append", "prepend") and not set(write) & {"txt", "xmp"}:
        raise UsageError("append and prepend are for text files and texts in images: txt or xmp.")
    if wishes.get("likelihood") and not set(write) & set(TABLES):
        raise UsageError("Likelihoods are written to tables: jsonl, csv or parquet.")
    if "xmp" in write and not wishes.get("pick") and max(len(adapters), 1) * samples > 1:
        raise UsageError("An image has one description: say which of several captions is it (pick=).")
    if isinstance(items, ImageFolder) and items.recursive and "xmp" in write:
        root, own = items.root.resolve(), place.resolve()
        if own != root and own.is_relative_to(root):
            raise UsageError(
                f"{place} lies in {items.root}: its copies would be images of it; name a folder elsewhere."
            )
    if samples > 1:
        if decoding.get("temperature") is None:
            raise UsageError("Several samples take a temperature, such as 0.7.")
        decoding = {"seed": 0, **decoding}
    return BulkOrder(
        items,
        columns_for(entry, store, adapters, decoding, question=questions, samples=samples),
        place,
        write,
        wishes.get("existing", "skip"),
        Wording(wishes.get("prefix", ""), wishes.get("suffix", ""), wishes.get("template", PLAIN)),
        wishes.get("pick"),
        questions,
        wishes.get("likelihood", False) or review > 0 or wishes.get("pick") == "likeliest",
        review,
        file,
        mirror,
        _source_of(items, out),
    )


Items = ImageFolder | ImageList | RemoteImages | Rows


def _items(source: Source, wishes: BulkWishes) -> Items:
    """What a source is, and that there is something in it."""
    rows: dict[str, Any] = {"columns": wishes.get("columns") or Columns(), "questions": wishes.get("answers", False)}
    text = str(source)
    if not isinstance(source, str | Path):
        require_texts("source", source)
        items: Items = ImageList(tuple(source))
    elif is_place(text) and Path(text).suffix.lower() in FILES_OF_ROWS:
        items = _fetched_rows(RemoteFolder(text).url, wishes, rows)
    elif is_place(text):
        items = RemoteImages(RemoteFolder(text), wishes.get("recursive", False))
    elif text.startswith(HUB_PREFIX):
        items = HubRows(text.removeprefix(HUB_PREFIX), wishes.get("split"), **rows)
    elif (path := named_path("source", source)).is_dir() or path.suffix.lower() not in FILES_OF_ROWS:
        items = ImageFolder(path, wishes.get("recursive", False), wishes.get("follow_links", False))
    else:
        items = FileRows(path, _images_of(wishes), **rows)
    _require_fitting(items, wishes)
    if isinstance(items, Rows):
        items.require_rows()
    else:
        items.require_images()
    return items


def _fetched_rows(url: str, wishes: BulkWishes, rows: Mapping[str, Any]) -> FileRows:
    """The rows of a table behind an address, whose images lie beside it unless something else is said."""
    parent, _, name = url.rpartition("/")
    path = outputs_dir() / "tables" / hashlib.sha256(parent.encode()).hexdigest()[:16] / name
    with naming(path):
        RemoteFolder(parent).fetch(name, path)
    return FileRows(path, _images_of(wishes) or RemoteFolder(parent), url, **rows)


def _images_of(wishes: BulkWishes) -> Path | RemoteFolder | None:
    images = wishes.get("images")
    if isinstance(images, str) and is_place(images):
        return RemoteFolder(images)
    return None if images is None else named_path("images", images)


_ONLY_OF: dict[str, tuple[Any, str]] = {
    "answers": (Rows, "rows, which have questions"),
    "columns": (Rows, "rows"),
    "images": (FileRows, "rows of a file"),
    "split": (HubRows, "data sets of the hub"),
    "recursive": ((ImageFolder, RemoteImages), "folders"),
    "follow_links": (ImageFolder, "folders here"),
}


def _require_fitting(items: Items, wishes: BulkWishes) -> None:
    """Raise ``UsageError`` for a wish that means nothing of such images."""
    for name, (kind, what) in _ONLY_OF.items():
        if wishes.get(name) and not isinstance(items, kind):
            raise UsageError(f"{name} is for {what}.")


def _source_of(items: Items, out: str | Path) -> str:
    """What an output is of; nothing for one that lies in its source, and moves with it."""
    if isinstance(items, HubRows):
        return f"{HUB_PREFIX}{items.source}" + (f":{items.split}" if items.split else "")
    if isinstance(items, RemoteImages):
        return "" if out == items.folder.url else items.folder.url
    if isinstance(items, FileRows) and items.address:
        return items.address
    place = items.path if isinstance(items, FileRows) else None if isinstance(items, Rows) else items.root
    if place is None or (isinstance(out, Path) and place.resolve() == out.resolve()):
        return ""
    return str(place.resolve())


def _outputs(items: Items, wishes: BulkWishes) -> tuple[str | Path, tuple[Output, ...], str]:
    """The folder of the outputs or its address, what is written, and what tables are called; see ``BulkOrder``."""
    given, write = wishes.get("out"), wishes.get("write")
    out: str | Path | None = given if given is None else _named(given)
    if not isinstance(items, Rows):
        if write and "xmp" in write and (out is None or isinstance(out, str) or isinstance(items, RemoteImages)):
            raise UsageError(
                "Texts in images need a place (out=): a folder here for copies, or the folder of the images themselves "
                "to change those. It is not done behind addresses."
            )
        beside = items.folder.url if isinstance(items, RemoteImages) else items.root
        return out if out is not None else beside, tuple(write or ("txt",)), ""
    if write and not set(write) <= set(TABLES):
        raise UsageError("txt and xmp are for images of a folder or a list; of rows write jsonl, csv or parquet.")
    suffix = "" if out is None else Path(out).suffix.lower()
    if out is not None and suffix and not (isinstance(out, Path) and out.is_dir()):
        kind = next((kind for kind in TABLES if suffix == f".{kind}"), None)
        if kind is None or (write and tuple(write) != (kind,)):
            wanted = ", ".join(f".{kind}" for kind in write or TABLES)
            raise UsageError(f"out must be a folder or a file, {wanted}; got {quoted(str(out))}.")
        if isinstance(items, FileRows) and isinstance(out, Path) and out.resolve() == items.path.resolve():
            raise UsageError(f"{out} is the table that is read; name another file.")
        if isinstance(out, str):
            parent, _, name = out.rpartition("/")
            return parent, (kind,), name
        return out.parent, (kind,), out.name
    word = "answers" if items.questions else "captions"
    return out if out is not None else Path(), tuple(write or ("jsonl",)), f"{items.name}.{word}"


def _named(out: object) -> str | Path:
    """An output as somebody named it: an address, or a path."""
    if isinstance(out, str) and is_place(out):
        return RemoteFolder(out).url
    return named_path("out", out)
