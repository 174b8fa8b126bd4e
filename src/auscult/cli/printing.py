"""What commands print: summaries, cards, paths, JSON."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from ..planning import Changes

out, err = Console(highlight=False, soft_wrap=True), Console(stderr=True, highlight=False, soft_wrap=True)


def print_card(card: dict[str, Any]) -> None:
    table = Table(show_header=False, box=None)
    for key in ("kind", "spec", "descriptor", "dtype", "window_s", "source", "audio_s", "padding_share", "created"):
        of_captions = key == "window_s" and card.get("config", {}).get("key") == "text"  # which have no windows
        if key in card and not of_captions:
            table.add_row(key, _shown(card[key]))
    for role, facts in card.get("inputs", {}).items():
        counts = facts["counts"]
        unread = f", {counts['skipped']:,} could not be read" if counts["skipped"] else ""
        table.add_row(f"inputs.{role}", Text(f"{', '.join(facts['source'])}: {counts['clips']:,} clips{unread}"))
    for group in ("counts", "flags", "threshold", "calibration", "config", "versions"):
        for key, value in card.get(group, {}).items():
            if value is not None:
                table.add_row(f"{group}.{key}", _shown(value))
    out.print(table)
    for warning in card.get("warnings", []):
        out.print(Text(f"note: {warning}"))


def _shown(value: Any) -> Text:
    """A value of a card as people read it."""
    if isinstance(value, bool):
        return Text("yes" if value else "no")
    if isinstance(value, list):
        return Text(", ".join(map(str, value)))
    return Text(f"{value:,}" if isinstance(value, int) else str(value))


def changes_line(changes: Changes) -> str:
    """What a run over a store that was there found of the source."""
    words = {"new": changes.new, "changed": changes.changed, "unchanged": changes.unchanged, "vanished": changes.vanished}
    again = f", {changes.retried:,} tried again" if changes.retried else ""
    return ", ".join(f"{number:,} {word}" for word, number in words.items()) + again


def print_summary(as_json: bool, card: dict[str, Any], sentence: str, *paths: Path | str, **more: Any) -> None:
    if as_json:
        print_json(
            {
                **{key: card[key] for key in ("kind", "counts", "threshold", "warnings") if key in card},
                **more,
                "paths": [str(path) for path in paths],
            }
        )
        return
    out.print(Text(sentence))
    for warning in card["warnings"]:
        out.print(Text(f"note: {warning}"))
    print_paths(*paths)


def print_paths(*paths: Path | str) -> None:
    for path in paths:
        out.print(Text(str(path)))


def print_json(content: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def finish(skipped: int, allowed: int, listing: Path | str, why: str = "could not be read") -> None:
    if skipped:
        err.print(Text(f"{skipped:,} {'input' if skipped == 1 else 'inputs'} {why}; see {listing}"))
    if skipped > allowed:
        raise typer.Exit(1)
