"""Asks Apache Kafka 4.1 itself about log directories.

``prepare()`` fetches Kafka's jars with Maven and compiles two small Java classes, once, into ``.cache/kafka``.
A ``KafkaOracle`` then keeps one virtual machine running and sends it many questions: start-up takes about two
seconds, a question a few milliseconds.

Two readings of the same files are offered, both made by Kafka's code:

* ``check(paths)`` runs ``kafka.tools.DumpLogSegments`` with deep iteration and printed data over ``.log``, ``.index``
  and ``.timeindex`` files, once more with ``--verify-index-only`` and ``--index-sanity-check``, and collects every
  problem it reports;
* ``records(path)`` reads the records of a segment through ``FileRecords``, with header values and all bytes exact
  (the dump tool prints the keys of headers only).
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

__all__ = ["DumpedBatch", "DumpedRecord", "KafkaOracle", "KafkaRecord", "OracleUnavailable", "prepare"]

HERE = Path(__file__).resolve().parent
CACHE = Path(os.environ.get("FASTLOG_KAFKA_CACHE", HERE.parent.parent / ".cache" / "kafka"))
JAVA_FLAGS = (
    "-Xmx512m",
    "-XX:+UseSerialGC",
    "-XX:TieredStopAtLevel=1",
    "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
)


class OracleUnavailable(Exception):
    """Java, Maven or the jars are not there; the message says which and what to do."""


@dataclass(frozen=True)
class DumpedRecord:
    """One record line of DumpLogSegments; null keys and values are told by their size of -1."""

    offset: int
    timestamp: int
    timestamp_type: str
    key: bytes | None
    value: bytes | None
    header_keys: str


@dataclass
class DumpedBatch:
    """One batch line of DumpLogSegments and the records below it."""

    fields: dict[str, str]
    records: list[DumpedRecord] = field(default_factory=list)


@dataclass(frozen=True)
class KafkaRecord:
    """A record as Kafka's own reader delivers it; timestamps in milliseconds, -1 for none."""

    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes | None], ...]


