"""YAML and `--set KEY=VALUE` to a `RunConfig`, by the type hints of config.py; errors say where and what to do."""

from __future__ import annotations

import copy
import dataclasses
import difflib
import re
import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

from mt.config import RunConfig, SourceConfig
from mt.errors import ConfigError

_PACKAGE = Path(__file__).resolve().parent
# YAML 1.1 reads a number with an exponent as text, unless it has both a point and a sign: 3e-4, 1e6, 1.5e3.
_NUMBER_WITH_EXPONENT = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+")
_NO_MATCH = object()
Section = TypeVar("Section")


def load_config(path_or_name: str, overrides: Sequence[str] = ()) -> RunConfig:
    """The config of a file, or of one that ships with mt, with each `KEY=VALUE` of `overrides` applied in order.

    Raises:
        ConfigError: one line that begins with the file, or with the override that is to blame.
    """
    path = find_config(path_or_name)
    where = path_or_name if path == Path(path_or_name) else path.name
    tree = _read_mapping(path, where)
    parsed = [_parse_override(text) for text in overrides]
    for override in parsed:
        _apply(override, tree)
    try:
        return _section(tree, RunConfig, key="")
    except ConfigError as error:
        raise _blamed(error, where, parsed) from None


def parse_config(mapping: Mapping[str, Any], where: str) -> RunConfig:
    """The config of a mapping as YAML gives it; `where` stands in front of every error."""
    try:
        return _section(mapping, RunConfig, key="")
    except ConfigError as error:
        raise error.within(where) from None


def dump_config(config: RunConfig) -> str:
    """The full set of settings as YAML; `parse_config` makes the same config of it."""
    return yaml.safe_dump(_plain(config), sort_keys=False, allow_unicode=True, width=120)


def config_differences(a: RunConfig, b: RunConfig) -> dict[str, tuple[Any, Any]]:
    """Dotted key → (value in a, value in b) for each setting that differs; None where one has no such entry."""
    flat_a, flat_b = settings_of(a), settings_of(b)
    keys = [*flat_a, *(key for key in flat_b if key not in flat_a)]
    pairs = {key: (flat_a.get(key), flat_b.get(key)) for key in keys}
    return {key: (value_a, value_b) for key, (value_a, value_b) in pairs.items() if value_a != value_b}


def as_yaml(value: Any) -> str:
    """Return a setting's value as it is written in a config."""
    return yaml.safe_dump(value, default_flow_style=True).removesuffix("\n").removesuffix("\n...")


def settings_of(config: RunConfig) -> dict[str, Any]:
    """Dotted key → value of every setting."""
    return _flat(_plain(config))


def shipped_configs() -> list[Path]:
    """The configs that ship with mt, by name."""
    inside = _PACKAGE / "configs"
    return sorted((inside if inside.is_dir() else _PACKAGE.parent / "configs").glob("*.yaml"))


def find_config(name: str) -> Path:
    """The file of that path; else the shipped config of that name, with or without `.yaml`."""
    path = Path(name)
    if path.exists() and not path.is_dir():
        return path
    shipped = {config.stem: config for config in shipped_configs()}
    if (found := shipped.get(name.removesuffix(".yaml"))) is not None:
        return found
    if path.is_dir():
        raise ConfigError(name, "is a folder", "give the config file")
    close = difflib.get_close_matches(path.stem, shipped, n=1)
    hint = f"did you mean {close[0]}.yaml?" if close else f"these ship with mt: {', '.join(shipped)}"
    raise ConfigError(name, f"no such file, and no config of that name ships with mt; {hint}")


# --- YAML to plain values ---------------------------------------------------------------------------------------------


