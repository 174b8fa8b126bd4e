"""Scores of clips that are known to be no copies, from which p-values come: which clips count, and how they are written."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from .calibration import null_from_training
from .identity import unshared_rows
from .search import DoubleArray, IntArray

UNLIKE_LENGTHS = 2.0


def null_rows(null: pa.Table, references: pa.Table, warnings: list[str], group: str | None = None) -> IntArray:
    """Rows of the null clips that are no training clips; a warning is added if some are. With ``group``, training clips of its
    own recording do not count, for no null clip is compared with them.

    Raises
    ------
    ValueError
        All of them are training clips.
    """
    rows = unshared_rows(null, references, group)
    if len(rows) == 0:
        raise ValueError("all null clips are also training clips; --null wants clips known not to be in the training set")
    if shared := null.num_rows - len(rows):
        warnings.append(
            f"{shared:,} null clips are also training clips and were left out: they would pass off copies as chance."
        )
    return rows


def without_duplicates(null_top: DoubleArray, group: str | None, warnings: list[str]) -> DoubleArray:
    """Null scores as they are, or with ``group``, where null clips may be training clips, less those of duplicates.

    What the same sound under the name of another recording scores is no chance; a warning is added if there is such.
    """
    heard = null_top[np.isfinite(null_top)]
    if group is None:
        return heard
    kept = null_from_training(heard)
    if gone := len(heard) - len(kept):
        warnings.append(
            f"{gone:,} null clips score far above all others with clips of other recordings; they were taken for duplicates "
            "of these, and left out."
        )
    return kept


def null_table(top: pa.Table, null_top: DoubleArray) -> pa.Table:
    """The scores that p-values come from (``clip_id, nearest_id, score``), duplicates within the training set left out."""
    heard = top["score"].to_numpy()
    kept = heard <= np.max(null_top[np.isfinite(null_top)], initial=-np.inf)
    return top.rename_columns(["clip_id", "nearest_id", "score"]).filter(pa.array(kept))


def length_warning(generated: pa.Table, null: pa.Table) -> list[str]:
    """A note if the clips that p-values come from are much shorter or longer than those they are for.

    A longer clip has more chances to agree with something.
    """
    ours, theirs = (float(np.median(table["duration_s"].to_numpy())) for table in (generated, null))
    if max(ours, theirs) <= UNLIKE_LENGTHS * min(ours, theirs):
        return []
    return [
        f"P-values compare clips of unlike length: generated clips last {ours:.1f} s (median), null clips {theirs:.1f} s. "
        "A longer clip has more chances to agree with something; give --null with clips as long as the generated ones."
    ]
