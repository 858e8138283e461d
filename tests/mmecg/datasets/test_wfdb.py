from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import wfdb
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.io import savemat

from mmecg.datasets.synthetic import synthetic_ecg
from mmecg.datasets.wfdb import read_wfdb, read_wfdb_bytes, read_wfdb_header
from mmecg.datasets.wfdb_header import parse_header
from mmecg.ecg import LEADS, Ecg
from mmecg.errors import SignalError


@pytest.fixture
def write_record(tmp_path: Path, wrsamp: Callable[..., None]) -> Callable[..., Path]:
    def write(
        ecg: Ecg, leads: tuple[str, ...], *, fmt: str = "16", gain: float = 200.0, folder: Path = tmp_path
    ) -> Path:
        signal = ecg.signal[[LEADS.index(lead) for lead in leads]]
        wrsamp(
            "record",
            fs=ecg.sampling_rate_hz,
            units=["mV"] * len(leads),
            sig_name=[lead.upper() for lead in leads],
            d_signal=np.rint(signal.T * gain).astype(np.int64),
            fmt=[fmt] * len(leads),
            adc_gain=[gain] * len(leads),
            baseline=[0] * len(leads),
            write_dir=str(folder),
        )
        return folder / "record"

    return write


def write_16(folder: Path, counts: np.ndarray, lines: list[str], first: str) -> Path:
    """Write a format 16 record by hand; ``{sum}`` in a line becomes its checksum."""
    rows = [line.replace("{sum}", str(int(row.sum()) % 65536)) for line, row in zip(lines, counts, strict=True)]
    (folder / "record.hea").write_text("\n".join([first, *rows]) + "\n")
    (folder / "record.dat").write_bytes(counts.T.astype("<i2").tobytes())
    return folder / "record"


@pytest.mark.parametrize(
    ("fmt", "leads", "gain"),
    [("16", LEADS, 1000.0), ("80", LEADS, 40.0), ("212", LEADS, 200.0), ("516", LEADS[:8], 1000.0)],
)
@pytest.mark.parametrize("rate", [100.0, 250.0, 360.0, 500.0, 1000.0])
def test_formats_and_rates(
    write_record: Callable[..., Path], fmt: str, leads: tuple[str, ...], gain: float, rate: float
) -> None:
    ecg = synthetic_ecg(sampling_rate_hz=rate, duration_s=3.0, seed=1)
    record = write_record(ecg, leads, fmt=fmt, gain=gain)
    got = read_wfdb(record)
    assert got.sampling_rate_hz == rate
    assert got.leads == leads
    expected = np.rint(ecg.signal * gain) / gain * got.lead_mask[:, None]
    np.testing.assert_allclose(got.signal, expected, atol=1e-6)
    oracle = wfdb.rdrecord(str(record)).p_signal
    np.testing.assert_allclose(got.signal[got.lead_mask], oracle.T, atol=1e-6)


@pytest.mark.parametrize("fmt", ["16", "212", "516"])
def test_bytes_and_path_agree(write_record: Callable[..., Path], fmt: str) -> None:
    record = write_record(synthetic_ecg(duration_s=2.0), LEADS[:6], fmt=fmt)
    data = record.with_suffix(".dat").read_bytes()
    got = read_wfdb_bytes(record.with_suffix(".hea").read_bytes(), data)
    np.testing.assert_array_equal(got.signal, read_wfdb(record.with_suffix(".hea")).signal)


def test_cinc_challenge_mat(tmp_path: Path) -> None:
    counts = np.rint(synthetic_ecg(sampling_rate_hz=500.0).signal * 1000).astype(np.int16)
    savemat(tmp_path / "A0001.mat", {"val": counts}, format="4")
    lines = [
        f"A0001.mat 16+24 1000/mV 16 0 {row[0]} {int(row.sum())} 0 {lead}"
        for lead, row in zip(LEADS, counts, strict=True)
    ]
    (tmp_path / "A0001.hea").write_text("\n".join(["A0001 12 500 5000", *lines, "#Age: 74", "#Dx: 426783006"]) + "\n")
    got = read_wfdb(tmp_path / "A0001.mat")
    np.testing.assert_allclose(got.signal * 1000, counts, atol=1e-3)
    assert read_wfdb_header(tmp_path / "A0001").comments == ("Age: 74", "Dx: 426783006")
    savemat(tmp_path / "A0001.mat", {"val": counts}, do_compression=False)
    with pytest.raises(SignalError, match="version 4"):
        read_wfdb(tmp_path / "A0001")


