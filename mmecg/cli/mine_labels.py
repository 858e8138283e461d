"""``mmecg mine-labels``: a table of reports in, a table of assertions with their evidence out."""

from __future__ import annotations

import argparse
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import date, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmecg.cli.report_table import add_table_arguments

if TYPE_CHECKING:
    import polars as pl

    from mmecg.labels.mining import LabelMiner

_ID_COLUMNS = ("study_id", "ecg_id")
_NOT_MINED = ("not_text", "too_long", "control_characters")
_SUBJECT_COLUMNS = ("subject_id",)
_TIME_COLUMNS = ("acquired_at", "ecg_time")
_VOCABULARIES = ("scp", "snomed", "ecgfounder", "ecg_fm")
_DOUBT = ("probable", "possible", "cannot_rule_out", "alternative")
_SHOWN_FINDINGS = 40

_EXAMPLES = """\
examples:
  mmecg mine-labels reports.csv --out assertions.parquet
  mmecg mine-labels machine_measurements.csv --out assertions.parquet --wide labels.parquet
  mmecg mine-labels notes.parquet --out assertions.parquet --text-column note --id-column visit --vocabulary snomed
  mmecg mine-labels berichte.csv --encoding cp1252 --separator ';' --out assertions.parquet
  mmecg mine-labels reports.csv --out assertions.parquet --corpus corpus/     looks up what needs a prior ECG there

One row of --out is one assertion: the words (offsets into the raw text), what they say, and how sure. --wide has one
row for each row of the input, whatever it holds. Memory grows with --jobs, not with the table. The exit code is 1 if a
text could not be mined (not text, too long, control characters).
"""


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Add the command's arguments."""
    parser = subparsers.add_parser(
        "mine-labels",
        help="find what reports say: labels with evidence, status and probability",
        description="Mine the reports of a table. German, English and Swedish are told apart sentence by sentence.",
        epilog=_EXAMPLES,
    )
    add_table_arguments(parser)
    parser.add_argument("--out", type=Path, required=True, metavar="PARQUET", help="assertions; must be new")
    parser.add_argument("--wide", type=Path, metavar="PARQUET", help="one row for each input row; must be new")
    parser.add_argument(
        "--text-column",
        action="append",
        metavar="NAME",
        help="column of text; may be given several times (report, else report_0, report_1, …)",
    )
    parser.add_argument("--id-column", metavar="NAME", help="column of study ids (study_id, ecg_id, else row numbers)")
    parser.add_argument(
        "--vocabulary",
        type=lambda text: text.replace("-", "_"),
        choices=_VOCABULARIES,
        help="write codes of this system instead of findings; ecg-fm is ecg_fm",
    )
    parser.add_argument("--corpus", type=Path, help="where to look up the prior study of what needs one")
    parser.add_argument(
        "--subject-column", metavar="NAME", help="with --corpus: subjects of rows that the corpus lacks (subject_id)"
    )
    parser.add_argument(
        "--time-column", metavar="NAME", help="with --corpus: when these ECGs were acquired (acquired_at, ecg_time)"
    )
    parser.add_argument("--bundle", type=Path, help="model bundle of the corpus; default the one that ships with mmecg")
    parser.add_argument(
        "--mend-typos", action="store_true", help="read the table twice: first to find its typing errors of rule words"
    )
    parser.add_argument(
        "--jobs", type=_jobs, metavar="N", help="worker processes (default: one a core for large tables, else none)"
    )
    parser.add_argument("--json", action="store_true", help="print the summary as JSON")
    parser.set_defaults(run=run)


def _jobs(text: str) -> int:
    if not (text.isdecimal() and int(text) >= 1):
        raise argparse.ArgumentTypeError(f"{text[:20]!r} is no number of processes, expected 1 or more")
    return int(text)


