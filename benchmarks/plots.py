"""Pictures of a run: horizontal bars of rates, one panel per contest, fastlog's own bars in another colour."""

from __future__ import annotations

from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Picture

from benchmarks.figures import Figure, Figures

_PICTURES = {
    "append": ("append-100", "append-1000", "append-column"),
    "read": ("read",),
    "lookup": ("lookup-offset", "lookup-time"),
    "large-log": ("large-append", "large-open"),
    "import": ("import",),
    "sharing": ("append-one", "append-durable", "append-shared", "wake-up", "takeover"),
    "codecs": ("append-zstd", "append-lz4", "read-zstd", "read-lz4"),
    "compaction": ("compaction",),
    "producer": ("send", "send-keyed", "send-many"),
    "consumer": ("consume", "consume-batches", "deliver"),
    "transactions": ("transactions",),
    "groups": ("commit", "group-takeover", "rebalance"),
    "delivery": ("app", "app-concurrency", "dead-letters", "due"),
    "store": ("many-partitions",),
}
_OURS, _PEERS, _TEXT = "#0b7a75", "#b9c4c9", "#24292f"
_PEER_WORDS = (
    "LMDB",
    "RocksDB",
    "SQLite",
    "bare",
    "numpy",
    "nothing",
    "pipe",
    "cramjam",
    "copy",
    "Kafka",
    "PartitionLog.",
)
_SCALES = {"records": (1e6, "M records/s"), "lookups": (1e6, "M lookups/s"), "bytes": (1e6, "MB/s"),
           "transactions": (1e3, "k transactions/s"), "commits": (1e3, "k commits/s")}  # fmt: skip
_SLOW_RECORDS = (1e3, "k records/s")


def draw(figures: Figures, directory: Path, name: str, kind: str = "svg") -> list[Path]:
    """Write one picture per theme that was measured; their paths."""
    written = []
    with matplotlib.rc_context({"svg.hashsalt": "fastlog", "svg.fonttype": "none", "font.size": 10}):
        for theme, contests in _PICTURES.items():
            measured = [figures[contest] for contest in contests if contest in figures]
            if measured:
                path = directory / f"{name}-{theme}.{kind}"
                metadata = {"Date": None} if kind == "svg" else None
                _picture(measured).savefig(path, metadata=metadata, facecolor="white")
                written.append(path)
    return written


def _picture(contests: list[dict[str, Figure]]) -> Picture:
    rows = [len(contest) for contest in contests]
    height = sum(0.34 * count + 0.9 for count in rows)
    picture = Picture(figsize=(8.6, height), layout="constrained")
    panels = picture.subplots(len(contests), 1, squeeze=False, gridspec_kw={"height_ratios": rows})
    for panel, contest in zip(panels[:, 0], contests, strict=True):
        _panel(panel, list(contest.values()))
    return picture


def _panel(panel: Axes, figures: list[Figure]) -> None:
    """Rates where the work is counted in records or lookups, else milliseconds. Whiskers: slowest to fastest round."""
    scale = _SCALES.get(figures[0].unit)
    if figures[0].unit == "records" and max(figure.rate for figure in figures) < 1e5:
        scale = _SLOW_RECORDS
    if scale:
        divisor, unit = scale
        order = sorted(figures, key=lambda figure: figure.rate)
        lengths = [figure.rate / divisor for figure in order]
        ends = [
            (figure.units / max(figure.seconds) / divisor, figure.units / min(figure.seconds) / divisor)
            for figure in order
        ]
    else:
        order = sorted(figures, key=lambda figure: -figure.median_seconds)
        factor, unit = (1e6, "µs") if figures[0].samples else (1e3, "ms")
        lengths = [figure.median_seconds * factor for figure in order]
        # of single steps the slowest one would dwarf all the others
        ends = [
            (min(figure.times) * factor, (figure.p99_seconds if figure.samples else max(figure.times)) * factor)
            for figure in order
        ]
        unit += ", whiskers to p99 (less is better)" if figures[0].samples else " (less is better)"
    names = [figure.contestant for figure in order]
    colours = [_PEERS if name.startswith(_PEER_WORDS) else _OURS for name in names]
    bars = panel.barh(names, lengths, color=colours, height=0.68)
    for row, (low, high) in enumerate(ends):
        panel.plot((low, high), (row, row), color=_TEXT, linewidth=1)
    longest = max(high for _, high in ends)
    for bar, length, (_, high) in zip(bars, lengths, ends, strict=True):
        middle = bar.get_y() + bar.get_height() / 2
        text = f"{length:.3g}" if length < 100 else f"{length:.0f}"
        panel.text(max(length, high) + 0.012 * longest, middle, text, va="center", color=_TEXT)
    panel.set_xlim(0, longest * 1.1)
    panel.set_title(f"{figures[0].title} · {unit}", loc="left", fontsize=10.5, fontweight="bold", color=_TEXT)
    panel.spines[["top", "right"]].set_visible(False)
    panel.tick_params(axis="y", length=0)
