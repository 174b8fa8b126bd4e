"""Verification: a person looks, listens and decides; verdicts become rates with intervals."""
