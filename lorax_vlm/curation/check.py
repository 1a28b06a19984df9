"""What a data set is like before anything is trained on it: what cannot be read, what repeats, what all texts share."""

import statistics
from collections import Counter, defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from lorax_vlm.curation.phrases import common_phrases
from lorax_vlm.curation.similar import Looks, near_duplicates
from lorax_vlm.data.examples import DataSplits, Example
from lorax_vlm.data.readers.listing import FORMAT_SUFFIXES, images_below
from lorax_vlm.errors import ExampleError, LoraxError
from lorax_vlm.models.families.base import Family
from lorax_vlm.types import counted, percent

_SAME_TEXT, _SAME_ANSWER = 0.2, 0.8
"""Shares from which on a text, or the answer to a kind of question, is said to be everywhere."""
_THREADS = 2


@dataclass(frozen=True)
class Finding:
    """One thing to look at."""

    kind: str
    """For programs, such as ``near duplicates``."""
    count: int
    text: str
    """For people."""
    places: tuple[str, ...] = ()
    """Where: rows, files, or groups of them."""


@dataclass(frozen=True)
class DataCheck:
    """What was found in a data set."""

    source: str
    kind: str
    """``captions`` or ``questions``."""
    rows: dict[str, int]
    """By part."""
    images: int
    """Different ones."""
    words: tuple[int, float, int]
    """Of the texts: fewest, median, most."""
    findings: tuple[Finding, ...]


def check_data(splits: DataSplits, family: Family, template: str, *, root: Path | None = None, near: bool) -> DataCheck:
    """Look at all of a data set.

    Args:
        splits: It, as it was read with its malformed rows left out.
        family: Of the base that is to learn it; says which texts are too long.
        template: Of the prompts.
        root: Its folder, to find images that no row names. None: there is none.
        near: Look for near duplicates, for which every image is opened.

    Raises:
        DataError: It holds captions and questions, or nothing.
        MissingExtra: The library for near duplicates is not installed.
    """
    parts = {name: list(part) for name, part in splits.parts().items()}
    examples = [example for part in parts.values() for example in part]
    kind, lengths = splits.kind, [len(example.target.split()) for example in examples]
    pictured = _by_image(examples)
    findings = [
        _left_out(splits),
        _across_parts(splits),
        _unnamed(root, examples),
        _wrong_endings(pictured),
        _too_long(examples, family, template),
        _copies(examples),
        *(_shared_phrases(examples) if kind == "captions" else _one_answer(examples)),
        _same_text(examples) if kind == "captions" else None,
        *(_near(pictured, parts) if near else ()),
    ]
    return DataCheck(
        splits.source,
        kind,
        {name: len(part) for name, part in parts.items() if part},
        len(pictured),
        (min(lengths), statistics.median(lengths), max(lengths)),
        tuple(finding for finding in findings if finding is not None),
    )


def _by_image(examples: Sequence[Example]) -> dict[str, list[Example]]:
    found: dict[str, list[Example]] = defaultdict(list)
    for example in examples:
        found[example.image_digest()].append(example)
    return dict(found)


def _left_out(splits: DataSplits) -> Finding | None:
    rows = splits.skipped
    return (
        Finding("unreadable", len(rows), f"{counted(len(rows), 'row')} cannot be used", tuple(rows)) if rows else None
    )


def _across_parts(splits: DataSplits) -> Finding | None:
    if not splits.duplicates:
        return None
    text = f"of {counted(splits.duplicates, 'training row')} the image is also held out; training leaves them out"
    return Finding("across parts", splits.duplicates, text, tuple(example.name for example in splits.shared))


def _unnamed(root: Path | None, examples: Sequence[Example]) -> Finding | None:
    if root is None:
        return None
    named = {example.image.resolve() for example in examples if isinstance(example.image, Path)}
    left = [path for path in images_below(root) if path.resolve() not in named]
    if not left:
        return None
    names = tuple(path.relative_to(root).as_posix() for path in left)
    return Finding("without text", len(left), f"{counted(len(left), 'image')} without a text that can be used", names)


