"""What commands take in: recordings, texts, vitals, filters and folders of studies, each checked with a clear error."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from mmecg.assets import DEMO_CORPUS
from mmecg.errors import InvalidInputError, QueryError, ReportError, SignalError
from mmecg.report import MAX_TEXT_CHARS, check_text
from mmecg.search import Filter
from mmecg.vitals import Vitals

if TYPE_CHECKING:
    from mmecg.bundle import Bundle
    from mmecg.datasets.bulk import BulkReport
    from mmecg.ecg import Ecg
    from mmecg.retriever import Retriever
    from mmecg.study import Study


def positive_int(text: str) -> int:
    """Parse an argument that counts something; for ``argparse``."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not positive")
    return value


class StudySource(Protocol):
    """Studies that are read while you iterate; ``report`` says afterwards which records were skipped."""

    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[Study]: ...

    @property
    def report(self) -> BulkReport:
        """What was skipped, and why."""


def add_ecg_arguments(parser: argparse._ActionsContainer) -> None:
    """Add what a NumPy file does not say about itself."""
    group = parser.add_argument_group("NumPy recordings (.npy or .npz, shape (leads, samples))")
    group.add_argument("--sampling-rate-hz", type=float, metavar="HZ", help="samples per second")
    group.add_argument(
        "--leads", metavar="NAMES", help="name of each row, for example I,II,V1; default the 12 in order"
    )
    group.add_argument("--unit", help="mV, uV or V (mV)")


def is_numpy(path: Path) -> bool:
    """Return whether a path names a NumPy file."""
    return path.suffix.lower() in (".npy", ".npz")


def check_ecg_arguments(args: argparse.Namespace, paths: Iterable[Path]) -> None:
    """Refuse what :func:`add_ecg_arguments` added where there is no NumPy file. Raises ``InvalidInputError``."""
    names = ("sampling_rate_hz", "leads", "unit")
    given = [f"--{name.replace('_', '-')}" for name in names if getattr(args, name) is not None]
    if given and not any(map(is_numpy, paths)):
        raise InvalidInputError(
            f"{given[0]} came without a NumPy file, expected an .npy or .npz recording beside it; leave it out"
        )


def read_recording(path: Path, args: argparse.Namespace) -> Ecg:
    """Read one recording: a WFDB record (``.hea``, ``.dat``, ``.mat`` or without suffix) or a NumPy file.

    Raises
    ------
    SignalError
        It is missing, damaged, or not a usable ECG.
    """
    if is_numpy(path):
        return _read_numpy(path, args)
    from mmecg.datasets.wfdb import read_wfdb

    return read_wfdb(path)


def read_text_file(path: Path) -> str:
    """Read a UTF-8 text file of at most :data:`~mmecg.report.MAX_TEXT_CHARS` characters.

    Raises
    ------
    ReportError
        Not UTF-8, too long, or not plain text.
    """
    limit = 4 * MAX_TEXT_CHARS  # UTF-8 needs at most four bytes a character
    with path.open("rb") as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise ReportError(
            f"text file has more than {limit} bytes, expected at most {MAX_TEXT_CHARS} characters; "
            "give the relevant part",
            field="text",
        )
    return check_text(content, field="text")


def parse_pairs(text: str, what: str) -> dict[str, str]:
    """Parse ``name=value,name=value``.

    Raises
    ------
    InvalidInputError
        A part without ``=`` or a repeated name.
    """
    pairs: dict[str, str] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, equals, value = part.partition("=")
        if not equals or name.strip() in pairs:
            raise InvalidInputError(f"{what} has a part that is not one name=value, expected name=value,name=value")
        pairs[name.strip()] = value.strip()
    return pairs


def parse_vitals(text: str) -> Vitals:
    """Parse ``age_years=63,sex=female``. Raises ``VitalsError``."""
    return Vitals.from_mapping(
        {
            name: value if name == "sex" else _number_or_text(value)
            for name, value in parse_pairs(text, "vitals").items()
        }
    )


def parse_weights(text: str) -> dict[str, float]:
    """Parse ``ecg=1,text=0.5``. Raises ``QueryError``."""
    weights: dict[str, float] = {}
    for name, value in parse_pairs(text, "weights").items():
        try:
            weights[name] = float(value)
        except ValueError:
            raise QueryError(f"weight of {name[:20]} is not a number", field="weights") from None
    return weights


def parse_filter(conditions: Sequence[str]) -> Filter | None:
    """Parse ``name=value`` conditions; the names are the fields of :class:`mmecg.search.Filter`.

    A set takes values separated by commas, and may be given several times.

    Raises
    ------
    QueryError
        An unknown name, a value of the wrong kind, or a second value where one is allowed.
    """
    hints = typing.get_type_hints(Filter)
    values: dict[str, Any] = {}
    for condition in conditions:
        name, equals, text = condition.partition("=")
        if name not in hints:
            near = difflib.get_close_matches(name, hints, n=1)
            advice = f"did you mean {near[0]}?" if near else f"expected one of {', '.join(hints)}"
            raise QueryError(f"filter field {name[:40]!r} is unknown; {advice}", field="filter")
        if not equals or not text:
            raise QueryError(f"filter {name} has no value, expected {name}=VALUE", field=f"filter.{name}")
        value = _filter_value(name, hints[name], text)
        if isinstance(value, frozenset):
            value |= values.get(name, frozenset())
        elif name in values:
            raise QueryError(f"filter {name} is given twice, expected once", field=f"filter.{name}")
        values[name] = value
    return Filter(**values) if values else None


def filter_fields() -> list[str]:
    """Return the names that a filter knows."""
    return [field.name for field in dataclasses.fields(Filter)]


