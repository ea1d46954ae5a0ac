"""``python -m tests.crash FOLDER [TARGET]``: make a disk of a failure again and check it.

FOLDER is what the failure named. The disk is put into TARGET, which must be empty, and stays there as the check leaves
it; without TARGET it is put into a temporary folder and removed. Ends with 1 when the check fails.
"""

from __future__ import annotations

import logging
import sys
import tempfile
import traceback
from pathlib import Path

from tests.crash.failures import load_failure
from tests.crash.replayer import Place, Replayer


def main() -> int:
    logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s", stream=sys.stdout)
    failure = load_failure(Path(sys.argv[1]))
    replayer = Replayer(failure.recorded)
    print(replayer.describe(failure.at, failure.losses))
    print("promised:", failure.history.told(failure.at))
    with tempfile.TemporaryDirectory(prefix="fastlog-crash-") as name:
        root = Path(sys.argv[2]) if len(sys.argv) > 2 else Path(name, "root")
        root.mkdir(exist_ok=True)
        assert not any(root.iterdir()), f"{root} is not empty"
        place = Place(root)
        place.put(replayer.disk(failure.at, failure.losses))
        try:
            with place.believed():
                failure.history.check(root, failure.at, failure.number)
        except Exception:  # noqa: BLE001 - a failure is what is looked for
            traceback.print_exc(file=sys.stdout)
            return 1
    print("this disk is fine")
    return 0


if __name__ == "__main__":
    sys.exit(main())
