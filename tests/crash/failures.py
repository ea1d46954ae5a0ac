"""A disk that failed, kept as files, and made again from them."""

from __future__ import annotations

import json
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.crash.checker import History, Promise
from tests.crash.keyed import KeyedHistory
from tests.crash.produced import ProducedHistory
from tests.crash.recording import Record, load_record, save_record
from tests.crash.replayer import Losses


@dataclass(frozen=True, slots=True)
class Failure:
    """A record, a moment of it, and what was lost."""

    recorded: Record
    history: History
    name: str
    at: int
    losses: Losses
    number: int


def keep_failure(recorded: Record, history: History, name: str, at: int, losses: Losses, number: int) -> Path:
    """Keep what it takes to make a disk again; return the folder. FASTLOG_FAILURES says where such folders go."""
    place = os.environ.get("FASTLOG_FAILURES")
    if place is not None:
        Path(place).mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f"fastlog-crash-{name}-", dir=place))
    save_history(history, folder)
    about = {"name": name, "at": at, "losses": losses, "number": number}
    (folder / "about.json").write_text(json.dumps(about, indent=1))
    return folder


def save_history(history: History, folder: Path) -> None:
    save_record(history.recorded, folder)
    base = {"seed": history.seed, "end": history.base.end, "starts": sorted(history.base.starts)}
    (folder / "history.json").write_text(json.dumps(base))
    if history.earlier is not None:
        save_history(history.earlier, folder / "earlier")


def history_of(name: str, *arguments: Any) -> History:
    """The history of a workload, which knows how to check its disks."""
    kind = {"compaction": KeyedHistory, "compaction_deaths": KeyedHistory, "transactions": ProducedHistory}
    return kind.get(name, History)(*arguments)


def load_history(folder: Path, name: str) -> History:
    earlier = load_history(folder / "earlier", "") if (folder / "earlier").exists() else None
    base = json.loads((folder / "history.json").read_text())
    promise = Promise(base["end"], frozenset(base["starts"]), 0)
    return history_of(name, load_record(folder), base["seed"], earlier, promise)


def load_failure(folder: Path) -> Failure:
    """What ``keep_failure`` kept."""
    about = json.loads((folder / "about.json").read_text())
    history = load_history(folder, about["name"])
    losses = {int(number): outcome for number, outcome in about["losses"].items()}
    return Failure(history.recorded, history, about["name"], about["at"], losses, about["number"])
