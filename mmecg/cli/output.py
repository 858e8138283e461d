"""What commands print: tables for people on a terminal, JSON for programs, progress and notes on standard error."""

from __future__ import annotations

import getpass
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmecg.errors import AlreadyExistsError, InvalidInputError, NotFoundError
from mmecg.study import Study
from mmecg.vitals import Vitals

if TYPE_CHECKING:
    import polars as pl
    from rich.console import Console

    from mmecg.ecg import Ecg
    from mmecg.search import SearchResult

PIPE_WIDTH = 140
_VITAL_LABELS = {
    "age_years": "{:.0f} y",
    "sex": "{}",
    "height_cm": "{:.0f} cm",
    "weight_kg": "{:.0f} kg",
    "heart_rate_bpm": "HR {:.0f}/min",
    "systolic_bp_mmhg": "SBP {:.0f} mmHg",
    "diastolic_bp_mmhg": "DBP {:.0f} mmHg",
    "respiratory_rate_bpm": "RR {:.0f}/min",
    "spo2_percent": "SpO2 {:.0f} %",
    "temperature_c": "{:.1f} °C",
}


def note(message: str) -> None:
    """Print a line for people on standard error."""
    print(f"mmecg: {message}", file=sys.stderr)


def operator() -> str:
    """Return who runs the command, as the audit trail shows it."""
    try:
        return f"cli:{getpass.getuser()}"
    except (KeyError, OSError):  # a user without a name, in a container
        return f"cli:{os.getuid()}"


def print_json(value: Any) -> None:
    """Print one JSON document on standard output."""
    print(json.dumps(value, ensure_ascii=False, indent=2, allow_nan=False))


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], *, error: bool = False) -> None:
    """Print a table; no cell is read as markup.

    Parameters
    ----------
    title : str
    columns : sequence of str
        A name that ends in ``>`` is a column of numbers, set flush right.
    rows : sequence of sequence of str
    error : bool
        Print on standard error.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        number = column.endswith(">")
        table.add_column(column.removesuffix(">"), justify="right" if number else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    console = _console(error=error)
    console.print(Text(title, style="bold"))
    console.print(table)


def print_skipped(failures: pl.DataFrame) -> None:
    """Print the records that were skipped, and why (columns ``record``, ``reason``), on standard error."""
    shown = failures.head(50)
    print_table(f"{failures.height} records skipped", ["record", "reason"], shown.rows(), error=True)
    if failures.height > shown.height:
        note(f"and {failures.height - shown.height} more")


@contextmanager
def progress(description: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """Yield a function that advances a progress bar on standard error; the bar shows on a terminal only."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = _console(error=True)
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(description, total=total)
        yield lambda count: bar.advance(task, count)


def print_hits(result: SearchResult, *, title: str) -> None:
    """Print the hits of one query as a table, with the plan that found them."""
    rows = []
    for rank, hit in enumerate(result.hits, 1):
        study = hit.study
        who = describe_vitals(study.vitals) if study else ""
        report = study.report.text if study and study.report else ""
        rows.append(
            [str(rank), f"{hit.score:.3f}", hit.study_id, study.subject_id if study else "", who, shorten(report, 220)]
        )
    print_table(title, ["#>", "score>", "study", "subject", "vitals", "report"], rows)
    plan = result.plan
    quality = "exact" if plan.exact else "approximate"
    note(f"{plan.rows_passing} of {plan.rows_total} studies passed the filter; searched by {plan.engine} ({quality})")
    if result.next_page_token:
        note(f"there are more hits; the next page: --page-token {result.next_page_token}")


def result_as_json(result: SearchResult) -> dict[str, Any]:
    """Return a search result as plain values."""
    return {
        "plan": asdict(result.plan),
        "hits": [
            {
                "study_id": hit.study_id,
                "score": round(hit.score, 6),
                "modality_scores": {name: round(score, 6) for name, score in hit.modality_scores.items()},
                "study": study_as_json(hit.study) if hit.study else None,
            }
            for hit in result.hits
        ],
        "next_page_token": result.next_page_token,
    }


def study_as_json(study: Study) -> dict[str, Any]:
    """Return a study without its signal as plain values."""
    return {
        "study_id": study.study_id,
        "subject_id": study.subject_id,
        "acquired_at": study.acquired_at.isoformat() if study.acquired_at else None,
        "report": study.report.text if study.report else None,
        "vitals": {name: value for name, value in asdict(study.vitals).items() if value is not None},
        "labels": dict(study.labels),
        "site": study.site,
        "device": study.device,
    }


def quality_as_json(ecg: Ecg) -> list[dict[str, Any]]:
    """Return the quality findings of a recording as plain values: kind and leads."""
    from mmecg.quality import assess_quality

    return [{"kind": finding.kind, "leads": list(finding.leads)} for finding in assess_quality(ecg)]


def note_quality(name: str, findings: Sequence[dict[str, Any]]) -> None:
    """Print a line for each quality finding of a recording on standard error."""
    for finding in findings:
        note(f"quality of {name}: {finding['kind']} in {', '.join(finding['leads'])}")


def describe_vitals(vitals: Vitals) -> str:
    """Return what was measured in one short line."""
    values = asdict(vitals)
    return ", ".join(form.format(values[name]) for name, form in _VITAL_LABELS.items() if values[name] is not None)


def describe_labels(study: Study) -> str:
    """Return the labels of a study, likeliest first; a likelihood of 0 means unknown and is not printed."""
    ordered = sorted(study.labels.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{label} {likelihood:.0f} %" if likelihood else label for label, likelihood in ordered)


def shorten(text: str, length: int) -> str:
    """Cut a text at a word, with an ellipsis."""
    if len(text) <= length:
        return text
    return text[:length].rsplit(" ", 1)[0] + " …"


def check_new(path: Path, what: str) -> Path:
    """Return ``path`` if nothing is there and its folder exists.

    Raises
    ------
    AlreadyExistsError, NotFoundError
        Otherwise.
    """
    if path.exists():
        raise AlreadyExistsError(f"{what} {path} exists already; remove it, or give another path")
    return check_parent(path, what)


def check_parent(path: Path, what: str) -> Path:
    """Return ``path`` if its folder exists. Raises ``NotFoundError``."""
    if not path.absolute().parent.is_dir():
        raise NotFoundError(f"{what} {path} cannot be written: its folder does not exist; make it first")
    return path


def check_png(path: Path) -> Path:
    """Return ``path`` if a plot can be written there. Raises ``InvalidInputError``, ``NotFoundError``."""
    if path.is_dir():
        raise InvalidInputError(f"plot {path} is a folder, expected a .png file to write")
    if path.suffix.lower() != ".png":
        raise InvalidInputError(f"plot {path} has suffix {path.suffix!r}, expected .png")
    return check_parent(path, "plot")


def _console(*, error: bool) -> Console:
    from rich.console import Console

    console = Console(stderr=error, highlight=False, emoji=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = PIPE_WIDTH
    return console
