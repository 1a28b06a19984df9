"""What was read of streams, kept with a run: whoever continues it knows what was trained on before."""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lorax_vlm.data.noted import NotedStream
from lorax_vlm.training.runs import NOTES_FILE, write_at_once

logger = logging.getLogger(__name__)


def keep_notes(folder: Path, examples: Mapping[str, Any]) -> None:
    """Write beside a checkpoint or a result what was read of streams until then.

    Args:
        folder: Of the checkpoint or the run.
        examples: What is trained on, by adapter; only noted streams are written down.

    Raises:
        PathError: It cannot be written.
    """
    noted = {name: stream.record() for name, stream in examples.items() if isinstance(stream, NotedStream)}
    if noted:
        write_at_once(folder / NOTES_FILE, json.dumps(noted))


def recall_notes(folder: Path, examples: Mapping[str, Any]) -> None:
    """Give streams back what ``keep_notes`` wrote; where it wrote nothing, what they gave before is not known."""
    noted = {name: stream for name, stream in examples.items() if isinstance(stream, NotedStream)}
    if not noted:
        return
    try:
        records = json.loads((folder / NOTES_FILE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        records = {}
    except (OSError, ValueError) as error:
        logger.warning("%s cannot be read, so it is not known what was trained on: %s", folder / NOTES_FILE, error)
        records = {}
    for name, stream in noted.items():
        stream.recall(records.get(name) if isinstance(records, dict) else None)
