"""The command ``fastlog``: a noun, then a verb. One file per noun; ``output`` has what they share.

Exit codes: 0 fine, 1 problems found (or a destructive verb that was not confirmed), 2 wrong usage, 3 an error,
130 interrupted, 141 the reader of the output went away.
"""

from __future__ import annotations

import click

import fastlog
from fastlog.cli.bench import bench
from fastlog.cli.demo import demo
from fastlog.cli.doctor import doctor
from fastlog.cli.log import log
from fastlog.cli.output import CommandLine

__all__ = ["main"]


@click.group(cls=CommandLine, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(fastlog.__version__, "--version", prog_name="fastlog", message="%(prog)s %(version)s")
def main() -> None:
    """A durable, append-only log in Apache Kafka's own file format, inside a Python process."""


main.add_command(log)
main.add_command(demo)
main.add_command(doctor)
main.add_command(bench)
