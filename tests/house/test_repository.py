"""What the files of the repository may not contain, and what is said once only."""

from __future__ import annotations

import importlib.metadata
import re
import tomllib

import fastlog
from tests.house.sources import ROOT, place, read, repository_files

# in pieces, or this file would break its own rule
MACHINE_PATHS = "|".join(re.escape("/" + start) for start in ("work" + "/", "root" + "/", "tmp/" + "v/"))
REGISTRY_HOSTS = [
    *("py" + "pi.org", "python" + "hosted.org", "crates" + ".io", "golang" + ".org", "npm" + "js.org"),
    *("maven" + ".org", "maven." + "apache.org", "debian" + ".org"),  # the name space of a pom.xml is no host
]
PATTERN = re.compile(rf"(?<![\w.\-])(?:{MACHINE_PATHS})|(?:{'|'.join(map(re.escape, REGISTRY_HOSTS))})(?!/POM/|/xsd/)")
BINARY = {".png", ".log", ".index", ".timeindex", ".zip", ".gz", ".parquet", ".bin"}


def texts() -> list[tuple[str, str]]:
    return [
        (place(path), path.read_text(encoding="utf-8", errors="replace"))
        for path in repository_files()
        if path.suffix not in BINARY
    ]


def test_the_pattern_finds_them() -> None:
    assert PATTERN.search("open('" + "/wo" + "rk/x')")
    assert PATTERN.search("https://" + "pypi" + ".org/simple")
    assert not PATTERN.search("https://kafka.apache.org/documentation and src/work/x")


def test_no_machine_path_and_no_registry_host() -> None:
    found = [
        f"{name}:{number}: {line.strip()[:120]}"
        for name, text in texts()
        for number, line in enumerate(text.splitlines(), 1)
        if PATTERN.search(line)
    ]
    assert len(texts()) > 30
    assert not found, "\n".join(found)


def test_the_version_is_said_once() -> None:
    assert "version" in tomllib.loads(read(ROOT / "pyproject.toml"))["project"]["dynamic"]
    version = fastlog.__version__
    installed = {found.version for found in importlib.metadata.distributions(name="fastlog-engine")}
    assert installed <= {version}, "an older fastlog is installed: make build"
    changelog = read(ROOT / "CHANGELOG.md")
    assert re.search(rf"^## \[?(?:Unreleased|{re.escape(version)})", changelog, re.MULTILINE)


def test_no_pickle() -> None:
    found = [
        name
        for name, text in texts()
        if name.endswith((".py", ".pyx"))
        and re.search(r"^\s*(?:import|from)\s+(?:pickle|marshal|shelve)\b", text, re.M)
    ]
    assert not found, f"data is never unpickled: {found}"


def test_licence_is_whole() -> None:
    text = read(ROOT / "LICENSE")
    assert "Apache License" in text
    assert "END OF TERMS AND CONDITIONS" in text
