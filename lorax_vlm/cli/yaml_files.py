"""YAML of other people: read without its surprises. No torch.

An alias is refused (a few lines of them unfold to gigabytes), and so is a name that occurs twice.
"""

import os
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from lorax_vlm.adapters.regular_files import read_regular
from lorax_vlm.errors import DataError
from lorax_vlm.foreign import decode_text, quoted

MAX_BYTES = 2**16
"""Reading YAML takes a second for so much."""
_DEEPEST = 20


def read_yaml(path: Path, hint: str) -> Any:
    """What is in a file.

    Args:
        path: The file. A link that somebody named is followed; a device or a pipe at its end is not read.
        hint: What it should be, for errors.

    Raises:
        DataError: It cannot be read, or is no such YAML.
    """
    try:
        data = read_regular(Path(os.path.realpath(path)), MAX_BYTES)
        return yaml.load(decode_text(data), _PlainLoader)
    except OSError as error:
        raise DataError(str(path), [f"it cannot be read: {error.strerror or error}"], hint) from error
    except yaml.YAMLError as error:
        raise DataError(str(path), [" ".join(str(error).split())[:300]], hint) from error
    except RecursionError:
        raise DataError(str(path), ["settings within each other too deep"], hint) from None
    except MemoryError:
        raise
    except Exception as error:  # YAML's own types raise a KeyError for !!bool x, and others more
        raise DataError(str(path), [f"it is not YAML that can be read: {str(error)[:200]}"], hint) from error


class _PlainLoader(yaml.SafeLoader):
    """YAML in which no adapter gets lost (the usual loader keeps the last of two equal keys) and nothing unfolds."""

    def fetch_flow_collection_start(self, TokenClass: Any) -> None:
        if self.flow_level == _DEEPEST:  # each level makes all that follow slower
            raise yaml.scanner.ScannerError(None, None, "settings within each other too deep", self.get_mark())
        super().fetch_flow_collection_start(TokenClass)

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark
            raise yaml.composer.ComposerError(None, None, "aliases are not read; write it out", mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        known = set()
        for key in (self.construct_object(key, deep=True) for key, _ in node.value):
            if not isinstance(key, Hashable):
                raise yaml.constructor.ConstructorError(None, None, "a name is no text", node.start_mark)
            if key in known:
                raise yaml.constructor.ConstructorError(None, None, f"{quoted(key)} occurs twice", node.start_mark)
            known.add(key)
        return super().construct_mapping(node, deep)
