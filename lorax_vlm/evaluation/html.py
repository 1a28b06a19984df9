"""One self-contained HTML page of a VQA evaluation: table, plot, what the image contributes, and examples."""

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from jinja2 import Environment, StrictUndefined
from PIL import Image

from lorax_vlm.errors import UsageError
from lorax_vlm.types import AnswerRecord, Interval, VQAReport

_THUMBNAIL_PX = 160
_EXAMPLES = 12

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{{ title }}</title>
<style>
body { font: 16px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 60rem; padding: 0 1rem; color: #1c2430; }
table { border-collapse: collapse; margin: 1rem 0; width: 100%; }
th, td { border-bottom: 1px solid #d5dbe3; padding: .35rem .6rem; text-align: left; }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; }
.range { color: #5b6675; font-size: .85em; }
.examples { display: grid; grid-template-columns: repeat(auto-fill, minmax(13rem, 1fr)); gap: 1rem; }
figure { margin: 0; border: 1px solid #d5dbe3; border-radius: .4rem; padding: .6rem; }
figure img { width: 100%; image-rendering: auto; border-radius: .2rem; }
.right { color: #1a7f37; } .wrong { color: #b42318; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem 1rem; } dt { color: #5b6675; } dd { margin: 0; }
</style></head><body>
<h1>{{ title }}</h1>
<p>{{ count }} questions, {{ metric }}. Ranges are 95 % bootstrap intervals.</p>
<table><thead><tr><th></th>{% for r in reports %}<th class="n">{{ r.name }}</th>{% endfor %}</tr></thead><tbody>
<tr><th>all</th>{% for r in reports %}<td class="n">{{ cell(r.report.accuracy) }}</td>{% endfor %}</tr>
{% for kind in kinds %}<tr><td>{{ kind }}</td>
{% for r in reports %}<td class="n">{{ cell(r.report.by_kind[kind]) }}</td>{% endfor %}</tr>{% endfor %}
</tbody></table>
{% for line in differences %}<p><strong>{{ line }}</strong></p>{% endfor %}
<img src="{{ plot }}" alt="Accuracy by type of question, with intervals" style="max-width:100%">
{% if ablated %}<h2>Does the image matter?</h2>
<table><thead><tr><th></th><th class="n">own image</th><th class="n">another's image</th>
<th class="n">grey image</th></tr></thead><tbody>
{% for r in ablated %}<tr><td>{{ r.name }}</td><td class="n">{{ percent(r.report.accuracy.value) }}</td>
<td class="n">{{ percent(r.report.shuffled) }}</td><td class="n">{{ percent(r.report.blank) }}</td></tr>{% endfor %}
</tbody></table>{% endif %}
<h2>Examples</h2>
<p>First those where the reports differ.</p>
<div class="examples">{% for e in examples %}<figure><img src="{{ e.image }}" alt="">
<figcaption>{{ e.question }}<br><span class="range">expected: {{ e.expected }}</span>
{% for name, text, score in e.answers %}<br>{{ name }}: <span class="{{ 'right' if score >= 0.5 else 'wrong' }}">{{ text
}}</span>{% endfor %}</figcaption></figure>{% endfor %}</div>
<h2>How it was measured</h2>
<dl>{% for key, value in protocol.items() %}<dt>{{ key }}</dt><dd>{{ value }}</dd>{% endfor %}</dl>
</body></html>
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
        images: Image by name of the example, for those that are to be shown.
        path: Where to write it; parents are created.
        title: Heading.
        differences: Lines that compare the reports.

    Raises:
        UsageError: There are no reports.
    """
    if not reports:
        raise UsageError("At least one report is needed.")
    named = [{"name": report.adapter or "base", "report": report} for report in reports]
    page = Environment(autoescape=True, undefined=StrictUndefined).from_string(_PAGE)
    text = page.render(
        title=title,
        count=reports[0].count,
        metric=reports[0].metric,
        reports=named,
        kinds=list(reports[0].by_kind),
        cell=_cell,
        percent=_percent,
        differences=differences,
        plot=_data_uri(_plot(reports), "png"),
        ablated=[row for row in named if row["report"].blank is not None],  # type: ignore[attr-defined]
        examples=_examples(reports, images),
        protocol=reports[0].protocol,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _cell(interval: Interval) -> str:
    return f"{_percent(interval.value)} ({100 * interval.low:.1f} to {100 * interval.high:.1f})"


def _plot(reports: Sequence[VQAReport]) -> bytes:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    kinds = ["all", *(kind for kind in reports[0].by_kind if kind != "all")]
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    width = 0.8 / len(reports)
    for number, report in enumerate(reports):
        values = [report.accuracy, *(report.by_kind[kind] for kind in kinds[1:])]
        errors = [[v.value - v.low for v in values], [v.high - v.value for v in values]]
        places = [position + (number - (len(reports) - 1) / 2) * width for position in range(len(kinds))]
        heights = [v.value for v in values]
        axes.bar(places, heights, width * 0.95, yerr=errors, capsize=2, label=report.adapter or "base")
    axes.set_xticks(range(len(kinds)), kinds)
    axes.set(ylim=(0, 1.02), ylabel=reports[0].metric)
    axes.grid(axis="y", alpha=0.3)
    axes.legend(loc="lower right")
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=120)
    return buffer.getvalue()


def _examples(reports: Sequence[VQAReport], images: Mapping[str, Image.Image]) -> list[dict[str, object]]:
    """The questions whose images are at hand, those first on which the reports differ."""
    rows: list[tuple[AnswerRecord, ...]] = list(zip(*(report.records for report in reports), strict=True))
    shown = [row for row in rows if row[0].example in images]
    shown.sort(key=lambda row: -abs(row[0].score - row[-1].score))
    return [
        {
            "image": _data_uri(_thumbnail(images[row[0].example]), "png"),
            "question": row[0].question,
            "expected": ", ".join(dict.fromkeys(row[0].annotators)),
            "answers": [
                (report.adapter or "base", record.error or record.answer or "(nothing)", record.score)
                for report, record in zip(reports, row, strict=True)
            ],
        }
        for row in shown[:_EXAMPLES]
    ]


def _thumbnail(image: Image.Image) -> bytes:
    small = image.copy()
    small.thumbnail((_THUMBNAIL_PX, _THUMBNAIL_PX))
    buffer = io.BytesIO()
    small.save(buffer, "PNG")
    return buffer.getvalue()


def _data_uri(data: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
