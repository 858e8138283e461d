"""The files of a prediction evaluation: ``metrics.json`` and its kin, tables, plots, and one HTML page."""

from __future__ import annotations

import base64
import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from mmecg.evaluation.label_report import label_cells
from mmecg.evaluation.prediction_plots import draw_plots
from mmecg.evaluation.prediction_sections import TARGETS, Section, load_sections
from mmecg.evaluation.results import Evaluation, Row, save_evaluation

ROW_COLUMNS: tuple[str, ...] = ("row", "value", "95 % interval", "n", "baselines")


@dataclass(frozen=True)
class PredictionEvaluation:
    """What one run found: the rows, and the tables that the plots are drawn from."""

    evaluation: Evaluation
    tables: Mapping[str, pl.DataFrame]


def save_prediction_evaluation(found: PredictionEvaluation, folder: Path) -> None:
    """Write ``metrics.json``, ``run.json``, ``per_label.*``, ``report.md``, ``report.html``, ``tables/``, ``plots/``.

    Parameters
    ----------
    found : PredictionEvaluation
    folder : Path
        Created if missing.
    """
    pictures = draw_plots(found.tables)
    for name in ("tables", "plots"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for name, table in found.tables.items():
        table.write_csv(folder / "tables" / f"{name}.csv", float_precision=5)
    for name, picture in pictures.items():
        (folder / "plots" / f"{name}.png").write_bytes(picture)
    partial = folder / "report.html.partial"
    partial.write_text(render_page(found, pictures), "utf-8")
    partial.replace(folder / "report.html")
    save_evaluation(found.evaluation, folder, render=render_markdown)


def render_markdown(evaluation: Evaluation) -> str:
    """Return the rows as a Markdown page; the HTML page says more."""
    run = evaluation.run
    lines = [
        f"# Prediction on fold {run['fold']}",
        "",
        _summary(run),
        "",
        *(f"**Note:** {note}\n" for note in run["notes"]),
        f"| {' | '.join(ROW_COLUMNS)} |",
        "|---|---|---|---|---|",
        *("| " + " | ".join(cells) + " |" for cells in label_cells(evaluation.rows)),
    ]
    return "\n".join(lines) + "\n"


def _summary(run: Mapping[str, Any]) -> str:
    return (
        f"Bundle {str(run['fingerprint'])[:12]}, tower trained on folds {_list(run['bundle_training_folds'])}; "
        f"{run['test_records']} studies of {run['test_subjects']} patients, {run['with_history']} of them with an "
        f"earlier study; neighbours from {run['corpus_records']} studies of folds {_list(run['corpus_folds'])}. "
        f"Intervals: 95 %, {run['resamples']} patient-clustered resamples."
    )


def _list(values: Sequence[Any]) -> str:
    return ", ".join(map(str, values)) or "none"


def render_page(found: PredictionEvaluation, pictures: Mapping[str, bytes]) -> str:
    """Return the HTML page: pictures inside, no script, nothing loaded from elsewhere.

    Parameters
    ----------
    found : PredictionEvaluation
    pictures : mapping of str to bytes
        PNG by name, of :func:`mmecg.evaluation.prediction_plots.draw_plots`.
    """
    evaluation = found.evaluation
    rows = {row.key: row for row in evaluation.rows}
    shown = [section for section in load_sections() if any(section.has(key) for key in rows)]
    contents = "".join(f'<li><a href="#{section.key}">{html.escape(section.title)}</a></li>' for section in shown)
    notes = "".join(f"<li>{html.escape(note)}</li>" for note in evaluation.run["notes"])
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    title = f"Prediction that knows the patient: evaluation on fold {evaluation.run['fold']}"
    body = "\n".join(_render_section(section, rows, found.tables, pictures) for section in shown)
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1"><style>{_STYLE}</style></head>
<body><h1>{html.escape(title)}</h1>
<p>{html.escape(_summary(evaluation.run))}</p>
<p class="note">Research software, not a medical device.</p>
{f'<h2>Read this first</h2><ul class="warn">{notes}</ul>' if notes else ""}
<h2>Figures beside their targets</h2>
{_targets(rows)}
<nav><h2>Contents</h2><ol>{contents}</ol></nav>
{body}
<section id="run"><h2>How it was run</h2>{_run_table(evaluation.run)}</section>
<section id="all"><h2>All rows</h2><details><summary>{len(rows)} rows, as in metrics.json</summary>
{_row_table(evaluation.rows)}</details></section>
</body></html>
"""


def _targets(rows: Mapping[str, Row]) -> str:
    lines = []
    for target in TARGETS:
        row = rows.get(target.key)
        if row is None:
            continue
        if math.isfinite(row.value):
            met = target.met(row)
            verdict = f'<td class="{"yes" if met else "no"}">{"met" if met else "missed"}</td>'
        else:
            verdict = f"<td>{html.escape(str(row.extra.get('reason', 'not computed')))}</td>"
        name = f"{html.escape(target.words)}<br><small>{html.escape(row.key)}</small>"
        lines.append(
            f"<tr><td>{name}</td>{_figure_cells(row)}<td>{html.escape(target.wanted)}</td>{verdict}"
            f"<td>{html.escape(_baselines(row))}</td></tr>"
        )
    head = "".join(f"<th>{name}</th>" for name in ("what", "value", "95 % interval", "n", "target", "", "baselines"))
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>"


def _render_section(
    section: Section, rows: Mapping[str, Row], tables: Mapping[str, pl.DataFrame], pictures: Mapping[str, bytes]
) -> str:
    mine = [row for key, row in rows.items() if section.has(key)]
    parts = [f"<p>{html.escape(text)}</p>" for text in section.text]
    for name, caption in section.pictures:
        for suffix, words in (("", ""), ("_cross_fitted", " Cross-fitted over all folds.")):
            if name + suffix in pictures:
                parts.append(_picture(pictures[name + suffix], caption + words))
    brief = mine if len(mine) <= _MANY else [row for row in mine if row.key.count("/") <= 1]
    parts.append(_row_table(brief))
    for name, caption in section.tables:
        for suffix, words in (("", ""), ("_cross_fitted", ", cross-fitted")):
            if name + suffix in tables:
                table = tables[name + suffix]
                inside = _data_table(table)
                heading = f"{html.escape(caption + words)} ({table.height} lines)"
                parts.append(
                    f"<details{' open' * (table.height <= _FEW)}><summary>{heading}</summary>{inside}</details>"
                )
    return f'<section id="{section.key}"><h2>{html.escape(section.title)}</h2>{"".join(parts)}</section>'


_MANY, _FEW = 40, 15


def _picture(content: bytes, caption: str) -> str:
    data = base64.b64encode(content).decode()
    words = html.escape(caption)
    return f'<figure><img alt="{words}" src="data:image/png;base64,{data}"><figcaption>{words}</figcaption></figure>'


def _row_table(rows: Sequence[Row]) -> str:
    lines = []
    for row in rows:
        if math.isfinite(row.value):
            cells = f"{_figure_cells(row)}<td>{html.escape(_baselines(row))}</td><td>{html.escape(_extras(row))}</td>"
        else:
            cells = f'<td colspan="5">{html.escape(str(row.extra.get("reason", "not computed")))}</td>'
        lines.append(f"<tr><td>{html.escape(row.key)}</td>{cells}</tr>")
    head = "".join(f"<th>{name}</th>" for name in (*ROW_COLUMNS, "more"))
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>"


def _figure_cells(row: Row) -> str:
    bounds = f"{_number(row.low)} to {_number(row.high)}" if math.isfinite(row.low) else "–"
    return f'<td class="value">{_number(row.value)}</td><td class="bounds">{bounds}</td><td>{row.n}</td>'


def _baselines(row: Row) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {_number(value)}" for name, value in row.baselines.items())


def _extras(row: Row) -> str:
    parts = []
    for name, value in row.extra.items():
        if isinstance(value, list | tuple):
            continue
        parts.append(f"{name.replace('_', ' ')} {_cell(value)}")
    return ", ".join(parts)


def _run_table(run: Mapping[str, Any]) -> str:
    """Return what was run on what: the entries of ``run.json`` that are not shown elsewhere."""
    lines = [
        f"<tr><th>{html.escape(name.replace('_', ' '))}</th><td>{html.escape(_plain(value))}</td></tr>"
        for name, value in run.items()
        if name not in ("notes", "skipped")
    ]
    left_out = "".join(f"<li>{html.escape(f'{record}: {reason}')}</li>" for record, reason in _skipped(run))
    return f"<table>{''.join(lines)}</table>" + (f"<p>Left out:</p><ul>{left_out}</ul>" if left_out else "")


def _skipped(run: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [(str(one["record"]), str(one["reason"])) for one in run["skipped"]]


def _plain(value: Any) -> str:
    return _list(value) if isinstance(value, list | tuple) else str(value)


def _data_table(table: pl.DataFrame) -> str:
    head = "".join(f"<th>{html.escape(name.replace('_', ' '))}</th>" for name in table.columns)
    lines = [
        "<tr>" + "".join(f"<td>{html.escape(_cell(value))}</td>" for value in line) + "</tr>"
        for line in table.iter_rows()
    ]
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>"


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return _number(value) if isinstance(value, float) else str(value)


def _number(value: float) -> str:
    if not math.isfinite(value):
        return "–"
    small = 0 < abs(value) < 0.0995
    return f"{value:.4f}" if small else f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"


_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;color:#1c2733;margin:1.5rem auto;max-width:1240px;padding:0 1rem}
h1{font-size:1.6rem}h2{font-size:1.2rem;margin-top:1.4rem}small,.note,figcaption{color:#56616d}
section{border-top:2px solid #1f5f99;padding:.2rem 0 1rem}p{max-width:80ch}
table{border-collapse:collapse;font-size:13px;margin:.6rem 0;display:block;overflow-x:auto}
th,td{text-align:left;padding:.2rem .7rem .2rem 0;border-bottom:1px solid #e3e8ed;vertical-align:top}
th{background:#f4f6f8;white-space:nowrap}td.value{font-weight:600}td.value,td.bounds{white-space:nowrap}td.yes{color:#2f7d4f;font-weight:600}
td.no{color:#c8374a;font-weight:600}figure{margin:1rem 0}img{max-width:100%;height:auto;border:1px solid #e3e8ed}
figcaption{font-size:13px;max-width:90ch}details{margin:.5rem 0}summary{cursor:pointer;color:#1f5f99}
.warn{background:#fff7e0;border-left:4px solid #c77c11;padding:.5rem .5rem .5rem 2rem}nav ol{columns:2}
"""
