"""Sections of settings as pydantic dataclasses, and error messages for their values."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import inspect
import types
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal, TypeVar, Union, dataclass_transform, get_args, get_origin, get_type_hints

from pydantic import ConfigDict, Tag, ValidationError
from pydantic.dataclasses import dataclass
from pydantic.fields import FieldInfo

from mt.errors import ConfigError
from mt.units import listed

T = TypeVar("T")


class Contradiction(ConfigError, ValueError):
    """Settings of one section contradict each other; the key is a name inside the section, "" for the section itself.

    A section raises it in `__post_init__`, and pydantic adds the place of the section, as for any ValueError.
    """


# --- Sections ---------------------------------------------------------------------------------------------------------


@dataclass_transform(kw_only_default=True, frozen_default=True, field_specifiers=(dataclasses.field,))
def section(key: str = "") -> Callable[[type[T]], type[T]]:
    """Return a decorator that makes a class a section of settings: frozen, keyword-only, and validated at creation.

    Args:
        key: place of the section in a config, for messages about a section that is created in Python.
    Raises:
        ConfigError: at creation, if a setting is unknown or missing, has a wrong value, or contradicts another one.
    """

    def decorate(cls: Any) -> Any:
        settings: Any = dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))(cls)
        validate = settings.__init__

        @functools.wraps(validate)
        def __init__(self: Any, **values: Any) -> None:  # pydantic does not call it for a section inside another
            try:
                validate(self, **values)
            except ValidationError as error:
                raise config_error(error, cls, is_yaml=False).under(key) from None

        settings.__init__ = __init__
        return settings

    return decorate


def unwrapped(hint: Any) -> Any:
    """Return a type without the metadata of `Annotated`."""
    return unwrapped(get_args(hint)[0]) if get_origin(hint) is Annotated else hint


def kinds_of(hint: Any) -> dict[str, Any]:
    """Return tag → section of the alternatives that a type allows; empty if there are no alternatives."""
    parts = get_args(unwrapped(hint))
    tagged = {tag.tag: part for part in parts for tag in metadata_of(part) if isinstance(tag, Tag)}
    return {tag: part if is_list(part) else unwrapped(part) for tag, part in tagged.items()}


@functools.cache
def fields_of(hint: Any) -> dict[str, Any]:
    """Return name → type of the settings in a section, or in all its alternatives; those of base classes come last."""
    hint = unwrapped(hint)
    if is_section(hint):
        hints = get_type_hints(hint, include_extras=True)
        return {name: hints[name] for kind in hint.__mro__ for name in inspect.get_annotations(kind)}
    return {name: inner for kind in kinds_of(hint).values() for name, inner in fields_of(kind).items()}


def is_section(hint: Any) -> bool:
    return dataclasses.is_dataclass(hint)


def is_list(hint: Any) -> bool:
    return get_origin(unwrapped(hint)) is tuple


def inner_of(hint: Any, name: Any) -> Any:
    """Return the type of the entry `name` in a section, a list or a mapping; None if there is none."""
    hint = unwrapped(hint)
    if get_origin(hint) in (tuple, dict):
        return get_args(hint)[0 if is_list(hint) else 1]
    if str(name).isdecimal() and (several := next(filter(is_list, kinds_of(hint).values()), None)):
        return inner_of(several, name)
    return fields_of(hint).get(str(name))


def keys_of(hint: Any, key: str = "") -> list[str]:
    """Return the dotted keys of a section and of all sections in it, without entries of lists and mappings."""
    inner = {dotted(key, name): inner for name, inner in fields_of(hint).items()}
    return [*inner, *(below for name, hint in inner.items() for below in keys_of(hint, name))]


def dotted(key: str, name: Any) -> str:
    """Return the key of the entry `name` inside `key`."""
    return f"{key}.{name}" if key else str(name)


def metadata_of(hint: Any) -> tuple[Any, ...]:
    return getattr(hint, "__metadata__", ())


# --- Messages ---------------------------------------------------------------------------------------------------------

MAPPING = "a mapping (key: value)"
_MANY_KEYS = 12  # more than a message can list
# Kind of problem in pydantic's terms → our message. All other kinds are a value that the setting does not allow.
_MESSAGES = {
    "missing": "is missing",
    "unexpected_keyword_argument": "{unknown}",
    "invalid_key": "expected text as a key, got {found}{quote}",
    "invalid_name": "expected a name of letters, digits and . _ + -, got {found}",
    "several_kinds": "expected one kind of corpus, with the keys {kinds}",
}
_NAMES = {bool: ("true", "false"), int: ("an integer",), float: ("a number",), str: ("text",), type(None): ("null",)}


def config_error(error: ValidationError, root: Any, *, is_yaml: bool) -> ConfigError:
    """Return the first problem as an error with its key in `root`."""
    found = error.errors(include_url=False)
    # A misspelt name explains why another one is missing.
    first = min(found, key=lambda problem: problem["type"] != "unexpected_keyword_argument")
    key, hint, owner = _place(first["loc"], root)
    kind, value, reason = first["type"], first["input"], first.get("ctx", {}).get("error")
    if isinstance(reason, ConfigError):
        return reason.under(key)
    if reason is not None:
        return ConfigError(key, str(reason))
    if kind == "union_tag_not_found" and isinstance(value, dict):
        kind = "several_kinds"
    if kind == "invalid_key" or first["loc"][-1] == "[key]":
        is_named = isinstance(value, str)
        kind = "invalid_name" if is_named else "invalid_key"
        key = dotted(key.rpartition(".")[0], value if is_named else described(value))
    values = [one for one in values_of(hint) if is_yaml or one != "null"]  # an option cannot be null
    is_text = any(unwrapped(one) is str for one in _alternatives(hint)) and not any("duration" in one for one in values)
    may_be_text = kind == "invalid_key" or is_text  # a duration such as 90 stays wrong in quotes
    return ConfigError(
        key,
        _MESSAGES.get(kind, "expected {values}, got {found}{quote}").format(
            values=listed(values, "or"),
            found=described(value),
            quote=_quote_hint(value) if may_be_text and is_yaml else "",
            kinds=listed([f"{{{kind}}}" for kind, one in kinds_of(hint).items() if is_section(one)], "or"),
            unknown=unknown_key(key, owner, root) if kind == "unexpected_keyword_argument" else "",
        ),
    )


def _place(loc: Sequence[int | str], root: Any) -> tuple[str, Any, Any]:
    """Return key and type of the setting that pydantic names, and the type of the section that contains it."""
    key, hint, owner, choice = "", root, root, None
    for step in loc:
        inner = inner_of(hint, step)
        if step == "[key]" or (inner is None and not fields_of(hint)):  # one of the types that the value may have
            break
        if kinds := kinds_of(hint):
            choice, hint = hint, kinds[str(step)]
            continue
        key, owner, hint, choice = dotted(key, step), choice or hint, inner, None
    return key, hint, owner


def unknown_key(key: str, owner: Any, root: Any) -> str:
    """Return the message about a key that the section `owner` does not have."""
    place, _, name = key.rpartition(".")
    if not fields_of(owner):
        return f"unknown key: {place} is a single value"
    if kinds := [kind for kind, section in kinds_of(owner).items() if name in fields_of(section)]:
        return f"only a corpus with {listed(kinds, 'or')} has this key"
    if close := difflib.get_close_matches(name, fields_of(owner), n=1):
        return f"unknown key, did you mean {close[0]}?"
    if alike := [other for other in keys_of(root) if f"_{name}_" in f"_{other.rpartition('.')[2]}_"]:
        return f"unknown key, did you mean {min(alike, key=len)}?"  # the shortest differs least
    if len(fields_of(owner)) > _MANY_KEYS:
        return f"unknown key; mt config explain {place} lists the keys"
    return f"unknown key, the keys {f'of {place}' if place else 'at the top'} are {', '.join(fields_of(owner))}"


def values_of(hint: Any) -> list[str]:
    """Return the values that a type allows, in words: an integer of at least 1, auto, null."""
    return [name for alternative in _alternatives(hint) for name in _names(alternative)]


def _alternatives(hint: Any) -> list[Any]:
    """Return the types that a union consists of, or the type itself."""
    if get_origin(inner := unwrapped(hint)) in (Union, types.UnionType) and not kinds_of(hint):
        return [alternative for part in get_args(inner) for alternative in _alternatives(part)]
    return [hint]


def _names(hint: Any) -> Sequence[str]:
    """Return the values of a type that is not a union, in words."""
    if description := next((one.description for one in metadata_of(hint) if isinstance(one, FieldInfo)), None):
        return [description]
    hint = unwrapped(hint)
    if get_origin(hint) is Literal:
        return [str(value) for value in get_args(hint)]
    if kinds := kinds_of(hint):
        return ["a corpus such as {src: FILE, tgt: FILE}", *(["a list"] if any(map(is_list, kinds.values())) else [])]
    return _NAMES.get(hint, ["a list" if is_list(hint) else MAPPING])


def described(value: Any) -> str:
    """Return a value as messages show it."""
    if isinstance(value, (dict, list)):
        return "a mapping" if isinstance(value, dict) else "a list" if value else "an empty list"
    text = {"None": "null", "True": "true", "False": "false"}.get(repr(value), repr(value))
    return text if len(text) <= 80 else f"{text[:77]}…"


def _quote_hint(value: Any) -> str:
    if isinstance(value, bool):
        return " (YAML reads a bare yes/no/on/off as true/false: write it in quotes)"
    return " (YAML reads it as a number: write it in quotes)" if isinstance(value, (int, float)) else ""
