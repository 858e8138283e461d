"""The queue of disagreements: labels that text and ECG see differently, the most doubtful first, as a table and a page.

A given label (mined from the text, or recorded by someone) is doubted by as much as the probability from text and ECG
contradicts it: one minus its *self-confidence*. Beside it stands whether confident learning (Northcutt et al., JAIR 70,
2021; cleanlab) counts it as an error: the probability passes the mean probability of the records that have the other
value, so that a label that is rarely certain is judged by its own standard.

Some differences come from how a data set codes, not from the record: where reports say "anterior infarct" and the codes
say anteroseptal, a mention differs from codes and ECG in report after report, with great certainty. What all words of
the report amount to, as learnt from gold (:mod:`mmecg.labels.evidence`), knows such habits. An entry in which these
words already decide as the ECG does is a *coding habit*: the two witnesses agree, and only the rule's literal reading
differs. Such entries stand behind all others, marked, not dropped: to a user whose codes follow other habits they are
disagreements.
"""

from __future__ import annotations

import base64
import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from mmecg.errors import InvalidInputError
from mmecg.labels.assertion import LabelAssertion

TEXT_YES, TEXT_NO = "text yes, ECG no", "text no, ECG yes"
"""The text says yes if it mentions the label without denying it; else no, silence included."""

_KINDS = {
    TEXT_YES: "the report mentions it, the ECG says no",
    TEXT_NO: "the report does not state it, the ECG says yes",
}


