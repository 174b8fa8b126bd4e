"""Pairs of captions and sounds that a model looks things up in: built once, asked in training and in sampling."""

from .building import DatastoreConfig, build_datastore
from .report import RetrievalReport
from .search import Exclusion
from .store import Datastore, Retrieved

__all__ = ["Datastore", "DatastoreConfig", "Exclusion", "RetrievalReport", "Retrieved", "build_datastore"]
