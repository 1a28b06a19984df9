"""CIDEr, BLEU and ROUGE-L of captions, by the scorers of the COCO caption evaluation (``pycocoevalcap``). No torch.

The published figures tokenise with Stanford's PTB tokenizer, which needs Java. Here a plain rule takes its place, which
drops the same punctuation but does not split words such as "don't"; compare only figures with the same tokenizer.
"""

import importlib.util
import re
from collections.abc import Sequence

from lorax_vlm.errors import MissingExtra, UsageError

TOKENIZER = "lower case, runs of letters, digits and apostrophes"
_WORD = re.compile(r"[\w']+")


def caption_metrics(captions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """CIDEr (0 to 10), BLEU-4 and ROUGE-L (0 to 1) over a whole set.

    Not every figure means something: see ``metric_problems``.

    Args:
        captions: One per image.
        references: One or more per image.

    Raises:
        UsageError: There are no captions, or not references for each.
        MissingExtra: pycocoevalcap is not installed.
    """
    if not captions or len(captions) != len(references) or not all(references):
        raise UsageError(f"References for each caption are needed, got {len(captions)} and {len(references)}.")
    if importlib.util.find_spec("pycocoevalcap") is None:
        raise MissingExtra("pycocoevalcap", "metrics", "CIDEr, BLEU and ROUGE-L")
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    given = {index: [tokenize(text)] for index, text in enumerate(captions)}
    known = {index: [tokenize(text) for text in texts] for index, texts in enumerate(references)}
    bleu, _ = Bleu(4).compute_score(known, given, verbose=0)
    return {
        "CIDEr": float(Cider().compute_score(known, given)[0]),
        "BLEU-4": float(bleu[3]),
        "ROUGE-L": float(Rouge().compute_score(known, given)[0]),
    }


def metric_problems(references: Sequence[Sequence[str]]) -> dict[str, str]:
    """Why a metric would be about 0 whatever is said, by its name.

    CIDEr weighs words by how few images they belong to, and a word of all images not at all. BLEU-4 counts runs of four
    words.
    """
    problems: dict[str, str] = {}
    known = [frozenset(tokenize(text) for text in texts) for texts in references]
    if len(known) == 1:
        problems["CIDEr"] = "of one image every word has the weight 0"
    elif len(set(known)) == 1:
        problems["CIDEr"] = "all images have the same references, so every word has the weight 0"
    if all(len(text.split()) < 4 for texts in known for text in texts):
        problems["BLEU-4"] = "no reference has four words"
    return problems


def tokenize(text: str) -> str:
    """Words separated by single spaces; a text without words stays as it is, for nothing would equal nothing.

    >>> tokenize("A red circle, at the top-left.")
    'a red circle at the top left'
    """
    return " ".join(_WORD.findall(text.lower()) or text.split())