class _Loader(yaml.SafeLoader):
    """SafeLoader that refuses a key given twice and reads dates as text."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        first_lines: dict[tuple[str, str], int] = {}
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                continue
            name = (key_node.tag, key_node.value)
            if name in first_lines:
                problem = f"{key_node.value} is given twice, first on line {first_lines[name]}"
                raise yaml.composer.ComposerError(None, None, problem, key_node.start_mark)
            first_lines[name] = key_node.start_mark.line + 1
        return node


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def _read_mapping(path: Path, where: str) -> dict[Any, Any]:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ConfigError(where, f"cannot be read: {error.strerror}") from None
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{where}:{line}", "is not UTF-8 text", "save the file as UTF-8") from None
    tree = _read_yaml(text, where, with_position=True)
    if tree is None:
        raise ConfigError(where, "is empty", "a config needs at least name, src_lang, tgt_lang and data")
    if not isinstance(tree, dict):
        raise ConfigError(where, f"expected a mapping (key: value), got {_described(tree)}")
    return tree


def _read_yaml(text: str, where: str, with_position: bool) -> Any:
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        position = f":{mark.line + 1}:{mark.column + 1}" if mark is not None and with_position else ""
        context = f" ({error.context})" if error.context else ""
        problem = f"{error.problem}{context}"
    except yaml.reader.ReaderError as error:
        position = f":{text.count(chr(10), 0, error.position) + 1}" if with_position else ""
        problem = f"the character {chr(error.character)!r} is not allowed"
    except RecursionError:
        position, problem = "", "nested too deep"
    except ValueError as error:  # such as a number of thousands of digits
        position, problem = "", str(error)
    raise ConfigError(f"{where}{position}", f"not valid YAML: {' '.join(problem.split())}")


# --- Plain values to dataclasses --------------------------------------------------------------------------------------


def _hints(section: Any) -> dict[str, Any]:
    hints = get_type_hints(section)
    return {field.name: hints[field.name] for field in dataclasses.fields(section)}


def _section(value: Any, section: type[Section], key: str) -> Section:
    """The dataclass `section` made of a mapping; null stands for an empty one."""
    mapping = _mapping({} if value is None else value, key)
    hints = _hints(section)
    for name in mapping:
        if name not in hints:
            raise ConfigError(_join(key, name), _unknown_key(name, section, key))
    for field in dataclasses.fields(section):  # type: ignore[arg-type]
        has_default = not (field.default is field.default_factory is dataclasses.MISSING)
        if field.name not in mapping and not has_default:
            raise ConfigError(_join(key, field.name), "missing")
    arguments = {name: _converted(mapping[name], hints[name], _join(key, name)) for name in mapping}
    try:
        return section(**arguments)
    except ConfigError as error:
        raise _located(error, key) from None


def _converted(value: Any, hint: Any, key: str) -> Any:
    """`value` as the type `hint` asks for; `key` is named where it does not fit."""
    if dataclasses.is_dataclass(hint):
        assert isinstance(hint, type)
        return _section(value, hint, key)
    if get_origin(hint) is tuple:
        entries = [] if value is None else value
        if not isinstance(entries, list):
            raise ConfigError(key, f"expected a list, got {_described(value)}")
        return tuple(_converted(entry, get_args(hint)[0], f"{key}.{i}") for i, entry in enumerate(entries))
    if get_origin(hint) is dict:
        mapping = _mapping({} if value is None else value, key)
        return {name: _converted(entry, get_args(hint)[1], f"{key}.{name}") for name, entry in mapping.items()}
    for alternative in _alternatives(hint):
        scalar = _scalar(value, alternative)
        if scalar is not _NO_MATCH:
            return scalar
    raise ConfigError(key, _mismatch(value, hint))


def _alternatives(hint: Any) -> list[Any]:
    """The scalar types, literal values and None that a hint allows: `int | Literal["auto"]` → [int, "auto"]."""
    if get_origin(hint) in (Union, types.UnionType):
        return [alternative for part in get_args(hint) for alternative in _alternatives(part)]
    if get_origin(hint) is Literal:
        return list(get_args(hint))
    return [None if hint is type(None) else hint]


def _scalar(value: Any, alternative: Any) -> Any:
    """`value` as this one alternative, or _NO_MATCH."""
    if not isinstance(alternative, type):
        return value if type(value) is type(alternative) and value == alternative else _NO_MATCH
    if alternative in (str, bool):
        return value if isinstance(value, alternative) else _NO_MATCH
    number = float(value) if isinstance(value, str) and _NUMBER_WITH_EXPONENT.fullmatch(value) else value
    if isinstance(number, bool) or not isinstance(number, (int, float)):
        return _NO_MATCH
    if alternative is int:
        return int(number) if isinstance(number, int) or number.is_integer() else _NO_MATCH
    assert alternative is float, f"no rule for settings of type {alternative}"
    try:
        return float(number)
    except OverflowError:
        return _NO_MATCH


def _mapping(value: Any, key: str) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise ConfigError(key, f"expected a mapping (key: value), got {_described(value)}")
    for name in value:
        if not isinstance(name, str):
            raise ConfigError(_join(key, name), f"expected text as a key, got {_described(name)}{_quote_hint(name)}")
    return dict(value)


# --- `--set KEY=VALUE` ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Override:
    text: str  # as the user wrote it, without --set
    key: str
    value: Any

    @property
    def where(self) -> str:
        return f"--set {self.text}"


def _parse_override(text: str) -> _Override:
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"--set {text}", "expected KEY=VALUE, such as train.max_steps=100")
    return _Override(text, key.strip(), _read_yaml(value, f"--set {text}", with_position=False))


def _apply(override: _Override, tree: dict[Any, Any]) -> None:
    """Put the value into the tree of plain values, in place, making the sections on the way that are not there."""
    try:
        _place(tree, RunConfig, override.key.split("."), override.value, key="")
    except ConfigError as error:
        raise error.within(override.where) from None


def _place(container: Any, hint: Any, path: list[str], value: Any, key: str) -> None:
    """Set container[path[0]][path[1]]… to `value`; `hint` is the type of the container, `key` its name."""
    here = _join(key, path[0])
    step: Any = path[0]
    if dataclasses.is_dataclass(hint):
        assert isinstance(hint, type)
        if step not in _hints(hint):
            raise ConfigError(here, _unknown_key(step, hint, key))
        inner = _hints(hint)[step]
    elif get_origin(hint) is dict:
        inner = get_args(hint)[1]
    elif get_origin(hint) is tuple:
        if not isinstance(container, list):
            raise ConfigError(key, f"expected a list, got {_described(container)}")
        step, inner = _list_index(path[0], container, key), get_args(hint)[0]
        container.extend([None] * (step + 1 - len(container)))
    else:
        raise ConfigError(here, f"unknown key, {key} is a single value")
    if get_origin(hint) is not tuple and not isinstance(container, dict):
        raise ConfigError(key, f"expected a mapping (key: value), got {_described(container)}")
    if len(path) == 1:
        container[step] = value
        return
    existing = container[step] if isinstance(container, list) else container.get(step)
    if existing is None:
        existing = [] if get_origin(inner) is tuple else {}
    container[step] = copy.copy(existing)  # a YAML alias shares one value between several keys
    _place(container[step], inner, path[1:], value, here)


def _list_index(text: str, entries: list[Any], key: str) -> int:
    """The index of an entry; one past the last appends."""
    if not re.fullmatch(r"[0-9]{1,9}", text) or int(text) > len(entries):
        raise ConfigError(
            f"{key}.{text}", f"expected the index of an entry, 0 to {len(entries)} ({len(entries)} appends)"
        )
    return int(text)


def _blamed(error: ConfigError, where: str, overrides: Sequence[_Override]) -> ConfigError:
    """Return the error with its place in front: the last override that set the key or a part of it, else the file."""
    key = error.place
    for override in reversed(overrides):
        if f"{key}.".startswith(f"{override.key}."):
            return error.within(override.where)
        if override.key.startswith(f"{key}."):
            problem = ": ".join(part for part in (error.problem, error.fix) if part)
            hint = f"to replace the whole value, write --set '{key}={{…}}'"
            return ConfigError(f"{override.where}: {key}", f"{problem}; {hint}")
    return error.within(where)


# --- Words for messages, and plain values of a config -----------------------------------------------------------------


def _join(key: str, name: Any) -> str:
    return f"{key}.{name}" if key else str(name)


def _located(error: ConfigError, key: str) -> ConfigError:
    """Return an error of `__post_init__` with its key in full, as a section that exists once gives it itself."""
    return error if not key or error.place.startswith(f"{key}.") else error.under(key)


def _unknown_key(name: str, section: type, key: str) -> str:
    names = list(_hints(section))
    if close := difflib.get_close_matches(name, names, n=1):
        return f"unknown key, did you mean {close[0]}?"
    if elsewhere := [other for other in _setting_keys(RunConfig, "") if other.rpartition(".")[2] == name]:
        return f"unknown key, did you mean {elsewhere[0]}?"
    return f"unknown key, the keys {f'of {key}' if key else 'at the top'} are {', '.join(names)}"


def _setting_keys(section: type, key: str) -> list[str]:
    """The dotted keys of all sections, lists and named entries left out."""
    keys = []
    for name, hint in _hints(section).items():
        keys.append(_join(key, name))
        if isinstance(hint, type) and dataclasses.is_dataclass(hint) and hint is not SourceConfig:
            keys += _setting_keys(hint, _join(key, name))
    return keys


def _mismatch(value: Any, hint: Any) -> str:
    alternatives = _alternatives(hint)
    names = [
        part.__name__ if isinstance(part, type) else "null" if part is None else str(part) for part in alternatives
    ]
    expected = " or ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
    return f"expected {expected}, got {_described(value)}{_quote_hint(value) if str in alternatives else ''}"


def _described(value: Any) -> str:
    if value is None or isinstance(value, (dict, list)):
        return "null" if value is None else "a mapping" if isinstance(value, dict) else "a list"
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}…"


def _quote_hint(value: Any) -> str:
    if isinstance(value, bool):
        return " (YAML reads a bare yes/no/on/off as true/false: write it in quotes)"
    return " (YAML reads it as a number: write it in quotes)" if isinstance(value, (int, float)) else ""


def _plain(value: Any) -> Any:
    """Dataclasses as mappings, tuples as lists; of a source, only the keys that are given."""
    if dataclasses.is_dataclass(value):
        mapping = {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
        if isinstance(value, SourceConfig):
            return {name: entry for name, entry in mapping.items() if entry not in (None, False)}
        return mapping
    if isinstance(value, dict):
        return {name: _plain(entry) for name, entry in value.items()}
    return [_plain(entry) for entry in value] if isinstance(value, tuple) else value


def _flat(value: Any, key: str = "") -> dict[str, Any]:
    """Dotted key → scalar."""
    if not isinstance(value, (dict, list)):
        return {key: value}
    entries = value.items() if isinstance(value, dict) else enumerate(value)
    return {name: leaf for part, entry in entries for name, leaf in _flat(entry, _join(key, part)).items()}
