"""The report of a memorization study: one HTML file with its curve, histograms, tables, and pairs to hear."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from ...audit import Audit
from ...configuration import flat_values, make_config
from ...figures import NULL_COLOR, QUERY_COLOR, REFERENCE_COLOR, frequency_ticks, histogram_svg
from ...folders import Progress, no_progress, package_versions, write_text
from ...report.page import REPORT
from ...report.rendering import render
from ...report.verification import wide_and_narrow
from ..config import StudyAudits
from ..figures import COLORS, Series, rates_picture
from ..hearing import pairs_to_hear
from ..rates import percent, with_interval
from .arms import AUDITS


def write_memorization_page(folder: Path, content: Mapping[str, Any], progress: Progress = no_progress) -> Path:
    """Write ``report.html`` of a study; returns its path.

    Parameters
    ----------
    folder
        Of the study.
    content
        What its card holds.
    """
    progress(0, 1, "writing the report")
    names = list(dict.fromkeys(row["descriptor"] for row in content["curve"]))
    page = render(
        "memorization.html",
        card={"warnings": content["warnings"], "versions": package_versions()},
        verdict=sentence(content),
        review_warnings=(),
        content=content,
        names=names,
        curve=_curve(content, names),
        epochs=_epochs(content, names),
        histograms=_histograms(folder, content, names),
        duplicates=_duplicates(content, names),
        heard=_heard(folder, content, names[0]),
        percent=percent,
        settings=list(flat_values(content["config"]).items()),
        frequency_ticks=frequency_ticks(),
    )
    write_text(folder / REPORT, page)
    progress(1, 1, "writing the report")
    return folder / REPORT


def sentence(content: Mapping[str, Any]) -> str:
    """What the study found, in a sentence.

    Examples
    --------
    >>> rows = [{"descriptor": "mel", "size": n, "rate": rate, "low": rate / 2, "high": 1.0} for n, rate in ((8, 0.9), (240, 0.1))]
    >>> sentence({"curve": rows})
    'By mel, 90 % (45 to 100) of the clips that a model of 8 training clips makes are flagged as possible replicas, and 10 % (5 to 100) with 240.'
    """  # noqa: E501 - a sentence
    name = content["curve"][0]["descriptor"]
    rows = [row for row in content["curve"] if row["descriptor"] == name]
    if all(row["rate"] is None for row in rows):
        return f"By {name}, how much is flagged could not be told: there are too few null clips."
    shares = ["a share that could not be told" if row["rate"] is None else with_interval(row) for row in rows]
    first = f"By {name}, {shares[0]} of the clips that a model of {rows[0]['size']:,} training clips makes are flagged"
    last = f", and {shares[-1]} with {rows[-1]['size']:,}" if len(rows) > 1 else ""
    return f"{first} as possible replicas{last}."


def _epochs(content: Mapping[str, Any], names: Sequence[str]) -> Markup | None:
    """Flagged against steps of training, at one size."""
    if not content["epochs"]:
        return None
    places = [f"{row['steps']:,}\n({row['epochs']:,.0f} epochs)" for row in content["epochs"] if row["descriptor"] == names[0]]
    series = [
        _series(f"flagged by {name}", COLORS[name], [row for row in content["epochs"] if row["descriptor"] == name])
        for name in names
    ]
    return rates_picture(places, series, label="steps of training", of="generated clips flagged")


def _curve(content: Mapping[str, Any], names: Sequence[str]) -> Markup:
    """Flagged against N, by descriptor; below each N the epochs."""
    sizes = list(dict.fromkeys((row["size"], row["epochs"]) for row in content["curve"]))
    series = []
    for name in names:
        rows = [row for row in content["curve"] if row["descriptor"] == name]
        series.append(_series(f"flagged by {name}", COLORS[name], rows))
    places = [f"{size:,}\n({epochs:,.0f} epochs)" for size, epochs in sizes]
    control = [row["control"] for row in content["curve"] if row["descriptor"] == names[0]]
    if any(one["rate"] is not None for one in control):
        series.append(_series(f"control, by {names[0]}", NULL_COLOR, control))
    return rates_picture(places, series, label="training clips, at equal steps of training", of="generated clips flagged")


def _series(label: str, color: str, rows: Sequence[Mapping[str, Any]]) -> Series:
    return Series(label, color, *(tuple(row[key] for row in rows) for key in ("rate", "low", "high")))


def _histograms(folder: Path, content: Mapping[str, Any], names: Sequence[str]) -> list[dict[str, Any]]:
    """For each descriptor and size: top-1 scores over the seeds, generated to training and training to training."""
    found = []
    for name in names:
        for row in (row for row in content["curve"] if row["descriptor"] == name):
            arms = [arm for arm in content["models"] if arm["size"] == row["size"] and arm["plain"]]
            audits = [Audit.open(folder / AUDITS / f"{arm['name']}-{name}") for arm in arms]
            generated = np.concatenate([one.queries()["score"].drop_null().to_numpy() for one in audits])
            training = np.concatenate([one.training()["score"].drop_null().to_numpy() for one in audits])
            null = np.concatenate([one.null()["score"].drop_null().to_numpy() for one in audits])
            # duplicates among training clips score so high that all else would be one bar
            drawn = training[training <= max(generated.max(initial=-np.inf), null.max(initial=-np.inf))]
            sets = [("generated to training", QUERY_COLOR, generated), ("training to training", REFERENCE_COLOR, drawn)]
            level = content["config"]["audits"]["level"]
            tau = None if row["rate"] is None else float(np.quantile(null, 1 - level, method="higher"))
            line = f"{percent(level)} of null clips above"
            wide, narrow = (histogram_svg(sets, tau=tau, unit="clips", narrow=narrow, line=line) for narrow in (False, True))
            title = f"{row['size']:,} training clips, by {name}"
            picture = Markup(wide_and_narrow(wide, narrow))
            beyond = len(training) - len(drawn)
            highest = training.max(initial=-np.inf)
            found.append(
                {"title": title, "picture": picture, "separation": row["separation"], "beyond": beyond, "highest": highest}
            )
    return found


def _duplicates(content: Mapping[str, Any], names: Sequence[str]) -> list[tuple[str, Markup]]:
    """For each descriptor: flagged of repeated clips and of the others, against the number of copies."""
    found = []
    for name in names:
        rows = [row for row in content["duplicates"] if row["descriptor"] == name]
        if rows:
            places = [
                f"{row['copies']} copies, then\ndeduplicated" if row["deduplicated"] else f"{row['copies']}" for row in rows
            ]
            series = [
                _series("prompts of repeated clips", QUERY_COLOR, [row["repeated"] for row in rows]),
                _series("prompts of the others", REFERENCE_COLOR, [row["once"] for row in rows]),
            ]
            found.append((name, rates_picture(places, series, label="copies in the training set", of=f"flagged by {name}")))
    return found


def _heard(folder: Path, content: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    """Pairs of each size, of all its models."""
    asked, found = make_config(StudyAudits, dict(content["config"]["audits"])), []
    for size in dict.fromkeys(row["size"] for row in content["curve"]):
        arms = [arm["name"] for arm in content["models"] if arm["size"] == size and arm["plain"]]
        found.append({"size": size, "pairs": pairs_to_hear(asked, name, [folder / AUDITS / f"{arm}-{name}" for arm in arms])})
    return found
