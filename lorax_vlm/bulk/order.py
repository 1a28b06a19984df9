"""What a bulk job is to do. No torch."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, TypedDict, Unpack

from lorax_vlm.adapters.store import AdapterStore
from lorax_vlm.bulk.columns import Column, columns_for
from lorax_vlm.bulk.folder import ImageFolder
from lorax_vlm.bulk.items import Item
from lorax_vlm.bulk.journal import FOLDER
from lorax_vlm.bulk.rows import TableRows
from lorax_vlm.bulk.sidecars import EXISTING, Existing
from lorax_vlm.bulk.wording import PLAIN, Wording
from lorax_vlm.errors import UsageError
from lorax_vlm.foreign import quoted
from lorax_vlm.models.catalog import CatalogEntry
from lorax_vlm.paths import named_path
from lorax_vlm.types import require_known, require_texts, require_whole

Output = Literal["txt", "jsonl", "csv", "parquet"]
OUTPUTS: tuple[Output, ...] = ("txt", "jsonl", "csv", "parquet")
Pick = Literal["first", "longest"]
PICKS: tuple[Pick, ...] = ("first", "longest")
TABLES = {"jsonl": "metadata.jsonl", "csv": "captions.csv", "parquet": "captions.parquet"}
"""What tables are called in the output; the first is what Hugging Face's image folders call theirs."""


class BulkWishes(TypedDict, total=False):
    """What may be said of texts about a folder."""

    recursive: bool
    """Its sub folders, too."""
    follow_links: bool
    """Go into sub folders that are links."""
    out: str | Path | None
    """Folder of the outputs. None: beside the images."""
    write: Sequence[Output]
    """``txt`` by default, a text file for each image; ``jsonl``, ``csv`` and ``parquet`` are tables."""
    existing: Existing
    """What becomes of text files that are there: ``skip`` by default; see ``sidecars``."""
    prefix: str
    suffix: str
    template: str
    """See ``wording.Wording``."""
    pick: Pick | None
    """Write one of several captions."""
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
    file: str = ""
    """Of a table alone: what it is called. Empty: as in ``TABLES``."""

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
        return tuple(kind for kind in self.write if kind != "txt")

    @property
    def journal(self) -> Path:
        """The file of what was said."""
        return self.out / FOLDER / f"{self.file or 'captions'}.sqlite"

    @property
    def failed(self) -> Path:
        """The list of what failed."""
        return self.out / (f"{self.file}.failed.csv" if self.file else "failed.csv")

    def table(self, kind: Output) -> Path:
        """Where a table goes."""
        return self.out / (self.file or TABLES[kind])

    @property
    def labels(self) -> tuple[str, ...]:
        """Of the columns."""
        return tuple(column.label for column in self.columns)

    def identity(self, names: str) -> str:
        """Of what is written of texts, beside the texts: of items by a digest of their ``names``."""
        facts = [names, self.labels, self.pick, asdict(self.wording)]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()

    def text(self, item: Item, label: str, caption: str) -> str:
        """What is written of a caption."""
        return self.wording.text(caption, {"folder": item.folder, "name": item.stem, "adapter": label})


def folder_order(
    entry: CatalogEntry,
    store: AdapterStore,
    folder: str | Path,
    adapters: Sequence[str],
    **wishes: Unpack[BulkWishes],
) -> BulkOrder:
    """Captions of the images of a folder; adapters are found now and stay those versions.

    Args:
        entry: The base.
        store: Of the adapters.
        folder: With images.
        adapters: Their names, ``base`` for the base alone. None: the base alone.
        wishes: See ``BulkWishes``.

    Raises:
        PathError: There is no such folder, or no image in it.
        UsageError: Something is wished that is not known, or cannot be.
        AdapterError: An adapter cannot be found, or answers questions.
    """
    require_known(wishes, BulkWishes.__annotations__)
    require_texts("adapters", adapters)
    samples, decoding = wishes.get("samples", 1), wishes.get("decoding", {})
    require_whole("samples", samples, 1)
    if samples > 1:
        if decoding.get("temperature") is None:
            raise UsageError("Several samples take a temperature, such as 0.7.")
        decoding = {"seed": 0, **decoding}
    images = ImageFolder(
        named_path("folder", folder), wishes.get("recursive", False), wishes.get("follow_links", False)
    )
    out = wishes.get("out")
    order = BulkOrder(
        images,
        columns_for(entry, store, adapters, decoding, question=False, samples=samples),
        images.root if out is None else named_path("out", out),
        tuple(wishes.get("write", ("txt",))),
        wishes.get("existing", "skip"),
        Wording(wishes.get("prefix", ""), wishes.get("suffix", ""), wishes.get("template", PLAIN)),
        wishes.get("pick"),
    )
    images.require_images()
    return order


def table_order(
    entry: CatalogEntry,
    store: AdapterStore,
    rows: TableRows,
    adapters: Sequence[str],
    out: str | Path,
    decoding: Mapping[str, Any],
) -> BulkOrder:
    """Answers to the questions of a table, or captions of its images, as another table.

    Args:
        entry: The base.
        store: Of the adapters.
        rows: The table.
        adapters: As for ``folder_order``.
        out: The file to be written: ``.jsonl``, ``.csv`` or ``.parquet``.
        decoding: Fields of ``GenerationSettings`` to change.

    Raises:
        DataError: The table cannot be read, or has no rows.
        UsageError: ``out`` is no table, or the one that is read; or as of ``columns_for``.
        AdapterError: An adapter cannot be found, or answers questions where captions are wanted.
    """
    path = named_path("out", out)
    kind = next((kind for kind in OUTPUTS if kind != "txt" and path.suffix.lower() == f".{kind}"), None)
    if kind is None:
        raise UsageError(f"out must be a .jsonl, .csv or .parquet file, got {quoted(str(out))}.")
    if path.resolve() == rows.path.resolve():
        raise UsageError(f"{path} is the table that is read; name another file.")
    rows.require_rows()
    columns = columns_for(entry, store, adapters, decoding, question=rows.questions)
    return BulkOrder(rows, columns, path.parent, (kind,), questions=rows.questions, file=path.name)
