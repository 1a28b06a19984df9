"""How much of what answers need is in the frozen image's features: measured by reading them with a linear classifier.

An adapter of the language model alone can only use what the frozen image path hands on. Where its training stalls far
above zero and a linear classifier on these features fails as well, more steps will not help; adapting the image path
might.
What no linear classifier reads (a count, a comparison) an adapter may still learn: the reading alone decides nothing.
"""

from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch

from lorax_vlm.adapters.recipe import SEEING_SITES
from lorax_vlm.data.examples import Example
from lorax_vlm.models.families.base import Family
from lorax_vlm.models.loading import LoadedModel
from lorax_vlm.types import percent

FEWEST, MOST = 40, 300
"""Rows of one question: with fewer nothing can be said, with more nothing is gained."""
GROUPS = 3
STALLED = 0.1
"""Mean training loss per target at the end of a run above which something holds it back."""
LIMITED = 0.9
"""Share of the way from the most frequent answer to every answer below which the image path counts as the limit."""
_FOLDS, _LOOKED_AT, _BATCH = 5, 20_000, 32
_RIDGES = (1e-3, 1e-2, 1e-1, 1.0)


@dataclass(frozen=True)
class ProbedQuestion:
    """One question that is asked about many images."""

    question: str
    count: int
    frequent: float
    """Share of the most frequent answer."""
    read: float
    """Share of answers that a linear classifier reads off the features of images it has not seen."""


@dataclass(frozen=True)
class ProbeReport:
    """What the frozen image path hands on of what some questions need."""

    questions: tuple[ProbedQuestion, ...]

    @property
    def reached(self) -> float:
        """Share of the way from the most frequent answers to all answers, over all questions; at least 0."""
        room = sum(q.count * (1 - q.frequent) for q in self.questions)
        return max(0.0, sum(q.count * (q.read - q.frequent) for q in self.questions) / room) if room else 1.0

    @property
    def limits(self) -> bool:
        """Whether the image path seems to be what holds an adapter of the language model back."""
        return self.reached < LIMITED

    def advice(self) -> list[str]:
        """For people whose adapter of the language model alone stalled; nothing where the image path is not why."""
        return (
            [f"the image path seems to be the limit; try --sites {SEEING_SITES}", *self.lines()] if self.limits else []
        )

    def lines(self) -> list[str]:
        """For people."""
        return [
            f"read off the frozen image path: {percent(q.read, 0)} of {q.question!r} "
            f"({q.count} images; most frequent answer {percent(q.frequent, 0)})"
            for q in self.questions
        ]


def probe_image_path(base: LoadedModel, examples: Iterable[Example]) -> ProbeReport | None:
    """Try to read answers off the frozen features, question by question.

    Of a full-size checkpoint on a CPU, where encoding an image takes seconds, only few images are looked at.

    Args:
        base: The base.
        examples: Questions with answers; the most frequent questions with different answers are looked at.

    Returns:
        None where it cannot be told: a model that reads image and text together, captions, or questions that are not
        asked about enough images.

    Raises:
        ImageError: An image cannot be read.
    """
    if not base.family.takes_features:
        return None
    quick = base.entry.miniature or base.device.type != "cpu"
    most, questions = (MOST, GROUPS) if quick else (2 * FEWEST, 1)
    groups: dict[str, dict[Hashable, Example]] = defaultdict(dict)
    for example in islice(examples, _LOOKED_AT):
        if example.question:
            groups[example.prompt].setdefault(example.image_key, example)
    found = []
    for rows in sorted(groups.values(), key=len, reverse=True):
        some = _with_repeated_answers(list(rows.values()))[:most]
        if len(some) >= FEWEST and len({e.target for e in some}) > 1:
            found.append(_probe(base, some))
        if len(found) == questions:
            break
    return ProbeReport(tuple(found)) if found else None


def _with_repeated_answers(rows: Sequence[Example]) -> list[Example]:
    """Those whose answer occurs often enough to be learnt and tried."""
    counts = Counter(example.target for example in rows)
    return [example for example in rows if counts[example.target] >= _FOLDS]


def _probe(base: LoadedModel, rows: Sequence[Example]) -> ProbedQuestion:
    features = _together([one for i in range(0, len(rows), _BATCH) for one in _features(base, rows[i : i + _BATCH])])
    answers = sorted({example.target for example in rows})
    labels = np.array([answers.index(example.target) for example in rows])
    frequent = Counter(labels.tolist()).most_common(1)[0][1] / len(rows)
    return ProbedQuestion(rows[0].question, len(rows), frequent, max(_read(features, labels, r) for r in _RIDGES))


@torch.no_grad()
def _features(base: LoadedModel, rows: Sequence[Example]) -> list[np.ndarray]:
    """Features of each row's image, ``(N, D)``."""
    family: Family = base.family
    pictures = family.prepare([example.open_image() for example in rows])
    found = family.encode_images(base.model, pictures, [example.prompt for example in rows])
    return [one.values.float().cpu().numpy() for one in found]


def _together(features: Sequence[np.ndarray]) -> np.ndarray:
    """``(B, N * D)``; of images that differ in how many tokens they have their means, ``(B, D)``."""
    if len({one.shape for one in features}) == 1:
        return np.stack(features).reshape(len(features), -1)
    return np.stack([one.mean(axis=0) for one in features])


def _read(features: np.ndarray, labels: np.ndarray, ridge: float) -> float:
    """Accuracy of ridge regression onto the labels, each fold read by what was fitted on the others.

    In the kernel's form, ``K (K + r I)^-1 Y``: there are far more features than rows (Saunders et al., 1998).
    """
    centred = features - features.mean(axis=0)
    kernel = centred @ centred.T
    kernel /= np.trace(kernel) / len(kernel) or 1.0
    wanted = np.eye(labels.max() + 1)[labels]
    order = np.random.default_rng(0).permutation(len(labels))
    right = 0
    for fold in range(_FOLDS):
        tried = order[fold::_FOLDS]
        fitted = np.setdiff1d(order, tried)
        weights = np.linalg.solve(
            kernel[np.ix_(fitted, fitted)] + ridge * np.eye(len(fitted)), wanted[fitted] - wanted[fitted].mean(axis=0)
        )
        said = kernel[np.ix_(tried, fitted)] @ weights + wanted[fitted].mean(axis=0)
        right += int((said.argmax(axis=1) == labels[tried]).sum())
    return right / len(labels)
