"""Public names are listed once, in ``fastlog.__all__``: each importable, each documented, nothing beside them."""

from __future__ import annotations

import inspect
import re
from types import ModuleType
from typing import Any

import pytest

import fastlog


def members(owner: type) -> list[tuple[str, Any]]:
    """Public methods and properties that a class of fastlog defines itself."""
    return [
        (name, value)
        for name, value in vars(owner).items()
        if not name.startswith("_")
        and (
            callable(value)
            or isinstance(value, (property, classmethod, staticmethod))
            or inspect.isdatadescriptor(value)
        )
        and not inspect.ismemberdescriptor(value)
    ]


def test_listed_once_and_sorted() -> None:
    assert list(fastlog.__all__) == sorted(set(fastlog.__all__))


@pytest.mark.parametrize("name", fastlog.__all__)
def test_every_name_is_there_and_documented(name: str) -> None:
    value = getattr(fastlog, name)
    if not name.startswith("__") and (inspect.isclass(value) or callable(value)):
        assert (value.__doc__ or "").strip(), f"fastlog.{name} has no docstring"


def test_no_other_public_name() -> None:
    beside = {
        name
        for name, value in vars(fastlog).items()
        if not name.startswith("_")
        and name not in fastlog.__all__
        and not (isinstance(value, ModuleType) and value.__name__ == f"fastlog.{name}")
        and name != "annotations"  # from __future__
    }
    assert not beside, f"not in fastlog.__all__: {sorted(beside)}"


def public_classes() -> list[type]:
    return [value for name in fastlog.__all__ if inspect.isclass(value := getattr(fastlog, name))]


@pytest.mark.parametrize("owner", public_classes(), ids=lambda owner: owner.__name__)
def test_every_member_is_documented(owner: type) -> None:
    """By a docstring; a plain attribute of a compiled class cannot have one, its class tells of it."""
    bare = []
    for name, value in members(owner):
        told = getattr(value, "__doc__", None) or ""
        if inspect.isgetsetdescriptor(value):
            told = told or (name if re.search(rf"\b{name}\b", owner.__doc__ or "") else "")
        if not told.strip():
            bare.append(f"{owner.__name__}.{name}")
    assert not bare, f"no docstring: {', '.join(bare)}"


def test_every_error_is_public_and_below_one_root() -> None:
    from fastlog import errors

    assert set(errors.__all__) <= set(fastlog.__all__)
    for name in errors.__all__:
        assert issubclass(getattr(errors, name), fastlog.Error)
    beside = {name for name, value in vars(errors).items() if inspect.isclass(value) and issubclass(value, Exception)}
    assert beside == set(errors.__all__)
