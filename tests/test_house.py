"""The order of the rooms, and what importing the package costs."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "src" / "auscult"

# Data walks one way: a room imports only rooms before it (docs/architecture.md shows the same list).
ROOMS = [
    "errors",
    "interrupts",
    "devices",
    "cluster",
    "engine",
    "processes",
    "folders",
    "storage",
    "search",
    "configuration",
    "corpus",
    "audio",
    "pretrained",
    "descriptors",
    "vectors",
    "store",
    "describing",
    "planning",
    "indexing",
    "inputs",
    "similarity",
    "identity",
    "alignment",
    "levels",
    "calibration",
    "audit_config",
    "null_scores",
    "comparison",
    "detection_tables",
    "detection",
    "audit",
    "ensembles",
    "pairs",
    "clusters",
    "duplicates",
    "figures",
    "review",
    "report",
    "sounds",
    "demo",
    "metrics",
    "generation",
    "guidance",
    "studies",
    "cli",
]


def _room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def _imported_rooms(path: Path) -> set[str]:
    """Rooms that a module imports, at its top or inside functions."""
    depth = len(path.relative_to(PACKAGE).parts) - 1  # 0: a module of the package itself
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level == depth + 1:
            names = [node.module.split(".")[0]] if node.module else [alias.name for alias in node.names]
            rooms |= {name for name in names if not name.startswith("__")}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("auscult."):
            rooms.add(node.module.split(".")[1])
    return rooms


def test_every_module_has_a_room() -> None:
    assert {_room(path) for path in PACKAGE.rglob("*.py")} - {"__init__", "__main__"} == set(ROOMS)


def test_rooms_import_only_rooms_before_them() -> None:
    wrong = []
    for path in PACKAGE.rglob("*.py"):
        room = _room(path)
        if room.startswith("__"):
            continue
        for imported in _imported_rooms(path) - {room}:
            if imported not in ROOMS or ROOMS.index(imported) > ROOMS.index(room):
                wrong.append(f"{path.relative_to(PACKAGE)} imports {imported}")
    assert wrong == []


def test_architecture_page_shows_the_same_rooms() -> None:
    page = (PACKAGE.parents[1] / "docs" / "architecture.md").read_text("utf-8")
    for room in ROOMS:
        assert f"{room}.py" in page or f"{room}/" in page, f"docs/architecture.md does not show {room}"


def test_import_is_light() -> None:
    heavy = ("torch", "faiss", "matplotlib", "pyarrow", "scipy", "soundfile", "ray")
    code = (
        "import time; t = time.perf_counter(); import auscult; t = time.perf_counter() - t; import sys; "
        f"print(t, [m for m in {heavy!r} if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    seconds, loaded = result.stdout.split(maxsplit=1)
    assert loaded.strip() == "[]"
    assert float(seconds) < 0.3


def test_every_public_name_loads() -> None:
    import auscult

    assert all(getattr(auscult, name) is not None for name in auscult.__all__)
    assert set(auscult.__all__) <= set(dir(auscult))
