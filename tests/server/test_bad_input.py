"""Bad input over gRPC: each row gets its own status and details, the server stays up, and nothing is half-written."""

import grpc
import numpy as np
import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc import error_details_pb2, status_pb2
from mmecg_pb.v1 import corpus_service_pb2 as corpus_pb
from mmecg_pb.v1 import embedding_service_pb2 as embedding_pb
from mmecg_pb.v1 import search_service_pb2 as search_pb
from mmecg_pb.v1.ecg_pb2 import Ecg, PackedInt16, WfdbRecord
from mmecg_pb.v1.query_pb2 import Embedding, Filter, Query, QueryWeights
from mmecg_pb.v1.study_pb2 import ClinicalNote, Report, Study, Vitals

LEADS = ("I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6")
WAVE = np.sin(np.arange(1000) / 7).astype("<f4")


def signal(rows: int = 12, samples: int = 1000, scale: float = 1.0) -> bytes:
    return (np.resize(WAVE, (rows, samples)) * np.float32(scale)).astype("<f4").tobytes()


def ecg(**changes) -> Ecg:
    fields = {"leads": LEADS, "sampling_rate_hz": 100.0, "float32_millivolts": signal()} | changes
    return Ecg(**{name: value for name, value in fields.items() if value is not None})


def wfdb_header(samples: int, leads=("I",)) -> bytes:
    lines = [f"r {len(leads)} 100 {samples}", *(f"r.dat 16 1000(0)/mV 16 0 0 0 0 {lead}" for lead in leads)]
    return ("\n".join(lines) + "\n").encode()


def wfdb(header: bytes, content: bytes = bytes(2000)) -> Ecg:
    return Ecg(wfdb=WfdbRecord(header=header, signal=content))


def with_sample(value: float) -> bytes:
    samples = np.frombuffer(signal(), "<f4").copy()
    samples[5] = value
    return samples.tobytes()


def time(seconds: int) -> Timestamp:
    return Timestamp(seconds=seconds)


BAD_ECGS = {
    "no samples": (Ecg(leads=LEADS, sampling_rate_hz=100), "ecg.samples", "no samples"),
    "eleven unnamed leads": (ecg(leads=None, float32_millivolts=signal(11)), "ecg.samples", "12 leads"),
    "eleven names for twelve rows": (ecg(leads=LEADS[:11]), "ecg.samples", "11 leads"),
    "unknown lead": (ecg(leads=("MLII", *LEADS[1:])), "ecg.leads", "MLII"),
    "repeated lead": (ecg(leads=("II", *LEADS[1:])), "ecg.leads", "more than once"),
    "torn sample": (ecg(float32_millivolts=signal()[:-3]), "ecg.samples", "bytes"),
    "microvolt as millivolt": (ecg(float32_millivolts=signal(scale=1000)), "ecg.signal", "microvolt"),
    "scale a thousand times too big": (
        ecg(float32_millivolts=None, packed_int16=PackedInt16(counts=(WAVE * 1000).astype("<i2").tobytes() * 12,
            microvolts_per_count=1000)), "ecg.signal", "microvolt"),
    "scale zero": (
        ecg(float32_millivolts=None, packed_int16=PackedInt16(counts=bytes(24000))),
        "ecg.packed_int16.microvolts_per_count", "positive"),
    "scale NaN": (
        ecg(float32_millivolts=None, packed_int16=PackedInt16(counts=bytes(24000), microvolts_per_count=np.nan)),
        "ecg.packed_int16.microvolts_per_count", "positive"),
    "rate zero": (ecg(sampling_rate_hz=0.0), "ecg.sampling_rate_hz", "0 Hz"),
    "rate negative": (ecg(sampling_rate_hz=-500.0), "ecg.sampling_rate_hz", "-500 Hz"),
    "rate NaN": (ecg(sampling_rate_hz=np.nan), "ecg.sampling_rate_hz", "nan Hz"),
    "rate in kilohertz": (ecg(sampling_rate_hz=0.5), "ecg.sampling_rate_hz", "0.5 Hz"),
    "NaN sample": (ecg(float32_millivolts=with_sample(np.nan)), "ecg.signal", "NaN"),
    "infinite sample": (ecg(float32_millivolts=with_sample(np.inf)), "ecg.signal", "infinite"),
    "zeros": (ecg(float32_millivolts=bytes(48000)), "ecg.signal", "zero"),
    "0.2 s": (ecg(float32_millivolts=signal(samples=20)), "ecg.signal", "0.2 s"),
    "24 h": (
        ecg(leads=["I"], sampling_rate_hz=50.0, float32_millivolts=None,
            packed_int16=PackedInt16(counts=np.resize((WAVE * 1000).astype("<i2"), 2_160_000).tobytes(),
                                     microvolts_per_count=1.0)), "ecg.signal", "43200 s"),
    "3 GB claim in a header": (wfdb(wfdb_header(1_500_000_000)), "ecg.wfdb.signal", "claims 1500000000"),
    "header with a path": (
        wfdb(b"r 1 100 1000\n../../etc/passwd 16 1000(0)/mV 16 0 0 0 0 I\n"), "ecg.wfdb.header", "directory"),
    "header that is noise": (wfdb(bytes(range(256))), "ecg.wfdb.header", "header"),
    "leads beside a WFDB record": (
        Ecg(leads=["I"], wfdb=WfdbRecord(header=wfdb_header(1000), signal=bytes(2000))), "ecg.leads", "leave them out"),
    "field of the future": (Ecg.FromString(ecg().SerializeToString() + b"\xf8\x06\x01"), "ecg", "does not know"),
}  # fmt: skip

