"""What a chat template writes, in pieces, and the pieces as token ids. No torch.

No text of a user goes through a template. A template is rendered with a sentinel for each text, and what it wrote is
cut at the sentinels. So a text cannot change what the template does, and a token that the template writes is told from
the same letters in a text.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from itertools import count, groupby, pairwise
from typing import Any, Literal

from lorax_vlm.errors import ExampleError
from lorax_vlm.foreign import quoted
from lorax_vlm.requests import Turn

_OPEN, _CLOSE = "\ue0f0", "\ue0f1"
# Changed by whatever a template may do to a text: other capitals, escaping, cutting at lines, joining spaces.
_BODY = " Aa bB  \"'<&>\\\n."
_PAD = "\u2003"
_END = re.escape(_BODY + _CLOSE)
_SENTINEL = re.compile(rf"({_PAD}?){_OPEN}(text)(\d+){_END}({_PAD}?)|{_OPEN}(image|head)(\d+){_END}")


def unfit(reason: str) -> ExampleError:
    """Why a conversation cannot be written; whoever knows its name says so again with it."""
    return ExampleError("a conversation", reason)


@dataclass(frozen=True)
class Place:
    """Where something stands that is not the template's."""

    kind: Literal["text", "image", "head"]
    """A text or an image of the conversation; or the end of the prompt to which an answer is given."""
    number: int
    """Of the text or the image in its conversation; of a head, that of its answer's text."""
    trimmed: tuple[bool, bool] = field(default=(False, False), compare=False)
    """Whether the template takes white space from the beginning, and from the end, of this text."""

    def sentinel(self) -> str:
        """What stands for it in a template's text; a text has white space around it, that shows what is trimmed."""
        pad = _PAD if self.kind == "text" else ""
        return f"{pad}{_OPEN}{self.kind}{self.number}{_BODY}{_CLOSE}{pad}"

    def as_trimmed(self, text: str) -> str:
        """A text as the template would have left it."""
        left, right = self.trimmed
        text = text.lstrip() if left else text
        return text.rstrip() if right else text


Piece = int | str | Place
"""A token that the template writes, other text of the template, or the place of something else."""


def messages(turns: Sequence[Turn], lists: Collection[str], *, plainly: bool = False) -> list[dict[str, Any]]:
    """Turns as templates take them, with sentinels for texts or, ``plainly``, with the texts.

    Args:
        turns: Texts and images.
        lists: Roles whose parts go in a list; those of others are one string, in which an image is its sentinel.
        plainly: Whether the texts themselves are wanted.
    """
    texts, images = count(), count()
    found: list[dict[str, Any]] = []
    for turn in turns:
        listed = turn.role in lists
        parts: list[Any] = []
        for part in turn.parts:
            if isinstance(part, str):
                text = part if plainly else Place("text", next(texts)).sentinel()
                parts.append({"type": "text", "text": text} if listed else text)
            else:
                parts.append({"type": "image"} if listed else Place("image", next(images)).sentinel())
        found.append({"role": turn.role, "content": parts if listed else "".join(parts)})
    return found


def place_problem(pieces: Sequence[Piece], turns: Sequence[Turn]) -> str | None:
    """What a template does to texts and images of a conversation; None where each stands once in it, unchanged."""
    if any(isinstance(piece, str) and (_OPEN in piece or _CLOSE in piece) for piece in pieces):
        return "changes the letters of a text"
    found = Counter((piece.kind, piece.number) for piece in pieces if isinstance(piece, Place))
    texts = images = 0
    for index, turn in enumerate(turns, 1):
        for part in turn.parts:
            if isinstance(part, str):
                kind, times, texts = "a text", found["text", texts], texts + 1
            else:
                kind, times, images = "an image", found["image", images], images + 1
            if times != 1:
                what = f"{kind} of turn {index} ({turn.role})"
                return f"has no place for {what}" if times == 0 else f"writes {what} {times} times"
    shown = sum(kind == "image" for kind, _ in found)
    return f"writes {shown} images where there are {images}" if shown != images else None


