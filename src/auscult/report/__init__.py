"""Reports: one self-contained HTML file for an audit or a deduplication, and its finding in a sentence."""

from .page import audit_verdict, dedup_verdict, undecided, write_report

__all__ = ["audit_verdict", "dedup_verdict", "undecided", "write_report"]
