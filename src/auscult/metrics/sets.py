"""The sets of an evaluation: whether they can be compared at all, what is known of them, and what to be careful about."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from ..errors import CorpusError
from .embeddings import Backend
from .features import FeatureSet

REFERENCE = "the reference"  # in messages; a system may be called "reference"
SAME_BAND = 0.9  # rates whose ratio is at least this are taken for one: 44.1 of 48 kHz keeps all that is heard
FEW_CLIPS = 100  # below this even the share of a class wobbles by a third


@dataclass(frozen=True)
class SetClips:
    """The clips of a set without their features, so that what several backends could use of it can be joined.

    Attributes
    ----------
    clips
        As ``FeatureSet.clips``, in an order that names do not change.
    skipped
        As ``FeatureSet.skipped``.
    """

    clips: pa.Table
    skipped: pa.Table

    @classmethod
    def of(cls, features: FeatureSet) -> SetClips:
        """Of a backend's features."""
        return cls(features.clips, features.skipped)

    def __len__(self) -> int:
        return int(self.clips.num_rows)

    @property
    def unusable(self) -> list[dict[str, Any]]:
        """Rows of what should have been a clip, and is not."""
        rows: list[dict[str, Any]] = self.skipped.to_pylist()
        return [row for row in rows if row["kind"] != "not_audio"]

    def joined(self, other: SetClips) -> SetClips:
        """The same set by another backend: clips that either could use, and what neither could."""
        known = set(self.clips["clip_id"].to_pylist())
        new = [clip_id not in known for clip_id in other.clips["clip_id"].to_pylist()]
        order = [(column, "ascending") for column in ("sample_digest", "key", "clip_id")]
        clips = pa.concat_tables([self.clips, other.clips.filter(pa.array(new, pa.bool_()))]).sort_by(order)
        used = set(clips["clip_id"].to_pylist())
        left = [clip_id is None or clip_id not in used for clip_id in self.skipped["clip_id"].to_pylist()]
        return SetClips(clips, self.skipped.filter(pa.array(left, pa.bool_())))


def native_rates(features: FeatureSet) -> Counter[int | None]:
    """How many clips have which rate in Hz in their files, as it was found when they were decoded."""
    return Counter(features.clips["sample_rate_hz"].to_pylist())


def check_rates(found: Mapping[str, Mapping[int | None, int]], backends: Sequence[Backend]) -> None:
    """Refuse sets whose bands differ where a backend listens: resampling alone would move their scores.

    Parameters
    ----------
    found
        Clips of each set by their rates in Hz; those under None are not known yet.
    backends
        By all of which the sets are scored.

    Raises
    ------
    ValueError
        Says which sets have which rates, and what to do.
    """
    rates = [rate for counts in found.values() for rate in counts if rate is not None]
    for backend in sorted(backends, key=lambda backend: backend.sample_rate_hz):
        heard = [min(rate, backend.sample_rate_hz) for rate in rates]
        if heard and min(heard) < SAME_BAND * max(heard):
            sets = "; ".join(f"{name}: {_rates(counts)}" for name, counts in found.items())
            raise ValueError(
                f"the clips have unequal sample rates ({sets}), and {backend.spec.name} listens up to "
                f"{backend.sample_rate_hz // 2:,} Hz, so that their scores would differ by the rate alone. Give --rate "
                f"{min(rates)} to bring all clips to that rate first, or --mixed-rates to compare them as they are"
            )


def _rates(counts: Mapping[int | None, int]) -> str:
    known = sorted((rate, clips) for rate, clips in counts.items() if rate is not None)
    return ", ".join(f"{clips:,} clips at {rate:,} Hz" for rate, clips in known) or "unknown"


def check_usable(name: str, features: FeatureSet, max_skipped: int) -> None:
    """Refuse a set of which too much cannot be used, or everything.

    Raises
    ------
    CorpusError
        Names the first of what cannot be used, and why.
    """
    unusable = SetClips.of(features).unusable
    if len(unusable) > max_skipped:
        first = unusable[0]
        more = f" (and {len(unusable) - 1:,} more)" if len(unusable) > 1 else ""
        raise CorpusError(
            f"{name}: {len(unusable):,} of {len(unusable) + len(features):,} clips cannot be used: {first['path']}: "
            f"{first['reason']}{more}. Mend or leave them out, or allow so many with --max-skipped {len(unusable)}: a score of "
            "a part is not the score of the whole"
        )
    if not len(features):
        raise CorpusError(f"{name}: holds no audio ({features.skipped.num_rows} other files)")


def set_facts(held: SetClips) -> dict[str, Any]:
    """What a card says of a set: how much there was, of what kind, and the digest of its contents."""
    clips = held.clips
    flags = Counter(flag for row in clips["flags"].to_pylist() for flag in row)
    digests = clips["sample_digest"].to_pylist()
    return {
        "clips": len(held),
        "seconds": round(sum(clips["duration_s"].to_pylist()), 1),
        "sample_rates_hz": _counted(clips["sample_rate_hz"].to_pylist()),
        "channels": _counted(clips["channels"].to_pylist()),
        "flags": dict(sorted(flags.items())),
        "repeated": len(digests) - len(set(digests)),
        "skipped": len(held.unusable),
        "content_sha256": hashlib.sha256("\n".join(sorted(clips["key"].to_pylist())).encode()).hexdigest(),
    }


def _counted(values: Sequence[int]) -> dict[str, int]:
    return {str(value): times for value, times in sorted(Counter(values).items())}


def reference_warnings(reference: SetClips) -> list[str]:
    """What makes a reference a poor one, whatever it is compared with."""
    facts, warnings = set_facts(reference), []
    clips = facts["clips"]
    if silent := facts["flags"].get("silent", 0):
        warnings.append(f"{silent:,} of the reference's {clips:,} clips are silent, and draw all scores toward silence")
    if facts["repeated"]:
        warnings.append(f"{facts['repeated']:,} of the reference's {clips:,} clips repeat another one sample by sample")
    return warnings


def set_warnings(generated: SetClips, reference: SetClips) -> list[str]:
    """What makes the scores of a set less reliable than they look."""
    facts, warnings = set_facts(generated), []
    clips = facts["clips"]
    if silent := facts["flags"].get("silent", 0):
        warnings.append(f"{silent:,} of {clips:,} clips are silent; some metrics hardly mind, so look at this count first")
    if quiet := facts["flags"].get("near_silent", 0):
        warnings.append(f"{quiet:,} of {clips:,} clips are nearly silent (no sample above -60 dBFS)")
    if facts["repeated"]:
        warnings.append(f"{facts['repeated']:,} of {clips:,} clips repeat another one sample by sample")
    known = set(reference.clips["sample_digest"].to_pylist())
    if copied := sum(digest in known for digest in generated.clips["sample_digest"].to_pylist()):
        warnings.append(f"{copied:,} of {clips:,} clips are in the reference sample by sample, which flatters every score")
    if min(clips, len(reference)) < FEW_CLIPS:
        warnings.append(
            f"{clips:,} generated and {len(reference):,} reference clips are few: read the intervals, not the values"
        )
    loud = [float(np.median(held.clips["peak"].to_numpy())) for held in (generated, reference)]
    if min(loud) > 0 and (step := abs(20 * np.log10(loud[0] / loud[1]))) > 6:
        warnings.append(
            f"the clips' peaks lie {step:.0f} dB {'above' if loud[0] > loud[1] else 'below'} the reference's in the median; "
            "level moves most scores (--loudness peak takes it out)"
        )
    return warnings
