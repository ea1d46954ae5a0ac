"""Appending and reading compressed batches, beside the codec alone on the same bytes."""

from __future__ import annotations

from collections.abc import Callable

from benchmarks import coding
from benchmarks.contest import Contestant, contest

_TAKES_BYTES = "takes a list of bytes that exist already"


def _append(codec: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    return contest(
        f"append-{codec}",
        f"Append 1000 x 100 B of text per call, {codec}",
        Contestant("fastlog", _TAKES_BYTES, coding.append_compressed(codec)),
        Contestant(f"cramjam {codec}", "takes the records area of each batch as bytes", coding.compress(codec)),
    )


def _read(codec: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    return contest(
        f"read-{codec}",
        f"Read a log of 100 B of text, batches of 1000, {codec}",
        Contestant("fastlog", "three NumPy arrays per MiB", coding.read_compressed(codec)),
        Contestant(f"cramjam {codec}", "takes the records area of each batch as bytes", coding.decompress(codec)),
    )


@_append("zstd")
def bench_append_zstd(play: Callable[[], None]) -> None:
    play()


@_append("lz4")
def bench_append_lz4(play: Callable[[], None]) -> None:
    play()


@_read("zstd")
def bench_read_zstd(play: Callable[[], None]) -> None:
    play()


@_read("lz4")
def bench_read_lz4(play: Callable[[], None]) -> None:
    play()
