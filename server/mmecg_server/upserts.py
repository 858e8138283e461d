"""The messages of UpsertStudies: taken apart into items on their way in, and answered as they came."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence

from google.protobuf.unknown_fields import UnknownFieldSet
from google.rpc import status_pb2
from mmecg_pb.v1 import corpus_service_pb2

from mmecg.errors import QueryError

MAX_ITEMS = 256
"""Of one message."""

Item = corpus_service_pb2.UpsertItem | corpus_service_pb2.UpsertStudiesRequest
"""What has a study, a request id and embeddings."""


class UpsertMessages:
    """The messages of one stream. One thread may split while another joins."""

    def __init__(self) -> None:
        self._counts: deque[int] = deque()

    def split(self, message: corpus_service_pb2.UpsertStudiesRequest) -> Sequence[Item]:
        """Return the items of a message; the message itself if it is one, or has more beside them, or too many."""
        has_more = (
            message.HasField("study") or message.request_id or message.embeddings or len(UnknownFieldSet(message))
        )
        count = len(message.items) if not has_more and len(message.items) <= MAX_ITEMS else 0
        self._counts.append(count)
        return message.items if count else (message,)

    def join(
        self, answers: Iterator[tuple[int, int | status_pb2.Status]]
    ) -> Iterator[corpus_service_pb2.UpsertStudiesResponse]:
        """Yield the answer of each message from those of its items: position, and sequence number or status."""
        for item, answer in answers:
            count = self._counts.popleft()
            response = corpus_service_pb2.UpsertStudiesResponse(item=item)
            _set(response.outcomes.add() if count else response, answer)
            for _ in range(count - 1):
                _set(response.outcomes.add(), next(answers)[1])
            yield response


def check_single(message: Item) -> None:
    """Refuse a message that is to be one item, and has several.

    Raises
    ------
    QueryError
    """
    if isinstance(message, corpus_service_pb2.UpsertStudiesRequest) and message.items:
        raise QueryError(
            f"a message has {len(message.items)} items, expected at most {MAX_ITEMS}, and nothing beside them",
            field="items",
        )


def _set(
    outcome: corpus_service_pb2.UpsertStudiesResponse | corpus_service_pb2.UpsertOutcome,
    answer: int | status_pb2.Status,
) -> None:
    if isinstance(answer, status_pb2.Status):
        outcome.status.CopyFrom(answer)
    else:
        outcome.sequence = answer