BAD_FILTERS = {
    "unknown sex": (Filter(sex=7), "QUERY", "filter.sex"),
    "NaN age": (Filter(age_min_years=np.nan), "QUERY", "filter.age_min_years"),
    "infinite age": (Filter(age_max_years=np.inf), "QUERY", "filter.age_max_years"),
    "ages the wrong way round": (Filter(age_min_years=80, age_max_years=20), "QUERY", "filter.age_min_years"),
    "times the wrong way round": (
        Filter(acquired_from=time(2_000_000_000), acquired_before=time(1_000_000)), "QUERY", "filter.acquired_from"),
    "impossible time": (
        Filter(acquired_from=Timestamp(seconds=2**60)), "INVALID_INPUT", "filter.acquired_from"),
    "unknown quality kind": (Filter(exclude_quality=["nois"]), "QUERY", "filter.exclude_quality"),
    "unknown field": (Filter.FromString(b"\xfa\x06\x03abc"), "QUERY", "filter"),
    "100 kB of text": (Filter(text_contains="x" * 100_000), "REPORT", "filter.text_contains"),
}  # fmt: skip

BAD_SEARCHES = {
    "no query": (search_pb.SearchRequest(), "INVALID_ARGUMENT", "QUERY"),
    "empty text": (search_pb.SearchRequest(query=Query(text=" ")), "INVALID_ARGUMENT", "REPORT"),
    "100 kB text": (search_pb.SearchRequest(query=Query(text="x" * 100_000)), "INVALID_ARGUMENT", "REPORT"),
    "control characters": (search_pb.SearchRequest(query=Query(text="a\x00b")), "INVALID_ARGUMENT", "REPORT"),
    "no vitals in vitals": (search_pb.SearchRequest(query=Query(vitals=Vitals())), "INVALID_ARGUMENT", "VITALS"),
    "impossible vitals": (
        search_pb.SearchRequest(query=Query(vitals=Vitals(heart_rate_bpm=7000))), "INVALID_ARGUMENT", "VITALS"),
    "Fahrenheit beside a text": (
        search_pb.SearchRequest(query=Query(text="a", vitals=Vitals(temperature_c=98.6))), "INVALID_ARGUMENT",
        "VITALS"),
    "bad ECG beside a text": (
        search_pb.SearchRequest(query=Query(text="a", ecg=ecg(float32_millivolts=with_sample(np.nan)))),
        "INVALID_ARGUMENT", "SIGNAL"),
    "top_k 0": (search_pb.SearchRequest(query=Query(text="a"), top_k=0), "INVALID_ARGUMENT", "QUERY"),
    "top_k -1": (search_pb.SearchRequest(query=Query(text="a"), top_k=-1), "INVALID_ARGUMENT", "QUERY"),
    "top_k 10^6": (search_pb.SearchRequest(query=Query(text="a"), top_k=10**6), "INVALID_ARGUMENT", "QUERY"),
    "unknown target": (search_pb.SearchRequest(query=Query(text="a"), target=9), "INVALID_ARGUMENT", "QUERY"),
    "bad page token": (search_pb.SearchRequest(query=Query(text="a"), page_token="?"), "INVALID_ARGUMENT", "QUERY"),
    "bad read mask": (
        search_pb.SearchRequest(query=Query(text="a"), read_mask=FieldMask(paths=["ecg.leads"])),
        "INVALID_ARGUMENT", "QUERY"),
    "negative weight": (
        search_pb.SearchRequest(query=Query(text="a", weights=QueryWeights(text=-1))), "INVALID_ARGUMENT", "QUERY"),
    "unknown study": (search_pb.SearchRequest(query=Query(study_id="nope")), "NOT_FOUND", "STUDY_NOT_FOUND"),
    "foreign embedding": (
        search_pb.SearchRequest(query=Query(embedding=Embedding(values=[1.0] * 256, fingerprint="0" * 64))),
        "FAILED_PRECONDITION", "FINGERPRINT_MISMATCH"),
    "embedding without fingerprint": (
        search_pb.SearchRequest(query=Query(embedding=Embedding(values=[1.0] * 256))), "INVALID_ARGUMENT", "QUERY"),
    "embedding of another length": (
        search_pb.SearchRequest(query=Query(embedding=Embedding(values=[1.0] * 7, fingerprint="f" * 64))),
        "INVALID_ARGUMENT", "QUERY"),
    "embedding without direction": (
        search_pb.SearchRequest(query=Query(embedding=Embedding(values=[0.0] * 256, fingerprint="f" * 64))),
        "INVALID_ARGUMENT", "QUERY"),
    "embedding with NaN": (
        search_pb.SearchRequest(query=Query(embedding=Embedding(values=[np.nan] * 256, fingerprint="f" * 64))),
        "INVALID_ARGUMENT", "QUERY"),
}  # fmt: skip

