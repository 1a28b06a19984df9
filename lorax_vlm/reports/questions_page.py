"""One self-contained HTML page of a VQA evaluation: table, plot, what the image contributes, examples, all errors.

No torch.
"""

import base64
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from PIL import Image

from lorax_vlm.errors import LoraxError, UsageError
from lorax_vlm.evaluation.results import AnswerRecord, VQAReport
from lorax_vlm.evaluation.summary import image_line, missing_line, name_of, table_rows
from lorax_vlm.foreign import printable
from lorax_vlm.paths import WRITTEN_BY, replacing
from lorax_vlm.reports.plot import draw_accuracy
from lorax_vlm.types import Interval, percent

_THUMBNAIL_PX, _SMALL_PX = 160, 80
_EXAMPLES, _PICTURED_ERRORS = 12, 300

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<meta name="generator" content="{{ written_by }}">
<title>{{ title }}</title>
<style>
:root { color-scheme: light dark; --text: #1c2430; --quiet: #5b6675; --line: #d5dbe3; --back: #fff;
--right: #1a7f37; --wrong: #b42318; }
@media (prefers-color-scheme: dark) { :root { --text: #e6e9ee; --quiet: #a3adba; --line: #3a424e; --back: #14181e;
--right: #56d364; --wrong: #ff8a80; } }
body { font: 16px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 60rem; padding: 0 1rem; color: var(--text);
background: var(--back); overflow-wrap: anywhere; }
table { border-collapse: collapse; margin: 1rem 0; width: 100%; }
caption { text-align: left; color: var(--quiet); }
th, td { border-bottom: 1px solid var(--line); padding: .35rem .6rem; text-align: left; vertical-align: top; }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; }
.wide { overflow-x: auto; }
.quiet { color: var(--quiet); font-size: .85em; }
.examples { display: grid; grid-template-columns: repeat(auto-fill, minmax(13rem, 1fr)); gap: 1rem; }
figure { margin: 0; border: 1px solid var(--line); border-radius: .4rem; padding: .6rem; }
figure img { width: 100%; border-radius: .2rem; }
.right { color: var(--right); } .wrong { color: var(--wrong); }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem 1rem; }
dt { color: var(--quiet); } dd { margin: 0; }
</style></head><body><main>
<h1>{{ title }}</h1>
<p>{{ count }} questions. {% if mixed %}They are judged by different metrics, which are not mixed: {% endif %}
{% for metric, share in metrics.items() %}{{ metric }} of {{ share.count }}{{ ", " if not loop.last }}{% endfor %}.
Ranges are 95 % intervals{% if images %}, over {{ images }} images{% endif %}.</p>
<div class="wide"><table><caption>Accuracy</caption><thead><tr><th scope="col">questions</th>
<th scope="col" class="n">number</th>{% for r in reports %}<th scope="col" class="n">{{ r.name }}</th>{% endfor %}</tr>
</thead><tbody>
{% for row in rows %}<tr><th scope="row">{{ row.name }}</th><td class="n">{{ row.count }}</td>
{% for share in row.shares %}<td class="n">{{ cell(share) }}</td>{% endfor %}</tr>{% endfor %}
</tbody></table></div>
{% for line in differences %}<p><strong>{{ line }}</strong></p>{% endfor %}
<p><img src="{{ plot }}" alt="Bars with intervals: {{ plotted }}" style="max-width:100%"></p>
{% if ablated %}<h2>Does the image matter?</h2>
<div class="wide"><table><caption>Accuracy with other images</caption><thead><tr><th scope="col">answers of</th>
<th scope="col" class="n">own image</th><th scope="col" class="n">another image</th>
<th scope="col" class="n">grey image</th><th scope="col">it</th></tr></thead><tbody>
{% for r in ablated %}<tr><th scope="row">{{ r.name }}</th><td class="n">{{ percent(r.report.accuracy.value) }}</td>
<td class="n">{{ percent(r.report.shuffled) }}</td><td class="n">{{ percent(r.report.blank) }}</td>
<td>{{ r.effect.verdict }}</td></tr>{% endfor %}</tbody></table></div>
{% for line in ablation_lines %}<p>{{ line }}</p>{% endfor %}{% endif %}
<h2>Examples</h2>
<p>First those where the reports differ.</p>
<div class="examples">{% for e in examples %}<figure><img src="{{ e.image }}" alt="{{ e.alt }}">
<figcaption>{{ e.question }}<br><span class="quiet">expected: {{ e.expected }}</span>
{% for a in e.answers %}<br>{{ a.name }}: <span class="{{ a.verdict }}">{{ a.text }}</span>
<span class="quiet">{{ a.verdict }}</span>{% endfor %}</figcaption></figure>{% endfor %}</div>
<h2>Errors</h2>
<details><summary>All {{ error_count }} questions that somebody answered wrong or in part</summary>
<div class="wide"><table><thead><tr><th scope="col">image</th><th scope="col">question</th><th scope="col">expected</th>
{% for r in reports %}<th scope="col">{{ r.name }}</th>{% endfor %}</tr></thead><tbody>
{% for e in errors %}<tr><td>{% if e.image %}<img src="{{ e.image }}" alt="{{ e.alt }}" loading="lazy"><br>{% endif %}
<span class="quiet">{{ e.name }}</span></td><td>{{ e.question }}</td><td>{{ e.expected }}</td>
{% for a in e.answers %}<td><span class="{{ a.verdict }}">{{ a.text }}</span>
<span class="quiet">{{ a.verdict }}</span></td>{% endfor %}</tr>{% endfor %}</tbody></table></div></details>
<h2>How it was measured</h2>
<dl>{% for key, value in protocol %}<dt>{{ key }}</dt><dd>{{ value }}</dd>{% endfor %}</dl>
</main></body></html>
"""


def write_vqa_page(
    reports: Sequence[VQAReport],
    images: Mapping[str, Image.Image],
    path: Path,
    *,
    title: str,
    differences: Sequence[str] = (),
) -> Path:
    """Write the page; it needs no other file and no connection.

    Args:
        reports: On the same questions, the base first.
        images: Image by name of the example, for those that are to be shown. One is looked up at a time, and only its
            thumbnail is kept.
        path: Where to write it; parents are created.
        title: Heading.
        differences: Lines that compare the reports.

    Raises:
        UsageError: There are no reports.
        PathError: It cannot be written there.
    """
    if not reports:
        raise UsageError("At least one report is needed.")
    first = reports[0]
    named = [{"name": name_of(report), "report": report, "effect": report.image_effect} for report in reports]
    rows = table_rows(reports)
    questions = list(zip(*(report.records for report in reports), strict=True))
    wrong = [row for row in questions if any(record.score < 1 for record in row)]
    page = Environment(autoescape=True, undefined=StrictUndefined, finalize=safe_value).from_string(_PAGE)
    text = page.stream(
        written_by=WRITTEN_BY,
        title=title,
        count=first.count,
        images=first.protocol.get("images"),
        mixed=len(first.by_metric) > 1,
        metrics=first.by_metric or {first.metric: first.accuracy},
        reports=named,
        rows=[{"name": name, "count": shares[0].count, "shares": shares} for name, shares in rows],
        cell=Interval.percent,
        percent=_percent,
        differences=differences,
        plot=_data_uri(draw_accuracy(reports, rows), "png"),
        plotted="; ".join(
            f"{row['name']} {report.accuracy.percent()}" for row, report in zip(named, reports, strict=True)
        ),
        ablated=[row for row in named if row["effect"]],
        ablation_lines=[line for line in (*map(image_line, reports), missing_line(reports)) if line],
        examples=_examples(reports, questions, images),
        errors=_errors(reports, wrong, images),
        error_count=len(wrong),
        protocol=list(flat(first.protocol)),
    )
    with replacing(path) as file:
        text.dump(file, encoding="utf-8", errors="backslashreplace")
    return path


def flat(record: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """A nested record as lines of names and texts."""
    for key, value in record.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{key}, ")
        else:
            yield f"{prefix}{key}".replace("_", " "), "none" if value is None else str(value)


def safe_value(value: object) -> object:
    """What stands on a page: nothing there turns or hides text, whoever wrote it."""
    return printable(value) if isinstance(value, str) else value


def _verdict(score: float) -> str:
    return "right" if score >= 1 else "wrong" if score <= 0 else f"{percent(score, 0)} right"


def _percent(share: float | None) -> str:
    return "-" if share is None else percent(share)


Row = tuple[AnswerRecord, ...]


def _spread(row: Row) -> float:
    """How far apart the best and the worst answer are."""
    scores = [record.score for record in row]
    return max(scores) - min(scores)


def _examples(reports: Sequence[VQAReport], rows: Sequence[Row], images: Mapping[str, Image.Image]) -> list[Any]:
    """The questions whose images are at hand, those first on which the reports differ."""
    pictured = [row for row in rows if row[0].example in images]
    pictured.sort(key=lambda row: (-_spread(row), len({record.answer for record in row}) == 1))
    found: list[dict[str, object]] = []
    for row in pictured:
        if len(found) == _EXAMPLES:
            break
        if picture := _thumbnail(images, row[0].example, _THUMBNAIL_PX, "png"):
            found.append(_shown(reports, row) | {"image": picture})
    return found


def _errors(
    reports: Sequence[VQAReport], rows: Sequence[Row], images: Mapping[str, Image.Image]
) -> Iterator[dict[str, object]]:
    """Every question that was answered wrong, the first ones with their image."""
    for number, row in enumerate(rows):
        known = number < _PICTURED_ERRORS and row[0].example in images
        picture = _thumbnail(images, row[0].example, _SMALL_PX, "jpeg") if known else ""
        yield _shown(reports, row) | {"image": picture}


def _shown(reports: Sequence[VQAReport], row: Row) -> dict[str, object]:
    first = row[0]
    answers = [
        {
            "name": name_of(report),
            "text": record.error or record.answer or "(nothing)",
            "verdict": _verdict(record.score),
        }
        for report, record in zip(reports, row, strict=True)
    ]
    expected = ", ".join(dict.fromkeys(first.annotators))
    alt = f"{first.example}, asked: {first.question}"
    return {"name": first.example, "alt": alt, "question": first.question, "expected": expected, "answers": answers}


def _thumbnail(images: Mapping[str, Image.Image], name: str, side_px: int, kind: str) -> str:
    """A small picture as an address; empty where it cannot be read, which the answer's error says."""
    try:
        small = images[name].copy()
    except LoraxError:
        return ""
    small.thumbnail((side_px, side_px))
    buffer = io.BytesIO()
    small.convert("RGB").save(buffer, kind)
    return _data_uri(buffer.getvalue(), kind)


def _data_uri(data: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
