"""Phrases that nearly all texts share: an adapter learns to say them whatever it sees. No torch."""

from collections import Counter
from collections.abc import Sequence

from lorax_vlm.data.readers.values import is_blank

_LONGEST = 12


def common_phrases(texts: Sequence[str], share: float = 0.8) -> list[tuple[str, int]]:
    """The phrases that more than a share of texts have, with how many have them; capitals do not count.

    Of those that share words, as ``a photo of`` and ``photo of a``, the one that most texts have; of as many the
    longest.

    >>> common_phrases(["a photo of a cat", "a photo of a dog", "A photo of snow"])
    [('a photo of', 3)]
    """
    words = [text.casefold().split() for text in texts if not is_blank(text)]
    found: dict[tuple[str, ...], int] = {}
    for length in range(1, _LONGEST + 1):
        counts = Counter[tuple[str, ...]]()
        for one in words:
            counts.update({tuple(one[start : start + length]) for start in range(len(one) - length + 1)})
        common = {phrase: count for phrase, count in counts.items() if count > share * len(words)}
        if not common:
            break
        found |= common
    kept: list[tuple[str, ...]] = []
    for phrase in sorted(found, key=lambda one: (-found[one], -len(one), one)):
        if not any(_share_words(phrase, other) for other in kept):
            kept.append(phrase)
    return [(" ".join(phrase), found[phrase]) for phrase in kept]


def _share_words(one: tuple[str, ...], other: tuple[str, ...]) -> bool:
    """Whether one is within the other, or goes on where the other ends."""
    short, long = sorted((one, other), key=len)
    within = any(long[start : start + len(short)] == short for start in range(len(long) - len(short) + 1))
    ends = range(1, len(short) + 1)
    return within or any(one[-count:] == other[:count] or other[-count:] == one[:count] for count in ends)
