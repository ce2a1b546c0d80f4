"""Registry of the contestants."""

from __future__ import annotations

from benchmarks.conic_peers import CONIC_PEERS
from benchmarks.ours import EMPTY, OURS
from benchmarks.qp_peers import QP_PEERS

__all__ = ["EMPTY", "OURS", "PEERS"]

PEERS = {peer.name: peer for peer in (*CONIC_PEERS, *QP_PEERS)}
"""Peers by name."""
