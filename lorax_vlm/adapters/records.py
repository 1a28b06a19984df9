"""The records of a store's names: one small file each, replaced as a whole; several at once, or none. No torch.

STORE/names/<name>.json   its versions, which one is in use, aliases, tags
STORE/names/.pending      records that are all valid from the moment this file is there, until they are in theirs
"""

import json
import os
from dataclasses import asdict
from pathlib import Path

from lorax_vlm.adapters.names import NAME, NameRecord, parse_record, require_adapter_name
from lorax_vlm.adapters.regular_files import read_regular
from lorax_vlm.errors import AdapterNotFound, DamagedAdapter, PathError
from lorax_vlm.foreign import parse_json
from lorax_vlm.paths import abandoned, naming, sync_folder, written_whole

_PENDING = ".pending"
_ENDING = ".json"
_MAX_RECORD_BYTES = 64 * 1024**2


class NameRecords:
    """The records below one folder. Writing is for whoever holds the store's lock."""

    def __init__(self, root: Path) -> None:
        self._root, self._folder = root, root / "names"

    # --- reading ----------------------------------------------------------------------------------------------------

    def names(self) -> list[str]:
        """All of them, sorted, broken ones included.

        Raises:
            PathError: They cannot be read.
        """
        try:
            found = {entry.name.removesuffix(_ENDING) for entry in os.scandir(self._folder) if _is_record(entry.name)}
        except FileNotFoundError:
            return []
        except OSError as error:
            raise PathError.of(self._folder, error) from error
        return sorted(name for name in found | set(self._pending()) if NAME.fullmatch(name))

    def has(self, name: str) -> bool:
        """Whether there is one of this very name, which a file system that ignores capitals may not know."""
        return require_adapter_name(name) in self._pending() or (self._path(name).is_file() and name in self.names())

    def read(self, name: str) -> NameRecord:
        """The record of a name.

        Raises:
            AdapterNameError: ``name`` cannot be a name.
            AdapterNotFound: There is none.
            DamagedAdapter: It cannot be read.
            PathError: The store cannot be read.
        """
        path = self._path(name)
        pending = self._pending().get(name)
        if pending is not None:
            return pending
        try:
            return parse_record(read_regular(path, _MAX_RECORD_BYTES), name)
        except FileNotFoundError:
            raise AdapterNotFound(name, str(self._root), self.names()) from None
        except OSError as error:
            raise PathError.of(path, error) from error
        except ValueError as error:
            if name not in self.names():  # that of another one, on a file system that ignores capitals
                raise AdapterNotFound(name, str(self._root), self.names()) from None
            raise DamagedAdapter(name, str(path), [str(error)]) from error

    def _pending(self) -> dict[str, NameRecord]:
        path = self._folder / _PENDING
        try:
            texts = parse_json(read_regular(path, _MAX_RECORD_BYTES))
            return {name: parse_record(text.encode(), name) for name, text in texts.items()}
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise PathError.of(path, error) from error
        except (ValueError, AttributeError) as error:
            reason = f"{path} is not what was written; remove it to go on without what it was to add"
            raise DamagedAdapter(_PENDING, str(self._root), [reason]) from error

    # --- writing ----------------------------------------------------------------------------------------------------

    def write(self, *records: NameRecord) -> None:
        """Replace records: all of them, or none, whatever happens meanwhile.

        Raises:
            PathError: They cannot be written.
        """
        texts = {record.name: json.dumps(asdict(record), indent=1) for record in records}
        with naming(self._folder):
            self._folder.mkdir(exist_ok=True)
            if len(texts) > 1:
                self._replace(_PENDING, json.dumps(texts))
            for name, text in texts.items():
                self._replace(f"{name}{_ENDING}", text)
            if len(texts) > 1:
                (self._folder / _PENDING).unlink()
                sync_folder(self._folder)

    def finish(self) -> None:
        """Carry out what a writer that was killed had begun."""
        if pending := self._pending():
            self.write(*pending.values())
            with naming(self._folder):
                (self._folder / _PENDING).unlink(missing_ok=True)

    def remove(self, name: str) -> None:
        """Forget a name.

        Raises:
            PathError: Its record cannot be removed.
        """
        with naming(self._folder):
            self._path(name).unlink(missing_ok=True)
            sync_folder(self._folder)

    def _replace(self, file: str, text: str) -> None:
        with written_whole(self._folder / file) as written:
            written.write(text.encode())

    def leftovers(self) -> list[Path]:
        """Files of writers that were killed; only for whoever holds the lock."""
        return sorted(abandoned(self._folder, after_s=0))

    def _path(self, name: str) -> Path:
        return self._folder / f"{require_adapter_name(name)}{_ENDING}"


def _is_record(file: str) -> bool:
    return file.endswith(_ENDING) and not file.startswith(".")