class TemplateTokenizer:
    """A tokenizer that tells what a template writes from what a user does."""

    def __init__(self, tokenizer: Any, template: str, markers: Sequence[str] = ()) -> None:
        """Find the tokens that no text of a user may become.

        These are the special ones, and of the others that were added to the vocabulary those which the template
        writes, such as ``<think>``, and ``markers``. Added white space and added words are text as any.

        Args:
            tokenizer: A fast one.
            template: Its text.
            markers: Added tokens that stand around, or for, the parts of an image.
        """
        self._tokenizer = tokenizer
        self._patterns: dict[str, tuple[str, int]] = {}
        for token_id, token in tokenizer.added_tokens_decoder.items():
            written = token.content in template or token.content in markers
            if not token.content.isspace() and (token.special or written):
                before, after = (r"\s*" if strips else "" for strips in (token.lstrip, token.rstrip))
                self._patterns[token.content] = f"{before}{re.escape(token.content)}{after}", token_id
        self._reserved = frozenset(token_id for _, token_id in self._patterns.values())
        ids: list[int] = tokenizer("a")["input_ids"]
        self._front = ids[: ids.index(tokenizer("a", add_special_tokens=False)["input_ids"][0])]

    def front(self, pieces: Sequence[Piece]) -> list[int]:
        """What the tokenizer puts before a text by itself, bos or nothing; nothing where the template begins with it.

        Behind the beginning it may stand as well: of some tokenizers bos is also the end.
        """
        first = next((piece for piece in pieces if not isinstance(piece, str) or not piece.isspace()), None)
        return [] if first in self._front else list(self._front)

    def cut(self, rendered: str) -> list[Piece]:
        """The pieces of what a template wrote, of which none is empty text."""
        pieces: list[Piece] = []
        end = 0
        for found in _SENTINEL.finditer(rendered):
            pieces += self._written(rendered[end : found.start()])
            kind: Any = found[2] or found[5]
            pieces.append(Place(kind, int(found[3] or found[6]), (not found[1], not found[4])))
            end = found.end()
        return pieces + self._written(rendered[end:])

    def _written(self, text: str) -> list[Piece]:
        """A template's own text, its tokens found as the tokenizer finds them: the longest, with their white space."""
        present = sorted((token for token in self._patterns if token in text), key=len, reverse=True)
        pieces: list[Piece] = []
        end = 0
        for found in re.finditer("|".join(f"({self._patterns[token][0]})" for token in present) or "(?!)", text):
            assert found.lastindex is not None
            pieces += [text[end : found.start()], self._patterns[present[found.lastindex - 1]][1]]
            end = found.end()
        return [piece for piece in (*pieces, text[end:]) if piece != ""]

    def ids(
        self, pieces: Sequence[Piece], learnt: Collection[int], texts: Sequence[str], images: Sequence[Sequence[int]]
    ) -> tuple[list[int], list[bool]]:
        """Pieces as ids.

        Text between two tokens or images is tokenised as one, the template's with the user's, as it would be in the
        whole text; but the tokens up to the end of a head do not depend on what follows.

        Args:
            pieces: Of ``cut``.
            learnt: Indices of those that carry loss.
            texts: For the places of texts.
            images: Ids for the places of images.

        Returns:
            The ids, and of each whether it carries loss.

        Raises:
            ExampleError: A text does not come back from its ids.
        """
        ids, loss = list[int](), list[bool]()
        for fixed, group in groupby(enumerate(pieces), lambda one: _is_fixed(one[1])):
            parts, carries = list[str](), list[bool]()
            found: list[Sequence[int]] = []
            for index, piece in group:
                begins = isinstance(piece, Place) and piece.kind == "head"
                if fixed or begins or not carries:
                    carries.append(index in learnt)
                    parts.append("")
                if isinstance(piece, int):
                    found.append([piece])
                elif isinstance(piece, str):
                    parts[-1] += piece
                elif piece.kind == "image":
                    found.append(images[piece.number])
                elif piece.kind == "text":
                    parts[-1] += piece.as_trimmed(texts[piece.number])
            for new, carried in zip(found if fixed else self._plain_parts(parts), carries, strict=True):
                ids += new
                loss += [carried] * len(new)
        return ids, loss

    def _plain_parts(self, parts: Sequence[str]) -> list[list[int]]:
        """Ids of the parts of a text in which every letter is but a letter, and no part changes those before it.

        A part that would change the tokens before it, if it were tokenised with them, is tokenised by itself.

        Raises:
            ExampleError: The text does not come back from its ids.
        """
        text, ids, found = "", list[int](), list[list[int]]()
        for part in parts:
            text += part
            joint = self._plain(text)
            found.append(joint[len(ids) :] if joint[: len(ids)] == ids else self._plain(part))
            ids = ids + found[-1]
        back = self._tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        # Tokenizers of Qwen compose accents, which leaves the text the same by Unicode's own rule.
        # Those that put a space before a text take it away again.
        if unicodedata.normalize("NFC", back).lstrip(" ") != unicodedata.normalize("NFC", text).lstrip(" "):
            raise unfit(f"the tokenizer cannot hold {quoted(text)}: it comes back as {quoted(back)}.")
        return found

    def _plain(self, text: str) -> list[int]:
        ids = self._encode(text)
        if self._reserved.isdisjoint(ids):
            return ids
        # Added tokens that are not special are found whatever the tokenizer is told; so no piece may spell one.
        spelled = "|".join(re.escape(token) for token in self._patterns if token in text) or "(?!)"
        cuts = [0, *(found.start() + 1 for found in re.finditer(f"(?={spelled})", text)), len(text)]
        ids = [token for start, end in pairwise(cuts) for token in self._encode(text[start:end])]
        if not self._reserved.isdisjoint(ids):
            raise unfit(f"the tokenizer makes a special token of {quoted(text)}.")
        return ids

    def _encode(self, text: str) -> list[int]:
        encoding = self._tokenizer(text, add_special_tokens=False, split_special_tokens=True, verbose=False)
        ids: list[int] = encoding["input_ids"]
        return ids


def _is_fixed(piece: Piece) -> bool:
    """Whether its ids are given."""
    return isinstance(piece, int) or (isinstance(piece, Place) and piece.kind == "image")
