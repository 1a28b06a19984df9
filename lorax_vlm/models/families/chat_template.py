"""Conversations as token ids, through the chat template of a checkpoint. No torch.

A template is somebody's program. What it does to texts and images is measured, when it is opened and in every
conversation, and its own text is not searched: it is rendered, in the sandbox of transformers, with a sentinel for each
text. An answer's *head* is its prompt, as written for a model to go on. What stands between head and answer is the
*lead*; lead, answer and what follows, up to the first special token and with it, are learnt.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, Self, get_args

from jinja2 import TemplateSyntaxError

from lorax_vlm.errors import CheckpointError, ExampleError, PromptError
from lorax_vlm.foreign import printable, quoted, text_problem
from lorax_vlm.models.families.chat_pieces import Piece, Place, TemplateTokenizer, messages, place_problem, unfit
from lorax_vlm.models.families.chat_template_file import TemplateText, read_end_ids, read_template
from lorax_vlm.requests import ImagePart, Role, Turn

NO_THINKING: Mapping[str, Any] = MappingProxyType({"enable_thinking": False})
"""What the templates of models that think are told, so that an answer begins with the answer."""

_HINT = "Put a chat_template.jinja without this fault into its folder, or use another revision of the checkpoint."
_PROBES = (("What is it?", "A red circle."), ("3 + 4 =", "7"), ("¿Qué ves?", '"Él", dos'))
"""A word, a digit and a mark, so that what joins the end of a prompt joins one of them."""
_ASKED = (Turn("user", (ImagePart(None), "Who is it?")),)
_ANSWERED = (*_ASKED, Turn("assistant", ("Yes",)))
_FORMS = {
    "lists of parts": frozenset({"user", "assistant"}),
    "a list of parts from the user, strings from others": frozenset({"user"}),
    "strings": frozenset[str](),
}
"""Roles whose turns a template may want as a list of parts."""


@dataclass(frozen=True)
class ChatRow:
    """A conversation to be trained on, not padded."""

    ids: list[int]
    learnt: list[bool]
    """Of each id, whether it carries loss."""


class ChatTemplate:
    """A template that was tried, and how the tokenizer of its checkpoint reads what it writes."""

    def __init__(
        self,
        template: TemplateText,
        tokenizer: Any,
        checkpoint: str,
        *,
        ends: Iterable[int] = (),
        max_images: int | None = None,
        markers: Sequence[str] = (),
        variables: Mapping[str, Any] = NO_THINKING,
    ) -> None:
        """Try a template.

        Args:
            template: Of ``read_template``.
            tokenizer: A fast one.
            checkpoint: Its name, for errors.
            ends: What ends a text beside the template's own end and the tokenizer's.
            max_images: Images in one conversation that the caller can do; None for any number.
            markers: Added tokens that the caller writes for an image or around it, so that no text writes them.
            variables: What else the template is told, as JSON has it.

        Raises:
            CheckpointError: It does not compile, loses or changes texts, has no place for an image or no end, or the
                tokens of a prompt depend on the answer.
        """
        self.source, self.max_images = template.source, max_images
        self.digest = template.digest(tokenizer.special_tokens_map, variables)
        """Another one where what is written around texts may be another; for the manifests of adapters."""
        self._text, self._tokenizer, self._checkpoint = template.text, tokenizer, checkpoint
        self._variables = dict(variables)
        self._tokens = TemplateTokenizer(tokenizer, template.text, markers)
        self._lists: frozenset[str] = frozenset()
        self._image: list[Piece] = []
        try:
            self.end_id = self._find_end(self._find_form())
            """The token that an answer ends with, which is learnt."""
            self._require_same_tokens()
        except ExampleError as error:
            raise self._error(error.reason) from error
        eos: int | None = tokenizer.eos_token_id
        self.end_ids = frozenset({self.end_id, *ends, *([] if eos is None else [eos])})
        """All that end a text."""

    @classmethod
    def open(
        cls,
        folder: Path,
        tokenizer: Any,
        checkpoint: str,
        *,
        max_images: int | None = None,
        markers: Sequence[str] = (),
        variables: Mapping[str, Any] = NO_THINKING,
    ) -> Self:
        """The template in a checkpoint's folder, with the ends that its generation settings name; see ``__init__``.

        Raises:
            CheckpointError: There is none, or it cannot be used.
        """
        return cls(
            read_template(folder, tokenizer, checkpoint),
            tokenizer,
            checkpoint,
            ends=read_end_ids(folder, checkpoint),
            max_images=max_images,
            markers=markers,
            variables=variables,
        )

    # --- conversations --------------------------------------------------------------------------------------------

    def prompt(self, turns: Sequence[Turn], images: Sequence[Sequence[int]] = ()) -> list[int]:
        """Ids up to where the model goes on.

        Args:
            turns: The last one is the user's.
            images: Ids for each image in their order, with the tokens around it.

        Raises:
            PromptError: The template does not take such turns, or a text or an image cannot stand in one.
            ValueError: The numbers of images differ.
        """
        try:
            turns = self._sound(turns)
            if turns[-1].role != "user":
                raise unfit("its last turn is not the user's.")
            return self._row(self._pieces(turns, generating=True), turns, images).ids
        except ExampleError as error:
            last = [part for turn in turns for part in turn.parts if isinstance(part, str)][-1:]
            raise PromptError(quoted(last[0]) if last else "without a text", error.reason) from error

    def training_rows(
        self,
        turns: Sequence[Turn],
        images: Sequence[Sequence[int]] = (),
        *,
        name: str = "a conversation",
        learn: Literal["all", "last"] = "all",
    ) -> list[ChatRow]:
        """Rows in which each answer is learnt once, behind the very prompt that asks for it.

        That is one row; of a template that writes an answer otherwise once there are turns behind it, it is one row for
        each answer, with the turns up to it.

        Args:
            turns: The last one is the assistant's.
            images: Ids for each image in their order, with the tokens around it.
            name: Of the conversation, for errors.
            learn: All answers, or the last one alone.

        Raises:
            ExampleError: An answer to be learnt is empty, the template does not take such turns, or a text or an image
                cannot stand in one.
            ValueError: The numbers of images differ.
        """
        try:
            turns = self._sound(turns)
            answers = [index for index, turn in enumerate(turns) if turn.role == "assistant"]
            if answers[-1:] != [len(turns) - 1]:
                raise unfit("its last turn is not the assistant's, so there is no answer to learn.")
            answers = answers if learn == "all" else answers[-1:]
            for index in answers:
                if not turns[index].parts[0]:
                    raise unfit(f"its answer, turn {index + 1}, is empty.")
            numbers = {_count(turns[:index], str) for index in answers}
            pieces = self._pieces(turns)
            if numbers <= {piece.number for piece in pieces if isinstance(piece, Place) and piece.kind == "head"}:
                return [self._row(pieces, turns, images, numbers)]
            if len(answers) == 1:
                raise unfit("its template writes something else before the last answer than the prompt for it.")
        except ExampleError as error:
            raise ExampleError(name, error.reason) from error
        rows = []
        for index in answers:
            begun = turns[: index + 1]
            rows += self.training_rows(begun, images[: _count(begun, ImagePart)], name=name, learn="last")
        return rows

    def _sound(self, turns: Sequence[Turn]) -> Sequence[Turn]:
        """The turns, each answer as one text without white space around it.

        Raises:
            ExampleError: Something is in them that no model of this kind is told.
        """
        sound = []
        for index, turn in enumerate(turns, 1):
            whose = f"its turn {index} ({turn.role})"
            if turn.role not in get_args(Role):
                raise unfit(f"its turn {index} is that of {quoted(turn.role)}; there are {', '.join(get_args(Role))}.")
            for part in turn.parts:
                if not isinstance(part, str | ImagePart):
                    raise unfit(f"{whose} has {quoted(part)} in it; there may be texts and images, no videos.")
                if isinstance(part, str) and (wrong := text_problem(part)) is not None:
                    raise unfit(f"{whose} has {wrong}.")
            said = turn.parts
            if turn.role == "assistant":
                if _count([turn], ImagePart):
                    raise unfit(f"{whose} has an image in it; an answer is text.")
                said = ("".join(map(str, said)).strip(),)
            elif not any(isinstance(part, ImagePart) or part.strip() for part in said):
                raise unfit(f"{whose} is empty.")
            sound.append(Turn(turn.role, said))
        if not any(turn.role == "user" for turn in sound):
            raise unfit("there is no turn of the user in it.")
        if self.max_images is not None and _count(sound, ImagePart) > self.max_images:
            raise unfit(f"it has {_count(sound, ImagePart)} images, of which there may be {self.max_images} here.")
        return sound

    # --- what the template writes ---------------------------------------------------------------------------------

    def _render(self, turns: Sequence[Turn], *, generating: bool = False, plainly: bool = False) -> str:
        """What the template writes for turns, with sentinels for texts or, ``plainly``, with the texts.

        Raises:
            ExampleError: It raises.
            CheckpointError: It is no template.
        """
        try:
            written: str = self._tokenizer.apply_chat_template(
                messages(turns, self._lists, plainly=plainly),
                chat_template=self._text,
                tokenize=False,
                add_generation_prompt=generating,
                **self._variables,
            )
        except MemoryError:
            raise
        except TemplateSyntaxError as error:
            raise self._error(f"line {error.lineno} is no template: {error.message}") from error
        except Exception as error:  # a program of anybody
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            roles = ", ".join(turn.role for turn in turns)
            raise unfit(f"the template does not take these turns ({roles}): {printable(reason[:200])}") from error
        return written

    def _pieces(self, turns: Sequence[Turn], *, generating: bool = False) -> list[Piece]:
        """What the template writes for turns, in pieces: each text and image once, and the end of each answer's head.

        An answer whose head is not what stands before it has none: a template may write an answer otherwise later on.

        Raises:
            ExampleError: It raises, or loses or changes a text or an image.
        """
        written = self._render(turns, generating=generating)
        heads = {}
        for index, turn in enumerate(turns):
            if turn.role == "assistant" and index > 0:
                with suppress(ExampleError):
                    head = self._render(turns[:index], generating=True)
                    if written.startswith(head):
                        heads[len(head)] = _count(turns[:index], str)
        for end, number in sorted(heads.items(), reverse=True):
            written = written[:end] + Place("head", number).sentinel() + written[end:]
        pieces, images, width = self._tokens.cut(written), count(), len(self._image)
        for index in range(len(pieces)):
            if width and pieces[index : index + width] == self._image:
                pieces[index : index + width] = [Place("image", next(images))]
        if (problem := place_problem(pieces, turns)) is not None:
            raise unfit(f"the template {problem}.")
        return pieces

    def _row(
        self, pieces: list[Piece], turns: Sequence[Turn], images: Sequence[Sequence[int]], learn: Collection[int] = ()
    ) -> ChatRow:
        """Ids of pieces; of each text in ``learn`` everything from the end of its head to the end behind it is learnt.

        Raises:
            ExampleError: A text does not come back from its ids, or no end stands behind an answer.
            ValueError: The numbers of images differ.
        """
        if len(images) != _count(turns, ImagePart):
            raise ValueError(f"Ids for {_count(turns, ImagePart)} images are needed, got those for {len(images)}.")
        learnt: set[int] = set()
        for number in learn:
            end = _behind(pieces, number)
            if pieces[end:][:1] != [self.end_id]:
                raise unfit(f"the template does not end an answer with {self._shown(self.end_id)} everywhere.")
            learnt.update(range(pieces.index(Place("head", number)), end + 1))
        texts = [part for turn in turns for part in turn.parts if isinstance(part, str)]
        front = self._tokens.front(pieces)
        ids, loss = self._tokens.ids(pieces, learnt, texts, images)
        return ChatRow(front + ids, [False] * len(front) + loss)

    def _shown(self, token_id: int) -> str:
        return str(self._tokenizer.convert_ids_to_tokens(token_id))

    # --- what is measured when it is opened -----------------------------------------------------------------------

    def _find_form(self) -> list[Piece]:
        """The pieces of one question and its answer, in the first form that the template takes.

        Raises:
            CheckpointError: It takes none.
        """
        problems = []
        for form, lists in _FORMS.items():
            self._lists, self._image = lists, []
            try:
                if lists:
                    self._image = self._find_image()
                self._pieces(_ASKED, generating=True)
                pieces = self._pieces(_ANSWERED)
            except ExampleError as error:
                problems.append(f"given {form}: {error.reason}")
                continue
            try:
                self._lists = lists | {"system"}
                self._pieces((Turn("system", ("Be short.",)), *_ANSWERED))
            except ExampleError:  # it wants a string; or has no place for one, which whoever has such a turn is told
                self._lists = lists
            return pieces
        raise self._error(*problems)

    def _find_image(self) -> list[Piece]:
        """What the template writes for an image: from the first to the last of the tokens it has more then."""
        asked, unseen = (
            self._tokens.cut(self._render([Turn("user", parts)], generating=True))
            for parts in (_ASKED[0].parts, _ASKED[0].parts[1:])
        )
        more = Counter(piece for piece in asked if isinstance(piece, int))
        more -= Counter(piece for piece in unseen if isinstance(piece, int))
        found = [index for index, piece in enumerate(asked) if piece in more]
        return asked[found[0] : found[-1] + 1] if found else []

    def _find_end(self, pieces: list[Piece]) -> int:
        """The first token behind the answer.

        Raises:
            ExampleError: There is none; or what stands before the answer is not the prompt for it.
        """
        if Place("head", 1) not in pieces:
            raise unfit("before an answer it writes something else than the prompt for it.")
        end = pieces[_behind(pieces, 1) :][:1]
        if not end or not isinstance(end[0], int):
            raise unfit("it writes no special token behind an answer, so that no end could be learnt.")
        return end[0]

    def _require_same_tokens(self) -> None:
        """Raise ``ExampleError`` unless a prompt and its answer have the tokens of the whole text that is written."""
        for question, answer in _PROBES:
            turns = (Turn("user", (ImagePart(None), question)), Turn("assistant", (answer,)))
            image = self._image or [self.end_id]
            pieces = [
                new for piece in self._pieces(turns) for new in (image if piece == Place("image", 0) else [piece])
            ]
            ids, _ = self._tokens.ids(pieces, set(), [question, answer], [])
            written = self._render(turns, plainly=True).replace(Place("image", 0).sentinel(), self._shown(self.end_id))
            whole = self._tokenizer(written, add_special_tokens=False)["input_ids"]
            if ids != whole:
                same = next((at for at, (one, other) in enumerate(zip(ids, whole, strict=False)) if one != other), 0)
                near = self._tokenizer.decode(whole[max(0, same - 2) : same + 3])
                raise unfit(
                    f"a prompt and its answer have other tokens than the whole text, near {quoted(near)}. That may be "
                    "the end of thinking, which a variable turns off, or a space that the tokenizer adds."
                )

    def _error(self, *problems: str) -> CheckpointError:
        named = [f"chat template ({self.source}): {problem.rstrip('.')}" for problem in problems]
        return CheckpointError(self._checkpoint, named, _HINT)


def _count(turns: Sequence[Turn], kind: type) -> int:
    return sum(isinstance(part, kind) for turn in turns for part in turn.parts)


def _behind(pieces: list[Piece], number: int) -> int:
    """The index of the first piece behind a text that is no text of the template, or the number of pieces."""
    begin = pieces.index(Place("text", number)) + 1
    return next((index for index in range(begin, len(pieces)) if not isinstance(pieces[index], str)), len(pieces))