def run_or_explain(command: Sequence[str], what: str) -> None:
    result = subprocess.run(command, check=False, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if result.returncode:
        raise OracleUnavailable(f"{what} failed ({' '.join(command[:2])}):\n{result.stdout}{result.stderr}")


def prepare() -> Path:
    """Make the class path, when it is not there yet, and return its directory. Safe to call from several processes."""
    for program in ("java", "javac"):
        if shutil.which(program) is None:
            raise OracleUnavailable(f"{program} is not in PATH: install a JDK of version 17 or newer")
    sources = sorted((HERE / "java").glob("*.java"))
    digest = hashlib.sha256(b"".join(file.read_bytes() for file in [HERE / "pom.xml", *sources])).hexdigest()[:16]
    ready = CACHE / digest
    if ready.is_dir():
        return ready
    if shutil.which("mvn") is None:
        raise OracleUnavailable("mvn is not in PATH: install Maven, it fetches Kafka's jars")
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as scratch:
        build = Path(scratch) / "ready"
        fetch = ["mvn", "-q", "-B", "-f", str(HERE / "pom.xml"), "dependency:copy-dependencies"]
        run_or_explain([*fetch, f"-DoutputDirectory={build / 'jars'}"], "fetching Kafka's jars")
        compiler = ["javac", "-d", str(build / "classes"), "-cp", str(build / "jars" / "*")]
        run_or_explain([*compiler, *map(str, sources)], "compiling the driver")
        try:
            build.rename(ready)
        except OSError:
            if not ready.is_dir():  # otherwise another process was faster
                raise
    return ready


BATCH_FIELD = re.compile(r"(\w+): (\S+)")
RECORD_LINE = re.compile(
    r"\| offset: (?P<offset>-?\d+) (?P<type>CreateTime|LogAppendTime|NoTimestampType): (?P<timestamp>-?\d+)"
    r" keySize: (?P<key_size>-?\d+) valueSize: (?P<value_size>-?\d+) sequence: -?\d+ headerKeys: \[(?P<headers>.*?)\]"
    r"(?: endTxnMarker: .*| controlType: .*)?(?: key: (?P<key>[0-9a-f]*))?(?: payload: (?P<value>[0-9a-f]*))?$",
    re.DOTALL,
)
PROBLEM = re.compile(
    r"Mismatches in|Found timestamp mismatch|Found out of order|Non-consecutive|not found in the log|Couldn't find"
    r"|invalid bytes at the end|isvalid: false|corrupt|EXCEPTION",
    re.IGNORECASE,
)


def bytes_of(digits: str | None, size: str) -> bytes | None:
    if int(size) < 0:
        return None
    content = bytes.fromhex(digits or "")
    if len(content) != int(size):
        raise ValueError(f"the dump shows {len(content)} bytes where it counts {size}")
    return content


class KafkaOracle:
    """One running virtual machine with Kafka's tools. Close it, or use it as a context manager."""

    def __init__(self) -> None:
        home = prepare()
        class_path = f"{home / 'classes'}:{home / 'jars'}/*"
        self._process = subprocess.Popen(
            ["java", *JAVA_FLAGS, "-cp", class_path, "OracleServer"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the virtual machine."""
        assert self._process.stdin and self._process.stdout
        self._process.stdin.close()
        self._process.wait(timeout=30)
        self._process.stdout.close()

    def ask(self, command: str, *arguments: str) -> tuple[str, str]:
        """Run one command of ``OracleServer`` and return what it wrote to standard output and standard error."""
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(("\t".join([command, *arguments]) + "\n").encode())
        self._process.stdin.flush()
        header = self._process.stdout.readline().split()
        if len(header) != 2:
            raise RuntimeError(f"Kafka's virtual machine ended with {self._process.wait()} at {command} {arguments}")
        output, errors = (self._process.stdout.read(int(size)).decode() for size in header)
        return output, errors

    def dump(self, paths: Iterable[str | os.PathLike[str]], *options: str) -> tuple[str, list[str]]:
        """Run DumpLogSegments; return its text and the lines that complain (empty when all is well)."""
        files = ",".join(os.fspath(path) for path in paths)
        output, errors = self.ask("dump", *options, "--files", files)
        problems = [line for line in output.splitlines() if PROBLEM.search(line)]
        problems += [line for line in errors.splitlines() if not line.startswith("SLF4J")]
        return output, problems

    def check(self, paths: Iterable[str | os.PathLike[str]]) -> tuple[dict[str, list[DumpedBatch]], list[str]]:
        """Let Kafka read whole files.

        Args:
            paths: ``.log``, ``.index`` and ``.timeindex`` files; an index needs its ``.log`` beside it.

        Returns:
            the batches of each ``.log`` file by path, and all problems Kafka reports (empty when it accepts all).
        """
        names = [os.fspath(path) for path in paths]
        logs = [name for name in names if name.endswith(".log")]
        indexes = [name for name in names if not name.endswith(".log")]
        dumped: dict[str, list[DumpedBatch]] = {}
        problems: list[str] = []
        if logs:
            decoders = ("--key-decoder-class", "HexDecoder", "--value-decoder-class", "HexDecoder")
            output, problems = self.dump(logs, "--deep-iteration", "--print-data-log", *decoders)
            dumped = parse_dump(output)
            problems += [f"not dumped: {name}" for name in logs if name not in dumped]
        if indexes:
            output, complaints = self.dump(indexes, "--verify-index-only")
            problems += complaints + [f"not dumped: {name}" for name in indexes if f"Dumping {name}" not in output]
            problems += self.dump(indexes, "--index-sanity-check")[1]
        return dumped, problems

    def recompress(self, source: str | os.PathLike[str], target: str | os.PathLike[str], codec: str) -> None:
        """Let Kafka write the batches of a segment anew, compressed; raises ``ValueError`` when it cannot."""
        errors = self.ask("recompress", os.fspath(source), os.fspath(target), codec)[1]
        if errors:
            raise ValueError(f"Kafka could not write {target}: {errors}")

    def records(self, path: str | os.PathLike[str]) -> list[KafkaRecord]:
        """All records of one segment, control records included; raises ``ValueError`` when Kafka finds it invalid."""
        output, errors = self.ask("records", os.fspath(path))
        lines = output.splitlines()
        if errors or lines[-1] != "end\t0":
            raise ValueError(f"Kafka refuses {path}: {errors or lines[-1]}")
        found = []
        for line in lines:
            kind, *cells = line.split("\t")
            if kind == "record":
                headers = tuple((key_text(name), hex_cell(value)) for name, value in (c.split("=") for c in cells[4:]))
                key, value = hex_cell(cells[2]), hex_cell(cells[3])
                found.append(KafkaRecord(int(cells[0]), int(cells[1]), key, value, headers))
        return found


def hex_cell(cell: str) -> bytes | None:
    return None if cell == "-" else bytes.fromhex(cell[1:])


def key_text(cell: str) -> str:
    return bytes.fromhex(cell[1:]).decode()


def parse_dump(output: str) -> dict[str, list[DumpedBatch]]:
    """Split the text of DumpLogSegments into batches and records by file."""
    files: dict[str, list[DumpedBatch]] = {}
    batches: list[DumpedBatch] = []
    for line in output.split("\n"):
        if line.startswith("Dumping "):
            batches = files.setdefault(line.removeprefix("Dumping "), [])
        elif line.startswith("baseOffset: "):
            batches.append(DumpedBatch(dict(BATCH_FIELD.findall(line))))
        elif line.startswith("| offset: "):
            match = RECORD_LINE.match(line)
            if match is None:
                raise ValueError(f"unexpected record line of DumpLogSegments: {line!r}")
            is_control = batches[-1].fields["isControl"] == "true"
            batches[-1].records.append(
                DumpedRecord(
                    offset=int(match["offset"]),
                    timestamp=int(match["timestamp"]),
                    timestamp_type=match["type"],
                    key=None if is_control else bytes_of(match["key"], match["key_size"]),
                    value=None if is_control else bytes_of(match["value"], match["value_size"]),
                    header_keys=match["headers"],
                )
            )
    return files