@contextmanager
def open_retriever(corpus: Path | None, bundle: Path | None) -> Iterator[Retriever]:
    """Load the bundle and open a corpus; None is the demo corpus, embedded into a temporary folder.

    Raises
    ------
    ArtifactError
        Bundle or corpus is not there, damaged, or they do not share an embedding space.
    """
    from mmecg.bundle import load_bundle

    with open_retriever_of(load_bundle(bundle), corpus) as retriever:
        yield retriever


@contextmanager
def open_retriever_of(bundle: Bundle, corpus: Path | None) -> Iterator[Retriever]:
    """Do as :func:`open_retriever`, with a bundle that is loaded already."""
    import tempfile

    from mmecg_index.corpus import Corpus

    from mmecg.cli.output import note
    from mmecg.datasets.parquet import read_studies
    from mmecg.retriever import Retriever

    encoder = bundle.encoder
    with tempfile.TemporaryDirectory(prefix="mmecg-") as folder:
        if corpus is None:
            note("no --corpus given, so this searches the demo corpus (PTB-XL, CC BY 4.0)")
            store = Corpus.create(Path(folder) / "corpus", encoder.fingerprint)
        else:
            store = Corpus.open(corpus, encoder.fingerprint)
        try:
            retriever = Retriever(encoder, store)
            if corpus is None:
                retriever.ingest(read_studies(DEMO_CORPUS))
            yield retriever
        finally:
            store.close()


def open_studies(path: Path, *, sampling_rate_hz: int = 100) -> StudySource:
    """Recognise a source of studies by its files and open it.

    Parameters
    ----------
    path : Path
        A PTB-XL folder, a MIMIC-IV-ECG folder, a Parquet table of studies, or a folder of WFDB records (searched
        below it too; each record becomes a study and a subject of its own, without a report).
    sampling_rate_hz : {100, 500}
        Which of PTB-XL's two copies.

    Raises
    ------
    InvalidInputError
        It is none of these.
    """
    if path.is_file() and path.suffix == ".parquet":
        from mmecg.datasets.parquet import ParquetStudies

        return ParquetStudies(path)
    if (path / "ptbxl_database.csv").is_file():
        from mmecg.datasets.ptb_xl import read_ptb_xl

        return read_ptb_xl(path, sampling_rate_hz=sampling_rate_hz)
    from mmecg.datasets.tables import find_table

    if find_table(path, "machine_measurements").is_file():
        from mmecg.datasets.mimic_iv_ecg import read_mimic_iv_ecg

        return read_mimic_iv_ecg(path)
    if path.is_dir() and (records := sorted(path.rglob("*.hea"))):
        return _WfdbFolder(path, records)
    raise InvalidInputError(
        f"{path} holds no studies, expected a PTB-XL folder (ptbxl_database.csv), a MIMIC-IV-ECG folder "
        "(machine_measurements.csv or .csv.gz), a .parquet table, an .npy or .npz file, or a folder of WFDB records"
    )


class _WfdbFolder:
    """The records below a folder, each a study of its own."""

    def __init__(self, root: Path, headers: Sequence[Path]) -> None:
        from mmecg.datasets.bulk import BulkRead

        read = partial(_read_record, root)
        self._bulk = BulkRead(read, list(headers), name=lambda header: _record_name(root, header))

    def __len__(self) -> int:
        return len(self._bulk)

    def __iter__(self) -> Iterator[Study]:
        for _, study in self._bulk:
            yield study

    @property
    def report(self) -> BulkReport:
        return self._bulk.report


def _read_record(root: Path, header: Path) -> Study:
    from mmecg.datasets.wfdb import read_wfdb
    from mmecg.study import Study

    name = _record_name(root, header)
    return Study(study_id=name, subject_id=name, ecg=read_wfdb(header))


def _record_name(root: Path, header: Path) -> str:
    return header.relative_to(root).with_suffix("").as_posix()


def _filter_value(name: str, hint: Any, text: str) -> Any:
    kind = typing.get_args(hint)[0] if isinstance(hint, types.UnionType) or _is_optional(hint) else hint
    if kind == frozenset[str]:
        return frozenset(part.strip() for part in text.split(",") if part.strip())
    if kind is float:
        value = _number_or_text(text)
        if isinstance(value, str) or not math.isfinite(value):
            raise QueryError(f"filter {name} is not a finite number", field=f"filter.{name}")
        return value
    if kind is datetime:
        try:
            return datetime.fromisoformat(text)
        except ValueError:
            raise QueryError(
                f"filter {name} is no time, expected 1990-01-31 or 1990-01-31T12:00", field=f"filter.{name}"
            ) from None
    if choices := typing.get_args(kind):
        if text not in choices:
            raise QueryError(f"filter {name} is {text[:20]!r}, expected one of {choices}", field=f"filter.{name}")
        return text
    return check_text(text, field=f"filter.{name}")


def _is_optional(hint: Any) -> bool:
    return typing.get_origin(hint) is typing.Union


def _number_or_text(value: str) -> float | str:
    try:
        return float(value)
    except ValueError:
        return value


def _read_numpy(path: Path, args: argparse.Namespace) -> Ecg:
    from mmecg.datasets.numpy_arrays import read_numpy

    leads = args.leads.split(",") if args.leads else None
    found = read_numpy(path, sampling_rate_hz=args.sampling_rate_hz, leads=leads, unit=args.unit)
    ecgs = [study.ecg for study in islice(found, 2) if study.ecg is not None]
    if len(ecgs) != 1:
        raise SignalError(f"{path.name} holds several recordings, expected one; save them apart", field="ecg.signal")
    return ecgs[0]
