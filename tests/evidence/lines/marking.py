"""Marks for lines of the compiled core: the trace points of Cython set bytes of files that all processes map.

Cython puts the points there, with and without the GIL, as for ``CYTHON_TRACE_NOGIL``. Calling Python at each of them
would take the GIL in the middle of everything and let signals end up in the tracer, and what a process had seen would
be lost when it is killed. ``setup.py`` imports this: nothing but the standard library may be wanted here.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

POINT = re.compile(r"__Pyx_TraceLine\((\d+),\d+,\d,__PYX_ERR\((\d+), \d+, \w+\)\)")
MARK = "fastlog_marks[{}] = 1;"
FINALLY = re.compile(r"(fastlog_marks\[\d+\] = 1;)\s*/\*finally:\*/ \{")
TOKEN = re.compile(r'/\*.*?\*/|"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])*\'|[{}]', re.DOTALL)
FILES = "static const char* const __pyx_f[] = {"
HEAD = """
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>
static unsigned char fastlog_no_marks[{count}], *fastlog_marks = fastlog_no_marks;
__attribute__((constructor)) static void fastlog_map_marks(void) {{
    int fd = open({file}, O_RDWR | O_CREAT | O_CLOEXEC, 0666);
    void *found = MAP_FAILED;
    if (fd >= 0 && ftruncate(fd, {count}) == 0)
        found = mmap(NULL, {count}, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (found != MAP_FAILED)
        fastlog_marks = found;
    if (fd >= 0)
        close(fd);
}}
"""


def mark_lines(generated: list[Path], home: Path) -> None:
    """Change C files; below ``home`` are then their lists of lines, and their marks once they have run."""
    home.mkdir(parents=True, exist_ok=True)
    made = {mark_file(file, home.resolve()).name for file in generated}
    for stale in home.glob("*.json"):
        if stale.name not in made:
            stale.unlink()


def mark_file(generated: Path, home: Path) -> Path:
    """The list of lines of one file, which is changed unless it was before."""
    code = generated.read_text()
    start = code.index(FILES)
    names: list[str] = re.findall(r'"(.*)"', code[start : code.index("};", start)])
    lines = home / (names[0].replace("/", ".") + ".json")
    if "fastlog_marks" in code:
        return lines
    points = sorted({(int(file), int(line)) for line, file in POINT.findall(code)})
    number = {point: i for i, point in enumerate(points)}
    code = POINT.sub(lambda found: MARK.format(number[int(found[2]), int(found[1])]), code)
    code = mark_exits(code)
    lines.write_text(json.dumps([(names[file], line) for file, line in points]))
    marks = lines.with_suffix(".marks")
    marks.unlink(missing_ok=True)
    head = HEAD.format(count=len(points), file=json.dumps(str(marks)))
    generated.write_text(code[:start] + head + code[start:])
    return lines


def mark_exits(code: str) -> str:
    """Mark the first line of each ``finally`` in every copy that the C has of it.

    Its trace point stands before all of them, where only who falls through passes; after an error, or a return in the
    block, it is jumped over.
    """
    inserted: list[tuple[int, str]] = []
    for begin in FINALLY.finditer(code):
        depth = 0
        for token in TOKEN.finditer(code, begin.end() - 1):
            if token[0] == "{":
                depth += 1
                if depth == 2:
                    inserted.append((token.end(), begin[1]))
            elif token[0] == "}":
                depth -= 1
                if depth == 0:
                    break
    inserted.sort()  # one may lie in another
    ends = [0, *(end for end, _ in inserted)]
    pieces = [code[start:end] + mark for start, (end, mark) in zip(ends, inserted, strict=False)]
    return "".join([*pieces, code[ends[-1] :]])


def reached_lines(home: Path) -> dict[str, dict[int, bool]]:
    """By file, every line that has code, and whether any module that it is part of has reached it."""
    found: dict[str, dict[int, bool]] = {}
    for lines in sorted(home.glob("*.json")):
        points = json.loads(lines.read_text())
        file = lines.with_suffix(".marks")
        marks = file.read_bytes() if file.exists() else bytes(len(points))
        for (name, line), mark in zip(points, marks, strict=True):
            if name.startswith("src/"):
                of_file = found.setdefault(name, {})
                of_file[line] = of_file.get(line, False) or bool(mark)
    return found
