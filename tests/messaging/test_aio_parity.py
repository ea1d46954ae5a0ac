"""The asyncio twin has every public name of the synchronous one, with the same parameters."""

from __future__ import annotations

import inspect
from typing import Any

import pytest

import fastlog
from fastlog.clients.producer import BatchDelivery, Delivery, Producer
from fastlog.clients.store import open_store
from fastlog.clients.topic import TopicRead
from fastlog.clients.transaction import Transaction

TWINS: dict[type, type] = {
    fastlog.Store: fastlog.aio.Store,
    fastlog.Topic: fastlog.aio.Topic,
    TopicRead: fastlog.aio.TopicRead,
    fastlog.Consumer: fastlog.aio.Consumer,
    Producer: fastlog.aio.Producer,
    Transaction: fastlog.aio.Transaction,
    Delivery: fastlog.aio.Delivery,
    BatchDelivery: fastlog.aio.BatchDelivery,
}
# what the engine offers to the rooms above it, and the twin stands on
INTERNAL = {
    Producer: {
        *("begin_transactional", "drain_transaction", "discard_transaction", "end_transactional", "set_transactional"),
        *("wait_until_sent",),
    },
    fastlog.Store: {"directory"},
    fastlog.Consumer: {
        *("beat", "interrupt", "is_busy", "directory", "epochs", "epochs_of", "note_committed", "awaited", "reading"),
        *("add_beside", "read_beside", "remove_beside", "commit_beside"),
        "wakeup",  # a task that waits is cancelled instead
    },
}
# methods that are called without await: they wait for nothing, or return something to be awaited or iterated over
PLAIN = {
    fastlog.Store: {"producer", "consumer"},
    fastlog.Topic: {"read"},
    fastlog.Consumer: {"records", "batches"},
    Producer: {"transaction", "counts"},
    Delivery: {"done", "add_done_callback"},
    BatchDelivery: {"done", "add_done_callback"},
}


def public(owner: type) -> dict[str, Any]:
    """Public methods and properties, those of its bases included."""
    names = (name for base in owner.__mro__[:-1] for name in vars(base) if not name.startswith("_"))
    return {name: inspect.getattr_static(owner, name) for name in names if name not in INTERNAL.get(owner, ())}


CASES = [(owner, name) for owner in TWINS for name in public(owner)]


def test_there_is_something_to_compare() -> None:
    assert len(CASES) > 60
    assert (fastlog.Consumer, "poll") in CASES and (Producer, "send") in CASES


@pytest.mark.parametrize(("owner", "name"), CASES, ids=lambda case: getattr(case, "__name__", case))
def test_the_twin_has_it(owner: type, name: str) -> None:
    twin = TWINS[owner]
    original = inspect.getattr_static(owner, name)
    found = inspect.getattr_static(twin, name, None)
    assert found is not None, f"fastlog.aio.{twin.__name__}.{name} is missing"
    if isinstance(original, property) or inspect.isgetsetdescriptor(original):
        assert isinstance(found, property)
        return
    is_awaited = inspect.iscoroutinefunction(getattr(twin, name))
    assert is_awaited == (name not in PLAIN.get(owner, ())), f"{name}: is it awaited?"
    assert not differences(getattr(owner, name), getattr(twin, name))


def differences(original: Any, twin: Any) -> list[str]:
    """Parameters that are not the same: name, kind, default."""
    wanted = dict(inspect.signature(original).parameters)
    there = dict(inspect.signature(twin).parameters)
    if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in wanted.values()):
        # who passes on whatever he is given says nothing about the rest
        wanted = {name: one for name, one in wanted.items() if one.kind is not inspect.Parameter.VAR_KEYWORD}
        there = {name: one for name, one in there.items() if name in wanted}
    return [
        f"{name}: {wanted.get(name)} became {there.get(name)}"
        for name in {**wanted, **there}
        if name != "self" and described(wanted.get(name)) != described(there.get(name))
    ]


def described(parameter: inspect.Parameter | None) -> tuple[object, ...] | None:
    return None if parameter is None else (parameter.kind, parameter.default)


def test_differences_are_seen() -> None:
    def one(a: int, *, b: int = 1) -> None: ...
    def two(a: int, *, b: int = 2) -> None: ...
    async def three(a: int, *, b: int = 1) -> None: ...

    assert differences(one, two)
    assert not differences(one, three)


def test_open_takes_the_same() -> None:
    assert not differences(open_store, fastlog.aio.open)


@pytest.mark.parametrize(
    "owner", [Transaction, fastlog.Consumer, Producer, fastlog.Store], ids=lambda owner: owner.__name__
)
def test_the_twin_is_a_context_manager(owner: type) -> None:
    assert hasattr(TWINS[owner], "__aenter__") and hasattr(TWINS[owner], "__aexit__")


@pytest.mark.parametrize("owner", TWINS, ids=lambda owner: owner.__name__)
def test_every_member_of_the_twin_is_documented(owner: type) -> None:
    twin = TWINS[owner]
    bare = [name for name in public(twin) if not (getattr(inspect.getattr_static(twin, name), "__doc__", "") or "")]
    assert not [name for name in bare if not inspect.ismemberdescriptor(inspect.getattr_static(twin, name))]
