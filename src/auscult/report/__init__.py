"""Reports: one self-contained HTML file for an audit or a deduplication."""

from .page import write_report

__all__ = ["write_report"]
