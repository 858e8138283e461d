"""Tables of reports as commands read them: CSV in any encoding, Parquet; and what is wrong with them, said plainly."""

from __future__ import annotations

import argparse
import codecs
import gzip
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import polars as pl

_CHUNK_CHARS = 1 << 20
_CSV = (".csv", ".csv.gz")


def add_table_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the table, and what a CSV file does not say about itself."""
    parser.add_argument("table", type=Path, metavar="IN", help=".csv, .csv.gz or .parquet")
    parser.add_argument("--encoding", type=_encoding, metavar="NAME", help="of a CSV file, such as cp1252 (utf-8)")
    parser.add_argument(
        "--separator", type=_separator, metavar="CHAR", help="between columns of a CSV file, such as ';' or tab (,)"
    )


@contextmanager
def open_table(args: argparse.Namespace, folder: Path) -> Iterator[pl.LazyFrame]:
    """Yield a table that is not yet read; every field of a CSV file is text.

    A byte that is not of the encoding becomes a replacement character, so that its row stays and is flagged. Another
    encoding than UTF-8 is first written as UTF-8 into ``folder``, piece by piece.

    Raises
    ------
    InvalidInputError
        The table cannot be read, now or while the block reads it.
    """
    with _reading(args.table):
        yield _scan(args, folder)


def _scan(args: argparse.Namespace, folder: Path) -> pl.LazyFrame:
    import polars as pl

    from mmecg.errors import InvalidInputError

    path: Path = args.table
    if not path.is_file():
        raise FileNotFoundError(2, "No such file or directory", str(path))
    if path.name.lower().endswith(".parquet"):
        if given := [f"--{name}" for name in ("encoding", "separator") if getattr(args, name) is not None]:
            raise InvalidInputError(f"{given[0]} does not apply to the Parquet table {path.name}; leave it out")
        return pl.scan_parquet(path)
    if not path.name.lower().endswith(_CSV):
        raise InvalidInputError(
            f"table {path.name} has an unknown ending, expected .csv, .csv.gz or .parquet; convert it"
        )
    if args.encoding not in (None, "utf-8"):
        path = _as_utf8(path, args.encoding, folder)
    return pl.scan_csv(path, infer_schema=False, encoding="utf8-lossy", separator=args.separator or ",")


def _as_utf8(path: Path, encoding: str, folder: Path) -> Path:
    opened = gzip.open if path.name.lower().endswith(".gz") else open
    copy = folder / "table.csv"
    with (
        opened(path, "rt", encoding=encoding, errors="replace", newline="") as source,
        copy.open("w", encoding="utf-8", newline="") as target,
    ):
        shutil.copyfileobj(source, target, _CHUNK_CHARS)
    return copy


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


def text_columns_of(columns: list[str]) -> list[str]:
    """Return ``report``, or ``report_0``, ``report_1``, … in order. Raises ``InvalidInputError``."""
    from mmecg.errors import InvalidInputError

    if "report" in columns:
        return ["report"]
    numbered = {int(found[1]): name for name in columns if (found := re.fullmatch(r"report_(\d+)", name))}
    if not numbered:
        known = ", ".join(columns[:20]).replace("\t", "\\t")
        if not known.isprintable() or "\ufffd" in known:
            raise InvalidInputError(
                "table does not begin with a line of UTF-8 text, expected column names; name its encoding with "
                "--encoding, such as utf-16 or cp1252, or convert it to UTF-8",
                field="table",
            )
        advice = "name the text with --text-column"
        if len(columns) == 1 and (found := re.search(r";|\||\\t", known)):
            separator = "tab" if found[0] == "\\t" else repr(found[0])
            advice = f"name what separates the columns with --separator {separator}"
        raise InvalidInputError(f"table has no column report or report_0, found {known}; {advice}", field="column")
    return [numbered[number] for number in sorted(numbered)]


def check_not_repeated(columns: Iterable[str], names: Iterable[str]) -> None:
    """Refuse columns whose name the head of a CSV file has more than once. Raises ``InvalidInputError``."""
    from mmecg.errors import InvalidInputError

    known = set(columns)
    for name in names:
        if f"{name}_duplicated_0" in known:  # what polars calls the second one
            raise InvalidInputError(
                f"table has more than one column {name[:40]!r}, expected one; rename them "
                "(several texts: report_0, report_1, …)",
                field="column",
            )


def _encoding(text: str) -> str:
    try:
        b" ".decode(text, "replace")  # refuses codecs that are not of text
        return codecs.lookup(text).name
    except LookupError:
        raise argparse.ArgumentTypeError(
            f"{text[:20]!r} is no known encoding, expected such as utf-8 or cp1252"
        ) from None


def _separator(text: str) -> str:
    character = "\t" if text in ("tab", "\\t") else text
    if len(character) != 1 or not character.isascii() or character in '"\r\n':
        raise argparse.ArgumentTypeError(f"{text[:20]!r} is no separator, expected one ASCII character, or tab")
    return character
