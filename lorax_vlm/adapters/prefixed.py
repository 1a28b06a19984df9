"""Adapters of a part of a base: LoRA that was put on ``model.language_model``, say, instead of on the whole model.

Such files name every module without the part's own name. With it before them they are adapters of the whole. No torch.
"""

import json
import re
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir
from typing import Any

from lorax_vlm.adapters.files import AdapterBytes, read_adapter
from lorax_vlm.adapters.manifest import MANIFEST_FILE
from lorax_vlm.adapters.pair import WEIGHTS_FILE
from lorax_vlm.adapters.peft_config import CONFIG_FILE
from lorax_vlm.errors import UsageError
from lorax_vlm.foreign import quoted
from lorax_vlm.paths import naming

_PREFIX = re.compile(r"[A-Za-z_]\w*(\.\w+)*\.?")
_CHOOSING = ("exclude_modules", "layers_to_transform", "layers_pattern")


def missing_prefix(sites: Sequence[str], modules: Collection[str]) -> str | None:
    """What all sites lack before their names to be modules of a base; None when that does not help.

    Args:
        sites: Of the adapter.
        modules: Linear layers of the base.
    """
    if not sites or any(site in modules for site in sites):
        return None
    ends = f".{sites[0]}"
    found = {name.removesuffix(sites[0]) for name in modules if name.endswith(ends)}
    fitting = [prefix for prefix in sorted(found) if all(f"{prefix}{site}" in modules for site in sites)]
    return fitting[0] if len(fitting) == 1 else None


@contextmanager
def with_prefix(folder: Path, name: str, prefix: str) -> Iterator[Path]:
    """A copy of a PEFT directory whose modules are named with something before them, for the time of a block.

    Args:
        folder: Saved by plain PEFT.
        name: Of the adapter, for errors.
        prefix: Such as ``language_model.``; the last dot may be left out.

    Raises:
        UsageError: It is no name of a part, or the adapter has a record, which says what it belongs to.
        AdapterError: See ``read_adapter``.
    """
    if not isinstance(prefix, str) or not _PREFIX.fullmatch(prefix):
        raise UsageError(
            f"prefix is {quoted(prefix)}, expected the name of a part of the base, such as language_model."
        )
    if (folder / MANIFEST_FILE).exists():
        raise UsageError(
            f"{folder} has an {MANIFEST_FILE}: its modules have their names already; leave out the prefix."
        )
    adapter = read_adapter(folder, name)
    prefix = prefix if prefix.endswith(".") else f"{prefix}."
    with ExitStack() as stack:
        with naming(Path(gettempdir())):  # and not around what is done with it
            scratch = stack.enter_context(TemporaryDirectory(prefix="lorax-prefixed-"))
            renamed = Path(scratch) / (folder.name or "adapter")
            renamed.mkdir()
            (renamed / CONFIG_FILE).write_text(json.dumps(_renamed_config(adapter, prefix), indent=1), encoding="utf-8")
            (renamed / WEIGHTS_FILE).write_bytes(_renamed_weights(adapter, prefix))
        _require_same(adapter, read_adapter(renamed, name), prefix)
        yield renamed


def _renamed_config(adapter: AdapterBytes, prefix: str) -> dict[str, Any]:
    """The configuration with every module by its whole name, so that no pattern means another part's modules."""
    files = adapter.files
    config = {key: value for key, value in files.config.items() if key not in _CHOOSING}
    ranks = {prefix + site: a.shape[0] for site, (a, _) in files.factors.items() if a.shape[0] != config["r"]}
    root = bool(config.get("use_rslora"))
    alphas = {
        prefix + site: files.scaling(site) * (a.shape[0] ** 0.5 if root else a.shape[0])
        for site, (a, _) in files.factors.items()
    }
    return config | {
        "target_modules": [prefix + site for site in files.sites],
        "rank_pattern": ranks,
        "alpha_pattern": {site: alpha for site, alpha in alphas.items() if alpha != config.get("lora_alpha")},
    }


def _renamed_weights(adapter: AdapterBytes, prefix: str) -> bytes:
    """The same file with other names in its header; the values are not touched."""
    length = int.from_bytes(adapter.data[:8], "little")
    header = json.loads(adapter.data[8 : 8 + length])
    begin = "base_model.model."
    renamed = {
        name if name == "__metadata__" else f"{begin}{prefix}{name.removeprefix(begin)}": entry
        for name, entry in header.items()
    }
    text = json.dumps(renamed, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + adapter.data[8 + length :]


def _require_same(before: AdapterBytes, after: AdapterBytes, prefix: str) -> None:
    """Renaming must not change what an update is multiplied by."""
    for site in before.files.sites:
        old, new = before.files.scaling(site), after.files.scaling(prefix + site)
        if abs(new - old) > 1e-9 * abs(old):
            raise UsageError(f"{prefix}{site}: its scaling would be {new:g} instead of {old:g}; it cannot be renamed.")
