"""mmecg: multimodal retrieval and embedding for electrocardiograms.

Importing this package is light: torch, FAISS, gRPC and wfdb are loaded only by the modules that need them.
"""

from mmecg.ecg import LEADS, Ecg
from mmecg.errors import MmecgError
from mmecg.report import Report
from mmecg.search import Filter, Hit, SearchResult
from mmecg.study import ClinicalNote, History, Study
from mmecg.vitals import Vitals

__all__ = [
    "LEADS",
    "ClinicalNote",
    "Ecg",
    "Filter",
    "History",
    "Hit",
    "MmecgError",
    "Report",
    "SearchResult",
    "Study",
    "Vitals",
]

__version__ = "0.1.0"
