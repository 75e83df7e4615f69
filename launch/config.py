"""A whole command checked at once, in plain words, before anything heavy is imported."""

import math
from collections.abc import Callable, Iterator
from typing import Any

from omegaconf import DictConfig
from pydantic import BaseModel, ValidationError

from launch.compose import Command, Composer
from launch.joint import expand, is_joint
from launch.values import apply_override, to_plain
from launch.words import in_words, missing


def find_faults(
    composer: Composer, schema: type[BaseModel], command: Command, multirun: bool, complete: bool = True
) -> list[str]:
    """Every fault of a command and of the yaml files that it chooses, each once, as a sentence.

    A sweep is looked at value by value, each with the first values of the others: linear in their number.

    Args:
        complete: whether values that must be given are asked for (not when the config is only shown).
    """
    faults = list(command.faults)
    seen: set[str] = set()
    before: tuple[str, ...] = ()
    for choices, values in composer.points(command):
        config = composer.compose(choices, faults)
        if config is None:
            continue
        for override in values:
            apply_override(config, override, faults)
        form, config = variant(schema, config), _expanded(composer, schema, choices, values, config, faults)
        given = (*choices, *(override.input_line or "" for override in values))
        other = [text for text, first in zip(given, before, strict=True) if text != first] if before else []
        before = before or given
        for key, text in config_faults(config, form, multirun, complete).items():
            if text in seen or (" is missing:" in text and command.leaves_open(key)):
                continue
            seen.add(text)
            typed = [override.input_line for override in values if _touches(override.key_or_group, key)]
            origin = "" if typed else composer.origin(choices, key)
            cause = f" (With {other[0]}.)" if other and other[0] not in typed else ""
            faults.append(text + origin + cause)
    faults += _one_place(schema, command) if multirun else ()
    return list(dict.fromkeys(faults))


def _one_place(schema: type[BaseModel], command: Command) -> Iterator[str]:
    """What the jobs of a sweep write must not be one file or folder for all of them."""
    jobs = math.prod([len(column) for column in command.choices] + [len(column) for column in command.values])
    for values in command.values:
        text = values[0].input_line or ""
        is_given = values[0].value() is not None and "${" not in text
        if jobs > 1 and len(values) == 1 and is_given and values[0].key_or_group in getattr(schema, "places", ()):
            yield f"{text}: all {jobs} jobs of the sweep would write there, each in place of the last; leave it out."


def first_config(composer: Composer, command: Command, schema: type[Any] | None = None) -> dict[str, Any]:
    """Plain config of a command without faults; of a sweep, its first job's.

    Args:
        schema: given, the tasks of ``task=joint`` are filled in.
    """
    choices, values = next(composer.points(command))
    config = composer.compose(choices, [])
    assert config is not None
    for override in values:
        apply_override(config, override, [])
    return to_plain(_expanded(composer, schema, choices, values, config, []))[0]


def job_config(
    composer: Callable[[], Composer], schema: type[Any], overrides: list[str], config: DictConfig
) -> tuple[Any, DictConfig]:
    """Schema and config of one job of a command that was found good, as Hydra composed it.

    Args:
        composer: makes one; only called for ``task=joint``.
        overrides: of the job, as Hydra took them.
    """
    form = variant(schema, config)
    if form is not schema:
        maker = composer()
        choices, values = next(maker.points(maker.parse(overrides, multirun=False)))
        config = expand(maker, choices, values, config, [])
    return form, config


def variant(schema: type[Any], config: DictConfig) -> type[Any]:
    """The schema that a config is held against: another one where it is of several tasks."""
    return getattr(schema, "joint", schema) if is_joint(config) else schema


def _expanded(
    composer: Composer, schema: type[Any] | None, choices: Any, values: Any, config: DictConfig, faults: list[str]
) -> DictConfig:
    if schema is None or variant(schema, config) is schema:
        return config
    return expand(composer, choices, values, config, faults)


def validated(config: DictConfig, schema: type[Any]) -> Any:
    """The model of a composed config without faults."""
    return schema.model_validate(to_plain(config)[0])


def config_faults(
    config: DictConfig, schema: type[BaseModel], multirun: bool = False, complete: bool = True
) -> dict[str, str]:
    """Faults of one composed config by dotted key."""
    plain, interpolated, absent = to_plain(config)
    faults = dict(interpolated)
    try:
        schema.model_validate(plain)
    except ValidationError as error:
        for detail in error.errors(include_url=False):
            key, text = in_words(schema, detail, plain)
            if key not in absent and not any(_touches(key, other) for other in faults):
                faults[key] = text
    faults |= {key: missing(schema, key) for key, is_cause in absent.items() if is_cause}
    facts = {**plain, "hydra": {"multirun": multirun}}
    for keys, check in getattr(schema, "checks", ()):
        if any(_depends(key, other) for key in keys for other in [*faults, *absent]):
            continue
        for text in check(*(_get(facts, key) for key in keys)):
            name = text.split(" is missing:", 1)[0].split("=", 1)[0]
            if not any(_touches(name, other) for other in [*faults, *absent]):
                faults[name] = text
    for key, text in interpolated.items():
        referred = text.partition("Interpolation key '")[2].partition("'")[0]
        if referred and any(referred.startswith(f"{name}.") for name in faults):
            del faults[key]  # told by what it refers to
    return faults if complete else {key: text for key, text in faults.items() if " is missing:" not in text}


def _touches(key: str, other: str) -> bool:
    """Whether one of two dotted keys holds the other."""
    return key == other or key.startswith(f"{other}.") or other.startswith(f"{key}.")


def _depends(key: str, other: str) -> bool:
    """Whether a check of ``key`` is spoilt by a fault of ``other``; sections are checked whatever is wrong inside."""
    return key == other or key.startswith(f"{other}.") or ("." in key and other.startswith(f"{key}."))


def _get(facts: Any, key: str) -> Any:
    for part in key.split("."):
        facts = facts.get(part) if isinstance(facts, dict) else None
    return facts
