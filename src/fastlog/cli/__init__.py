"""The command ``fastlog``: a noun, then a verb. One file per noun; ``output`` has what they share.

Exit codes: 0 fine, 1 problems found (or a destructive verb that was not confirmed), 2 wrong usage, 3 an error,
130 interrupted, 141 the reader of the output went away.
"""

from __future__ import annotations

from pathlib import Path

import click

import fastlog
from fastlog.cli.bench import bench
from fastlog.cli.consume import consume
from fastlog.cli.demo import demo
from fastlog.cli.dlq import dlq
from fastlog.cli.doctor import doctor
from fastlog.cli.groups import groups
from fastlog.cli.log import log
from fastlog.cli.output import CommandLine
from fastlog.cli.produce import produce
from fastlog.cli.run import run
from fastlog.cli.store import StorePath
from fastlog.cli.topics import topics

__all__ = ["main"]


@click.group(cls=CommandLine, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(fastlog.__version__, "--version", prog_name="fastlog", message="%(prog)s %(version)s")
@click.option("--store", type=StorePath(), metavar="PATH", help="Folder of the store, for every noun that has one.")
def main(store: Path | None) -> None:
    """Durable event streaming in Apache Kafka's own file format, without a server."""


for _command in (topics, produce, consume, groups, dlq, run, log, bench, demo, doctor):
    main.add_command(_command)
