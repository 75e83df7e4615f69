"""Hydra's part of reading a command: parse, choose options, compose. Every fault is collected, none is raised."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.utils import create_config_search_path
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.default_element import GroupDefault
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, Override, Quote, QuotedString
from hydra.core.utils import JobRuntime, setup_globals
from hydra.errors import HydraException
from hydra.plugins.config_source import ConfigResult
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError  # type: ignore[import-untyped]

from launch.checks import known
from launch.errors import CommandError, nearest

HIDDEN_OPTIONS = {"base"}  # shared by the options of a group, not one of them
REPLACED = ("data.classes",)  # mappings that an override sets anew; joined, the yaml's classes would stay
JOINED = {"logger", "experiment"}  # groups of which several options make sense at once
OURS = {  # Hydra's settings that would pull apart what belongs together; hydra.run.dir is Lightning's, for ddp
    "hydra.sweep.dir": "paths.outputs=DIR says where everything goes.",
    "hydra.sweep.subdir": "paths.outputs=DIR says where everything goes.",
    "hydra.job.chdir": "paths would be looked for elsewhere than they are told; paths.outputs=DIR says where to write.",
}
SET_BY = {"task": ("data", "name"), "sweep": ("tasks",)}  # sections that a group's options set beside their own
COMPOSE_ERRORS = (HydraException, OmegaConfBaseException, YAMLError, ValueError, AttributeError, TypeError)


@dataclass
class Command:
    """A parsed command line.

    ``choices``: for each override that chooses options or sets Hydra itself, its values as full override strings.
    ``values``: the same for those that set keys. More than one string in an inner list is a sweep.
    ``refused``: groups without a usable choice and keys without a usable value; what they would have set is not known.
    """

    choices: list[list[str]] = field(default_factory=list)
    values: list[list[Override]] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    refused: set[str] = field(default_factory=set)

    def leaves_open(self, key: str) -> bool:
        """Whether a key may only be missing because its value or a group's choice was refused."""
        first = key.partition(".")[0]
        return any(own in (key, first) or first in SET_BY.get(own, ()) for own in self.refused)


