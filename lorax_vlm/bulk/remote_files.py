"""The images that rows name in a folder behind an fsspec address, found as those of a folder here are. No torch."""

from collections import defaultdict
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from lorax_vlm.bulk.remote_image import RemoteImage
from lorax_vlm.data.readers.image_files import ImageFiles
from lorax_vlm.data.readers.listing import is_image_name, is_left_behind
from lorax_vlm.data.readers.rows import ImageOf
from lorax_vlm.sharing.places import RemoteFile, RemoteFolder


class RemoteFiles(ImageFiles):
    """Names are looked up in one listing; the paths that come of them are those there, as if it were a folder here."""

    def __init__(self, remote: RemoteFolder, *, sub_folders: bool = False) -> None:
        """Look at nothing yet; see ``ImageFiles``."""
        super().__init__(Path("/", *remote.url.split("://")), sub_folders=sub_folders)
        self._remote = remote

    def image_at(self, path: Path) -> RemoteImage:
        """What lies there.

        Args:
            path: As ``named`` and ``of_id`` say it.
        """
        name = path.relative_to(self.folder).as_posix()
        return RemoteImage(self._remote, name, self._listed[name])

    @cached_property
    def _listed(self) -> Mapping[str, RemoteFile]:
        return self._remote.files()

    @cached_property
    def _folders(self) -> Mapping[str, set[str]]:
        """What lies in each folder, files and folders."""
        within: dict[str, set[str]] = defaultdict(set)
        for name in self._listed:
            below = ""
            for part in name.split("/"):
                within[below].add(part)
                below = f"{below}/{part}" if below else part
        return within

    def _exact(self, inside: str, field: str) -> Path | None:
        return self.folder / inside if inside in self._listed else None

    def _is_there(self, inside: str) -> bool:
        return inside in self._listed or inside in self._folders

    def _names_in(self, folder: str) -> list[str]:
        return list(self._folders.get(folder, ()))

    def _images(self) -> list[Path]:
        return [
            self.folder / name
            for name in self._listed
            if is_image_name(name) and not any(map(is_left_behind, name.split("/")))
        ]


def behind(files: RemoteFiles, image_of: ImageOf) -> Any:
    """What finds the image of a row there: in the place of a path what lies at it."""

    def find(row: Mapping[str, Any]) -> Any:
        image = image_of(row)
        return files.image_at(image) if isinstance(image, Path) else image

    return find
