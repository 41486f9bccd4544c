"""Reading YAML and `--set KEY=VALUE` into a `RunConfig`, and writing it back."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import difflib
import os
import re
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, TypeAlias

import yaml
from pydantic import TypeAdapter, ValidationError

from mt.config import settings
from mt.config.settings import FOLDER, Corpus, RunConfig
from mt.config.validation import (
    MAPPING,
    config_error,
    described,
    dotted,
    fields_of,
    inner_of,
    is_list,
    kinds_of,
    metadata_of,
    unknown_key,
)
from mt.errors import ConfigError
from mt.shipped import shipped_folder

CONFIG = "config.yaml"  # all settings, in the folder of a run or of a model

# A path, the name of a config that ships with mt, settings nested as in the YAML, or a config.
AnyConfig: TypeAlias = str | PathLike[str] | Mapping[str, Any] | RunConfig
AnyCorpus: TypeAlias = Mapping[str, Any] | Corpus  # an entry of `data` as in the YAML, or a corpus
# Values by dotted key, or texts KEY=VALUE whose values are YAML.
Overrides: TypeAlias = Mapping[str, Any] | Sequence[str]


def load_config(
    config: AnyConfig, overrides: Overrides = (), run_dir: Path | None = None, *, is_stored: bool = False
) -> RunConfig:
    """Return a config with the overrides applied in order.

    Paths in a file are relative to the current folder. One that does not exist there but in the file's folder gets that
    folder in front. With `train.init_from`, settings of the model's shape and of its tokenizer that are not given are
    those of the model in that folder, or, if it is gone, of the run.

    Args:
        run_dir: the run's folder; runs/NAME by default.
        is_stored: the config is that of a run or of a model, whose paths are relative to the current folder only.
    Raises:
        ConfigError: the place of the error begins with the file, or with the override that caused it.
    """
    if isinstance(config, RunConfig) and not overrides:
        return config
    where, folder, tree = "config", "", _plain(config)
    if is_file := isinstance(tree, str):
        path = find_config(tree)
        folder = str(path.parent) if path == Path(tree) and not is_stored else ""
        where = tree if path == Path(tree) else path.name
        tree = _read_mapping(path, where)
    if not isinstance(tree, dict):
        raise ConfigError(f"expected a config: a path, a name or {MAPPING}, got {described(tree)}")
    if isinstance(overrides, Mapping):
        changes = [("overrides", str(key), _plain(value)) for key, value in overrides.items()]
    else:
        changes = [_override(text) for text in overrides]
    for place, key, value in changes:
        try:
            _place(tree, RunConfig, key.split("."), value, key="")
        except ConfigError as error:
            raise error.within(place) from None
    _drop_replaced(tree, {key for _, key, _ in changes})
    started = Path(run_dir or Path("runs", str(tree.get("name"))), CONFIG)
    try:
        run = _validated(tree, started, None if is_stored else {FOLDER: folder})
    except ValidationError as error:
        found = config_error(error, RunConfig, is_yaml=is_file)
        raise _blamed(found, where, [(place, key) for place, key, _ in changes]) from None
    if not is_stored:
        run = _with_known_paths(run, folder, started)
    object.__setattr__(run, "folder", folder)
    return run


def load_corpus(corpus: AnyCorpus | str, where: str = "data") -> Corpus:
    """Return a corpus from an entry of a config, such as `{"file": "x.tsv"}`; a text is read as YAML.

    Raises:
        ConfigError: the place of the error begins with `where`.
    """
    entry = _read_yaml(corpus, where, with_position=False) if isinstance(corpus, str) else _plain(corpus)
    root = dict[str, settings.AnyCorpus]
    try:
        found: Corpus = TypeAdapter(root).validate_python({where: entry})[where]
    except ValidationError as error:
        raise config_error(error, root, is_yaml=isinstance(corpus, str)) from None
    return found


def _validated(tree: dict[Any, Any], started: Path, context: dict[str, str] | None) -> RunConfig:
    """Return the config of a tree; without a context, it is that of a run or of a model, which has all settings."""
    validate = TypeAdapter(RunConfig).validate_python
    if context is not None:
        with contextlib.suppress(ValidationError):
            return validate(_with_initial_settings(tree, started, context), context=context)
    # Settings that contradict the model in `train.init_from` are refused later, all in one error: see `initial_model`.
    return validate(tree, context=context)


def _with_initial_settings(tree: dict[Any, Any], started: Path, context: dict[str, str]) -> dict[Any, Any]:
    """Take what a tree lacks of the settings that a model keeps from the config in `train.init_from`, or of the run.

    Args:
        started: the config of the run.
    """
    sections = {name: tree.get(name) or {} for name in ("model", "tokenizer", "train", "data")}
    if not all(isinstance(section, dict) for section in sections.values()) or "init_from" not in sections["train"]:
        return tree
    start = TypeAdapter(settings.InputPath | None).validate_python(sections["train"]["init_from"], context=context)
    for path in () if start is None else (Path(start, CONFIG), started):
        with contextlib.suppress(ConfigError):  # the comparison with the model itself names what is wrong
            initial = load_config(str(path), is_stored=True)
            for key in (*initial.model.shape, *initial.tokenizer.kept):
                section, _, name = key.partition(".")
                if not (name == "tgt_vocab_size" and sections["tokenizer"]["joint"]):
                    sections[section] = {name: getattr(getattr(initial, section), name), **sections[section]}
            if initial.language_pieces:
                sections["data"] = {**initial.kept_pieces, **sections["data"]}
            return {**tree, **sections}
    return tree


def _with_known_paths(config: RunConfig, folder: str, started: Path) -> RunConfig:
    """Put the folder in front of paths that had it when the run was started, and whose files are gone."""
    if folder:
        with contextlib.suppress(ConfigError):  # the run is not started
            before = settings_of(load_config(str(started), is_stored=True))
            texts = {key: value for key, value in settings_of(config).items() if isinstance(value, str)}
            gone = {key: os.path.join(folder, value) for key, value in texts.items() if not os.path.lexists(value)}
            return load_config(config, {key: path for key, path in gone.items() if path == before.get(key)})
    return config


def dump_config(config: RunConfig) -> str:
    """Return all settings as YAML, from which `load_config` makes the same config."""
    return yaml.safe_dump(_plain(config), sort_keys=False, allow_unicode=True, width=120)


def config_differences(a: RunConfig, b: RunConfig) -> dict[str, tuple[Any, Any]]:
    """Return dotted key → (value in a, value in b) of each setting that differs; None for an entry that one lacks."""
    flat_a, flat_b = settings_of(a), settings_of(b)
    pairs = {key: (flat_a.get(key), flat_b.get(key)) for key in {**flat_a, **flat_b}}
    return {key: (value_a, value_b) for key, (value_a, value_b) in pairs.items() if value_a != value_b}


def is_changeable(key: str) -> bool:
    """Return whether a started run may change the setting with this dotted key."""
    hint: Any = RunConfig
    for name in key.split("."):
        hint = inner_of(hint, name)
        if settings.CHANGEABLE in metadata_of(hint):
            return True
    return False


def as_yaml(value: Any) -> str:
    """Return a setting's value in YAML."""
    return yaml.safe_dump(value, default_flow_style=True).removesuffix("\n").removesuffix("\n...")