BAD_STUDIES = {
    "no id": (Study(subject_id="p"), "INVALID_INPUT", "study_id"),
    "no subject": (Study(study_id="s"), "INVALID_INPUT", "subject_id"),
    "long id": (Study(study_id="s" * 200, subject_id="p"), "INVALID_INPUT", "study_id"),
    "100 kB report": (Study(study_id="s", subject_id="p", report=Report(raw="x" * 100_000)), "REPORT", "report"),
    "impossible pulse": (Study(study_id="s", subject_id="p", vitals=Vitals(heart_rate_bpm=7000)), "VITALS",
                         "vitals.heart_rate_bpm"),
    "Fahrenheit": (Study(study_id="s", subject_id="p", vitals=Vitals(temperature_c=98.6)), "VITALS",
                   "vitals.temperature_c"),
    "NaN weight": (Study(study_id="s", subject_id="p", vitals=Vitals(weight_kg=np.nan)), "VITALS", "vitals.weight_kg"),
    "pressures swapped": (
        Study(study_id="s", subject_id="p", vitals=Vitals(systolic_bp_mmhg=80, diastolic_bp_mmhg=120)), "VITALS",
        "vitals.diastolic_bp_mmhg"),
    "unknown sex": (Study(study_id="s", subject_id="p", vitals=Vitals(sex=5)), "VITALS", "vitals.sex"),
    "likelihood 200": (
        Study(study_id="s", subject_id="p", label_likelihoods_percent={"NORM": 200}), "INVALID_INPUT",
        "label_likelihoods_percent"),
    "nothing but ids": (Study(study_id="s", subject_id="p", site="a", attributes={"a": "b"}), "INVALID_INPUT", "study"),
    "blank texts": (
        Study(study_id="s", subject_id="p", report=Report(raw=" "), notes=[ClinicalNote(text="\n")], vitals=Vitals()),
        "INVALID_INPUT", "study"),
    "zeros for an ECG": (Study(study_id="s", subject_id="p", ecg=ecg(float32_millivolts=bytes(48000))), "SIGNAL",
                         "ecg.signal"),
}  # fmt: skip


def status_of(call) -> status_pb2.Status:
    with pytest.raises(grpc.RpcError) as caught:
        call()
    metadata = dict(caught.value.trailing_metadata())
    status = status_pb2.Status.FromString(metadata["grpc-status-details-bin"])
    assert status.code == caught.value.code().value[0]
    return status


def details_of(status: status_pb2.Status) -> tuple[str, str]:
    """Return the reason and the first field of BadRequest."""
    info, bad = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
    assert status.details[0].Unpack(info)
    assert info.domain == "mmecg"
    for detail in status.details[1:]:
        if detail.Unpack(bad):
            assert bad.field_violations[0].description == status.message
            return info.reason, bad.field_violations[0].field
    return info.reason, ""


def name_of(status: status_pb2.Status) -> str:
    return next(code.name for code in grpc.StatusCode if code.value[0] == status.code)


@pytest.fixture
def unharmed(corpus_stub, embedding_stub):
    """After the test the server still answers, and the corpus is as it was."""
    before = corpus_stub.GetStats(corpus_pb.GetStatsRequest())
    yield
    assert corpus_stub.GetStats(corpus_pb.GetStatsRequest()) == before
    response = embedding_stub.EmbedEcg(embedding_pb.EmbedEcgRequest(ecgs=[ecg()]))
    assert len(response.embeddings[0].values) == 256


