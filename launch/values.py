"""Values of a composed config: set by overrides, read as plain Python."""

from typing import Any

from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import InterpolationToMissingValueError, OmegaConfBaseException

from launch.compose import COMPOSE_ERRORS, REPLACED
from launch.errors import nearest


def apply_override(config: DictConfig, override: Override, faults: list[str]) -> None:
    """Sets or deletes a key of ``config`` in place; what cannot be done becomes a fault."""
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
            OmegaConf.update(config, key, value, merge=key not in REPLACED, force_add=True)
    except COMPOSE_ERRORS as error:
        faults.append(f"{override.input_line}: {(str(error).splitlines() or ['cannot be set'])[0]}.")


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