class Composer:
    """Composes one primary config from a folder of yaml files."""

    def __init__(self, script: str, conf: Path, extra: str | None = None, config_name: str | None = None) -> None:
        setup_globals()
        JobRuntime().set("name", script)
        search_path = create_config_search_path(str(conf))
        if extra is not None and not Path(extra).is_dir():
            raise CommandError(f"--config-dir {extra}: there is no such folder.")
        anchor = SearchPathQuery(provider="schema")
        for provider, folder in (("command-line", extra), (script, own_folder(conf, script))):
            if folder is not None:
                search_path.prepend(provider=provider, path=f"file://{Path(folder).absolute()}", anchor=anchor)
        self.loader = ConfigLoaderImpl(search_path)
        self.config_name = config_name or script
        primary = self.loader.repository.load_config(self.config_name)
        if primary is None:
            raise CommandError(f"There is no config {self.config_name}.yaml in {conf}.")
        defaults = primary.defaults_list or []
        self.groups = {str(default.group).lstrip("/") for default in defaults if isinstance(default, GroupDefault)}
        self._composed: dict[tuple[str, ...], DictConfig | None] = {}

    def quoted(self, overrides: list[str]) -> list[str]:
        """The overrides with quotes around values that Hydra cannot read and that can only be meant as text.

        Hydra's grammar knows ASCII letters and a few signs, and a folder may be called ``Fotos für Jörg (2)``.
        """
        parser = OverridesParser.create(config_loader=self.loader)
        ready = []
        for text in overrides:
            tries = (text, _text_quoted(text))
            ready.append(next((one for one in tries if _parser_error(parser, one) is None), text))
        return ready

    def parse(self, overrides: list[str], multirun: bool) -> Command:
        """Sorts overrides into choices of options and values of keys, and finds the malformed ones."""
        parser = OverridesParser.create(config_loader=self.loader)
        command = Command()
        for text in overrides:
            try:
                override = parser.parse_overrides([text])[0]
            except HydraException as error:
                command.faults.append(f"{text}: cannot be read. {_parser_text(text, error)}")
                command.refused.add(text.lstrip("+~").partition("=")[0])
                continue
            if override.is_sweep_override() and not self._sweep_is_good(override, text, multirun, command.faults):
                command.refused.add(override.key_or_group)
                continue
            if self._is_choice(override):
                before = len(command.faults)
                command.choices.append(self._choice(override, command.faults))
                if not command.choices[-1] and len(command.faults) > before:
                    command.refused.add(override.key_or_group)
            elif override.is_hydra_override():
                if override.key_or_group in OURS:
                    command.faults.append(f"{text}: not here; {OURS[override.key_or_group]}")
                    continue
                command.choices.append([text])
            else:
                command.values.append(
                    parser.parse_overrides(
                        [f"{override.get_key_element()}={value}" for value in self._spread(override)]
                    )
                )
        command.choices = [choice for choice in command.choices if choice]
        command.values = [values for values in command.values if values]
        return command

    def with_recipe_sweep(self, overrides: list[str]) -> list[str]:
        """The overrides with what the chosen recipe sweeps over (``hydra.sweeper.params``) before them.

        Written out, a recipe's sweep is checked, named and listed like one of the command line; what the command
        itself says of a key wins.
        """
        choices, _ = next(self.points(self.parse(overrides, multirun=True)))
        config = self.compose(choices, [])
        params = None if config is None else OmegaConf.select(config, "hydra.sweeper.params")
        given = {text.lstrip("+").partition("=")[0] for text in overrides}
        return [*(f"{key}={value}" for key, value in (params or {}).items() if key not in given), *overrides]

    def points(self, command: Command) -> Iterator[tuple[tuple[str, ...], list[Override]]]:
        """The choices and values to look at: the first of everything, then each further value with the first others."""
        columns: list[list[Any]] = [*command.choices, *command.values]
        split = len(command.choices)
        first = [column[0] for column in columns]
        yield tuple(first[:split]), first[split:]
        for place, column in enumerate(columns):
            for value in column[1:]:
                point = [*first[:place], value, *first[place + 1 :]]
                yield tuple(point[:split]), point[split:]

    def compose(self, choices: tuple[str, ...], faults: list[str]) -> DictConfig | None:
        """The config of these choices, without struct mode; None (and a fault) when it cannot be made.

        A broken recipe (``experiment=``) or a setting of Hydra's is reported and left out, so that the rest can still
        be looked at.
        """
        if choices not in self._composed:
            try:
                composed = self.loader.load_configuration(
                    self.config_name, [*choices], RunMode.RUN, validate_sweep_overrides=False
                )
                OmegaConf.set_struct(composed, False)
                self._composed[choices] = composed
            except COMPOSE_ERRORS as error:
                rest = _without(choices, "experiment=") or _without(choices, "hydra") or _without(choices, "")
                self._composed[choices] = None if rest is None else self.compose(rest, [])
                faults.append(self._compose_text(error, choices, self._composed[choices]))
        config = self._composed[choices]
        return None if config is None else config.copy()

    def options(self, group: str) -> list[str]:
        """What a group offers."""
        return [name for name in self.loader.get_group_options(group, ObjectType.CONFIG) if name not in HIDDEN_OPTIONS]

    def is_group(self, key: str) -> bool:
        """Whether a key chooses an option of a group that this script has."""
        if key.startswith("hydra/"):
            return bool(self.options(key))
        return key in self.groups

    def for_hydra(self, overrides: list[str]) -> list[str]:
        """The same overrides as Hydra takes them.

        Keys get ``++``, since Hydra knows those of the yaml files only and not those of the schema. A glob is written
        out, since Hydra's would find hidden options. Hydra merges mappings; ``REPLACED`` ones are emptied first.
        """
        ready = []
        for override in OverridesParser.create(config_loader=self.loader).parse_overrides(overrides):
            text = override.input_line or ""
            if isinstance(override.value(), Glob):
                text = f"{override.get_key_element()}={','.join(self._spread(override))}"
            if override.key_or_group in REPLACED:
                ready.append(f"++{override.key_or_group}=null")
            ready.append(f"++{text.lstrip('+')}" if self.is_value(text) else text)
        return ready

    def spread(self, text: str) -> list[str]:
        """An override for each value of a sweep; the override itself where there is only one value."""
        override = OverridesParser.create(config_loader=self.loader).parse_overrides([text])[0]
        if not override.is_sweep_override():
            return [text]
        return [f"{override.get_key_element()}={value}" for value in self._spread(override)]

    def is_value(self, text: str) -> bool:
        """Whether an override sets a key of ours (and does not delete, choose an option or set Hydra)."""
        key = text.lstrip("+").partition("=")[0].partition("@")[0]
        is_hydra = key.startswith(("hydra.", "hydra/"))
        return not text.startswith("~") and not is_hydra and not self.is_group(key)

    def origin(self, choices: tuple[str, ...], key: str) -> str:
        """Which chosen recipe sets a key, as the end of an error text."""
        for recipe, content in self._recipes(choices):
            if OmegaConf.select(content.config, key, default=None) is not None:
                return f" (Set in {recipe}.yaml.)"
        return ""

    def _recipes(self, choices: tuple[str, ...]) -> Iterator[tuple[str, ConfigResult]]:
        for choice in choices:
            group, _, name = choice.lstrip("+").partition("=")
            if group == "experiment" and (content := self.loader.repository.load_config(f"{group}/{name}")):
                yield f"{group}/{name}", content

    def _is_choice(self, override: Override) -> bool:
        return self.is_group(override.key_or_group)

    def _choice(self, override: Override, faults: list[str]) -> list[str]:
        group, good = override.key_or_group, []
        prefix = f"{override.get_key_element()}="
        if override.is_delete():
            return [override.input_line or ""]
        if override.is_add() and group in self.groups:
            faults.append(f"{override.input_line}: there is a choice of {group} already; write it without the +.")
            return []
        for chosen in self._spread(override):
            value = override.value()
            names = [str(name) for name in value] if isinstance(value, list) else [chosen]
            if len(names) > 1 and group not in JOINED:
                listed = ",".join(names)
                faults.append(
                    f"{group}=[{listed}]: one is needed. One after the other they make a sweep: -m {group}={listed}"
                )
                continue
            options = self.options(group)
            wrong = [name for name in names if name not in options and name != "null"]
            for name in wrong:
                hint = nearest(name, options)
                way = _launcher_way(name) if group == "hydra/launcher" else ""
                faults.append(f"{group}={name}: no such option.{hint} Known: {known(options)}.{way}")
            if not wrong and chosen == "null" and group != "experiment":
                faults.append(f"{group}=null: one is needed. Known: {known(options)}.")
            elif not wrong and chosen != "null":
                good.append(prefix + chosen)
        return good

    def _spread(self, override: Override) -> list[str]:
        """The values of a sweep, or the only one, as they are written."""
        if not override.is_sweep_override():
            return [override.get_value_element_as_str()]
        values = list(override.sweep_string_iterator())
        return [value for value in values if not (isinstance(override.value(), Glob) and value in HIDDEN_OPTIONS)]

    def _sweep_is_good(self, override: Override, text: str, multirun: bool, faults: list[str]) -> bool:
        if not multirun:
            key, _, value = text.partition("=")
            plain = re.sub(r"'([^']*)'", r"\1", value)  # quotes that ``quoted`` has put around parts
            way = f" A list is written {key}=[{value}], a text with a comma in it \"{key}='{plain}'\"."
            if self._is_choice(override):
                way = f" All of them at once: {key}=[{value}]." if key in JOINED else ""
            faults.append(f"{key}={plain}: several values make a sweep, which needs -m.{way}")
        elif not override.is_discrete_sweep():
            faults.append(f"{text}: an interval has no end of values; name them, or use range(start,stop,step).")
        elif override.is_hydra_override():
            faults.append(f"{text}: Hydra's own settings cannot be swept.")
        elif not list(override.sweep_iterator()):
            options = self.options(override.key_or_group)
            faults.append(f"{text}: matches nothing." + (f" Known: {known(options)}." if options else ""))
        else:
            return True
        return False

    def _compose_text(self, error: Exception, choices: tuple[str, ...], config: DictConfig | None) -> str:
        text = str(error)
        missing = re.match(r"In '(.+)': Could not find '(?:(.+)/)?(.+)'", text)
        if missing:
            place, group, name = missing.groups()
            options = self.options(group) if group else []
            listed = f" Known: {known(options)}." if options else ""
            # Hydra names the file that holds the default, not the recipe that overrides it
            recipes = [recipe for recipe, content in self._recipes(choices) if _chooses(content, name)]
            place = recipes[0] if recipes else place
            way = _launcher_way(name) if group == "hydra/launcher" else ""
            return f"{place}.yaml: {group or 'config'}={name}: no such option.{nearest(name, options)}{listed}{way}"
        lines = [line for line in text.splitlines() if line and "To append to your config" not in line]
        cause = error.__cause__
        more = f" {str(cause).splitlines()[0]}" if isinstance(cause, OmegaConfBaseException) and str(cause) else ""
        unknown = re.match(r"Could not override '(.+)'\.", text)
        if unknown:
            parent, _, last = unknown.group(1).rpartition(".")
            node = OmegaConf.select(config, parent) if config is not None and parent else config
            names = [str(name) for name in node] if isinstance(node, DictConfig) else []
            return f"{unknown.group(1)}: unknown key.{nearest(last, names)}"
        return " ".join(lines[:3]) + more


