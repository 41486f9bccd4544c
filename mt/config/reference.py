"""The reference of all settings, for `mt config explain`, docs/config.md and editors, and a config to start from."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import re
import shlex
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from string import Template
from typing import Any

from pydantic import TypeAdapter

from mt.config import settings
from mt.config.loading import as_yaml, settings_of
from mt.config.settings import CHANGEABLE, RunConfig
from mt.config.validation import (
    dotted,
    fields_of,
    inner_of,
    is_list,
    is_section,
    kinds_of,
    metadata_of,
    unknown_key,
    unwrapped,
    values_of,
)
from mt.errors import ConfigError
from mt.system.files import explained_writes, write_text
from mt.units import listed

SCHEMA = Path(__file__).with_name("schema.json")  # in the package, because editors read a file
_STARTER = Path(__file__).with_name("starter.yaml")


@dataclass(frozen=True)
class Setting:
    """A setting, a section, or a list or mapping of corpora."""

    key: str
    hint: Any
    meaning: str
    default: str = ""  # in YAML; "" if it has none
    is_changeable: bool = False  # by a started run

    @property
    def values(self) -> str:
        """The values that it may have, in words."""
        return listed(values_of(self.hint), "or")

    @property
    def is_section(self) -> bool:
        return is_section(unwrapped(self.hint))

    @property
    def sections(self) -> dict[str, Any]:
        """The kinds of its corpora by their tags, or its section by ""."""
        inner = unwrapped(_entry(self.hint))
        kinds = {tag: kind for tag, kind in kinds_of(inner).items() if is_section(kind)}
        return kinds or ({"": inner} if is_section(inner) else {})

    def inside(self, section: Any) -> Iterator[Setting]:
        """Yield the settings of one of its sections."""
        has_entries = _entry(self.hint) is not self.hint
        key = dotted(self.key, "0" if is_list(self.hint) else "NAME") if has_entries else self.key
        defaults, comments = _defaults(section), comments_of(section)
        for name, hint in fields_of(section).items():
            meaning = comments.get(name) or _summary(unwrapped(hint))
            is_changeable = self.is_changeable or CHANGEABLE in metadata_of(hint)
            yield Setting(dotted(key, name), hint, meaning, defaults.get(name, ""), is_changeable)


ROOT = Setting("", RunConfig, "All settings of one run.")


def find_setting(key: str) -> Setting:
    """Return the setting with this dotted key.

    Raises:
        ConfigError: the setting does not exist; the message names a similar one.
    """
    found = ROOT
    for name in key.split("."):
        here = dotted(found.key, name)
        inside = {
            one.key.rpartition(".")[2]: one for section in found.sections.values() for one in found.inside(section)
        }
        is_entry = name.isdecimal() if is_list(found.hint) else _entry(found.hint) is not found.hint
        if name in inside:
            found = inside[name]
        elif name.isdecimal() and (several := inner_of(found.hint, name)) is not None:
            found = replace(found, key=here, hint=several)
        elif is_entry:
            found = replace(found, key=here, hint=_entry(found.hint))
        else:
            raise ConfigError(here, unknown_key(here, _entry(found.hint), RunConfig))
    return found


def groups(setting: Setting = ROOT) -> Iterator[Setting]:
    """Yield the sections inside a section, at any depth, and the settings that hold corpora."""
    for inner in setting.inside(setting.sections[""]):
        if inner.sections:
            yield inner
        if inner.is_section:
            yield from groups(inner)


def explained(key: str = "", config: RunConfig | None = None) -> str:
    """Return the reference of a setting, or of all settings in a section; without a key, the list of sections."""
    if not key:
        lines = [f"  {one.key:<12}{one.meaning}" for one in groups()]
        return "\n".join(["mt config explain KEY explains a setting, or all settings of one of these:", "", *lines])
    setting, values = find_setting(key), settings_of(config) if config else {}
    paragraphs = [f"{key}: {setting.meaning}" if setting.is_section else _paragraph(setting, values)]
    shown: set[str] = set()
    for tag, section in setting.sections.items():
        inside = [*setting.inside(section)]
        if tag:
            paragraphs.append(f"--- {_summary(section)} Keys: {', '.join(fields_of(section))}.")
        paragraphs += [_paragraph(one, values) for one in inside if one.key not in shown]  # kinds have keys in common
        shown.update(one.key for one in inside)
    return "\n\n".join(paragraphs)


def config_schema() -> dict[str, Any]:
    """Return the JSON schema of configs, with the meaning of each setting, for editors."""
    schema = TypeAdapter(RunConfig).json_schema()
    for section in (schema, *schema["$defs"].values()):
        for setting in ROOT.inside(getattr(settings, section["title"])):
            entry = section["properties"][setting.key]
            entry["description"] = setting.meaning
            entry.pop("title", None)
            if setting.is_section:
                entry.pop("default", None)  # editors would insert all of it
    return schema


def write_starter(path: Path) -> None:
    """Write a config with comments, for the user's own text; its run is named like the file.

    Raises:
        ConfigError: the file exists.
    """
    if path.exists():
        raise ConfigError(path, "exists already", "give the name of a new file")
    name = re.sub(r"[^\w.+-]", "-", path.stem).lstrip(".") or "my"
    text = Template(_STARTER.read_text(encoding="utf-8"))
    with explained_writes(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, text.substitute(schema=SCHEMA.as_uri(), file=shlex.quote(str(path)), name=as_yaml(name)))


@functools.cache
def comments_of(section: type) -> dict[str, str]:
    """Return name → comment of the settings in a section: the lines above the setting and the text behind it."""
    source = "\n".join(inspect.getsource(kind) for kind in section.__mro__[:-1])
    found = re.findall(r"((?:^    # .*\n)*)^    (\w+): [^#\n]*(?:# (.*))?$", source, re.MULTILINE)
    return {name: " ".join([*re.findall("# (.*)", above), behind]).strip() for above, name, behind in found}


def _defaults(section: Any) -> dict[str, str]:
    """Return name → default in YAML of the settings that have one and are not sections."""
    found = {}
    for field in dataclasses.fields(section):
        default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        if default is not dataclasses.MISSING and not dataclasses.is_dataclass(default):
            found[field.name] = as_yaml([*default] if isinstance(default, tuple) else default)
    return found


def _entry(hint: Any) -> Any:
    """Return the type of the entries of a list or mapping; any other type as it is."""
    return hint if fields_of(hint) else inner_of(hint, "") or hint


def _summary(section: Any) -> str:
    return (section.__doc__ or "").partition("\n")[0] if is_section(section) else ""


def _paragraph(setting: Setting, values: dict[str, Any]) -> str:
    """Return what the reference says about one setting."""
    facts = [f"Values: {setting.values}.", f"Default: {setting.default}." if setting.default else "Required."]
    if setting.key in values:
        facts.append(f"In this config: {as_yaml(values[setting.key])}.")
    facts.append(f"A started run {'may' if setting.is_changeable else 'cannot'} change it.")
    if setting.is_section:
        facts = [f"A section; mt config explain {setting.key} explains its settings."]
    lines = [line for text in (setting.meaning, " ".join(facts)) for line in textwrap.wrap(text, 116)]
    return "\n".join([setting.key, *(f"    {line}" for line in lines)])
