"""One self-contained HTML page: which adapters belong where, and what moving some of them did. No torch."""

import base64
from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, StrictUndefined

from lorax_vlm.evaluation.results import TaskReport
from lorax_vlm.exchange.matrix import LEGEND, CompatibilityMatrix
from lorax_vlm.exchange.report import TransferReport, share_text
from lorax_vlm.paths import WRITTEN_BY, replacing
from lorax_vlm.reports.pictures import matrix_png
from lorax_vlm.reports.questions_page import safe_value

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<meta name="generator" content="{{ written_by }}">
<title>{{ title }}</title>
<style>
body { font: 16px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 64rem; padding: 0 1rem; color: #1c2430; }
table { border-collapse: collapse; margin: 1rem 0; }
th, td { border-bottom: 1px solid #d5dbe3; padding: .3rem .8rem; text-align: left; vertical-align: top; }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; }
.range, .small { color: #5b6675; font-size: .85em; }
.good { color: #1a7f37; } .bad { color: #b42318; }
section { border: 1px solid #d5dbe3; border-radius: .4rem; padding: .2rem 1rem 1rem; margin: 1rem 0; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem 1rem; } dt { color: #5b6675; } dd { margin: 0; }
</style></head><body>
<h1>{{ title }}</h1>
{% if tasks %}<h2>Adapters</h2>
<table><thead><tr><th>adapter</th><th>task</th><th class="n">base</th><th class="n">adapter</th>
<th class="n">gain, points</th></tr></thead><tbody>
{% for t in tasks %}<tr><td>{{ t.adapter }}</td><td>{{ t.task }}</td><td class="n">{{ t.before.percent() }}</td>
<td class="n">{{ t.after.percent() }}</td><td class="n">{{ t.gain.points("") }}</td></tr>{% endfor %}
</tbody></table><p class="small">Share of exact answers. Ranges are 95 % intervals; gains are paired.</p>
{% endif %}
<h2>Which adapter belongs to which base?</h2>
<img src="{{ picture }}" alt="Compatibility of every adapter with every base" style="max-width:100%">
<details><summary>As a table, with reasons</summary>
<table><thead><tr><th>adapter</th>{% for b in matrix.bases %}<th>{{ b }}</th>{% endfor %}</tr></thead><tbody>
{% for a in matrix.adapters %}<tr><th>{{ a }}</th>{% for b in matrix.bases %}<td>{{ matrix.word(a, b) }}
{% for part in matrix.reports[a, b].components %}<br><span class="small">{{ part.component }}: {{ part.reason }}</span>
{% endfor %}</td>{% endfor %}</tr>{% endfor %}</tbody></table>
<dl>{% for word, meaning in legend.items() %}<dt>{{ word }}</dt><dd>{{ meaning }}</dd>{% endfor %}</dl></details>
<h2>Transfers</h2>
{% for r in reports %}<section><h3>{{ r.plan.adapter }} &rarr; {{ r.plan.target }}</h3>
<p><strong class="{{ 'good' if r.accepted else 'bad' }}">{{ r.label }}</strong>:
{{ r.chosen }}; {% if r.accepted %}stored as {{ r.adapter }}{% else %}nothing was stored{% endif %}.
Gain over the target alone {{ r.gain.points("") }} points, by {{ r.measured_by }}.
{% if r.source %}Share of the source's gain: {{ share(r.of_source) }}.{% endif %}</p>
<table><thead><tr><th>component</th><th>level</th><th>what is done</th><th class="n">share of the update</th>
<th>why</th></tr></thead><tbody>{% for p in r.plan.parts %}<tr><td>{{ p.component }}</td>
<td>{{ 'unknown' if p.level is none else p.level }}</td>
<td>{{ p.strategy }}</td><td class="n">{{ '%.1f %%' % (100 * p.share) }}</td><td>{{ p.reason }}</td></tr>
{% endfor %}</tbody></table>
<table><thead><tr><th></th><th class="n">score</th></tr></thead><tbody>
{% for s in r.rows %}<tr><td>{{ s.name }}</td><td class="n">{{ s.mean.percent() }}</td></tr>{% endfor %}
</tbody></table>
{% if r.coverage %}<p>{{ r.coverage }}</p>{% endif %}
<ul>{% for line in r.side_effects() %}<li>{{ line }}</li>{% endfor %}</ul>
<p class="small">Cost: {{ r.cost.text() }}.</p>
{% for reason in r.reasons %}<p class="bad">{{ reason }}</p>{% endfor %}</section>{% else %}<p>None.</p>{% endfor %}
</body></html>
"""


def write_exchange_page(
    matrix: CompatibilityMatrix,
    reports: Sequence[TransferReport],
    path: Path,
    *,
    tasks: Sequence[TaskReport] = (),
    title: str = "Exchange of adapters",
) -> Path:
    """Write the page; it needs no other file and no connection.

    Args:
        matrix: At least one adapter.
        reports: Of transfers.
        path: Where to write it; parents are created.
        tasks: How good the adapters are on their own bases.
        title: Heading.

    Raises:
        UsageError: There are no adapters.
        PathError: It cannot be written there.
    """
    page = Environment(autoescape=True, undefined=StrictUndefined, finalize=safe_value).from_string(_PAGE)
    text = page.render(
        written_by=WRITTEN_BY,
        title=title,
        matrix=matrix,
        legend=LEGEND,
        reports=list(reports),
        tasks=list(tasks),
        picture=f"data:image/png;base64,{base64.b64encode(matrix_png(matrix)).decode()}",
        share=share_text,
    )
    with replacing(path) as file:
        file.write(text.encode("utf-8", "backslashreplace"))
    return path