def own_folder(conf: Path, script: str) -> Path | None:
    """Where the options lie that only this script has; most have none."""
    folder = (conf / f"only_{script}").absolute()
    return folder if folder.is_dir() else None


def _chooses(content: ConfigResult, option: str) -> bool:
    defaults = content.defaults_list or []
    return any(isinstance(default, GroupDefault) and default.value == option for default in defaults)


def _without(choices: tuple[str, ...], start: str) -> tuple[str, ...] | None:
    rest = tuple(choice for choice in choices if not choice.lstrip("+~").startswith(start))
    return rest if len(rest) < len(choices) else None


def _parser_error(parser: OverridesParser, text: str) -> HydraException | None:
    try:
        parser.parse_overrides([text])
    except HydraException as error:
        return error
    return None


def _text_quoted(text: str) -> str:
    """``key=value`` with quotes, unless the value has marks of something else: a quote, a list, a function."""
    key, _, value = text.partition("=")
    if not value or value[0] in "'\"[{" or "=" in value or "${" in value:
        return text
    if "," in value and any(mark in value for mark in "()[]{}"):
        return text
    parts = [QuotedString(part, Quote.single).with_quotes() for part in value.split(",")]
    return f"{key}={','.join(parts)}"


def _parser_text(text: str, error: HydraException) -> str:
    if "=" not in text and not text.startswith("~"):
        return "An override is written key=value."
    lines = [line for line in str(error).splitlines() if line.strip(" ^") and "hydra.cc" not in line]
    lines = [line for line in lines if not line.startswith("Lexer")]  # the parser's word for a sign it does not know
    reason = lines[0][:1].upper() + lines[0][1:].rstrip(".") if lines else "It is malformed"
    return f"{reason}. A text with = , [ ] {{ }} or spaces in it is quoted twice: \"key='a=b'\"."


def _launcher_way(name: str) -> str:
    return f" Others are packages: pip install hydra-{name.partition('_')[0]}-launcher."