def suspicion(given: NDArray[np.bool_], probabilities: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return one minus the self-confidence of every given label.

    Parameters
    ----------
    given : bool, shape (n, labels)
    probabilities : floating, shape (n, labels)
        That the label is there; of weights that were not fitted on these given labels.

    Returns
    -------
    float64, shape (n, labels)
    """
    _check(given, probabilities)
    return np.asarray(np.abs(given - probabilities), np.float64)


def confident_errors(given: NDArray[np.bool_], probabilities: NDArray[np.floating]) -> NDArray[np.bool_]:
    """Return which given labels confident learning counts as errors: bool, shape (n, labels).

    A label that is given to all records, or to none, has no standard to be judged by, so none of it counts.

    Parameters
    ----------
    given : bool, shape (n, labels)
    probabilities : floating, shape (n, labels)
    """
    from cleanlab.filter import find_label_issues

    _check(given, probabilities)
    found = np.zeros(given.shape, np.bool_)
    for column in np.flatnonzero(given.any(axis=0) & ~given.all(axis=0)):
        both = np.stack([1 - probabilities[:, column], probabilities[:, column]], axis=1).astype(np.float64)
        found[:, column] = find_label_issues(
            given[:, column].astype(int), both, filter_by="confident_learning", min_examples_per_class=0, n_jobs=1
        )
    return found


def queue_scores(
    text: NDArray[np.bool_], words: NDArray[np.bool_], ecg: NDArray[np.bool_], probabilities: NDArray[np.floating]
) -> NDArray[np.float64]:
    """Return by what the queue is ordered, high before low.

    Parameters
    ----------
    text, words, ecg : bool, shape (n, labels)
        What the text mentions, what its words amount to, and what the ECG decides.
    probabilities : floating, shape (n, labels)
        From text and ECG.

    Returns
    -------
    float64, shape (n, labels)
        1 to 2: text and ECG differ; 0 to 1: they do, by a coding habit; -1: they agree, not in the queue.
    """
    return np.where(text == ecg, -1.0, suspicion(text, probabilities) + (words != ecg))


def disagreement_queue(
    study_ids: Sequence[str],
    labels: Sequence[str],
    *,
    text: NDArray[np.bool_],
    words: NDArray[np.bool_],
    ecg: NDArray[np.bool_],
    text_probability: NDArray[np.floating],
    ecg_probability: NDArray[np.floating],
    probability: NDArray[np.floating],
) -> pl.DataFrame:
    """Return the labels that text and ECG decide differently, the most doubtful first, coding habits last.

    Parameters
    ----------
    study_ids : sequence of str, length n
    labels : sequence of str
    text, words, ecg : bool, shape (n, labels)
        What the text mentions (:func:`mmecg.labels.evidence.mentioned`), what its words amount to (log-odds of
        :class:`mmecg.labels.evidence.TextEvidence` above its thresholds), and what the ECG decides.
    text_probability, ecg_probability, probability : floating, shape (n, labels)
        From the text, from the ECG, from both.

    Returns
    -------
    polars.DataFrame
        ``rank, row`` (position of the study), ``study_id, label, kind, coding_habit, suspicion, confident_error,
        text_probability, ecg_probability, probability``.
    """
    doubt = suspicion(text, probability)
    scores = queue_scores(text, words, ecg, probability)
    errors = confident_errors(text, probability)
    rows, columns = np.nonzero(text != ecg)
    order = np.argsort(-scores[rows, columns], kind="stable")
    rows, columns = rows[order], columns[order]
    at = (rows, columns)
    return pl.DataFrame(
        {
            "rank": np.arange(1, len(rows) + 1),
            "row": rows,
            "study_id": [study_ids[row] for row in rows.tolist()],
            "label": [labels[column] for column in columns.tolist()],
            "kind": [TEXT_YES if said else TEXT_NO for said in text[at]],
            "coding_habit": (words == ecg)[at],
            "suspicion": doubt[at],
            "confident_error": errors[at],
            "text_probability": text_probability[at].astype(np.float64),
            "ecg_probability": ecg_probability[at].astype(np.float64),
            "probability": probability[at].astype(np.float64),
        },
        schema_overrides={"study_id": pl.String(), "label": pl.String(), "kind": pl.String()},
    )


@dataclass(frozen=True)
class Case:
    """One disagreement on the page.

    Attributes
    ----------
    entry : mapping of str to value
        A row of :func:`disagreement_queue`.
    report : str
        Raw text.
    assertions : tuple of LabelAssertion
    picture : bytes
        PNG of the ECG; empty if there is none.
    """

    entry: Mapping[str, object]
    report: str
    assertions: tuple[LabelAssertion, ...]
    picture: bytes


def highlight(report: str, assertions: Sequence[LabelAssertion], label: str) -> str:
    """Return the report as HTML in which what was matched is marked, and that of ``label`` more so.

    Everything that comes from the report is escaped. Of spans that overlap, those of the label come first, then longer
    ones.

    Parameters
    ----------
    report : str
    assertions : sequence of LabelAssertion
    label : str
    """
    spans = [(item.finding == label, item.start, item.end, "finding", _title(item)) for item in assertions]
    spans += [
        (item.finding == label, item.cue_start, item.cue_end, "cue", item.cue)
        for item in assertions
        if item.cue_end > 0
    ]
    parts: list[str] = []
    done = 0
    for own, start, end, kind, title in sorted(_apart(spans), key=lambda span: span[1]):
        parts.append(html.escape(report[done:start]))
        name = f"{kind} own" if own else kind
        parts.append(f'<mark class="{name}" title="{html.escape(title)}">{html.escape(report[start:end])}</mark>')
        done = end
    return "".join([*parts, html.escape(report[done:])])


def render_page(cases: Sequence[Case], *, title: str, names: Mapping[str, str]) -> str:
    """Return one self-contained HTML page: no script, nothing loaded from elsewhere.

    Parameters
    ----------
    cases : sequence of Case
    title : str
    names : mapping of label to str
        What a label stands for.
    """
    body = "\n".join(_section(case, names) for case in cases) or "<p>Text and ECG agree on every label.</p>"
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1"><style>{_STYLE}</style></head>
<body><h1>{html.escape(title)}</h1>
<p class="note">Most doubtful first, coding habits last. Marked: <mark class="finding own">words on this label</mark>
<mark class="finding">words on other findings</mark> <mark class="cue">words that qualify</mark>.
Bars: how probable the label is by all words of the report (as its data set codes, so also where the label itself is not
mentioned), by the ECG alone, and by both. Research software, not a medical device.</p>
{body}
</body></html>
"""


def _section(case: Case, names: Mapping[str, str]) -> str:
    entry = case.entry
    label = str(entry["label"])
    figures = "".join(
        f"<tr><th>{what}</th><td>{_percent(entry[name])}</td><td><div class=bar style='width:{_percent(entry[name])}'>"
        "</div></td></tr>"
        for what, name in (("words", "text_probability"), ("ECG", "ecg_probability"), ("both", "probability"))
    )
    picture = base64.b64encode(case.picture).decode()
    drawn = f'<img alt="ECG of the study" src="data:image/png;base64,{picture}">' if picture else "<p>No ECG.</p>"
    said = highlight(case.report, case.assertions, label) or "<i>empty report</i>"
    flag = " · <b>label error by confident learning</b>" if entry["confident_error"] else ""
    flag += " · coding habit: all words of the report amount to what the ECG says" if entry["coding_habit"] else ""
    kind = _KINDS[str(entry["kind"])]
    name = f"{html.escape(label)} <small>{html.escape(names.get(label, ''))}</small>"
    return f"""<section><h2>{entry["rank"]}. {name}</h2>
<p class="kind">{kind}{flag} · study {html.escape(str(entry["study_id"]))}</p>
<div class="case"><div class="words"><p class="report">{said}</p>
{_mentions(case, label)}<table>{figures}</table></div>{drawn}</div></section>"""


def _mentions(case: Case, label: str) -> str:
    """Return one line for each mention of the label: how the text speaks of it, and by which rule and cue."""
    lines = []
    for item in case.assertions:
        if item.finding == label:
            words = html.escape(" ".join(case.report[item.start : item.end].split()))
            rule = html.escape(" ".join(part for part in (item.rule, item.cue) if part))
            lines.append(f"<li>“{words}”: <b>{item.status.replace('_', ' ')}</b> <small>{rule}</small></li>")
    return f"<ul>{''.join(lines)}</ul>\n" if lines else ""


def _percent(value: object) -> str:
    return f"{100 * float(str(value)):.1f}%"


def _title(item: LabelAssertion) -> str:
    return f"{item.finding}: {item.status.replace('_', ' ')} ({item.rule})"


_Span = tuple[bool, int, int, str, str]


def _apart(spans: Sequence[_Span]) -> list[_Span]:
    """Return spans that do not overlap: own ones first, findings before cues, longer before shorter."""
    kept: list[_Span] = []
    for span in sorted(spans, key=lambda item: (not item[0], item[3] != "finding", item[1] - item[2])):
        if all(span[2] <= other[1] or span[1] >= other[2] for other in kept):
            kept.append(span)
    return kept


def _check(given: NDArray[np.bool_], probabilities: NDArray[np.floating]) -> None:
    if given.shape != probabilities.shape:
        raise InvalidInputError(
            f"labels have shape {given.shape}, probabilities {probabilities.shape}; expected the same", field="labels"
        )


_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;color:#1c2733;margin:1.5rem auto;max-width:1500px;padding:0 1rem}
h1{font-size:1.5rem}h2{font-size:1.15rem;margin:0}small,.note,.kind{color:#56616d;font-weight:400}
section{border-top:2px solid #1f5f99;padding:.8rem 0 1.4rem;break-inside:avoid}.kind{margin:.1rem 0 .6rem}
.kind b{color:#a3263a}ul{margin:0 0 .8rem;padding-left:1.1rem}
.case{display:grid;grid-template-columns:minmax(280px,1fr) minmax(0,2.4fr);gap:1.2rem}
.report{white-space:pre-wrap;overflow-wrap:anywhere;background:#f4f6f8;padding:.7rem;border-radius:4px;margin:0 0 .8rem}
mark{background:#e3ebf3;padding:.05em .15em;border-radius:3px}mark.own{background:#ffd97a}
mark.cue{background:none;border-bottom:2px solid #d1495b;padding:0}mark.cue.own{background:#ffd97a}
img{max-width:100%;height:auto;border:1px solid #e3e8ed}table{border-collapse:collapse;width:100%}
th{text-align:left;font-weight:400;width:4rem}td:nth-child(2){width:4rem;text-align:right;padding-right:.6rem}
.bar{background:#1f5f99;height:.7em;min-width:1px;border-radius:2px}
@media(max-width:900px){.case{grid-template-columns:1fr}}
"""