def _wrong_endings(pictured: dict[str, list[Example]]) -> Finding | None:
    wrong = []
    for path in (same[0].image for same in pictured.values()):
        if isinstance(path, Path):
            with Image.open(path) as image:
                found = image.format or ""
            if path.suffix.lower() not in FORMAT_SUFFIXES.get(found, (path.suffix.lower(),)):
                wrong.append(f"{path.name}: {found}")
    text = f"{counted(len(wrong), 'image')} of another format than the name says"
    return Finding("endings", len(wrong), text, tuple(wrong)) if wrong else None


def _too_long(examples: Sequence[Example], family: Family, template: str) -> Finding | None:
    refused = []
    for example in examples:
        prompt = example.prompt or template.replace("{question}", example.question)
        try:
            family.check_example(prompt, example.target, example.answers, example.name)
        except ExampleError as error:
            refused.append(f"{example.name}: {error.reason}")
    text = f"{counted(len(refused), 'row')} cannot be learnt by {family.name}"
    return Finding("not learnable", len(refused), text, tuple(refused)) if refused else None


def _copies(examples: Sequence[Example]) -> Finding | None:
    """Images that lie there under several names."""
    files: dict[str, set[str]] = defaultdict(set)
    for example in examples:
        if isinstance(example.image, Path):
            files[example.image_digest()].add(str(example.image))
    groups = [sorted(Path(name).name for name in names) for names in files.values() if len(names) > 1]
    if not groups:
        return None
    text = f"{counted(len(groups), 'image')} under several names"
    return Finding("duplicates", len(groups), text, tuple(", ".join(group) for group in groups))


def _shared_phrases(examples: Sequence[Example]) -> list[Finding]:
    found = common_phrases([example.target for example in examples]) if len(examples) > 4 else []
    phrases = [(phrase, count) for phrase, count in found if len(phrase.split()) > 1]
    total = len(examples)
    return [
        Finding(
            "phrase", count, f"{percent(count / total, 0)} of the captions have {phrase!r}: it will be said of anything"
        )
        for phrase, count in phrases
    ]


def _same_text(examples: Sequence[Example]) -> Finding | None:
    [(text, count)] = Counter(example.target for example in examples).most_common(1)
    if len(examples) < 5 or count < _SAME_TEXT * len(examples):
        return None
    return Finding("same text", count, f"{percent(count / len(examples), 0)} of the captions are {text[:60]!r}")


def _one_answer(examples: Sequence[Example]) -> list[Finding]:
    """Kinds of questions of which nearly all have one answer: always giving it is right nearly always."""
    answers: dict[str, Counter[str]] = defaultdict(Counter)
    for example in examples:
        answers[example.kind][example.target] += 1
    findings = []
    for kind, counts in answers.items():
        [(answer, count)], total = counts.most_common(1), counts.total()
        if total >= 5 and count >= _SAME_ANSWER * total:
            what = f"questions of type {kind!r}" if kind else "questions"
            text = f"{percent(count / total, 0)} of the {total:,} {what} have the answer {answer[:40]!r}"
            findings.append(Finding("one answer", count, text))
    return findings


def _near(pictured: dict[str, list[Example]], parts: dict[str, list[Example]]) -> list[Finding]:
    """Groups of images that are alike, those that lie in several parts apart from the others."""
    firsts = [same[0] for same in pictured.values()]
    part_of = {example.image_digest(): name for name, part in parts.items() for example in part}
    with ThreadPoolExecutor(_THREADS) as pool:
        looks = list(pool.map(_looks, firsts))
    seen = [number for number, one in enumerate(looks) if one is not None]
    groups = [[firsts[seen[n]] for n in group] for group in near_duplicates(one for one in looks if one is not None)]
    across = [group for group in groups if len({part_of[example.image_digest()] for example in group}) > 1]
    findings = []
    for kind, some, text in (
        (
            "near duplicates across parts",
            across,
            "of images that are alike, in several parts: what is held out was seen",
        ),
        ("near duplicates", [group for group in groups if group not in across], "of images that are alike"),
    ):
        if some:
            places = tuple(", ".join(example.name for example in group) for group in some)
            findings.append(Finding(kind, len(some), f"{counted(len(some), 'group')} {text}", places))
    return findings


def _looks(example: Example) -> Looks | None:
    try:
        return Looks.of(example.open_image())
    except LoraxError as error:
        if isinstance(error, ImportError):
            raise
        return None
