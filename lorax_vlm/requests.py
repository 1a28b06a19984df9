"""One request to a model, and its result: what passes between those who ask and an engine. No torch.

A request says everything that its text depends on: the turns, the adapter, how to decode. A result is a text or an
error, so that one row of many fails alone.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, Self, runtime_checkable

from lorax_vlm.errors import ExampleError, ImageError, LoraxError, MalformedRow, PromptError, RowFailed, UsageError
from lorax_vlm.foreign import quoted
from lorax_vlm.types import ModelText

Role = Literal["system", "user", "assistant"]
ABOUT_A_ROW = (ImageError, ExampleError, MalformedRow, RowFailed)
"""Errors that a row of its own may have; any other would befall all rows like it, and is no answer to be scored."""


@dataclass(frozen=True)
class ImagePart:
    """An image in a turn."""

    source: Any
    """A path, an http(s) URL, bytes, a PIL image or a numpy array."""


@dataclass(frozen=True)
class Turn:
    """What one side says: texts and images, in order."""

    role: Role
    parts: tuple[str | ImagePart, ...]


@dataclass(frozen=True)
class Request:
    """One thing to be said about images, by a base or by an adapter on it."""

    turns: tuple[Turn, ...]
    adapter: str | None = None
    """Name in the store, with or without a version; None for the plain base."""
    decoding: Mapping[str, Any] = field(default_factory=dict)
    """Fields of ``GenerationSettings`` that differ from how the adapter, or the base, is decoded by itself."""

    @classmethod
    def about(cls, image: Any, question: str | None = None, adapter: str | None = None, **decoding: Any) -> Self:
        """A request for a caption of an image, or for the answer to a question or an instruction about it."""
        parts = (ImagePart(image),) if question is None else (ImagePart(image), question)
        return cls((Turn("user", parts),), adapter, decoding)

    def single(self) -> tuple[Any, str | None]:
        """The image, and the question about it or None for a caption, for models that know no conversation.

        Raises:
            PromptError: A part is neither a text nor an image.
            UsageError: There is more than one turn, or not one image and at most one text.
        """
        images = [part.source for turn in self.turns for part in turn.parts if isinstance(part, ImagePart)]
        texts = [part for turn in self.turns for part in turn.parts if isinstance(part, str)]
        if odd := [part for turn in self.turns for part in turn.parts if not isinstance(part, str | ImagePart)]:
            raise PromptError(f"the question {quoted(odd[0])}", "it is empty or not text.")
        if len(self.turns) != 1 or self.turns[0].role != "user" or len(images) != 1 or len(texts) > 1:
            raise UsageError(
                "This model takes one turn of the user with one image and at most one text, got "
                f"{len(self.turns)} turns, {len(images)} images and {len(texts)} texts."
            )
        return images[0], texts[0] if texts else None


@dataclass(frozen=True)
class Result:
    """A text, or why there is none."""

    said: ModelText | None
    error: LoraxError | None = None

    @property
    def text(self) -> ModelText:
        """The text.

        Raises:
            LoraxError: There is none; why. A row that failed by a fault of this package raises what was raised there.
        """
        if self.said is not None:
            return self.said
        error = self.error or LoraxError("There is neither a text nor an error.")
        raise error.error if isinstance(error, RowFailed) else error

    def text_or_error(self) -> ModelText | LoraxError:
        """The text, or the error of this row.

        Raises:
            LoraxError: One of an adapter, of settings or of memory, which says nothing about the row.
        """
        return self.error if isinstance(self.error, ABOUT_A_ROW) else self.text


class Engine(Protocol):
    """One method, so that whatever is built on it can run without a model; see ``runtime.fake.FakeEngine``."""

    def generate(self, requests: Sequence[Request]) -> list[Result]:
        """A text, or an error, for each request, in their order."""
        ...


@runtime_checkable
class ScoringEngine(Engine, Protocol):
    """An engine that also says how likely it finds texts."""

    def likelihoods(self, requests: Sequence[Request], texts: Sequence[str]) -> list[float]:
        """How likely each text is as the answer to its request, for the model and adapter that are asked: from 0 to 1.

        The geometric mean of the probabilities of its tokens and of its end, so that long texts are not less likely for
        their length; of a model that chooses, the probability of its choice. Of an empty text 0.

        Raises:
            LoraxError: A request cannot be asked.
        """
        ...
