"""The typed client of the mmecg services: :class:`Client`, and :class:`AsyncClient` for asyncio.

Takes ECGs, NumPy arrays or paths of WFDB records, returns domain objects, raises the errors of :mod:`mmecg.errors`.
Needs neither torch nor FAISS.
"""

from mmecg.client.aio import AsyncClient
from mmecg.client.channel import ChannelOptions
from mmecg.client.corpus_requests import EmbeddedStudy
from mmecg.client.requests import Outcome, ServerInfo, as_ecg
from mmecg.client.retry import RetryPolicy
from mmecg.client.sync import Client

__all__ = [
    "AsyncClient",
    "ChannelOptions",
    "Client",
    "EmbeddedStudy",
    "Outcome",
    "RetryPolicy",
    "ServerInfo",
    "as_ecg",
]
