"""All peers, by the name that the command line has for them."""

from __future__ import annotations

from pathlib import Path

from tests.evidence.peers.broker import KAFKA, Beside, Broker, Nothing
from tests.evidence.peers.stores import EMBEDDED, Peer

PEERS: dict[str, Peer] = {peer.name: peer for peer in (*EMBEDDED, KAFKA)}


def beside(peer: Peer, folder: Path, scratch: Path) -> Beside:
    """What runs beside a store of this peer whose files are in ``folder``; ``scratch`` is for what is none of them."""
    return Broker(folder, scratch) if peer is KAFKA else Nothing(folder)
