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


CODE = ("src", "benchmarks", "pyproject.toml")  # what a result depends on: the page that is being rewritten is not part of it


def _git(*arguments: str) -> str:
    root = Path(__file__).resolve().parents[1]
    return subprocess.run(["git", *arguments], capture_output=True, text=True, cwd=root, check=False).stdout.rstrip()


def changed_files() -> list[str]:
    """Files of the code that differ from the commit, new ones included."""
    return [line[3:] for line in _git("status", "--porcelain", "--untracked-files=all", "--", *CODE).splitlines()]


def commit() -> str:
    """The commit that runs, and whether the code is exactly that commit's."""
    name = _git("rev-parse", "HEAD")
    if not name:
        return "unknown (no git repository)"
    files = changed_files()
    listed = ", ".join(files[:5]) + (", ..." if len(files) > 5 else "")
    return f"{name}, " + (f"NOT a clean tree: {len(files)} files of the code differ ({listed})" if files else "clean tree")


def write_json(path: str | Path, rows: list[dict[str, Any]], options: dict[str, Any]) -> None:
    """Write the rows with everything needed to judge them."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    content = {"rows": rows, "options": options, "commit": commit(), "machine": machine(), "versions": package_versions()}
    Path(path).write_text(json.dumps(content, indent=2) + "\n", "utf-8")
    print(f"\n{path}")
