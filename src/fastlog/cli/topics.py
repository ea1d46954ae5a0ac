"""``fastlog topics list | create | describe | alter | delete``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

import fastlog
from fastlog.cli import output as text
from fastlog.cli.output import Output, output_options
from fastlog.cli.store import open_store, store_option

__all__ = ["topics"]


@click.group(short_help="Create, list, alter, delete topics.")
def topics() -> None:
    """The topics of a store."""


def parse_options(pairs: tuple[str, ...]) -> dict[str, str]:
    """``--config retention.ms=1000`` and the like, as a mapping."""
    options = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name:
            raise click.UsageError(f"--config {pair}: expected NAME=VALUE, for example retention.ms=604800000")
        options[name] = value
    return options


config_option = click.option(
    "--config", "-c", "pairs", multiple=True, metavar="NAME=VALUE",
    help="An option of the topic, by Kafka's name; may be repeated.",
)  # fmt: skip


# --- list -------------------------------------------------------------------------------------------


@topics.command("list")
@click.option("--internal", is_flag=True, help="List the topics that fastlog keeps for itself too.")
@store_option
@output_options
def list_topics(output: Output, store: Path, internal: bool) -> None:
    """List the topics of the store, with how much is in them."""
    with open_store(store, read_only=True) as opened:
        found = [summary(opened, name) for name in opened.topics(internal=internal)]
    if output.as_json:
        output.object({"store": str(store), "topics": found})
        return
    if not found:
        output.line(f"no topics in {store}; make one with: fastlog topics create NAME --store {store}")
        return
    output.table(
        ("topic", "partitions", "records", "size", "cleanup"),
        [
            (
                topic["name"],
                text.count(topic["partitions"]),
                text.count(topic["records"]),
                text.size(topic["bytes"]),
                topic["cleanup_policy"],
            )
            for topic in found
        ],
        "lrrrl",
    )


def summary(store: fastlog.Store, name: str) -> dict[str, Any]:
    """What a line of ``topics list`` says. Records are counted by offsets, control records among them."""
    topic = store.topic(name)
    parts = [partition_fields(store, topic, number) for number in range(topic.partitions)]
    return {
        "name": topic.name,
        "topic_id": topic.topic_id,
        "partitions": topic.partitions,
        "records": sum(part["end_offset"] - part["start_offset"] for part in parts),
        "bytes": sum(part["bytes"] for part in parts),
        "cleanup_policy": topic.config.get("cleanup.policy", "delete"),
    }


PARTITION_FIELDS = ("partition", "start_offset", "end_offset", "last_stable_offset", "segments", "bytes")


def partition_fields(store: fastlog.Store, topic: fastlog.Topic, number: int) -> dict[str, Any]:
    if store.read_only and not store.directory.is_created(topic.name, number):
        # nobody has used it yet, so it has no files
        return {**dict.fromkeys(PARTITION_FIELDS, 0), "partition": number, "largest_timestamp": None}
    log = topic.partition(number)
    segments = log.segments()
    largest = max((segment.max_timestamp for segment in segments), default=-1)
    return {
        "partition": number,
        "start_offset": log.start_offset,
        "end_offset": log.end_offset,
        "last_stable_offset": log.last_stable_offset,
        "segments": len(segments),
        "bytes": sum(segment.size for segment in segments),
        "largest_timestamp": None if largest < 0 else largest,
    }


# --- create -----------------------------------------------------------------------------------------


@topics.command()
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@click.option("--partitions", "-p", type=click.IntRange(min=1), default=1, show_default=True,
              help="How many partitions each of them gets.")  # fmt: skip
@click.option("--retention", metavar="AGE", help="Delete records older than this, for example 7d. Default: keep all.")
@click.option("--if-missing", is_flag=True, help="A topic that is there already is fine.")
@config_option
@store_option
@output_options
def create(
    output: Output, store: Path, names: tuple[str, ...], partitions: int, retention: str | None, if_missing: bool,
    pairs: tuple[str, ...],
) -> None:  # fmt: skip
    """Create topics, and the store when there is none yet."""
    options: dict[str, Any] = {"config": parse_options(pairs)}
    if retention is not None:
        options["retention"] = retention
    with open_store(store, create=True) as opened:
        for name in names:
            try:
                opened.create_topic(name, partitions=partitions, exist_ok=if_missing, **options)
            except fastlog.TopicExistsError as error:
                # as one says it here
                raise fastlog.TopicExistsError(str(error).replace("exist_ok=True", "--if-missing")) from None
        found = [describe_fields(opened, name) for name in names]
    if output.as_json:
        output.object({"store": str(store), "topics": found})
        return
    for topic in found:
        output.verdict(True, f"{topic['name']}: {text.plural(len(topic['partitions']), 'partition')}")


# --- describe ---------------------------------------------------------------------------------------


@topics.command()
@click.argument("name")
@store_option
@output_options
def describe(output: Output, store: Path, name: str) -> None:
    """Show the partitions of a topic, their offsets and sizes, and the topic's options."""
    with open_store(store, read_only=True) as opened:
        found = describe_fields(opened, name)
    if output.as_json:
        output.object(found)
        return
    output.line(found["name"], bold=True)
    options = ", ".join(f"{key}={value}" for key, value in found["config"].items())
    fields = [("topic id", found["topic_id"]), ("options", options or "all by default")]
    if found["owner"] is not None:
        fields.append(("kept for", "{kind} of topic {topic}, group {group}".format_map(found["owner"])))
    output.fields(fields)
    output.line()
    output.table(
        ("partition", "start offset", "end offset", "open transactions from", "segments", "size", "largest timestamp"),
        [
            (
                str(part["partition"]),
                text.count(part["start_offset"]),
                text.count(part["end_offset"]),
                "-" if part["last_stable_offset"] >= part["end_offset"] else text.count(part["last_stable_offset"]),
                text.count(part["segments"]),
                text.size(part["bytes"]),
                text.instant(-1 if part["largest_timestamp"] is None else part["largest_timestamp"]),
            )
            for part in found["partitions"]
        ],
        "rrrrrrl",
    )