def test_any_lead_order_gives_the_same_ecg(tmp_path: Path, write_record: Callable[..., Path]) -> None:
    ecg = synthetic_ecg(seed=4)
    mimic = ("I", "II", "III", "aVR", "aVF", "aVL", "V1", "V2", "V3", "V4", "V5", "V6")
    signals = []
    for number, order in enumerate((LEADS, mimic, LEADS[::-1])):
        folder = tmp_path / str(number)
        folder.mkdir()
        signals.append(read_wfdb(write_record(ecg, order, folder=folder)).signal)
    np.testing.assert_array_equal(signals[0], signals[1])
    np.testing.assert_array_equal(signals[0], signals[2])


def test_foreign_signals_are_ignored_and_can_be_renamed(tmp_path: Path) -> None:
    counts = np.rint(synthetic_ecg().signal[[0, 1, 6]] * 1000)
    lines = ["record.dat 16 1000/mV 16 0 0 {sum} 0 ii", "record.dat 16 5/mmHg 16 0 0 {sum} 0 ABP"]
    record = write_16(tmp_path, counts, [*lines, "record.dat 16 1000/mV 16 0 0 {sum} 0 ECG"], "record 3 100 1000")
    assert read_wfdb(record).leads == ("II",)
    assert read_wfdb(record, rename={"ECG": "I"}).leads == ("I", "II")
    header = record.with_suffix(".hea")
    header.write_text(header.read_text().replace(" ii", " MLII"))
    with pytest.raises(SignalError, match="none of the record's signals"):
        read_wfdb(record)


@pytest.mark.parametrize(("unit", "factor"), [("mV", 1.0), ("uV", 1e-3), ("µV", 1e-3), ("V", 1e3)])
def test_units_are_converted(tmp_path: Path, unit: str, factor: float) -> None:
    ecg = synthetic_ecg()
    counts = np.rint(ecg.signal[:2] * 1000)
    gain = 1000 * factor
    lines = [f"record.dat 16 {gain:g}(0)/{unit} 16 0 0 {{sum}} 0 {lead}" for lead in ("I", "II")]
    record = write_16(tmp_path, counts, lines, "record 2 100 1000")
    np.testing.assert_allclose(read_wfdb(record).signal[:2] * 1000, counts, atol=1e-3)


@pytest.mark.parametrize(
    ("gain", "match"), [("1000/mmHg", "has the unit"), ("0/mV", "uncalibrated"), ("1/mV", "microvolt or raw counts")]
)
def test_wrong_amplitude_is_refused(tmp_path: Path, gain: str, match: str) -> None:
    counts = np.rint(synthetic_ecg().signal[:1] * 1000)
    record = write_16(tmp_path, counts, [f"record.dat 16 {gain} 16 0 0 {{sum}} 0 I"], "record 1 100 1000")
    with pytest.raises(SignalError, match=match):
        read_wfdb(record)


def test_several_frequencies(tmp_path: Path) -> None:
    fast, slow = synthetic_ecg(sampling_rate_hz=500.0, noise_mv=0), synthetic_ecg(sampling_rate_hz=250.0, noise_mv=0)
    ii, i = np.rint(fast.signal[1] * 1000).astype("<i2"), np.rint(slow.signal[0] * 1000).astype("<i2")
    frames = np.column_stack([ii.reshape(-1, 2), i])
    lines = ["record.dat 16x2 1000/mV 16 0 0 0 0 II", "record.dat 16 1000/mV 16 0 0 0 0 I"]
    (tmp_path / "record.hea").write_text("\n".join(["record 2 250 2500", *lines]) + "\n")
    (tmp_path / "record.dat").write_bytes(frames.tobytes())
    got = read_wfdb(tmp_path / "record", verify_checksum=False)
    assert got.sampling_rate_hz == 500.0
    np.testing.assert_allclose(got.signal[1], ii / 1000, atol=1e-6)
    assert np.abs(got.signal[0] - fast.signal[0])[50:-50].max() < 0.02


