"""The items of one MineLabelsStream: a text that cannot be sent is an error in its place, as one that is refused is."""

from __future__ import annotations

from mmecg_pb.v1 import label_mining_service_pb2

from mmecg.client.requests import Outcome, mine_request, parse_mine_outcome
from mmecg.errors import ReportError
from mmecg.labels.assertion import MinedReport


class MineStream:
    """Renders texts in their order, and parses what became of them.

    Parameters
    ----------
    language, vocabulary : str
        As in :meth:`mmecg.client.Client.mine_labels`.
    """

    def __init__(self, language: str, vocabulary: str) -> None:
        self._options = language, vocabulary
        self._rendered = 0
        self._unsent: dict[int, ReportError] = {}

    def render(self, text: str) -> label_mining_service_pb2.MineLabelsStreamRequest:
        """Return the item of a text; an empty one, which the server refuses, if the text cannot be sent."""
        item, self._rendered = self._rendered, self._rendered + 1
        try:
            return label_mining_service_pb2.MineLabelsStreamRequest(request=mine_request(text, None, *self._options))
        except ReportError as error:
            self._unsent[item] = error
            return label_mining_service_pb2.MineLabelsStreamRequest()

    def parse(self, item: int, response: label_mining_service_pb2.MineLabelsStreamResponse) -> Outcome[MinedReport]:
        """Return the outcome of an item."""
        error = self._unsent.pop(item, None)
        return Outcome(item, None, error) if error else parse_mine_outcome(item, response)
