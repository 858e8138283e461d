"""``mmecg mine-labels``: a table of reports in, a table of assertions with their evidence out."""

from __future__ import annotations

import argparse
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import polars as pl

    from mmecg.labels.mining import LabelMiner

_ID_COLUMNS = ("study_id", "ecg_id")
_NOT_MINED = ("not_text", "too_long", "control_characters")
_VOCABULARIES = {"scp": "scp", "snomed": "snomed", "ecgfounder": "ecgfounder", "ecg-fm": "ecg_fm"}
_DOUBT = ("probable", "possible", "cannot_rule_out", "alternative")
_SHOWN_FINDINGS = 40

_EXAMPLES = """\
examples:
  mmecg mine-labels reports.csv --out assertions.parquet
  mmecg mine-labels machine_measurements.csv --out assertions.parquet --wide labels.parquet
  mmecg mine-labels notes.parquet --out assertions.parquet --text-column note --id-column visit --vocabulary snomed
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
    parser.add_argument("table", type=Path, metavar="IN", help=".csv, .csv.gz or .parquet")
    parser.add_argument("--out", type=Path, required=True, metavar="PARQUET", help="assertions; must be new")
    parser.add_argument("--wide", type=Path, metavar="PARQUET", help="one row for each input row; must be new")
    parser.add_argument(
        "--text-column",
        action="append",
        metavar="NAME",
        help="column of text; may be given several times (report, else report_0, report_1, …)",
    )
    parser.add_argument("--id-column", metavar="NAME", help="column of study ids (study_id, ecg_id, else row numbers)")
    parser.add_argument("--vocabulary", choices=_VOCABULARIES, help="write codes of this system instead of findings")
    parser.add_argument("--corpus", type=Path, help="where to look up the prior study of what needs one")
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
    from mmecg.cli.output import check_new, progress
    from mmecg.labels.mining import LabelMiner
    from mmecg.labels.report_rows import check_columns
    from mmecg.labels.wide import wide_table

    for path, what in ((args.out, "assertions"), (args.wide, "wide table")):
        if path is not None:
            check_new(path, what)
    with _reading(args.table):
        table = _scan(args.table)
        schema = table.collect_schema()
        text_columns = args.text_column or _text_columns(list(schema))
        id_column = args.id_column or next((name for name in _ID_COLUMNS if name in schema), None)
        check_columns(schema, text_columns, id_column)
        typos = _find_typos(table, text_columns) if args.mend_typos else None
        miner = LabelMiner(typos=typos)
        codes = _codes(args, miner)
        summary = Summary()
        with tempfile.TemporaryDirectory(dir=args.out.absolute().parent, prefix=".mine-labels-") as folder:
            with progress("mining reports", None) as advance, _refiner(args, miner, codes) as refine:
                for number, (assertions, rows) in enumerate(_mine(table, text_columns, id_column, typos, args.jobs)):
                    assertions = refine(assertions)
                    summary.add(assertions, rows)
                    assertions.write_parquet(Path(folder) / f"assertions-{number:06}.parquet")
                    if args.wide:
                        names = miner.findings if codes is None else codes["code"].unique().sort().to_list()
                        wide_table(assertions, rows, names).write_parquet(Path(folder) / f"wide-{number:06}.parquet")
                    advance(rows.height)
            _join(folder, "assertions", args.out)
            if args.wide:
                _join(folder, "wide", args.wide)
    summary.print(args)
    return 1 if any(name in summary.flags for name in _NOT_MINED) else 0


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
    """What was mined so far, in numbers."""

    def __init__(self) -> None:
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
            print_json({**counts, "flags": dict(sorted(self.flags.items())), **serial, "findings": findings})
            return
        lines = [[name, *self._counts(found)] for name, found in list(ordered.items())[:_SHOWN_FINDINGS]]
        title = f"{args.out}: {self.assertions} assertions in {self.with_assertions} of {self.rows} rows"
        print_table(title, ["finding", "assertions>", "present>", "in doubt>", "negated>", "other>"], lines)
        if len(ordered) > _SHOWN_FINDINGS:
            note(f"and {len(ordered) - _SHOWN_FINDINGS} more findings")
        for name, count in sorted(self.flags.items()):
            note(f"{count} rows flagged {name}")
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
    return codes_of(load_vocabulary(), miner.findings, _VOCABULARIES[args.vocabulary])


@contextmanager
def _refiner(
    args: argparse.Namespace, miner: LabelMiner, codes: pl.DataFrame | None
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
        priors = prior_studies(retriever.corpus.metadata())
        yield lambda assertions: refine(resolver.resolve_table(assertions, priors))


def _scan(path: Path) -> pl.LazyFrame:
    """Open a table without reading it; every field of a CSV file is text."""
    import polars as pl

    from mmecg.errors import InvalidInputError

    name = path.name.lower()
    if not path.is_file():
        raise FileNotFoundError(2, "No such file or directory", str(path))
    if name.endswith(".parquet"):
        return pl.scan_parquet(path)
    if name.endswith((".csv", ".csv.gz")):
        return pl.scan_csv(path, infer_schema=False, encoding="utf8-lossy")
    raise InvalidInputError(f"table {path.name} has an unknown ending, expected .csv, .csv.gz or .parquet; convert it")


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn what polars says of an unreadable table into one clear line."""
    import polars as pl

    from mmecg.errors import InvalidInputError

    try:
        yield
    except pl.exceptions.NoDataError:
        raise InvalidInputError(
            f"table {path.name} is empty, expected a line of column names; check the file"
        ) from None
    except (pl.exceptions.ComputeError, pl.exceptions.ColumnNotFoundError) as error:
        kind, advice = "CSV", "look for text with commas but without quotation marks, or marks that are not closed"
        if path.name.lower().endswith(".parquet"):
            kind, advice = "Parquet", "check the file"
        raise InvalidInputError(
            f"table {path.name} cannot be read ({type(error).__name__}), expected a {kind} table; {advice}"
        ) from error


def _text_columns(columns: list[str]) -> list[str]:
    """Return ``report``, or ``report_0``, ``report_1``, … in order."""
    from mmecg.errors import InvalidInputError

    if "report" in columns:
        return ["report"]
    numbered = {int(found[1]): name for name in columns if (found := re.fullmatch(r"report_(\d+)", name))}
    if not numbered:
        known = ", ".join(columns[:20])
        if not known.isprintable() or "\ufffd" in known:
            raise InvalidInputError(
                "table does not begin with a line of UTF-8 text, expected column names; convert it to UTF-8",
                field="table",
            )
        advice = "name the text with --text-column"
        if len(columns) == 1 and (";" in known or "\t" in known):
            advice = "separate the columns by commas"
        raise InvalidInputError(f"table has no column report or report_0, found {known}; {advice}", field="column")
    return [numbered[number] for number in sorted(numbered)]


def _join(folder: str, name: str, path: Path) -> None:
    """Write the parts as one file, which appears when it is complete."""
    import polars as pl

    partial = Path(folder) / f"{name}.parquet"
    pl.scan_parquet(Path(folder) / f"{name}-*.parquet").sink_parquet(partial)
    partial.rename(path)
