"""Embedding backends: what the metrics of generated audio are computed from."""

from .base import BACKENDS, Backend, Embedded, load_backend

__all__ = ["BACKENDS", "Backend", "Embedded", "load_backend"]