def run(args: argparse.Namespace) -> int:
    """Mine a table."""
    from mmecg.cli.output import check_new
    from mmecg.cli.report_table import open_table
    from mmecg.errors import InvalidInputError

    for path, what in ((args.out, "assertions"), (args.wide, "wide table")):
        if path is not None:
            check_new(path, what)
    if args.wide is not None and args.wide.resolve() == args.out.resolve():
        raise InvalidInputError("--wide is the file of --out, expected another; name two files")
    parent = args.out.absolute().parent
    with tempfile.TemporaryDirectory(dir=parent, prefix=".mine-labels-") as name, open_table(args, Path(name)) as table:
        summary = _mine_table(args, table, Path(name))
    summary.print(args)
    return 1 if any(name in summary.flags for name in _NOT_MINED) else 0


def _mine_table(args: argparse.Namespace, table: pl.LazyFrame, folder: Path) -> Summary:
    """Mine a table into parts in ``folder``, then put them together."""
    from mmecg.cli.output import progress
    from mmecg.cli.report_table import check_not_repeated, text_columns_of
    from mmecg.labels.mining import LabelMiner
    from mmecg.labels.report_rows import check_columns
    from mmecg.labels.wide import wide_table

    schema = table.collect_schema()
    text_columns = args.text_column or text_columns_of(list(schema))
    id_column = args.id_column or next((name for name in _ID_COLUMNS if name in schema), None)
    check_columns(schema, text_columns, id_column)
    check_not_repeated(schema, [*text_columns, id_column] if id_column else text_columns)
    subjects = _subjects(args, table, schema, folder)
    typos = _find_typos(table, text_columns) if args.mend_typos else None
    miner = LabelMiner(typos=typos)
    codes = _codes(args, miner)
    summary = Summary(_names(args.vocabulary))
    with progress("mining reports", None) as advance, _refiner(args, miner, codes, subjects) as refine:
        for number, (assertions, rows) in enumerate(_mine(table, text_columns, id_column, typos, args.jobs)):
            assertions = refine(assertions)
            summary.add(assertions, rows)
            assertions.write_parquet(folder / f"assertions-{number:06}.parquet")
            if args.wide:
                names = miner.findings if codes is None else codes["code"].unique().sort().to_list()
                wide_table(assertions, rows, names).write_parquet(folder / f"wide-{number:06}.parquet")
            advance(rows.height)
    _join(folder, "assertions", args.out)
    if args.wide:
        _join(folder, "wide", args.wide)
    return summary


def _subjects(args: argparse.Namespace, table: pl.LazyFrame, schema: pl.Schema, folder: Path) -> pl.LazyFrame | None:
    """Return row, subject and time of the table's rows, kept on disk; None if the table, or the task, has no such."""
    import polars as pl

    from mmecg.cli.report_table import check_not_repeated
    from mmecg.errors import InvalidInputError
    from mmecg.labels.report_rows import check_columns

    given = {"--subject-column": args.subject_column, "--time-column": args.time_column}
    named = [option for option, name in given.items() if name]
    if named and args.corpus is None:
        raise InvalidInputError(f"{named[0]} came without --corpus, expected one to look up prior studies in")
    subject, time = (
        name or next((known for known in defaults if known in schema), None)
        for name, defaults in zip(given.values(), (_SUBJECT_COLUMNS, _TIME_COLUMNS), strict=True)
    )
    if args.corpus is None or not (named or (subject and time)):
        return None
    if subject is None or time is None:
        lacking = "--time-column" if subject else "--subject-column"
        raise InvalidInputError(f"{named[0]} came alone, expected subject and time of each row; add {lacking}")
    check_columns(schema, [subject, time], None)
    check_not_repeated(schema, [subject, time])
    path = folder / "subjects.parquet"
    columns = (pl.col(subject).cast(pl.String, strict=False).alias("subject_id"), pl.col(time).alias("acquired_at"))
    table.select(columns).with_row_index("row").sink_parquet(path)
    return pl.scan_parquet(path)


def _names(vocabulary: str | None) -> dict[str, str]:
    """Return what findings, or the codes of a system, are called."""
    from mmecg.labels.vocabulary import load_vocabulary

    known = load_vocabulary()
    if vocabulary is None:
        return {finding.id: finding.name for finding in known.findings}
    return {row.code: row.name for row in known.mappings(vocabulary)}