def test_missing_samples(tmp_path: Path) -> None:
    counts = np.rint(synthetic_ecg().signal[:2] * 1000)
    counts[1] = -32768
    lines = [f"record.dat 16 1000/mV 16 0 0 {{sum}} 0 {lead}" for lead in ("I", "V1")]
    assert read_wfdb(write_16(tmp_path, counts, lines, "record 2 100 1000")).leads == ("I",)
    counts[0, 5] = -32768
    with pytest.raises(SignalError, match="NaN or infinite samples in I"):
        read_wfdb(write_16(tmp_path, counts, lines, "record 2 100 1000"))
    counts[0] = -32768
    with pytest.raises(SignalError, match="every sample is missing"):
        read_wfdb(write_16(tmp_path, counts, lines, "record 2 100 1000"))


@pytest.mark.parametrize(
    ("header", "match"),
    [
        ("", "is empty"),
        ("record", "no record line"),
        ("record 12 100 1000", "announces 12 signals"),
        ("record 99999 100 1000", "expected 1 to 256"),
        ("record 1 100 1500000000\nrecord.dat 16 1000/mV 16 0 0 0 0 I", "claims 1500000000 samples"),
        ("record 1 100 8640000\nrecord.dat 16 1000/mV 16 0 0 0 0 I", "claims 8640000 samples"),
        ("record 1 100 1500000000\nrecord.dat 516 1000/mV 16 0 0 0 0 I", "claims 1500000000 samples"),
        ("record 1 1e-9 1000\nrecord.dat 16 1000/mV 16 0 0 0 0 I", "sampling rate"),
        ("record 1 nan 1000\nrecord.dat 16 1000/mV 16 0 0 0 0 I", "sampling rate"),
        ("record 1 100 20\nrecord.dat 16 1000/mV 16 0 0 0 0 I", "lasts 0.2 s"),
        ("record 1 100 1000\n../../etc/passwd 16 1000/mV 16 0 0 0 0 I", "plain file name"),
        ("record 1 100 1000\n/etc/passwd 16 1000/mV 16 0 0 0 0 I", "plain file name"),
        ("record 1 100 1000\n..\\secret.dat 16 1000/mV 16 0 0 0 0 I", "plain file name"),
        ("record 1 100 1000\nother.dat 16 1000/mV 16 0 0 0 0 I", "other.dat"),
        ("record 1 100 1000\nrecord.dat 17 1000/mV 16 0 0 0 0 I", "format 17 is not supported"),
        ("record 1 100 1000\nrecord.dat 16x99999 1000/mV 16 0 0 0 0 I", "format '16x99999'"),
        ("record 1 100 1000\nrecord.dat 516 1000/mV 16 0 0 0 0 I", "cannot be decoded"),
        ("record 1 100 1000\nrecord.dat 16 1e400/mV 16 0 0 0 0 I", "gain"),
        ("record/3 1 100 1000\nseg1 100", "announces 3 segments and has 1"),
        ("record/0 1 100 1000", "announces 0 segments"),
        ("record/1 1 100 1000\n../seg1 1000", "plain name"),
        ("record/1 1 100 1000\nseg1 many", "length of a segment"),
        ("record/1 1 100 1000\nseg1 1000", r"seg1\.hea cannot be read"),
        ("record/1 1 100 1000\nrecord 1000", "no segment of the record has"),
        ("record/2 1 100 1000\nseg1 500\nseg1 500", "segment more than once"),
        ("record/2 1 100 1000\nseg1 100\nseg2 100", "its segments have 200"),
        ("record/1 1 100 1500000000\n~ 1500000000", "lasts 1.5e\\+07 s"),
        ("record/1 1 0 1000\n~ 1000", "lasts inf s"),
        ("record/1 1 100 1000\n~ 1000", "no segment of the record has"),
        ("record 2 100 400\n" + "record.dat 16 1000/mV 16 0 0 0 0 I\n" * 2, "named more than once"),
        ("record 1 100 1000\nrecord.dat 16 1000/mV 16 0 0 7 0 I", "checksum of I"),
    ],
)
def test_hostile_headers(tmp_path: Path, header: str, match: str) -> None:
    (tmp_path / "record.hea").write_text(header)
    (tmp_path / "record.dat").write_bytes(np.rint(synthetic_ecg().signal[0] * 1000).astype("<i2").tobytes())
    with pytest.raises(SignalError, match=match):
        read_wfdb(tmp_path / "record", verify_checksum="checksum" in match)


