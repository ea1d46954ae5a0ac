"""Names of topics and of their folders, by Kafka's rules."""

from __future__ import annotations

import base64
import difflib
import re
from collections.abc import Iterable
from typing import Final

from fastlog._native import oscalls
from fastlog.errors import InvalidTopicError, UnknownTopicError
from fastlog.store.internal import INTERNAL_TOPICS

MOST_NAME: Final = 249
MOST_FILE_NAME: Final = 255
MOST_PARTITIONS: Final = 100_000
DELETED_SUFFIX: Final = "-delete"

_NAME: Final = re.compile(r"[a-zA-Z0-9._-]+")
_FOLDER: Final = re.compile(r"(?P<topic>[a-zA-Z0-9._-]+)-(?P<partition>0|[1-9][0-9]{0,5})")
_DELETED: Final = re.compile(r"[a-zA-Z0-9._-]*-[0-9]+\.[0-9a-f]{32}-delete")
_RESERVED_IDS: Final = (bytes(16), bytes(15) + b"\x01")


def check_name(name: object) -> str:
    """The name, when Kafka would take it for a topic. Raises InvalidTopicError."""
    name = check_type(name)
    if not name or len(name) > MOST_NAME:
        raise InvalidTopicError(f"the topic name {name[:40]!r} has {len(name)} characters: expected 1 to {MOST_NAME}")
    if name in (".", ".."):
        raise InvalidTopicError(f"a topic cannot be named {name!r}")
    if not _NAME.fullmatch(name):
        wrong = next(character for character in name if not _NAME.fullmatch(character))
        raise InvalidTopicError(
            f"the topic name {name!r} contains {wrong!r}: expected letters and digits of ASCII, '.', '_' and '-' only"
        )
    return name


def check_collision(name: str, names: Iterable[str]) -> None:
    """Refuse a name that differs from an existing one by ``.`` and ``_`` only, as Kafka does, whose metrics would mix
    them up. Raises InvalidTopicError."""
    plain = name.replace(".", "_")
    for other in names:
        if other != name and other.replace(".", "_") == plain:
            raise InvalidTopicError(
                f"the topic name {name!r} collides with the topic {other!r}: names that differ in '.' and '_' only are "
                f"refused, as by Kafka; choose another name"
            )


def check_partitions(count: object) -> int:
    """A number of partitions. Raises InvalidTopicError."""
    if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= MOST_PARTITIONS:
        raise InvalidTopicError(f"partitions={count!r}: expected an integer from 1 to {MOST_PARTITIONS}")
    return count


def check_type(name: object) -> str:
    """The name, when it is a str. Raises InvalidTopicError."""
    if not isinstance(name, str):
        raise InvalidTopicError(f"the name of a topic is a str, not {name!r}, which is a {type(name).__name__}")
    return name


def unknown_topic(name: str, names: Iterable[str]) -> UnknownTopicError:
    """The error for a topic that is not there; it names the nearest one."""
    hint = nearest_of(name, set(names) - set(INTERNAL_TOPICS)) or "the store has no topics yet"
    makes = " Else create_topic makes one" if hint.endswith("?") else "; create_topic makes one"
    return UnknownTopicError(f"there is no topic {name!r}: {hint}{makes}", name)


def nearest_of(name: str, names: Iterable[str]) -> str:
    """What to say of a name that is not there: the nearest of those that are, else the first of them; "" for none."""
    known = sorted(names)
    near = difflib.get_close_matches(name, known, n=1)
    if near:
        return f"did you mean {near[0]!r}?"
    more = " and more" if len(known) > 5 else ""
    return f"there are {', '.join(map(repr, known[:5]))}{more}" if known else ""


def folder_name(topic: str, partition: int) -> str:
    """Name of a partition's folder."""
    return f"{topic}-{partition}"


def parse_folder(name: str) -> tuple[str, int] | None:
    """Topic and partition of a folder's name; None for any other name. The last dash divides, as in Kafka."""
    match = _FOLDER.fullmatch(name)
    return (match["topic"], int(match["partition"])) if match else None


def deleted_name(topic: str, partition: int) -> str:
    """A new name for the folder of a deleted partition, in Kafka's form: the topic is cut so that it stays legal."""
    suffix = f"-{partition}.{oscalls.random_bytes(16).hex()}{DELETED_SUFFIX}"
    return topic[: MOST_FILE_NAME - len(suffix)] + suffix


def is_deleted_name(name: str) -> bool:
    """Whether a folder of that name belongs to a deleted partition."""
    return _DELETED.fullmatch(name) is not None


def new_id() -> str:
    """A random id as Kafka writes them: 16 bytes in URL-safe base64 without padding, not beginning with a dash."""
    while True:
        value = oscalls.random_bytes(16)
        text = base64.urlsafe_b64encode(value).decode().rstrip("=")
        if value not in _RESERVED_IDS and not text.startswith("-"):
            return text


def is_id(text: object) -> bool:
    """Whether this is an id as Kafka writes them."""
    if not isinstance(text, str) or not re.fullmatch(r"[A-Za-z0-9_-]{22}", text):
        return False
    return base64.urlsafe_b64decode(text + "==") != bytes(16)
