"""Fuzzed requests over gRPC: near to valid ones, so that they reach the decoders; each is answered or refused."""

import grpc
import numpy as np
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mmecg_pb.v1 import embedding_service_pb2 as embedding_pb
from mmecg_pb.v1 import search_service_pb2 as search_pb
from mmecg_pb.v1.ecg_pb2 import Ecg, PackedInt16, WfdbRecord
from mmecg_pb.v1.query_pb2 import Filter, Query, StringSet

from mmecg.ecg import LEADS

WAVE = 1000 * np.sin(np.arange(1000) / 7)


def time(seconds: int) -> Timestamp:
    return Timestamp(seconds=seconds)


def wfdb_header(counts: np.ndarray, leads: list[str]) -> bytes:
    lines = [f"r {len(leads)} 100 {counts.shape[1]}"]
    for lead, row in zip(leads, counts, strict=True):
        lines.append(f"r.dat 16 1000(0)/mV 16 0 {row[0]} {int(row.sum()) % 65536} 0 {lead}")
    return ("\n".join(lines) + "\n").encode()


@st.composite
def fuzzed_ecgs(draw) -> tuple[Ecg, bool]:
    """A recording as it should be, with at most one mutation; and whether it has one."""
    leads = draw(st.lists(st.sampled_from(LEADS), min_size=1, max_size=12, unique=True))
    rate = draw(st.sampled_from([100.0, 250.0, 500.0]))
    counts = np.resize(WAVE, (len(leads), int(rate) + draw(st.integers(0, 50)))).astype("<i2")
    kind = draw(st.sampled_from(["float32", "int16", "wfdb"]))
    content = (counts / 1000).astype("<f4") if kind == "float32" else counts.T if kind == "wfdb" else counts
    content, header, scale = content.tobytes(), wfdb_header(counts, leads), 1.0
    mutation = draw(st.sampled_from(["none", "cut", "bytes", "leads", "rate", "scale", "header"]))
    if mutation == "cut":
        content = content[: draw(st.integers(0, len(content) - 1))]
    elif mutation == "bytes":
        content = draw(st.binary(min_size=1, max_size=40)) + content
    elif mutation == "leads":
        leads = draw(st.lists(st.sampled_from([*LEADS, "avf", "X", ""]), max_size=13))
    elif mutation == "rate":
        rate = draw(st.floats())
    elif mutation == "scale":
        scale = draw(st.floats())
    elif mutation == "header":
        at = draw(st.integers(0, len(header) - 1))
        header = header[:at] + draw(st.binary(max_size=4)) + header[at + 1 :]
    if kind == "wfdb":
        return Ecg(wfdb=WfdbRecord(header=header, signal=content)), mutation != "none"
    message = Ecg(leads=leads, sampling_rate_hz=rate)
    if kind == "float32":
        message.float32_millivolts = content
    else:
        message.packed_int16.CopyFrom(PackedInt16(counts=content, microvolts_per_count=scale))
    return message, mutation != "none"


NAMES = st.lists(st.sampled_from(["NORM", "MI", "site-a", "subject-1", "x" * 300]), max_size=3)
SETS = st.none() | st.builds(StringSet, values=NAMES)
FUZZED_FILTERS = st.builds(
    Filter,
    subject_ids=SETS,
    exclude_subject_ids=NAMES,
    study_ids=SETS,
    exclude_study_ids=NAMES,
    acquired_from=st.none() | st.builds(time, st.integers(-(2**40), 2**40)),
    acquired_before=st.none() | st.builds(time, st.integers(-(2**40), 2**40)),
    age_min_years=st.none() | st.floats(0, 60) | st.floats(),
    age_max_years=st.none() | st.floats(60, 120) | st.floats(),
    sex=st.sampled_from([0, 1, 2, 7]),
    sites=SETS,
    devices=SETS,
    labels_any=NAMES,
    labels_all=NAMES,
    labels_none=NAMES,
    text_contains=st.none() | st.sampled_from(["rhythm", "", " ", "a\x00b", "%_", "é"]),
    exclude_quality=st.lists(st.sampled_from(["noise", "flat"]), max_size=2) | NAMES,
)
SETTINGS = settings(max_examples=60, deadline=None, suppress_health_check=[*HealthCheck])


def code_of(call) -> grpc.StatusCode:
    """Return OK, or INVALID_ARGUMENT: the call succeeds, or it fails as the caller's fault."""
    code, text = grpc.StatusCode.OK, ""
    try:
        call()
    except grpc.RpcError as error:
        code, text = error.code(), error.details()
    assert code in (grpc.StatusCode.OK, grpc.StatusCode.INVALID_ARGUMENT), text
    return code


@SETTINGS
@given(fuzzed=fuzzed_ecgs())
def test_fuzz_ecg(embedding_stub, fuzzed):
    message, is_mutated = fuzzed
    code = code_of(lambda: embedding_stub.EmbedEcg(embedding_pb.EmbedEcgRequest(ecgs=[message])))
    assert is_mutated or code is grpc.StatusCode.OK


@SETTINGS
@given(where=FUZZED_FILTERS)
def test_fuzz_filter(search_stub, where):
    code_of(lambda: search_stub.Search(search_pb.SearchRequest(query=Query(text="a"), filter=where)))


@SETTINGS
@given(where=FUZZED_FILTERS, data=st.data())
def test_fuzz_filter_bytes(shared, where, data):
    """A filter with a few other bytes in it, spliced into a request that is otherwise right."""
    content = bytearray(where.SerializeToString() or b"\x00")
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    query = search_pb.SearchRequest(query=Query(text="a")).SerializeToString()
    spliced = query + b"\x12" + bytes([len(content) % 128 | 128, len(content) // 128]) + bytes(content)
    code_of(lambda: shared.unary_unary("/mmecg.v1.SearchService/Search")(spliced))
