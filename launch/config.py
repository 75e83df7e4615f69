"""A whole command checked at once, in plain words, before anything heavy is imported."""

from typing import Any

from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import InterpolationToMissingValueError, OmegaConfBaseException
from pydantic import BaseModel, ValidationError

from launch.compose import COMPOSE_ERRORS, Command, Composer
from launch.errors import nearest
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
            _apply(config, override, faults)
        given = (*choices, *(override.input_line or "" for override in values))
        other = [text for text, first in zip(given, before, strict=True) if text != first] if before else []
        before = before or given
        for key, text in config_faults(config, schema, multirun, complete).items():
            if text in seen:
                continue
            seen.add(text)
            typed = [override.input_line for override in values if _touches(override.key_or_group, key)]
            origin = "" if typed else composer.origin(choices, key)
            cause = f" (With {other[0]}.)" if other and other[0] not in typed else ""
            faults.append(text + origin + cause)
    return list(dict.fromkeys(faults))


def first_config(composer: Composer, command: Command) -> dict[str, Any]:
    """Plain config of a command without faults; of a sweep, its first job's."""
    choices, values = next(composer.points(command))
    config = composer.compose(choices, [])
    assert config is not None
    for override in values:
        _apply(config, override, [])
    return to_plain(config)[0]


def validated(config: DictConfig, schema: type[Any]) -> Any:
    """The model of a composed config without faults."""
    return schema.model_validate(to_plain(config)[0])


def config_faults(
    config: DictConfig, schema: type[BaseModel], multirun: bool = False, complete: bool = True
) -> dict[str, str]:
    """Faults of one composed config by dotted key."""
    plain, faults, absent = to_plain(config)
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
    return faults if complete else {key: text for key, text in faults.items() if " is missing:" not in text}


def to_plain(config: DictConfig) -> tuple[dict[str, Any], dict[str, str], dict[str, bool]]:
    """A composed config as plain values, without Hydra's part.

    Returns:
        The plain dict; faults of interpolations by key; the keys left out, with True where the value itself is missing
        (``???``) and False where it refers to a missing one.
    """
    faults: dict[str, str] = {}
    absent: dict[str, bool] = {}

    def values(node: Any, key: Any, full: str) -> list[Any]:
        if OmegaConf.is_missing(node, key):
            absent[full] = True
            return []
        try:
            value = node[key]
        except InterpolationToMissingValueError:
            absent[full] = False
            return []
        except (OmegaConfBaseException, RecursionError) as error:
            faults[full] = f"{full}: {(str(error).splitlines() or ['it refers to itself'])[0]}."
            return []
        return [plain(value, full)]

    def plain(node: Any, prefix: str) -> Any:
        if isinstance(node, ListConfig):
            return [value for place in range(len(node)) for value in values(node, place, f"{prefix}[{place}]")]
        if not isinstance(node, DictConfig):
            return node
        keys = [key for key in node if prefix or key != "hydra"]
        found = {str(key): values(node, key, f"{prefix}{'.' if prefix else ''}{key!s}") for key in keys}
        return {key: value[0] for key, value in found.items() if value}

    return plain(config, ""), faults, absent


def _apply(config: DictConfig, override: Override, faults: list[str]) -> None:
    key, value = override.key_or_group, override.value()
    try:
        if override.package is not None:
            faults.append(f"{override.input_line}: {key} is not a group of options, so it takes no '@'.")
        elif override.is_delete():
            parent, _, last = key.rpartition(".")
            node = OmegaConf.select(config, parent) if parent else config
            names = [str(name) for name in node] if isinstance(node, DictConfig) else []
            if last in names and isinstance(node, DictConfig):
                del node[last]
            else:
                faults.append(f"~{key}: there is no such key to delete.{nearest(last, names)}")
        else:
            OmegaConf.update(config, key, value, merge=True, force_add=True)
    except COMPOSE_ERRORS as error:
        faults.append(f"{override.input_line}: {(str(error).splitlines() or ['cannot be set'])[0]}.")


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