def settings_of(config: RunConfig) -> dict[str, Any]:
    """Return dotted key → value of every setting."""
    return flattened(_plain(config))


def shipped_configs() -> list[Path]:
    """Return the configs that ship with mt, by name."""
    return sorted(shipped_folder("configs").glob("*.yaml"))


def find_config(name: str) -> Path:
    """Return the file at this path, or else the shipped config of this name, with or without `.yaml`."""
    path = Path(name)
    if path.exists() and not path.is_dir():
        return path
    shipped = {config.stem: config for config in shipped_configs()}
    if (found := shipped.get(name.removesuffix(".yaml"))) is not None:
        return found
    if path.is_dir():
        raise ConfigError(name, "is a folder", "give a config file")
    close = difflib.get_close_matches(path.stem, shipped, n=1)
    hint = f"did you mean {close[0]}.yaml?" if close else f"the configs that ship with mt are {', '.join(shipped)}"
    raise ConfigError(name, "does not exist, and no config of this name ships with mt", hint)


# --- YAML to plain values ---------------------------------------------------------------------------------------------

# Limits of a config, which a stranger may have written: reading a larger file would take minutes.
_MOST_CHARACTERS = 1 << 20
_MOST_DIGITS = 1_000  # of an integer


class _Loader(yaml.SafeLoader):
    """A SafeLoader that refuses duplicate keys and reads dates as text."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        first_of: dict[tuple[str, str], yaml.Node] = {}
        for key_node, _ in node.value:
            if isinstance(key_node, yaml.ScalarNode):
                first = first_of.setdefault((key_node.tag, key_node.value), key_node)
                if first is not key_node:
                    problem = f"{key_node.value} is already set on line {first.start_mark.line + 1}"
                    raise yaml.composer.ComposerError(None, None, problem, key_node.start_mark)
        return node


def _integer(loader: _Loader, node: yaml.ScalarNode) -> int:
    if len(node.value) > _MOST_DIGITS:
        raise yaml.constructor.ConstructorError(None, None, "the number has too many digits", node.start_mark)
    return int(loader.construct_yaml_int(node))


_Loader.add_constructor("tag:yaml.org,2002:int", _integer)
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def _read_mapping(path: Path, where: str) -> dict[Any, Any]:
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise ConfigError(where, f"cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{where}:{line}", "is not UTF-8 text", "save the file as UTF-8") from None
    if len(text) > _MOST_CHARACTERS:
        raise ConfigError(where, f"has {len(text):,} characters, expected {_MOST_CHARACTERS:,} at most")
    tree = _read_yaml(text, where, with_position=True)
    if tree is None:
        raise ConfigError(
            where,
            "is empty",
            "a config needs at least name, src_lang, tgt_lang and data; mt config init writes one to start from",
        )
    if not isinstance(tree, dict):
        raise ConfigError(where, f"expected {MAPPING}, got {described(tree)}")
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
        position, problem = "", "nested too deeply"
    except ValueError as error:  # for example a number with thousands of digits
        position, problem = "", str(error)
    raise ConfigError(f"{where}{position}", f"is not valid YAML: {' '.join(problem.split())}")


# --- `--set KEY=VALUE` ------------------------------------------------------------------------------------------------


def _override(text: str) -> tuple[str, str, Any]:
    """Return the place for errors, the key and the value."""
    where = f"--set {text}"
    key, equals, value = (part.strip() for part in text.partition("="))
    if not equals or not key:
        raise ConfigError(where, "expected KEY=VALUE, such as train.max_steps=100")
    return where, key, _read_yaml(value, where, with_position=False)


def read_axis(text: str) -> tuple[str, list[Any]]:
    """Return the key and the values of `--grid KEY=V1,V2`."""
    where = f"--grid {text}"
    key, equals, values = (part.strip() for part in text.partition("="))
    if not (key and equals and values):
        raise ConfigError(where, "expected KEY=VALUE,VALUE, such as model.dropout=0.1,0.3")
    return key, _read_yaml(f"[{values}]", where, with_position=False)


def _place(container: Any, hint: Any, path: list[str], value: Any, key: str) -> None:
    """Set container[path[0]][path[1]]… to `value`, and create missing sections on the way.

    Args:
        hint: type of the container.
        key: dotted key of the container.
    """
    name, *rest = path
    here, inner = dotted(key, name), inner_of(hint, name)
    if inner is None:
        raise ConfigError(here, unknown_key(here, hint, RunConfig))
    is_array = is_list(hint) or (isinstance(container, list) and any(map(is_list, kinds_of(hint).values())))
    kind, expected = (list, "a list") if is_array else (dict, MAPPING)
    if not isinstance(container, kind):
        raise ConfigError(key, f"expected {expected}, got {described(container)}")
    step: Any = name
    if isinstance(container, list):
        n = len(container)
        if not re.fullmatch(r"[0-9]{1,9}", name) or int(name) > n:
            raise ConfigError(here, f"expected the index of an entry, 0 to {n} ({n} appends)")
        step = int(name)
        container.extend([None] * (step + 1 - n))
    if rest:
        existing = container[step] if isinstance(container, list) else container.get(step)
        below = ([] if is_list(inner) else {}) if existing is None else copy.copy(existing)  # aliases share a value
        _place(below, inner, rest, value, here)
        value = below
    container[step] = value


def _drop_replaced(tree: dict[Any, Any], changed: set[str]) -> None:
    """Remove what an overridden budget replaces, or the budget that overridden steps or an overridden time replace."""
    train, replaced = tree.get("train"), {f"train.{name}" for name in settings.BUDGET_REPLACES}
    if "train.budget" not in changed:
        replaced = {"train.budget"} if changed & {"train.max_steps", "train.stop_after"} else set()
    if isinstance(train, dict):
        for key in replaced - changed:
            train.pop(key.removeprefix("train."), None)


def _blamed(error: ConfigError, where: str, overrides: Sequence[tuple[str, str]]) -> ConfigError:
    """Return the error with its place in front: the last override that set the key or a part of it, else the file."""
    for place, key in reversed(overrides):
        if f"{error.place}.".startswith(f"{key}."):
            return error.within(place)
        if key.startswith(f"{error.place}."):
            hint = f"to replace the whole value, use --set '{error.place}={{…}}'"
            problem = f"{error.problem}; {hint}" if error.problem.startswith("expected") else error.problem
            return ConfigError(f"{place}: {error.place}", problem, error.fix)
    return error.within(where)


# --- Plain values of a config -----------------------------------------------------------------------------------------


def _plain(value: Any) -> Any:
    """Return sections as mappings, tuples as lists, paths as text; of a corpus, only the keys that are set."""
    if isinstance(value, Corpus):
        entries = {name: _plain(getattr(value, name)) for name in fields_of(type(value))}
        unset = [(name, None) for name in entries] + [
            ("streaming", False),
            ("quoting", "auto"),
            ("both_directions", False),
        ]
        return {name: entry for name, entry in entries.items() if (name, entry) not in unset}
    if dataclasses.is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {name: _plain(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    return os.fspath(value) if isinstance(value, PathLike) else value


def flattened(value: Any, key: str = "") -> dict[str, Any]:
    """Return dotted key → scalar of nested mappings and lists."""
    if not isinstance(value, (dict, list, tuple)):
        return {key: value}
    entries = value.items() if isinstance(value, dict) else enumerate(value)
    return {name: leaf for part, entry in entries for name, leaf in flattened(entry, dotted(key, part)).items()}
