"""Measuring the adapters of a base: what they do to other skills, and which images they may be asked about."""

from collections.abc import Iterable, Sequence

from lorax_vlm.adapters.seen import read_seen
from lorax_vlm.adapters.stored import StoredAdapter
from lorax_vlm.asking import answers_questions, ask_of
from lorax_vlm.data.asked import require_examples
from lorax_vlm.data.examples import DataSplits, Example
from lorax_vlm.data.scene_tasks import kinds_taught
from lorax_vlm.data.scenes import Scene
from lorax_vlm.errors import LoraxError
from lorax_vlm.evaluation.seen import Asked, Known, comparable, leave_out_seen
from lorax_vlm.evaluation.side_effects import SideEffects, measure_side_effects
from lorax_vlm.models.components import IMAGE_PATH_COMPONENTS
from lorax_vlm.runtime.library import AdapterLibrary
from lorax_vlm.runtime.rows import Row, answer_rows
from lorax_vlm.training.probe import STALLED, ProbeReport, probe_image_path
from lorax_vlm.types import Generated, require_flag

_ASKED_TOGETHER = 64


def unseen_examples(
    adapters: Iterable[tuple[AdapterLibrary, str]], examples: Sequence[Example], *, include_seen: bool = False
) -> Asked:
    """The examples whose images none of several adapters was trained on, and how many each has seen.

    Args:
        adapters: Those that are to be compared, with their bases, by name.
        examples: What they may be asked.
        include_seen: Only count.

    Raises:
        AdapterNotFound: There is no such adapter.
        UsageError: Nothing would be left, or they are no examples.
    """
    require_flag("include_seen", include_seen)
    require_examples(examples)
    seen: dict[str, Known] = {}
    for library, name in adapters:
        stored = library.store.get(library.resolve(name))
        seen[name] = comparable(read_seen(stored.folder, stored.manifest), stored.manifest, examples)
    return leave_out_seen(examples, seen, include=include_seen)


def shown_names(library: AdapterLibrary, stored: Iterable[StoredAdapter]) -> list[str]:
    """What adapters of a base may be called beside it: without its name, where that means the same adapter."""
    names = [adapter.name for adapter in stored]
    short = [name.removeprefix(f"{library.entry.name}.") for name in names]
    return [own if own == name or _means(library, own, name) else name for own, name in zip(short, names, strict=True)]


def _means(library: AdapterLibrary, asked: str, name: str) -> bool:
    try:
        return library.resolve(asked) == name
    except LoraxError:  # it is no name, or means several
        return False


def side_effects(library: AdapterLibrary, stored: StoredAdapter) -> SideEffects | None:
    """What an adapter does to skills that it was not trained for, beside the base.

    Only on the miniatures, whose skills are known; None for any other base.
    """
    entry, manifest = library.entry, stored.manifest
    if not entry.miniature:
        return None
    captions = not answers_questions(manifest)

    def say(rows: Sequence[Row]) -> list[str]:
        said = answer_rows(library, rows, batch_size=_ASKED_TOGETHER)
        return [text.text for text in said if isinstance(text, Generated)]

    def ask(adapter: str | None, examples: Sequence[Example]) -> list[str]:
        how = ask_of(entry, manifest if adapter is not None else None, question=True)
        return say([Row(e.open_image(), adapter, how.prompt(e.question), how.settings) for e in examples])

    def write(adapter: str | None, scenes: Sequence[Scene]) -> list[str]:
        how = ask_of(entry, None, question=False)
        return say([Row(s.image, adapter, how.prompt(), how.settings) for s in scenes])

    kinds = kinds_taught(manifest.skill)
    return measure_side_effects(stored.reference, kinds, ask, write if entry.captions and not captions else None)


def image_limit(library: AdapterLibrary, stored: StoredAdapter, splits: DataSplits) -> ProbeReport | None:
    """What the frozen image path hands on of what an adapter was to learn, where its training stalled.

    Returns:
        None where it did not stall, where the adapter changes the image path itself, or where it cannot be told.
    """
    manifest = stored.manifest
    loss = manifest.training.get("last_training_loss")
    if loss is None or loss <= STALLED or IMAGE_PATH_COMPONENTS & manifest.sites.keys():
        return None
    return probe_image_path(library.base, splits.train)
