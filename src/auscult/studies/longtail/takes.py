"""Which clips are of one recording: by the group of their ids, and where one sound was uploaded under two names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from ...identity import recordings
from ..sets import COPY


def origin(clip_id: str) -> str:
    """The clip that a near-duplicate was made of; any other clip itself.

    >>> origin("1-100#copy-2"), origin("1-100")
    ('1-100', '1-100')
    """
    return clip_id.partition(f"#{COPY}-")[0]


@dataclass(frozen=True)
class Takes:
    """Names of recordings.

    Attributes
    ----------
    group
        Regular expression whose first group names the recording of a clip id; None: each clip is its own.
    alike
        Names of recordings that are one sound, each such as ``"2-28314 = 2-30322"``.

    Raises
    ------
    ValueError
        ``alike`` is not of this form.

    Examples
    --------
    >>> takes = Takes(r"^(\\d+)-", ("17 = 18",))
    >>> takes.recording("18-A#copy-2") == takes.recording("17-B"), takes.recording("19-A")
    (True, '19')
    """

    group: str | None = None
    alike: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for line, names in zip(self.alike, self.named, strict=True):
            if len(set(names)) < 2 or not all(names):
                raise ValueError(f"[tail] alike should be names of recordings such as '2-28314 = 2-30322', got {line!r}")

    @cached_property
    def named(self) -> list[list[str]]:
        """The names of each line of ``alike``."""
        return [[name.strip() for name in line.split("=")] for line in self.alike]

    @cached_property
    def _first(self) -> dict[str, str]:
        """The name that stands for all that are linked to it."""
        first: dict[str, str] = {}
        for names in self.named:
            linked = {first.get(name, name) for name in names}
            one = min(linked)
            first |= dict.fromkeys((*linked, *names, *(key for key, value in first.items() if value in linked)), one)
        return first

    def of(self, clip_ids: Sequence[str]) -> list[str]:
        """The recording of each clip.

        Raises
        ------
        ValueError
            An id does not fit the expression.
        """
        ids = [origin(clip_id) for clip_id in clip_ids]
        names = ids if self.group is None else recordings(ids, self.group)
        return [self._first.get(name, name) for name in names]

    def recording(self, clip_id: str) -> str:
        """That of one clip."""
        return self.of([clip_id])[0]

    def check(self, clip_ids: Sequence[str]) -> None:
        """Refuse names in ``alike`` that no clip is of.

        Raises
        ------
        ValueError
            There are some.
        """
        known = set(Takes(self.group).of(clip_ids))
        if unknown := [name for names in self.named for name in names if name not in known]:
            raise ValueError(
                f"[tail] alike: no clip is of the recording {unknown[0]!r}; names are what [data] group finds in a clip id, "
                f"such as {min(known)!r}"
            )
