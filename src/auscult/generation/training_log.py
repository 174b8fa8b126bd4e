"""``log.jsonl`` of a training, and the same for TensorBoard where it is wanted."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ModelError
from ..folders import write_text
from .objective import LEVELS


class TrainLog:
    """The log: means since the last line; what a killed run wrote beyond its checkpoint goes."""

    def __init__(self, path: Path, step: int, active: bool, tensorboard: bool) -> None:
        self.path, self.active = path, active
        self.entries: list[dict[str, Any]] = []
        self.recent = math.nan
        self._board = _tensorboard(path.parent) if tensorboard and active else None
        if active:
            kept = [line for line in read_log(path) if line["step"] <= step]
            write_text(path, "".join(json.dumps(line) + "\n" for line in kept))

    def add(self, entry: dict[str, Any]) -> None:
        """Take in what a step says of itself."""
        self.entries.append(entry)
        self.recent = entry["loss"] if math.isnan(self.recent) else 0.95 * self.recent + 0.05 * entry["loss"]

    def write(self, step: int, rate: float) -> None:
        """Write the means of all steps since the last time."""
        means = {name: float(np.mean([entry[name] for entry in self.entries])) for name in ("loss", "error", "norm")}
        levels = [[entry["levels"][level] for entry in self.entries] for level in range(LEVELS)]
        found = [[value for value in values if value is not None] for values in levels]
        self.entries = []
        self.line({"step": step, **means, "rate": rate, "levels": [float(np.mean(some)) if some else None for some in found]})

    def line(self, content: dict[str, Any]) -> None:
        """Write one line of any content, which names its ``step``."""
        if not self.active:
            return
        with open(self.path, "a", encoding="utf-8") as handle:
            handle.write(json.dumps(content) + "\n")
        if self._board is not None:
            for name in ("loss", "error", "norm", "rate"):
                if name in content:
                    self._board.add_scalar(name, content[name], content["step"])
            for side in ("training", "validation"):
                for variant, losses in ((content.get(side) or {}).get("losses") or {}).items():
                    self._board.add_scalar(f"{side}/{variant}", float(np.mean(losses)), content["step"])


def read_log(path: Path) -> list[dict[str, Any]]:
    """Lines of a log; the last is left out if a kill cut it short."""
    lines = []
    if path.is_file():
        for text in path.read_text("utf-8").splitlines():
            try:
                lines.append(json.loads(text))
            except ValueError:
                break
    return lines


def _tensorboard(folder: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ModelError("logging.tensorboard = true needs the package tensorboard: pip install tensorboard") from error
    return SummaryWriter(folder / "tensorboard")
