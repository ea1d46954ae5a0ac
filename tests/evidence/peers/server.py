"""``python -m tests.evidence.peers.server PEER``: a warm process that forks whoever opens a store of this peer.

An order is one line of JSON on standard input. Its process reports on standard output, one line each, written with a
single ``write``:

======================  ==============================================================================================
``pid N``               it runs
``open``                the store is open
``try FIRST COUNT``     an append of the records FIRST, FIRST + 1 … is about to start
``ack FIRST COUNT``     it returned
``filled``              as many as the order wants are acknowledged
``closed``              the store was closed
``took SECONDS``        opening the store and appending one record took so long
``positions JSON``      the position of each record
``verdict JSON``        the ``Verdict`` of the judge
``done STATUS``         the process is gone, with this wait status (from the server)
======================  ==============================================================================================
"""

from __future__ import annotations

import importlib
import json
import os
import random
import sys
import time
import traceback
from itertools import repeat
from typing import Any

from tests.evidence.peers.peers import PEERS
from tests.evidence.peers.stores import Peer
from tests.evidence.peers.workload import BATCH, StuckError, Told, Verdict, describe, judge, sizes, values

FAILED = 3


def report(line: str) -> None:
    os.write(1, (line + "\n").encode())


def write(peer: Peer, order: dict[str, Any]) -> None:
    """Append records: ``count`` of them, or without end. The store is closed behind them, unless it is to ``go_on``."""
    seed, first, count = order["seed"], order["first"], order["count"]
    store = peer.open(order["place"])
    report("open")
    each = repeat(BATCH) if order["large"] else sizes(random.Random(f"{seed} {first}"))
    end = None if count is None else first + count
    while True:
        size = next(each)
        if end is not None:
            size = min(size, end - first)
        report(f"try {first} {size}")
        store.append(values(seed, first, size))
        report(f"ack {first} {size}")
        first += size
        if first == end:
            report("filled")
            if not order["go_on"]:
                break
            end = None
    store.close()
    report("closed")


def positions(peer: Peer, order: dict[str, Any]) -> None:
    """Where each record is, in a store that nothing has happened to."""
    store = peer.open(order["place"])
    found = [position for position, _ in store.read_all()]
    store.close()
    report(f"positions {json.dumps(found)}")


def recover(peer: Peer, order: dict[str, Any]) -> None:
    """Open a store and append to it, with the time that this takes; then ``judge`` it, closed and opened again."""
    end = order["end"]
    one = values(order["seed"], end, 1)
    began = time.perf_counter()
    try:
        store = peer.open(order["place"])
        store.append(one)
    except Exception as problem:  # noqa: BLE001 - whatever a peer raises, it has said so
        report_verdict(refusal(problem))
        return
    report(f"took {time.perf_counter() - began}")
    store.close()
    if order["judge"]:
        judge_store(peer, {**order, "end": end + 1, "acked": [*order["acked"], [end, end + 1]]})


def judge_store(peer: Peer, order: dict[str, Any]) -> None:
    """Open a store, read all of it, close it; an error at any of these is part of the verdict."""
    told = Told([(first, end) for first, end in order["acked"]], order["end"])
    try:
        store = peer.open(order["place"])
    except Exception as problem:  # noqa: BLE001
        report_verdict(refusal(problem))
        return
    verdict = judge(store.read_all(), order["seed"], told, order.get("positions"))
    if verdict.error is None:
        try:
            store.close()
        except Exception as problem:  # noqa: BLE001
            verdict.error = f"at close: {describe(problem)}"
    report_verdict(verdict)


def refusal(problem: Exception) -> Verdict:
    """A store that cannot be opened."""
    return Verdict(error=describe(problem), is_stuck=isinstance(problem, StuckError))


def report_verdict(verdict: Verdict) -> None:
    report(f"verdict {json.dumps(verdict.as_json())}")


ORDERS = {"write": write, "positions": positions, "recover": recover, "judge": judge_store}


def main(name: str) -> None:
    peer = PEERS[name]
    importlib.import_module(peer.module)
    for line in sys.stdin:
        order = json.loads(line)
        pid = os.fork()
        if pid == 0:
            report(f"pid {os.getpid()}")
            try:
                ORDERS[order["do"]](peer, order)
            except BaseException:  # noqa: BLE001 - a forked child must never return to its parent's loop
                traceback.print_exc()
                sys.stderr.flush()
                os._exit(FAILED)
            os._exit(0)
        report(f"done {os.waitpid(pid, 0)[1]}")


if __name__ == "__main__":
    main(sys.argv[1])
