"""An engine without a model, for tests of what is built on engines. No torch."""

from collections.abc import Callable, Sequence

from lorax_vlm.errors import LoraxError
from lorax_vlm.requests import Request, Result
from lorax_vlm.types import Generated, ModelText


class FakeEngine:
    """Answers by a function, and remembers what it was asked.

    >>> engine = FakeEngine(lambda request: f"no {request.single()[1]}")
    >>> engine.generate([Request.about("a.png", "answer")])[0].text
    'no answer'
    """

    def __init__(self, say: Callable[[Request], str], *, base: str = "fake") -> None:
        """Answer with what ``say`` returns; a ``LoraxError`` that it raises is the result of that request alone."""
        self.say, self.base = say, base
        self.asked: list[Request] = []

    def generate(self, requests: Sequence[Request]) -> list[Result]:
        """A text, or an error, for each request, in their order."""
        self.asked += requests
        return [self._result(request) for request in requests]

    def _result(self, request: Request) -> Result:
        try:
            text = self.say(request)
        except LoraxError as error:
            return Result(None, error)
        return Result(ModelText.of(Generated(text, "eos", len(text.split())), self.base, request.adapter))
