"""Who lives: a locked byte for each owner of something, and a thread that tells of those who died.

The kernel takes a lock back from the dead, whatever they died of; nothing else is believed. A process that is frozen
(SIGSTOP, a debugger) lives.
"""

from fastlog.liveness.slots import Slot, Slots
from fastlog.liveness.watcher import Timer, Watcher

__all__ = ["Slot", "Slots", "Timer", "Watcher"]
