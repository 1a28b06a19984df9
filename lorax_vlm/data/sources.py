"""One door to all sources of examples: what is asked for is recognised by what it is."""

from collections.abc import Mapping
from pathlib import Path

from lorax_vlm.data.examples import DataSplits
from lorax_vlm.data.folder import read_image_folder
from lorax_vlm.data.hub import read_hub_dataset
from lorax_vlm.data.json_sets import read_coco_captions, read_vqav2
from lorax_vlm.errors import DataError

HUB_PREFIX = "hub:"


def read_data(
    source: str | Path,
    *,
    images: str | Path | None = None,
    annotations: str | Path | None = None,
    columns: Mapping[str, str] | None = None,
    streaming: bool = False,
    skip_bad_rows: bool = False,
) -> DataSplits:
    """Read training and validation examples.

    Args:
        source: A folder with ``metadata.jsonl``; VQAv2's questions (with ``annotations`` and ``images``) or COCO's
            captions (with ``images``) as a JSON file; or ``hub:owner/name`` for a data set of the hub.
        images: Folder of the images of a JSON file.
        annotations: VQAv2's annotations.
        columns: Our fields by column of a hub data set; see ``read_hub_dataset``.
        streaming: Read a hub data set while training.
        skip_bad_rows: Leave malformed rows out; they stay listed in the result.

    Raises:
        DataError: The source is none of these, or has malformed rows; every row is listed.
    """
    if str(source).startswith(HUB_PREFIX):
        name = str(source).removeprefix(HUB_PREFIX)
        return read_hub_dataset(name, columns=columns, streaming=streaming, skip_bad_rows=skip_bad_rows)
    path = Path(source).expanduser()
    if path.suffix.lower() != ".json" or path.is_dir():
        return read_image_folder(path, skip_bad_rows=skip_bad_rows)
    if images is None:
        raise DataError(str(path), ["a JSON file does not say where its images are"], "Pass their folder: --images.")
    if annotations is not None:
        return read_vqav2(path, annotations, images, skip_bad_rows=skip_bad_rows)
    return read_coco_captions(path, images, skip_bad_rows=skip_bad_rows)
