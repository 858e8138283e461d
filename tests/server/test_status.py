"""Every error class has a status, and comes back as itself at the client."""

import grpc
import pytest
from google.rpc import error_details_pb2
from mmecg_server.status import code_of, error_id_of, render_status

from mmecg import errors
from mmecg.client.status import error_classes, parse_status, reason_of

EXPECTED = {
    "InvalidInputError": "INVALID_ARGUMENT",
    "SignalError": "INVALID_ARGUMENT",
    "VitalsError": "INVALID_ARGUMENT",
    "ReportError": "INVALID_ARGUMENT",
    "QueryError": "INVALID_ARGUMENT",
    "NotAlignedError": "INVALID_ARGUMENT",
    "NotFoundError": "NOT_FOUND",
    "StudyNotFoundError": "NOT_FOUND",
    "SubjectNotFoundError": "NOT_FOUND",
    "AlreadyExistsError": "ALREADY_EXISTS",
    "ConflictError": "ABORTED",
    "UnauthenticatedError": "UNAUTHENTICATED",
    "PermissionDeniedError": "PERMISSION_DENIED",
    "ArtifactError": "FAILED_PRECONDITION",
    "BundleError": "FAILED_PRECONDITION",
    "IndexFormatError": "FAILED_PRECONDITION",
    "FingerprintMismatchError": "FAILED_PRECONDITION",
    "ConfigError": "FAILED_PRECONDITION",
    "NotReadyError": "UNAVAILABLE",
    "ModelChangedError": "UNAVAILABLE",
    "OverloadedError": "RESOURCE_EXHAUSTED",
}
DETAIL = {
    "INVALID_ARGUMENT": error_details_pb2.BadRequest,
    "NOT_FOUND": error_details_pb2.ResourceInfo,
    "ALREADY_EXISTS": error_details_pb2.ResourceInfo,
    "ABORTED": error_details_pb2.ErrorInfo,
    "UNAUTHENTICATED": error_details_pb2.ErrorInfo,
    "PERMISSION_DENIED": error_details_pb2.ErrorInfo,
    "FAILED_PRECONDITION": error_details_pb2.PreconditionFailure,
    "UNAVAILABLE": error_details_pb2.RetryInfo,
    "RESOURCE_EXHAUSTED": error_details_pb2.RetryInfo,
}


def build(kind: type[errors.MmecgError]) -> errors.MmecgError:
    if kind is errors.FingerprintMismatchError:
        return errors.FingerprintMismatchError(got="a" * 64, expected="b" * 64)
    if issubclass(kind, errors.InvalidInputError):
        return kind("what, got, expected", field="ecg.leads")
    return kind("what, got, expected")


def test_the_table_names_every_class():
    assert {kind.__name__ for kind in error_classes()} - {"MmecgError"} == set(EXPECTED)


@pytest.mark.parametrize("name", EXPECTED)
def test_class_to_status_and_back(name):
    error = build(getattr(errors, name))
    status = render_status(error)
    assert code_of(error).name == EXPECTED[name]
    assert status.code == code_of(error).value[0]
    assert any(detail.Is(DETAIL[EXPECTED[name]].DESCRIPTOR) for detail in status.details)
    back = parse_status(status)
    assert type(back) is type(error)
    assert str(back) == str(error)
    for attribute in ("field", "got", "expected"):
        assert getattr(back, attribute, None) == getattr(error, attribute, None)
    if EXPECTED[name] in ("UNAVAILABLE", "RESOURCE_EXHAUSTED"):
        assert back.retry_after_s > 0


def test_reasons_are_unique_and_upper_snake():
    reasons = [reason_of(kind) for kind in error_classes()]
    assert len(set(reasons)) == len(reasons)
    assert reason_of(errors.StudyNotFoundError) == "STUDY_NOT_FOUND"


def test_deadline_is_a_timeout_on_both_sides():
    status = render_status(TimeoutError("too late"))
    assert status.code == grpc.StatusCode.DEADLINE_EXCEEDED.value[0]
    assert isinstance(parse_status(status), TimeoutError)


@pytest.mark.parametrize("error", [KeyError("Mrs Canary"), RuntimeError("Mrs Canary"), errors.MmecgError("Mrs Canary")])
def test_anything_else_is_internal_and_tells_nothing(error):
    status = render_status(error)
    assert status.code == grpc.StatusCode.INTERNAL.value[0]
    assert b"Canary" not in status.SerializeToString()
    assert error_id_of(status) in status.message


def test_not_found_names_the_resource_that_the_caller_named():
    from mmecg_pb.v1.corpus_service_pb2 import GetStudyRequest

    status = render_status(errors.StudyNotFoundError("no such study"), GetStudyRequest(study_id="s-1"))
    resource = error_details_pb2.ResourceInfo()
    assert status.details[1].Unpack(resource)
    assert (resource.resource_type, resource.resource_name) == ("mmecg.v1/Study", "s-1")