def describe_fields(store: fastlog.Store, name: str) -> dict[str, Any]:
    topic = store.topic(name)
    return {
        "name": topic.name,
        "topic_id": topic.topic_id,
        "config": dict(topic.config),
        "owner": None if topic.owner is None else topic.owner._asdict(),
        "partitions": [partition_fields(store, topic, number) for number in range(topic.partitions)],
    }


# --- alter ------------------------------------------------------------------------------------------


@topics.command()
@click.argument("name")
@click.option("--partitions", "-p", type=click.IntRange(min=1), help="Add partitions up to this many.")
@config_option
@store_option
@output_options
def alter(output: Output, store: Path, name: str, partitions: int | None, pairs: tuple[str, ...]) -> None:
    """Change options of a topic, or add partitions to it.

    With more partitions a key may belong to another one: its order is only kept on each side of the change.
    """
    if partitions is None and not pairs:
        raise click.UsageError("nothing to change: give --partitions or --config")
    with open_store(store) as opened:
        if pairs:
            opened.alter_topic(name, config=parse_options(pairs))
        if partitions is not None:
            opened.add_partitions(name, partitions)
        found = describe_fields(opened, name)
    if output.as_json:
        output.object(found)
    else:
        output.verdict(True, f"{name}: {text.plural(len(found['partitions']), 'partition')}")


# --- delete -----------------------------------------------------------------------------------------


@topics.command()
@click.argument("name")
@click.option("--yes", is_flag=True, help="Do it, without asking.")
@store_option
@output_options
def delete(output: Output, store: Path, name: str, yes: bool) -> None:
    """Delete a topic and all its records.

    Shows what would go and asks first; without a terminal it wants --yes and else changes nothing (exit code 1).
    """
    with open_store(store) as opened:
        found = summary(opened, name)
        if not output.as_json:
            output.line(
                f"To delete from {store}: {name}, {text.plural(found['partitions'], 'partition')}, "
                f"{text.plural(found['records'], 'record')}, {text.size(found['bytes'])}",
                bold=True,
            )
        output.require_consent(yes, {"topic": found, "deleted": False})
        opened.delete_topic(name)
    if output.as_json:
        output.object({"topic": found, "deleted": True})
    else:
        output.verdict(True, f"{name} is deleted")
