"""Where tests make their folders."""

from __future__ import annotations

import os

MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # None: where temporary files are