def _find_typos(table: pl.LazyFrame, text_columns: list[str]) -> dict[bytes, bytes]:
    """Return the typing errors of a table's texts, and say how many there are."""
    import polars as pl

    from mmecg.cli.output import note
    from mmecg.labels.rules import LANGUAGES, load_rules
    from mmecg.labels.typos import find_typos, rule_words

    batches = table.select(pl.col(text_columns).cast(pl.String, strict=False)).collect_batches()
    texts = (text for batch in batches for name in text_columns for text in batch[name].drop_nulls())
    typos = find_typos(texts, rule_words(load_rules(language) for language in LANGUAGES))
    note(f"{len(typos)} typing errors of rule words are mended")
    return typos


class Summary:
    """What was mined so far, in numbers.

    Parameters
    ----------
    names : dict of str to str
        What findings, or codes, are called.
    """

    def __init__(self, names: dict[str, str]) -> None:
        self.names = names
        self.rows = self.with_assertions = self.assertions = 0
        self.flags: Counter[str] = Counter()
        self.serial: Counter[str] = Counter()
        self.findings: dict[str, Counter[str]] = {}

    def add(self, assertions: pl.DataFrame, rows: pl.DataFrame) -> None:
        """Count a batch."""
        self.rows += rows.height
        self.assertions += assertions.height
        self.with_assertions += assertions["row"].n_unique()
        self.flags.update(rows["flags"].explode().drop_nulls().to_list())
        if "resolution" in assertions.columns:
            self.serial.update(assertions["resolution"].drop_nulls().to_list())
        for finding, status, count in assertions.group_by("finding", "status").len().iter_rows():
            self.findings.setdefault(finding, Counter())[status] += count

    def print(self, args: argparse.Namespace) -> None:
        """Print the summary as the arguments ask."""
        from mmecg.cli.output import note, print_json, print_table

        ordered = dict(sorted(self.findings.items(), key=lambda item: (-item[1].total(), item[0])))
        if args.json:
            counts = {"rows": self.rows, "rows_with_assertions": self.with_assertions, "assertions": self.assertions}
            serial = {"serial": dict(sorted(self.serial.items()))} if args.corpus else {}
            findings = {name: dict(found) for name, found in ordered.items()}
            names = {"names": {name: self.names[name] for name in findings}}
            print_json({**counts, "flags": dict(sorted(self.flags.items())), **serial, "findings": findings, **names})
            return
        lines = [
            [name, self.names[name], *self._counts(found)] for name, found in list(ordered.items())[:_SHOWN_FINDINGS]
        ]
        title = f"{args.out}: {self.assertions} assertions in {self.with_assertions} of {self.rows} rows"
        print_table(
            title,
            [
                "finding" if args.vocabulary is None else "code",
                "name",
                "assertions>",
                "present>",
                "in doubt>",
                "negated>",
                "other>",
            ],
            lines,
        )
        if len(ordered) > _SHOWN_FINDINGS:
            note(f"and {len(ordered) - _SHOWN_FINDINGS} more findings")
        for name, count in sorted(self.flags.items()):
            hint = "; name the encoding of the table with --encoding" if name == "encoding" else ""
            note(f"{count} rows flagged {name}{hint}")
        for name, count in sorted(self.serial.items()):
            note(f"{count} serial statements: {name}")

    @staticmethod
    def _counts(found: Counter[str]) -> list[str]:
        """Return all mentions, then present, in doubt, negated, other (historical, conditional, serial)."""
        doubt = sum(found[status] for status in _DOUBT)
        sure = found["present"], doubt, found["negated"]
        return [str(count) for count in (found.total(), *sure, found.total() - sum(sure))]


