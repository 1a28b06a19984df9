"""The two files of an adapter's folder, whatever kind of adapter: there, small enough, no pointer. No torch."""

from pathlib import Path
from typing import Any

from lorax_vlm.adapters.advice import advise_on_missing
from lorax_vlm.adapters.peft_config import CONFIG_FILE, LFS_POINTER, MAX_CONFIG_BYTES, parse_config
from lorax_vlm.adapters.regular_files import read_regular
from lorax_vlm.errors import DamagedAdapter
from lorax_vlm.models.tensor_files import StoredTensor, read_header

WEIGHTS_FILE = "adapter_model.safetensors"
MAX_WEIGHTS_BYTES = 4 * 1024**3
MAX_TENSORS = 50_000


def read_file(folder: Path, file: str, limit: int) -> bytes:
    """A file of an adapter's folder.

    Raises:
        ValueError: Why not, with its name and what may be meant instead.
    """
    try:
        return read_regular(folder / file, limit)
    except (FileNotFoundError, NotADirectoryError):
        raise ValueError(advise_on_missing(folder, file)) from None
    except OSError as error:
        raise ValueError(f"{file} cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error


def read_tensors(data: bytes) -> list[StoredTensor]:
    """The tensors of ``adapter_model.safetensors``; their values are not read.

    Raises:
        ValueError: It is truncated, no safetensors, a pointer of Git LFS, or holds too many.
    """
    try:
        if data.startswith(b"version https://git-lfs"):
            raise ValueError(LFS_POINTER)
        tensors = list(read_header(data)[0])
    except ValueError as error:
        reason = str(error) if str(error) == LFS_POINTER else f"is truncated or not safetensors: {error}"
        raise ValueError(f"{WEIGHTS_FILE} {reason}") from error
    if len(tensors) > MAX_TENSORS:
        raise ValueError(f"{WEIGHTS_FILE} holds {len(tensors):,} tensors, the limit is {MAX_TENSORS:,}")
    return tensors


def read_pair(folder: Path) -> tuple[dict[str, Any], bytes, list[StoredTensor]]:
    """Configuration, weights and their tensors, each file read once; what the configuration says is not looked at.

    Raises:
        DamagedAdapter: A file is missing, too large, no regular file, or not of its format; all is listed.
    """
    problems: list[str] = []
    content: dict[str, bytes] = {}
    for file, limit in ((CONFIG_FILE, MAX_CONFIG_BYTES), (WEIGHTS_FILE, MAX_WEIGHTS_BYTES)):
        try:
            content[file] = read_file(folder, file, limit)
        except ValueError as error:
            problems.append(str(error))
    config: dict[str, Any] = {}
    tensors: list[StoredTensor] = []
    if not problems:
        try:
            config = parse_config(content[CONFIG_FILE])
        except ValueError as error:
            problems.append(f"{CONFIG_FILE} {error}")
        try:
            tensors = read_tensors(content[WEIGHTS_FILE])
        except ValueError as error:
            problems.append(str(error))
    if problems:
        raise DamagedAdapter(folder.name, str(folder), list(dict.fromkeys(problems)))
    return config, content[WEIGHTS_FILE], tensors