@pytest.mark.parametrize("row", BAD_ECGS)
@pytest.mark.usefixtures("unharmed")
def test_bad_ecg(embedding_stub, row):
    message, field, words = BAD_ECGS[row]
    status = status_of(lambda: embedding_stub.EmbedEcg(embedding_pb.EmbedEcgRequest(ecgs=[ecg(), message])))
    assert name_of(status) == "INVALID_ARGUMENT"
    reason, place = details_of(status)
    assert reason == "SIGNAL"
    assert place == "ecgs[1]" + field.removeprefix("ecg")
    assert words in status.message
    assert status.message.startswith("ecgs[1]")


@pytest.mark.parametrize("row", BAD_FILTERS)
@pytest.mark.usefixtures("unharmed")
def test_bad_filter(search_stub, row):
    message, reason, field = BAD_FILTERS[row]
    request = search_pb.SearchRequest(query=Query(text="a"), filter=message)
    status = status_of(lambda: search_stub.Search(request))
    assert name_of(status) == "INVALID_ARGUMENT"
    assert details_of(status) == (reason, field)


@pytest.mark.parametrize("row", BAD_SEARCHES)
@pytest.mark.usefixtures("unharmed")
def test_bad_search(search_stub, row):
    request, code, reason = BAD_SEARCHES[row]
    status = status_of(lambda: search_stub.Search(request))
    assert name_of(status) == code, status.message
    assert details_of(status)[0] == reason


@pytest.mark.parametrize("row", BAD_STUDIES)
@pytest.mark.usefixtures("unharmed")
def test_bad_study_is_refused_alone_and_leaves_nothing(corpus_stub, row):
    message, reason, field = BAD_STUDIES[row]
    answers = list(corpus_stub.UpsertStudies(iter([corpus_pb.UpsertStudiesRequest(study=message)])))
    assert [answer.item for answer in answers] == [0]
    assert answers[0].WhichOneof("result") == "status"
    assert details_of(answers[0].status) == (reason, field)


def test_a_bad_study_does_not_stop_its_neighbours(corpus_stub, make_study):
    from mmecg.client.messages import render_study

    good = [corpus_pb.UpsertStudiesRequest(study=render_study(make_study(number))) for number in (100, 101)]
    bad = corpus_pb.UpsertStudiesRequest(study=BAD_STUDIES["impossible pulse"][0])
    answers = list(corpus_stub.UpsertStudies(iter([good[0], bad, good[1]])))
    assert [answer.WhichOneof("result") for answer in answers] == ["sequence", "status", "sequence"]
    for number in (100, 101):
        corpus_stub.DeleteStudy(corpus_pb.DeleteStudyRequest(study_id=f"study-{number}"))


@pytest.mark.parametrize(("content", "reason", "words"), [
    (b"\x0a\x07\x12\x05\xff\xfe\xfd\xfc\xfb", "REPORT", "not UTF-8"),
    (b"\x0a\x50\x12", "INVALID_INPUT", "cannot be decoded"),
    (bytes(range(255)), "INVALID_INPUT", "cannot be decoded"),
])  # fmt: skip
@pytest.mark.usefixtures("unharmed")
def test_bytes_that_are_no_request(shared, content, reason, words):
    call = shared.unary_unary("/mmecg.v1.SearchService/Search")
    status = status_of(lambda: call(content))
    assert name_of(status) == "INVALID_ARGUMENT"
    assert details_of(status)[0] == reason
    assert words in status.message


@pytest.mark.usefixtures("unharmed")
def test_stream_with_a_report_that_is_not_utf8(shared):
    call = shared.stream_stream("/mmecg.v1.CorpusService/UpsertStudies")
    status = status_of(lambda: list(call(iter([b"\x0a\x07\x0a\x05\xff\xfe\xfd\xfc\xfb"]))))
    assert details_of(status)[0] == "REPORT"


@pytest.mark.parametrize("size", [0, 17])
@pytest.mark.usefixtures("unharmed")
def test_batch_of_no_or_too_many_items(embedding_stub, size):
    request = embedding_pb.EmbedTextRequest(texts=["a"] * size)
    status = status_of(lambda: embedding_stub.EmbedText(request))
    assert details_of(status) == ("INVALID_INPUT", "texts")


@pytest.mark.usefixtures("unharmed")
def test_message_beyond_the_limit(shared):
    """gRPC itself refuses it before it is read; the typed client refuses it before it is sent."""
    call = shared.unary_unary("/mmecg.v1.EmbeddingService/EmbedEcg")
    with pytest.raises(grpc.RpcError) as caught:
        call(bytes(33 * 2**20))
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
