"""``python -m tests.evidence.peers.table FILE …``: JSON lines of runs on peers, as tables of ``docs/evidence.md``."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.evidence.peers.peers import PEERS
from tests.evidence.peers.stores import Peer

DAMAGES = ("flip", "zero", "cut")


@dataclass
class Cell:
    """All runs of one engine on one peer."""

    counts: Counter[str] = field(default_factory=Counter)
    commands: list[str] = field(default_factory=list)
    versions: set[str] = field(default_factory=set)
    recovery: list[tuple[int, dict[str, float]]] = field(default_factory=list)  # records in the store, seconds
    said: dict[str, str] = field(default_factory=dict)
    is_whole: bool = True  # no run of it failed by itself

    def add(self, line: dict[str, Any]) -> None:
        self.counts.update(line["counts"])
        self.commands.append(command(line))
        self.versions.add(line["version"])
        self.recovery += [(line["records"], one) for name, one in line["measures"].items() if name == "recovery s"]
        self.said = {**line["said"], **self.said}
        self.is_whole = self.is_whole and line["failure"] is None


Cells = dict[tuple[str, str], Cell]


def command(line: dict[str, Any]) -> str:
    """What repeats a run."""
    records = f" --records {line['records']}" if "records" in line else ""
    return (
        f"python -m tests.evidence peers {line['peer']} {line['cell']} --turns {line['turns']}"
        f" --seed {line['seed']}{records}"
    )


def cells_of(lines: Iterable[dict[str, Any]]) -> Cells:
    """The cells of all lines that are about peers, and about the product as it is."""
    cells: Cells = {}
    for line in lines:
        if "peer" in line and line["planted"] is None:
            cells.setdefault((line["peer"], line["cell"]), Cell()).add(line)
    return cells


def tables(lines: Iterable[dict[str, Any]]) -> list[str]:
    """Everything: what was found, how each peer is configured, what repeats each cell."""
    cells = cells_of(lines)
    peers = [peer for name, peer in PEERS.items() if any(of == name for of, _ in cells)]
    return [
        *crashes(peers, cells), "", *damages(peers, cells), "", *configurations(peers, cells), "",
        *commands(peers, cells),
    ]  # fmt: skip


def crashes(peers: Iterable[Peer], cells: Cells) -> list[str]:
    """Kills, cuts and recovery: one row for each peer."""
    rows = [
        "| Store | `kill -9`: acknowledged records lost | power cut: acknowledged records lost "
        "| promised of a power cut | not opened, crashed or hung | wrong records "
        "| recovery to the next append, median (slowest) |",
        "|---|---|---|---|---|---|---|",
    ]
    for peer in peers:
        kills, cuts, recovery = (cells.get((peer.name, name)) for name in ("kills", "cuts", "recovery"))
        whole = [cell for cell in (kills, cuts, recovery) if cell is not None]
        failed = Counter({what: sum(cell.counts[what] for cell in whole) for what in ("refused", "crashed", "hung")})
        wrong = sum(cell.counts["wrong records"] for cell in whole)
        rows.append(
            f"| {peer.title} | {lost(kills, 'kills')} | {lost(cuts, 'cuts', may_lose=peer.keeps == 'no')} "
            f"| {peer.keeps} | {listed(failed)} | {wrong:,} | {slowness(recovery)} |"
        )
    return rows


def lost(cell: Cell | None, unit: str, *, may_lose: bool = False) -> str:
    """Records lost of those that were acknowledged, in how many kills or cuts; bold where more was promised."""
    if cell is None or not cell.is_whole:
        return "not run"
    counts = cell.counts
    text = f"{counts['lost']:,} of {counts['acked']:,}"
    if counts["lost"]:
        text += f", in {counts['missing'] + counts['wrong']:,} of {counts[unit]:,} {unit}"
        if counts["holes"]:
            text += f"; {counts['holes']:,} of them with later ones kept"
        return text if may_lose and not counts["holes"] else f"**{text}**"
    return f"{text}, {counts[unit]:,} {unit}"


def listed(counts: Counter[str]) -> str:
    """Counts that are not zero, or a zero."""
    return ", ".join(f"**{number:,} {what}**" for what, number in counts.items() if number) or "0"


def slowness(cell: Cell | None) -> str:
    """Seconds until the next record is acknowledged, of the largest store that was tried."""
    if cell is None or not cell.is_whole or not cell.recovery:
        return "not run"
    records = max(size for size, _ in cell.recovery)
    runs = [one for size, one in cell.recovery if size == records]
    longest = max(runs, key=lambda one: one["n"])  # the median of several runs is not kept: that of the longest stands
    return f"{seconds(longest['median'])} ({seconds(max(one['max'] for one in runs))}), {records:,} records"


def seconds(value: float) -> str:
    return f"{value * 1000:.3g} ms" if value < 1 else f"{value:.3g} s"


def damages(peers: Iterable[Peer], cells: Cells) -> list[str]:
    """What became of damaged files: one row for each peer."""
    rows = [
        "| Store | damaged files | all records, as they were | an error | records missing, no error "
        "| wrong records, no error | its reader crashed | its reader hung "
        "| silent, by bit flips / zeroed blocks / cuts |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for peer in peers:
        cell = cells.get((peer.name, "damage"))
        if cell is None or not cell.is_whole:
            rows.append(f"| {peer.title} | not run |  |  |  |  |  |  |  |")
            continue
        counts = cell.counts
        bad = [counts[what] for what in ("missing", "wrong", "crashed", "hung")]
        silent = [sum(counts[f"{how}: {what}"] for what in ("missing", "wrong")) for how in DAMAGES]
        late = f" ({counts['refused late']:,} after wrong records)" if counts["refused late"] else ""
        shown = " | ".join(f"**{number:,}**" if number else "0" for number in bad)
        rows.append(
            f"| {peer.title} | {counts['inputs']:,} | {counts['same']:,} | {counts['refused']:,}{late} | {shown} "
            f"| {' / '.join(f'{number:,}' for number in silent)} |"
        )
    return rows


def configurations(peers: Iterable[Peer], cells: Cells) -> list[str]:
    """Versions, and how each peer is configured, with the source."""
    rows = ["| Store | Version | Configured as | Says |", "|---|---|---|---|"]
    for peer in peers:
        versions = sorted({version for (of, _), cell in cells.items() if of == peer.name for version in cell.versions})
        source = f"[{host(peer.source)}]({peer.source})" if "://" in peer.source else f"`{peer.source}`"
        rows.append(f"| {peer.title} | {'; '.join(versions)} | {peer.configured} | {source} |")
    return rows


def host(address: str) -> str:
    return address.split("/")[2]


def commands(peers: Iterable[Peer], cells: Cells) -> list[str]:
    """What repeats each cell."""
    found = [each for peer in peers for (of, _), cell in cells.items() if of == peer.name for each in cell.commands]
    return ["```", *found, "```"]


def main() -> None:
    lines = [json.loads(line) for name in sys.argv[1:] for line in Path(name).read_text().splitlines()]
    print("\n".join(tables(lines)))


if __name__ == "__main__":
    main()
