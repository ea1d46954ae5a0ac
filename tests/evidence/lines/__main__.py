"""``python -m tests.evidence.lines COPY``: judge a copy of the tree in which ``scripts/coverage`` has run the tests."""

from __future__ import annotations

import datetime
import json
from pathlib import Path

import click

from tests.evidence.lines.judging import judge
from tests.evidence.run import KEPT, commit


@click.command()
@click.argument("copy", type=click.Path(exists=True, path_type=Path))
@click.option("--json", "file", type=click.Path(path_type=Path), default=KEPT / "lines.json",
              help="Write the figures to this file; docs/evidence/lines.json publishes them.")  # fmt: skip
def main(copy: Path, file: Path) -> None:
    """Say how many lines were reached, and what was not reached and has no reason."""
    figures, wrong = judge(copy)
    for what, one in figures.items():
        percent = 100 * one["reached"] / max(1, one["lines"])
        click.echo(f"{what}: {one['reached']:,} of {one['lines']:,} lines, {percent:.1f} %")
    day = datetime.datetime.now(datetime.UTC).date().isoformat()
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({"day": day, "commit": commit(), "figures": figures}) + "\n")
    for one in wrong:
        click.secho(one, fg="red", err=True)
    if wrong:
        raise click.ClickException(f"{len(wrong)} problems; lines that cannot be reached belong into reasons.toml")


if __name__ == "__main__":
    main(prog_name="python -m tests.evidence.lines")
