"""``auscult review``: serve the page, or say what the verdicts are."""

from __future__ import annotations

import os
import sys
import threading
import webbrowser
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from .options import (
    AsJson,
    local_path,
)
from .printing import err, out, print_json, print_paths


def review(
    folder: Annotated[Path, typer.Argument(parser=local_path, metavar="AUDIT|DEDUP", help="Folder of an audit or a dedup.")],
    reviewer: Annotated[str | None, typer.Option(help="Whose verdicts these are (default: the login name).")] = None,
    host: Annotated[
        str | None, typer.Option(help="Let others in: listen on this address, and demand a token (default: this machine only).")
    ] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0: any free one.")] = 8765,
    order: Annotated[str, typer.Option(help="score, uncertain (around tau first) or random.")] = "score",
    everything: Annotated[bool, typer.Option("--all", help="Begin with all pairs, not with the undecided ones.")] = False,
    blind: Annotated[bool, typer.Option("--blind", help="Hide what the audit thinks; the order is random.")] = False,
    controls: Annotated[
        int | None, typer.Option(min=0, help="Mix in so many pairs whose truth is known (default: those made before).")
    ] = None,
    sample: Annotated[int, typer.Option(min=0, help="Draw so many unflagged clips, for a rate.")] = 0,
    seed: Annotated[int, typer.Option(help="Of what is random.")] = 0,
    no_browser: Annotated[bool, typer.Option("--no-browser", help="Only print the address.")] = False,
    stats: Annotated[bool, typer.Option("--stats", help="Print what the verdicts say, and end.")] = False,
    export: Annotated[
        Path | None,
        typer.Option(parser=local_path, metavar="PATH", help="Write all verdicts to a .csv or .parquet file, and end."),
    ] = None,
    import_: Annotated[
        Path | None,
        typer.Option("--import", parser=local_path, metavar="PATH", help="Take in verdicts from such a file, and end."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Look, listen and decide: a local page for the pairs of an audit or the clusters of a dedup."""
    from ..review.queue import load_pairs
    from ..review.verdicts import VerdictStore

    if stats or export is not None or import_ is not None:
        load_pairs(folder)  # or a mistyped folder would get a database
        with VerdictStore.open(folder) as store:
            _exchange(folder, store, stats=stats, export=export, import_=import_, as_json=as_json)
        return

    from ..review.app import serve

    def ready(url: str) -> None:
        if as_json:
            print_json({"url": url})
        else:
            out.print(Text(f"{url}\nCtrl-C ends the review; every verdict is saved as soon as it is made."))
        sys.stdout.flush()
        if not no_browser:
            _open_browser(url)

    with suppress(KeyboardInterrupt):
        serve(
            folder,
            host=host,
            port=port,
            ready=ready,
            reviewer=reviewer,
            blind=blind,
            order=order,
            controls=controls,
            sample=sample,
            seed=seed,
            unreviewed=not everything,
        )
    with VerdictStore.open(folder) as store:
        count = store.latest().num_rows + store.latest_clusters().num_rows
    err.print(Text(f"{count:,} {'verdict' if count == 1 else 'verdicts'} in {folder}; next: auscult report {folder}"))


def _exchange(folder: Path, store: Any, *, stats: bool, export: Path | None, import_: Path | None, as_json: bool) -> None:
    """Import, then export, then statistics, as far as each is wanted."""
    from ..folders import read_card
    from ..review.exchange import clusters_file, is_clusters_file
    from ..review.statistics import review_statistics

    facts: dict[str, Any] = {}
    if import_ is not None:
        facts |= _import(folder, store, import_)
        if not as_json:
            _print_imported(facts, import_)
    if export is not None:
        if is_clusters_file(export):
            raise ValueError(f"{export}: such a name is that of the second file, for clusters; give the first one's")
        facts["exported"] = store.export_verdicts(export)
        if not as_json:
            out.print(Text(f"{facts['exported']:,} verdicts written"))
            print_paths(export)
        if read_card(folder)["kind"] == "dedup":
            facts["exported_clusters"] = store.export_clusters(clusters_file(export))
            if not as_json:
                out.print(Text(f"{facts['exported_clusters']:,} decisions on clusters written"))
                print_paths(clusters_file(export))
    if stats:
        found = review_statistics(folder, store)
        facts |= found
        if not as_json:
            _print_statistics(found)
    if as_json:
        print_json(facts)


def _import(folder: Path, store: Any, path: Path) -> dict[str, Any]:
    """Take in verdicts and, of a file of that name or of one beside it, decisions on clusters; say how many belong here."""
    from ..review.exchange import clusters_file, is_clusters_file, read_cluster_rows, read_rows
    from ..review.statistics import Here

    here, facts = Here.read(folder), dict[str, Any]()
    if not is_clusters_file(path):
        known, rows = store.controls(), read_rows(path)
        facts["imported"] = store.import_verdicts(path)
        facts["verdicts_in_file"] = len(rows)
        taken = [row["pair_id"] for row in rows if row["control"] is None or row["pair_id"] in known]
        facts["on_pairs_here"] = sum(pair in here.pairs or pair in known for pair in taken)
        facts["controls_left_out"] = len(rows) - len(taken)
    if is_clusters_file(path) or clusters_file(path).is_file():
        decisions = read_cluster_rows(clusters_file(path))
        facts["imported_clusters"] = store.import_clusters(clusters_file(path))
        facts["decisions_in_file"] = len(decisions)
        facts["on_clusters_here"] = sum(row["cluster_key"] in here.clusters for row in decisions)
    return facts


def _print_imported(facts: dict[str, Any], path: Path) -> None:
    if "imported" in facts:
        out.print(Text(f"{facts['imported']:,} verdicts were new in {path}"))
        out.print(
            Text(f"{facts['on_pairs_here']:,} of {facts['verdicts_in_file']:,} are on pairs of this folder; only these count")
        )
        if facts["controls_left_out"]:
            out.print(Text(f"{facts['controls_left_out']:,} are on controls of another review and were left out"))
    if "imported_clusters" in facts:
        out.print(Text(f"{facts['imported_clusters']:,} decisions on clusters were new"))
        out.print(Text(f"{facts['on_clusters_here']:,} of {facts['decisions_in_file']:,} are on clusters of this folder"))


def _print_statistics(found: dict[str, Any]) -> None:
    from ..review.intervals import Share

    if not found["reviewers"]:
        out.print("no verdict yet; decide with `auscult review FOLDER`")
        return
    table = Table(title=f"{found['verdicts']:,} verdicts on {found['pairs']:,} pairs", title_justify="left")
    columns = list(next(iter(found["reviewers"].values())))
    table.add_column("reviewer")
    for column in columns:
        table.add_column(column, justify="right")
    for name, counts in found["reviewers"].items():
        table.add_row(Text(name), *(f"{counts[column]:,}" for column in columns))
    out.print(table)
    if found.get("rate"):
        out.print(Text(found["rate"]["sentence"]))
    if found.get("precision"):
        out.print(Text(f"of the flagged clips, {Share(**found['precision']).text} are replications"))
    for pair in found["agreement"]:
        kappa = "" if pair["kappa"] is None else f"; Cohen's kappa {pair['kappa']['kappa']:.2f}"
        out.print(Text(f"{pair['first']} and {pair['second']} agree on {pair['agreed']:,} of {pair['pairs']:,} pairs{kappa}"))
    for warning in found.get("warnings", ()):
        out.print(Text(f"note: {warning}"))
    for name, result in found["controls"].items():
        for what, key in (("known copies", "sensitivity"), ("known non-copies", "specificity")):
            if result[key] is not None:
                out.print(Text(f"{name} was right about {Share(**result[key]).text} of the {what}"))


def _open_browser(url: str) -> None:
    """Open the page, without waiting for a browser that takes its time."""
    if sys.platform.startswith("linux") and not any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER")):
        return  # what would open is a browser for terminals, in the terminal that shows the address
    threading.Thread(target=webbrowser.open, args=(url,), daemon=True).start()
