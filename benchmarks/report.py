"""What every benchmark prints and writes: a table, and JSON with commit, machine and versions."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

from auscult.folders import package_versions


def print_table(rows: list[dict[str, Any]]) -> None:
    """Print rows as a Markdown table."""
    columns = list(rows[0])
    print("| " + " | ".join(columns) + " |")
    print("|" + "|".join("---" for _ in columns) + "|")
    for row in rows:
        print("| " + " | ".join(str(row[column]) for column in columns) + " |")


def machine() -> dict[str, Any]:
    """Processor, cores and memory."""
    facts = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    models = [line.partition(":")[2].strip() for line in facts.splitlines() if line.startswith("model name")]
    model = models[0] if models else platform.processor()
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {"processor": model, "cores": os.cpu_count(), "memory_gb": round(pages / 2**30, 1), "system": platform.platform()}


def commit() -> str:
    """The commit that runs, marked where files differ from it."""

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", *arguments], capture_output=True, text=True, cwd=Path(__file__).parent, check=False
        ).stdout.strip()

    return git("rev-parse", "HEAD") + (" with uncommitted changes" if git("status", "--porcelain") else "")


def write_json(path: str | Path, rows: list[dict[str, Any]], options: dict[str, Any]) -> None:
    """Write the rows with everything needed to judge them."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    content = {"rows": rows, "options": options, "commit": commit(), "machine": machine(), "versions": package_versions()}
    Path(path).write_text(json.dumps(content, indent=2) + "\n", "utf-8")
    print(f"\n{path}")
