"""Sections of settings as pydantic dataclasses, and what is wrong with a value in our words."""

from __future__ import annotations

import dataclasses
import difflib
import functools
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

    pydantic locates it, as any ValueError that a section raises in `__post_init__`.
    """


# --- Sections ---------------------------------------------------------------------------------------------------------


@dataclass_transform(kw_only_default=True, frozen_default=True, field_specifiers=(dataclasses.field,))
def section(key: str = "") -> Callable[[type[T]], type[T]]:
    """Make a class a section of settings: frozen, keyword-only, and validated where it is made.

    Args:
        key: where the section is in a config, for messages about one that is made in Python.
    Raises:
        ConfigError: a setting is unknown or missing, has a wrong value, or contradicts another one.
    """

    def made(cls: Any) -> Any:
        settings: Any = dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))(cls)
        validate = settings.__init__

        @functools.wraps(validate)
        def __init__(self: Any, **values: Any) -> None:  # a section inside another one is made without it
            try:
                validate(self, **values)
            except ValidationError as error:
                raise config_error(error, cls, is_yaml=False).under(key) from None

        settings.__init__ = __init__
        return settings

    return made


def unwrapped(hint: Any) -> Any:
    """Return a type without what `Annotated` says about it."""
    return unwrapped(get_args(hint)[0]) if get_origin(hint) is Annotated else hint


def kinds_of(hint: Any) -> dict[str, Any]:
    """Return the sections that a type chooses from, by their tags; none where there is no choice."""
    parts = get_args(unwrapped(hint))
    return {tag.tag: unwrapped(part) for part in parts for tag in metadata_of(part) if isinstance(tag, Tag)}


@functools.cache
def fields_of(hint: Any) -> dict[str, Any]:
    """Return name → type of the settings in a section, or in any of those that it is chosen from."""
    hint = unwrapped(hint)
    if dataclasses.is_dataclass(hint):
        hints = get_type_hints(hint, include_extras=True)
        return {field.name: hints[field.name] for field in dataclasses.fields(hint)}
    return {name: inner for kind in kinds_of(hint).values() for name, inner in fields_of(kind).items()}


def is_list(hint: Any) -> bool:
    return get_origin(unwrapped(hint)) is tuple


def inner_of(hint: Any, name: Any) -> Any:
    """Return the type of what is called `name` in a section, a list or a mapping with names; None: there is none."""
    hint = unwrapped(hint)
    if get_origin(hint) in (tuple, dict):
        return get_args(hint)[0 if is_list(hint) else 1]
    return fields_of(hint).get(str(name))


def keys_of(hint: Any, key: str = "") -> list[str]:
    """Return the dotted keys of all sections, lists and named entries left out."""
    inner = {dotted(key, name): inner for name, inner in fields_of(hint).items()}
    sections = {name: hint for name, hint in inner.items() if dataclasses.is_dataclass(unwrapped(hint))}
    return [*inner, *(below for name, hint in sections.items() for below in keys_of(hint, name))]


def dotted(key: str, name: Any) -> str:
    """Return the key of what is called `name` inside `key`."""
    return f"{key}.{name}" if key else str(name)


def metadata_of(hint: Any) -> tuple[Any, ...]:
    return getattr(hint, "__metadata__", ())


# --- Messages ---------------------------------------------------------------------------------------------------------

MAPPING = "a mapping (key: value)"
_LIMITS = ("greater_than", "greater_than_equal", "less_than", "less_than_equal", "finite_number")
# Kind of a problem in pydantic's words → what we say; what is not listed is of another type than expected.
_MESSAGES = {
    "missing": "missing",
    "unexpected_keyword_argument": "{unknown}",
    "invalid_key": "expected text as a key, got {found}{quote}",
    "several_kinds": "expected exactly one of {kinds}",
    "dataclass_type": f"expected {MAPPING}, got {{found}}",
    "dict_type": f"expected {MAPPING}, got {{found}}",
    "tuple_type": "expected a list, got {found}",
    "too_short": "is empty: {description}",
    "string_too_short": "is empty: {description}",
    **dict.fromkeys(_LIMITS, "expected {description}{or_null}, got {value}"),
}


def config_error(error: ValidationError, root: Any, *, is_yaml: bool) -> ConfigError:
    """Return the first thing that is wrong, with its key in `root`."""
    found = error.errors(include_url=False)
    # A name that is misspelt explains why another one is missing.
    first = min(found, key=lambda problem: problem["type"] != "unexpected_keyword_argument")
    key, hint, owner = _place(first["loc"], root)
    # A value has a problem with each type that it may be of: a limit says more than that it is of another type.
    first = next((one for one in found if one["type"] in _LIMITS and _place(one["loc"], root)[0] == key), first)
    kind, value, reason = first["type"], first["input"], first.get("ctx", {}).get("error")
    if isinstance(reason, ConfigError):
        return reason.under(key)
    if reason is not None:
        return ConfigError(key, str(reason))
    if kind == "union_tag_not_found":
        kind = "several_kinds" if isinstance(value, dict) else "dataclass_type"
    if kind == "invalid_key" or first["loc"][-1] == "[key]":
        kind, key = "invalid_key", dotted(key.rpartition(".")[0], value)
    allowed = _alternatives(hint)
    names = ["null" if one is None else one.__name__ if isinstance(one, type) else str(one) for one in allowed]
    return ConfigError(
        key,
        _MESSAGES.get(kind, "expected {types}, got {found}{quote}").format(
            value=value,
            found=described(value),
            quote=_quote_hint(value) if kind == "invalid_key" or str in allowed else "",
            types=listed(names, "or"),
            or_null=" or null" if None in allowed and is_yaml else "",
            kinds=listed([f"{{{kind}}}" for kind in kinds_of(hint)]),
            description=_description(hint),
            unknown=unknown_key(key, owner, root) if kind == "unexpected_keyword_argument" else "",
        ),
    )


def _place(loc: Sequence[int | str], root: Any) -> tuple[str, Any, Any]:
    """Return the key of what pydantic found a problem in, its type, and that of the section which it is in."""
    key, hint, owner, choice = "", root, root, None
    for step in loc:
        inner = inner_of(hint, step)
        if step == "[key]" or (inner is None and not fields_of(hint)):  # the alternative that the value does not fit
            break
        if kinds := kinds_of(hint):
            choice, hint = hint, kinds[str(step)]
            continue
        key, owner, hint, choice = dotted(key, step), choice or hint, inner, None
    return key, hint, owner


def unknown_key(key: str, owner: Any, root: Any) -> str:
    """Return what to say about a key that the section `owner` does not have."""
    place, _, name = key.rpartition(".")
    if not fields_of(owner):
        return f"unknown key, {place} is a single value"
    if kinds := [kind for kind, section in kinds_of(owner).items() if name in fields_of(section)]:
        return f"goes with {listed(kinds)} alone"
    if close := difflib.get_close_matches(name, fields_of(owner), n=1):
        return f"unknown key, did you mean {close[0]}?"
    if elsewhere := [other for other in keys_of(root) if other.rpartition(".")[2] == name]:
        return f"unknown key, did you mean {elsewhere[0]}?"
    return f"unknown key, the keys {f'of {place}' if place else 'at the top'} are {', '.join(fields_of(owner))}"


def _alternatives(hint: Any) -> list[Any]:
    """Return the types, literal values and None that a type allows: `int | Literal["auto"]` → [int, "auto"]."""
    hint = unwrapped(hint)
    if get_origin(hint) in (Union, types.UnionType):
        return [alternative for part in get_args(hint) for alternative in _alternatives(part)]
    if get_origin(hint) is Literal:
        return list(get_args(hint))
    return [None if hint is type(None) else hint]


def _description(hint: Any) -> str:
    """Return what the type of a setting, or of one of its alternatives, says about its values."""
    told = [one for part in (hint, *get_args(unwrapped(hint))) for one in metadata_of(part)]
    return next((str(one.description) for one in told if isinstance(one, FieldInfo)), "")


def described(value: Any) -> str:
    """Return a value as a message names it."""
    if value is None or isinstance(value, (dict, list)):
        return "null" if value is None else "a mapping" if isinstance(value, dict) else "a list"
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}…"


def _quote_hint(value: Any) -> str:
    if isinstance(value, bool):
        return " (YAML reads a bare yes/no/on/off as true/false: write it in quotes)"
    return " (YAML reads it as a number: write it in quotes)" if isinstance(value, (int, float)) else ""
