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
from tests.crash.store_history import StoreHistory
from tests.crash.store_life import STORE_LIVES

AnyHistory = History | StoreHistory


@dataclass(frozen=True, slots=True)
class Failure:
    """A record, a moment of it, and what was lost."""

    recorded: Record
    history: AnyHistory
    name: str
    at: int
    losses: Losses
    number: int


def keep_failure(
    recorded: Record, history: AnyHistory, name: str, at: int, losses: Losses, number: int, folder: Path | None = None
) -> Path:
    """Keep what it takes to make a disk again; return the folder. FASTLOG_FAILURES says where new ones are made."""
    if folder is None:
        place = os.environ.get("FASTLOG_FAILURES")
        if place is not None:
            Path(place).mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f"fastlog-crash-{name}-", dir=place))
    save_history(history, folder)
    about = {"name": name, "at": at, "losses": losses, "number": number}
    (folder / "about.json").write_text(json.dumps(about, indent=1))
    return folder


def save_history(history: AnyHistory, folder: Path) -> None:
    save_record(history.recorded, folder)
    about: dict[str, Any] = {"seed": history.seed}
    if isinstance(history, StoreHistory):
        about["earlier_at"] = history.earlier_at
    else:
        about |= {"end": history.base.end, "starts": sorted(history.base.starts)}
    (folder / "history.json").write_text(json.dumps(about))
    if history.earlier is not None:
        save_history(history.earlier, folder / "earlier")


def history_of(name: str, recorded: Record, seed: int, *earlier: Any) -> AnyHistory:
    """The history of a workload, which knows how to check its disks. ``earlier``: as of its class."""
    if name in STORE_LIVES:
        return StoreHistory(recorded, seed, *earlier)
    kinds = {"compaction": KeyedHistory, "compaction_deaths": KeyedHistory, "transactions": ProducedHistory}
    return kinds.get(name, History)(recorded, seed, *earlier)


def load_history(folder: Path, name: str) -> AnyHistory:
    recorded, about = load_record(folder), json.loads((folder / "history.json").read_text())
    if not (folder / "earlier").exists():
        found = history_of(name, recorded, about["seed"])
        if isinstance(found, StoreHistory):
            return found
        return type(found)(recorded, about["seed"], None, Promise(about["end"], frozenset(about["starts"])))
    earlier = load_history(folder / "earlier", name if name in STORE_LIVES else "")
    if isinstance(earlier, StoreHistory):
        return StoreHistory(recorded, about["seed"], earlier, about["earlier_at"])
    return History(recorded, about["seed"], earlier, Promise(about["end"], frozenset(about["starts"])))


def load_failure(folder: Path) -> Failure:
    """What ``keep_failure`` kept."""
    about = json.loads((folder / "about.json").read_text())
    history = load_history(folder, about["name"])
    losses = {int(number): outcome for number, outcome in about["losses"].items()}
    return Failure(history.recorded, history, about["name"], about["at"], losses, about["number"])
