"""``python -m tests.oracle``: fetch Kafka's jars and compile the driver, so that the tests find both."""

from __future__ import annotations

import sys

from tests.oracle.kafka import OracleUnavailable, prepare


def main() -> int:
    try:
        print(f"Kafka's tools are ready in {prepare()}")
    except OracleUnavailable as problem:
        print(problem, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
