"""The vocabulary of the scene world: what an object can be, and the words for it. No torch.

Knows nothing about pictures or sentences. Captions, questions and drawing all read these tables, so a new
colour or shape is one row here.
"""

from dataclasses import dataclass

# RGB of the middle of each colour's range; drawing jitters around it.
COLORS = {
    "red": (214, 40, 40),
    "green": (44, 160, 60),
    "blue": (40, 90, 215),
    "yellow": (244, 208, 30),
    "purple": (135, 55, 170),
    "orange": (245, 130, 25),
}
BACKGROUNDS = {
    "white": (240, 240, 238),
    "gray": (150, 152, 156),
    "black": (28, 28, 32),
    "pink": (246, 184, 200),
}
SHAPES = ("circle", "square", "triangle", "star")
SIZES = ("small", "large")

# Column and row of each place, in reading order. The order of this table is the order in which captions name objects.
PLACES = {
    "top left": (0, 0),
    "top right": (2, 0),
    "center": (1, 1),
    "bottom left": (0, 2),
    "bottom right": (2, 2),
}
NUMBER_WORDS = ("zero", "one", "two", "three", "four", "five")


@dataclass(frozen=True)
class SceneObject:
    """One shape of a scene. Color and shape together are unique within a scene, so "the red circle" is one object."""

    color: str
    shape: str
    size: str
    place: str

    @property
    def name(self) -> str:
        """The words that pick this object out, such as ``"red circle"``."""
        return f"{self.color} {self.shape}"

    @property
    def column(self) -> int:
        """0 on the left, 1 in the middle, 2 on the right."""
        return PLACES[self.place][0]

    @property
    def row(self) -> int:
        """0 at the top, 1 in the middle, 2 at the bottom."""
        return PLACES[self.place][1]


def place_phrase(place: str) -> str:
    """The place with its preposition: ``"at the top left"``, ``"in the center"``."""
    return f"in the {place}" if place == "center" else f"at the {place}"


def article(word: str) -> str:
    """``"a"`` or ``"an"``, by the first letter."""
    return "an" if word[0] in "aeiou" else "a"


def join_phrases(phrases: list[str]) -> str:
    """An English list: ``"a"``, ``"a and b"``, ``"a, b and c"``."""
    if len(phrases) == 1:
        return phrases[0]
    return f"{', '.join(phrases[:-1])} and {phrases[-1]}"