def _mine(
    table: pl.LazyFrame,
    text_columns: list[str],
    id_column: str | None,
    typos: dict[bytes, bytes] | None,
    jobs: int | None,
) -> Iterator[tuple[pl.DataFrame, pl.DataFrame]]:
    """Yield batches; an empty table is one empty batch."""
    import polars as pl

    from mmecg.labels.parallel import mine_in_parallel
    from mmecg.labels.report_rows import ROW_SCHEMA
    from mmecg.labels.tables import ASSERTION_SCHEMA
    from mmecg.labels.weights import load_text_evidence

    probability = load_text_evidence().mention_probability
    empty = True
    for batch in mine_in_parallel(
        table, text_columns, id_column=id_column, probability=probability, typos=typos, jobs=jobs
    ):
        empty = False
        yield batch
    if empty:
        yield pl.DataFrame(schema=ASSERTION_SCHEMA), pl.DataFrame(schema=ROW_SCHEMA)


def _codes(args: argparse.Namespace, miner: LabelMiner) -> pl.DataFrame | None:
    """Return the codes of the system that was asked for, if one was."""
    from mmecg.labels.vocabulary import load_vocabulary
    from mmecg.labels.wide import codes_of

    if args.vocabulary is None:
        return None
    return codes_of(load_vocabulary(), miner.findings, args.vocabulary)


@contextmanager
def _refiner(
    args: argparse.Namespace, miner: LabelMiner, codes: pl.DataFrame | None, subjects: pl.LazyFrame | None
) -> Iterator[Callable[[pl.DataFrame], pl.DataFrame]]:
    """Yield what looks up prior studies, if there is a corpus, and turns findings into codes, if asked to."""
    from mmecg.cli.inputs import open_retriever
    from mmecg.labels.serial import SerialResolver, prior_studies
    from mmecg.labels.wide import translate

    def refine(assertions: pl.DataFrame) -> pl.DataFrame:
        return assertions if codes is None else translate(assertions, codes)

    if args.corpus is None:
        yield refine
        return
    with open_retriever(args.corpus, args.bundle) as retriever:
        resolver = SerialResolver(retriever.corpus, miner.mine)
        studies = retriever.corpus.metadata()
        priors = prior_studies(studies)

        def resolve(assertions: pl.DataFrame) -> pl.DataFrame:
            rows = None if subjects is None else _rows_in_time(assertions, subjects, studies)
            return refine(resolver.resolve_table(assertions, priors if rows is None else prior_studies(studies, rows)))

        yield resolve


def _rows_in_time(assertions: pl.DataFrame, subjects: pl.LazyFrame, studies: pl.DataFrame) -> pl.DataFrame:
    """Return row, subject and time of the rows that need a prior study; what the corpus knows comes first."""
    import polars as pl

    asked = assertions.filter("needs_prior").select("row", "study_id").unique(maintain_order=True)
    if asked.height:
        within = pl.col("row").is_between(asked["row"].min(), asked["row"].max())
        told = subjects.filter(within).cast({"row": pl.Int64}).collect()
    else:
        told = subjects.limit(0).cast({"row": pl.Int64}).collect()
    found = asked.join(told, on="row", how="left", maintain_order="left")
    times = pl.Series("acquired_at", [_time(value) for value in found["acquired_at"]], dtype=pl.Datetime("us"))
    known = studies.select("study_id", known_subject="subject_id", known_time="acquired_at")
    return (
        found.with_columns(times)
        .join(known, on="study_id", how="left", maintain_order="left")
        .select(
            "row",
            pl.coalesce("known_subject", "subject_id").alias("subject_id"),
            pl.coalesce("known_time", "acquired_at").alias("acquired_at"),
        )
    )


def _time(value: object) -> datetime | None:
    """Return a time as the corpus holds them; None for what is no time."""
    from mmecg.study import without_zone

    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value.strip())
        except ValueError:
            return None
    if isinstance(value, datetime):
        return without_zone(value)
    return datetime(value.year, value.month, value.day) if isinstance(value, date) else None


def _join(folder: Path, name: str, path: Path) -> None:
    """Write the parts as one file, which appears when it is complete."""
    import polars as pl

    partial = folder / f"{name}.parquet"
    pl.scan_parquet(folder / f"{name}-*.parquet").sink_parquet(partial)
    partial.rename(path)