def test_a_day_long_record_is_refused_before_it_is_read(tmp_path: Path) -> None:
    (tmp_path / "record.hea").write_text("record 1 100\nrecord.dat 16 1000/mV 16 0 0 0 0 I\n")
    with (tmp_path / "record.dat").open("wb") as stream:
        stream.truncate(2 * 100 * 86400)
    with pytest.raises(SignalError, match="lasts 86400 s"):
        read_wfdb(tmp_path / "record")


@pytest.mark.parametrize("fmt", ["16", "212", "516"])
def test_truncated_signal_file(write_record: Callable[..., Path], fmt: str) -> None:
    record = write_record(synthetic_ecg(), LEADS[:6], fmt=fmt)
    data = record.with_suffix(".dat")
    data.write_bytes(data.read_bytes()[: data.stat().st_size // 3])
    with pytest.raises(SignalError, match=r"truncated|cannot be decoded"):
        read_wfdb(record)


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(SignalError, match=r"nothing\.hea cannot be read"):
        read_wfdb(tmp_path / "nothing")
    header = b"record 2 100 1000\na.dat 16 1000/mV 16 0 0 0 0 I\nb.dat 16 1000/mV 16 0 0 0 0 II\n"
    with pytest.raises(SignalError, match="2 signal files"):
        read_wfdb_bytes(header, b"\0" * 4000)
    half = np.rint(synthetic_ecg().signal[0] * 1000).astype("<i2").tobytes()
    assert read_wfdb_bytes(header, {"a.dat": half, "b.dat": half}, verify_checksum=False).leads == ("I", "II")


def test_length_from_file_size(tmp_path: Path) -> None:
    counts = np.rint(synthetic_ecg().signal[:1] * 1000)
    record = write_16(tmp_path, counts, ["record.dat 16 1000/mV 16 0 0 0 0 I"], "record 1 100")
    assert read_wfdb(record).duration_s == 10.0


@pytest.fixture
def split(tmp_path: Path, wrsamp: Callable[..., None]) -> Callable[..., Path]:
    """Write parts of an ECG as the segments of one record, each in a format and lead order of its own."""

    def write(parts: list[tuple[str, tuple[str, ...], slice]], *, layout: bool = False, gap: int = 0) -> Path:
        counts = np.rint(synthetic_ecg().signal * 200).astype(np.int64)
        lines = ["record_layout 0"] if layout else []
        for number, (fmt, leads, part) in enumerate(parts):
            chosen = counts[[LEADS.index(lead) for lead in leads], part].T
            n = len(leads)
            wrsamp(f"record_{number}", fs=100, units=["mV"] * n, sig_name=list(leads), d_signal=chosen,
                   fmt=[fmt] * n, adc_gain=[200.0] * n, baseline=[0] * n, write_dir=str(tmp_path))  # fmt: skip
            lines.append(f"record_{number} {len(chosen)}")
        lines.extend(["~ " + str(gap)] * bool(gap))
        if layout:
            rows = [f"~ 0 200/mV 16 0 0 0 0 {lead}" for lead in LEADS]
            (tmp_path / "record_layout.hea").write_text("\n".join(["record_layout 12 100 0", *rows]) + "\n")
        total = sum(int(line.split()[1]) for line in lines)
        (tmp_path / "record.hea").write_text("\n".join([f"record/{len(lines)} 12 100 {total}", *lines]) + "\n")
        return tmp_path / "record"

    return write


@pytest.mark.parametrize("layout", [False, True], ids=["fixed", "variable"])
def test_segments_are_joined(split: Callable[..., Path], layout: bool) -> None:
    order = LEADS[::-1] if layout else LEADS  # only in a variable layout may a segment have its own order
    parts = [("16", LEADS, slice(0, 350)), ("212", order, slice(350, 400)), ("16", LEADS, slice(400, 1000))]
    record = split(parts, layout=layout)
    got = read_wfdb(record)
    oracle = wfdb.rdrecord(str(record), m2s=True)
    np.testing.assert_allclose(got.signal, oracle.p_signal[:, [oracle.sig_name.index(lead) for lead in LEADS]].T)
    np.testing.assert_allclose(got.signal * 200, np.rint(synthetic_ecg().signal * 200), atol=1e-4)
    assert (got.sampling_rate_hz, got.duration_s) == (100.0, 10.0)


def test_leads_that_no_segment_has_are_missing(split: Callable[..., Path]) -> None:
    parts = [("16", ("II", "I"), slice(0, 500)), ("16", ("I", "II"), slice(500, 1000))]
    assert read_wfdb(split(parts, layout=True)).leads == ("I", "II")


@pytest.mark.parametrize(("leads", "gap", "match"), [
    (("I", "II"), 100, "I, II is not in all 3 segments"), (("I",), 0, "II is not in all 2 segments")
])  # fmt: skip
def test_gaps_are_refused(split: Callable[..., Path], leads: tuple[str, ...], gap: int, match: str) -> None:
    record = split([("16", ("I", "II"), slice(0, 500)), ("16", leads, slice(500, 1000))], layout=True, gap=gap)
    with pytest.raises(SignalError, match=match):
        read_wfdb(record)
    assert read_wfdb(record.with_name("record_0")).leads == ("I", "II")


def test_segments_that_do_not_fit_are_refused(split: Callable[..., Path]) -> None:
    record = split([("16", LEADS, slice(0, 500)), ("16", LEADS, slice(500, 1000))])
    header, segment = record.with_suffix(".hea"), record.with_name("record_1.hea")
    right = segment.read_text()
    for text, match in (
        (right.replace("12 100 500", "12 200 500"), "a segment has 200 Hz"),
        (right.replace("12 100 500", "12 100 400"), "a segment has 400 samples a lead"),
        (right.replace("12 100 500", "12 100 900"), "truncated"),
        ("record_1/1 12 100 500\nrecord_0 500\n", "not in all 2 segments"),
    ):
        segment.write_text(text)
        with pytest.raises(SignalError, match=match):
            read_wfdb(record, verify_checksum=False)
    with pytest.raises(SignalError, match="several segments"):
        read_wfdb_bytes(header.read_bytes(), b"")


@given(st.binary(max_size=400))
def test_fuzzed_header_never_fails_otherwise(content: bytes) -> None:
    with contextlib.suppress(SignalError):
        parse_header(content)


TOKENS = st.sampled_from(
    [
        "record",
        "1",
        "2",
        "-1",
        "100",
        "1e9",
        "16",
        "212",
        "516",
        "80",
        "a.dat",
        "1000/mV",
        "0",
        "I",
        "V1",
        "\n",
        "16x2",
        "16:5",
        "16+24",
    ]
)


@settings(max_examples=150, deadline=None)
@given(st.lists(TOKENS, max_size=30), st.binary(max_size=600))
def test_fuzzed_record_never_fails_otherwise(tokens: list[str], signal: bytes) -> None:
    header = "record 1 100 200\na.dat 16 200/mV " + " ".join(tokens) if len(tokens) % 2 else " ".join(tokens)
    with contextlib.suppress(SignalError):
        read_wfdb_bytes(header.encode(), signal)


@pytest.mark.data
def test_ludb_records_match_the_wfdb_package(shared_data: Callable[[str], Path]) -> None:
    files = sorted((shared_data("ludb") / "data").glob("*.hea"))[:5]
    assert files
    for file in files:
        oracle = wfdb.rdrecord(str(file.with_suffix("")))
        got = read_wfdb(file)
        np.testing.assert_allclose(got.signal, oracle.p_signal.T, atol=1e-6)
        assert got.sampling_rate_hz == oracle.fs
