"""``fastlog groups list | describe | lag | reset | delete``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

import fastlog
from fastlog.cli import output as text
from fastlog.cli.output import EXIT_PROBLEMS, Output, output_options
from fastlog.cli.store import Moment, MomentType, open_store, store_option
from fastlog.groups.admin import require_known

__all__ = ["groups"]


@click.group(short_help="Consumer groups: members, lag, resetting.")
def groups() -> None:
    """The consumer groups of a store."""


# --- list and describe ------------------------------------------------------------------------------


@groups.command("list")
@store_option
@output_options
def list_groups(output: Output, store: Path) -> None:
    """List the groups that have members or committed offsets."""
    with open_store(store, read_only=True) as opened:
        found = [summary(opened, name) for name in opened.groups()]
    if output.as_json:
        output.object({"store": str(store), "groups": found})
        return
    if not found:
        output.line(f"no groups in {store}: a consumer that names one makes it")
        return
    output.table(
        ("group", "state", "members", "partitions", "lag"),
        [
            (group["name"], group["state"], *map(text.count, (group["members"], group["partitions"], group["lag"])))
            for group in found
        ],
        "llrrr",
    )


def summary(store: fastlog.Store, name: str) -> dict[str, Any]:
    found = store.describe_group(name)
    lag = store.group_lag(name)
    return {
        "name": name,
        "state": found.state,
        "members": len(found.members),
        "partitions": len(lag),
        "lag": sum(entry.records for entry in lag.values()),
    }


@groups.command()
@click.argument("group")
@store_option
@output_options
def describe(output: Output, store: Path, group: str) -> None:
    """Show the members of GROUP, what each of them owns, and how far the group is behind."""
    with open_store(store, read_only=True) as opened:
        found = require_known(opened.directory, group)
        lag = opened.group_lag(group)
    members = [
        {
            "member_id": member.member_id,
            "instance_id": member.instance_id,
            "client_id": member.client_id,
            "pid": member.pid,
            "last_poll_age": member.last_poll_age,
            "partitions": [list(one) for one in member.partitions],
        }
        for member in found.members
    ]
    if output.as_json:
        output.object(
            {"name": group, "state": found.state, "generation": found.generation, "assignor": found.assignor,
             "members": members, "partitions": partition_rows(found, lag)}
        )  # fmt: skip
        return
    output.line(group, bold=True)
    output.fields([("state", found.state), ("generation", str(found.generation)), ("assignor", found.assignor or "-")])
    if found.members:
        output.heading("members")
        output.table(
            ("member", "pid", "last poll", "partitions"),
            [
                (
                    member.instance_id or member.member_id,
                    "-" if member.pid is None else str(member.pid),
                    "gone" if member.last_poll_age is None else f"{text.duration(member.last_poll_age)} ago",
                    ", ".join(f"{topic}-{number}" for topic, number in member.partitions) or "none",
                )
                for member in found.members
            ],
            "lrll",
        )
    print_lag(output, partition_rows(found, lag))


def partition_rows(
    found: fastlog.GroupDescription, lag: dict[fastlog.TopicPartition, fastlog.Lag]
) -> list[dict[str, Any]]:
    owners = {one: member.instance_id or member.member_id for member in found.members for one in member.partitions}
    return [
        {
            "topic": one.topic,
            "partition": one.partition,
            "committed": found.offsets[one].offset if one in found.offsets else None,
            "lag": lag[one].records if one in lag else None,
            "lag_seconds": lag[one].seconds if one in lag else None,
            "owner": owners.get(one),
        }
        for one in sorted({*found.offsets, *owners})
    ]


def print_lag(output: Output, rows: list[dict[str, Any]]) -> None:
    if not rows:
        return
    output.heading("partitions")
    output.table(
        ("topic", "partition", "committed", "lag", "behind", "owner"),
        [
            (
                row["topic"],
                str(row["partition"]),
                "-" if row["committed"] is None else text.count(row["committed"]),
                "-" if row["lag"] is None else text.count(row["lag"]),
                "-" if not row["lag"] else text.duration(row["lag_seconds"]),
                row["owner"] or "-",
            )
            for row in rows
        ],
        "lrrrrl",
    )


# --- lag --------------------------------------------------------------------------------------------


@groups.command()
@click.argument("group")
@click.option("--most", type=click.IntRange(min=0), metavar="N",
              help="Exit with 1 when the group is more than N records behind: for monitoring.")  # fmt: skip
@store_option
@output_options
def lag(output: Output, store: Path, group: str, most: int | None) -> None:
    """Say how far GROUP is behind, by partition and in all."""
    with open_store(store, read_only=True) as opened:
        found = require_known(opened.directory, group)
        rows = partition_rows(found, opened.group_lag(group))
    total = sum(row["lag"] or 0 for row in rows)
    if output.as_json:
        output.object({"name": group, "lag": total, "partitions": rows})
    else:
        output.line(f"{group} is {text.plural(total, 'record')} behind", bold=True)
        print_lag(output, rows)
    if most is not None and total > most:
        click.get_current_context().exit(EXIT_PROBLEMS)


# --- reset and delete -------------------------------------------------------------------------------


@groups.command()
@click.argument("group")
@click.option("--to", type=MomentType(), required=True, metavar="PLACE",
              help="earliest, latest, -10m, @OFFSET or an ISO time.")  # fmt: skip
@click.option("--topic", "-t", "topics", multiple=True, metavar="NAME",
              help="Only this topic; may be repeated. Default: every one that the group has offsets for.")  # fmt: skip
@click.option("--yes", is_flag=True, help="Do it, without asking.")
@store_option
@output_options
def reset(output: Output, store: Path, group: str, to: Moment, topics: tuple[str, ...], yes: bool) -> None:
    """Let GROUP go on elsewhere. It must have no members.

    Asks first; without a terminal it wants --yes and else changes nothing (exit code 1).
    """
    with open_store(store) as opened:
        before = opened.describe_group(group).offsets
        if not topics and not before:
            require_known(opened.directory, group)
        if not output.as_json:
            output.line(f"To reset {group} in {', '.join(topics) or 'all its topics'} to {to}", bold=True)
        output.require_consent(yes, {"name": group, "reset": False})
        place: Any = to.name or to.time or to.offset or 0
        after = opened.reset_offsets(group, topics or None, to=place)
    rows = [
        {
            "topic": one.topic,
            "partition": one.partition,
            "before": before[one].offset if one in before else None,
            "after": position.offset,
        }
        for one, position in sorted(after.items())
    ]
    if output.as_json:
        output.object({"name": group, "reset": True, "partitions": rows})
        return
    output.table(
        ("topic", "partition", "before", "after"),
        [
            (one.topic, str(one.partition), str(before[one].offset) if one in before else "-", str(position.offset))
            for one, position in sorted(after.items())
        ],
    )


@groups.command()
@click.argument("group")
@click.option("--yes", is_flag=True, help="Do it, without asking.")
@store_option
@output_options
def delete(output: Output, store: Path, group: str, yes: bool) -> None:
    """Forget what GROUP has committed. It must have no members.

    Asks first; without a terminal it wants --yes and else changes nothing (exit code 1).
    """
    with open_store(store) as opened:
        offsets = require_known(opened.directory, group).offsets
        if not output.as_json:
            output.line(f"To forget the offsets of {group} in {text.plural(len(offsets), 'partition')}", bold=True)
        output.require_consent(yes, {"name": group, "deleted": False})
        opened.delete_group(group)
    if output.as_json:
        output.object({"name": group, "deleted": True})
    else:
        output.verdict(True, f"the offsets of {group} are forgotten")
