"""What a command can find out before it imports torch: names, paths and options. No torch."""

from collections.abc import Sequence
from pathlib import Path

from lorax_vlm.adapters.ownership import owner_of, require_free
from lorax_vlm.adapters.recipe import get_recipe
from lorax_vlm.adapters.store import AdapterStore
from lorax_vlm.data.world.captions import require_style
from lorax_vlm.data.world.examples import require_task
from lorax_vlm.errors import ImageError, UsageError
from lorax_vlm.models.catalog import CatalogEntry


def require_images(sources: Sequence[str]) -> None:
    """Raise ``ImageError`` for the first of some paths that is no file; addresses are not looked at."""
    for source in sources:
        problem = image_problem(source)
        if problem is not None:
            raise problem


def is_folder(source: str) -> bool:
    """Whether what was named is a folder; an address is none, and neither is what cannot be looked at."""
    try:
        return not source.startswith(("http://", "https://")) and Path(source).expanduser().is_dir()
    except (OSError, ValueError, RuntimeError):
        return False


def image_problem(source: str) -> ImageError | None:
    """What is wrong with a path as the name of an image; None for an address, or a file."""
    if source.startswith(("http://", "https://")):
        return None
    try:
        path = Path(source).expanduser()
        if path.is_dir():
            return ImageError(repr(source), "it is a folder; name the images in it.")
        if not path.exists():
            return ImageError(repr(source), f"no such file (looked in {Path.cwd()}).")
    except (OSError, ValueError, RuntimeError) as error:
        return ImageError(repr(source), str(error))
    return None


def require_stored(store: Path | None, names: Sequence[str], entry: CatalogEntry) -> list[str]:
    """The stored names of adapters that are to be used with a base.

    Raises:
        AdapterNotFound: A name means none.
        AmbiguousAdapter: A name means several.
    """
    return [find_adapter(store, name, entry.name)[1] for name in names]


def find_adapter(store: Path | None, name: str, model: str | None = None) -> tuple[AdapterStore, str]:
    """The store, and the stored name of an adapter that is called by it or, without its base's name, by its own.

    Raises:
        AdapterNotFound: None is meant.
        AmbiguousAdapter: Several are.
    """
    adapters = AdapterStore(store)
    return adapters, adapters.resolve(name, model)


def require_kind(entry: CatalogEntry, style: str | None, task: str | None, recipe: str | None, has_data: bool) -> None:
    """Check what is to be trained, as far as can be told from the options.

    Raises:
        UsageError: Style, task or recipe are unknown, or nothing says what to train on.
    """
    if style and task:
        raise UsageError("Give --style for captions or --task for answers, not both.")
    if recipe is not None:
        get_recipe(recipe)
    if has_data:
        return
    if not entry.miniature:
        raise UsageError(f"{entry.name} has no built-in examples. Give it yours: --data FOLDER.")
    if task is not None:
        require_task(task)
    elif style:
        require_style(style)
    else:
        raise UsageError("Nothing says what to train: give --style or --task, or your own examples with --data.")


def require_free_names(
    store: AdapterStore, asked: Sequence[tuple[str, bool]], entry: CatalogEntry, *, taken: bool
) -> None:
    """Raise ``AdapterExists`` when a name is taken by a trained adapter, or by one of another base.

    Args:
        store: Where they would go.
        asked: Names, each with whether it answers questions and is stored after its base's name.
        entry: The base.
        taken: A trained adapter of this base may have the name, also one that cannot be read any more.
    """
    for name, answers in asked:
        full = f"{entry.name}.{name}" if answers or not entry.captions else name
        require_free(store, owner_of(entry), full, replace=taken, replace_untrained=True)
