"""``task=joint``: the configs of several tasks in one, each what its own command would compose."""

from typing import Any

from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf

from launch.checks import known, show
from launch.compose import COMPOSE_ERRORS, REPLACED, Composer
from launch.errors import nearest
from launch.values import apply_override, to_plain

JOINT = "joint"
NOT_OF_MEMBERS = ("name", "task", "tasks", "members")  # keys whose overrides are the joint run's own


def is_joint(config: DictConfig) -> bool:
    """Whether a composed config is one of several tasks."""
    return OmegaConf.select(config, "task.kind", default=None) == JOINT


def expand(
    composer: Composer, choices: tuple[str, ...], values: list[Override], config: DictConfig, faults: list[str]
) -> DictConfig:
    """Fills ``members`` with ``task`` and ``data`` of each of ``tasks``.

    A member is composed from the same command with ``task=<its name>``, so that a joint run sees its data as a single
    one does; ``members.<name>`` of the joint config then has the last word. The joint run's own ``data`` goes.

    Args:
        composer: knows the yaml files.
        choices, values: of the command, as ``Composer.points`` gives them.
        config: composed from them; ``is_joint``. It is not changed.
        faults: takes what is wrong with ``tasks`` and ``members``.
    """
    plain, _, _ = to_plain(config)
    joint = config.copy()
    OmegaConf.set_struct(joint, False)
    joint.pop("data", None)
    names, given = plain.get("tasks"), plain.get("members") or {}
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names) or not isinstance(given, dict):
        joint["name"] = JOINT
        return joint  # the schema says what they must be
    options = [name for name in composer.options("task") if name != JOINT]
    for name in names:
        if name not in options:
            faults.append(
                f"tasks={show(names)}: {name}: no such task.{nearest(name, options)} Known: {known(options)}. "
                f"One of your own needs a file: conf/task/{name}.yaml, or DIR/task/{name}.yaml with --config-dir DIR."
            )
    for name in given:
        if name not in names:
            faults.append(f"members.{name}: not one of the joint tasks ({known(names)}).{nearest(name, names)}")
    members = {}
    for name in dict.fromkeys(names):
        if name in options:
            member = _member(composer, choices, values, name, given.get(name) or {}, faults)
            if member is not None:
                members[name] = member
    joint["members"] = members
    if OmegaConf.select(joint, "task.epochs") is None:
        epochs = [member["task"].get("epochs") for member in members.values()]
        OmegaConf.update(joint, "task.epochs", max((number for number in epochs if isinstance(number, int)), default=1))
    if OmegaConf.select(joint, "name") is None:
        joint["name"] = "_".join([JOINT, *names])
    return joint


def _member(
    composer: Composer, choices: tuple[str, ...], values: list[Override], name: str, given: Any, faults: list[str]
) -> dict[str, Any] | None:
    others = [choice for choice in choices if choice.lstrip("+").partition("=")[0] != "task"]
    config = composer.compose((*others, f"task={name}"), faults)
    if config is None:
        return None
    for override in values:
        if override.key_or_group.partition(".")[0] not in NOT_OF_MEMBERS:
            apply_override(config, override, [])  # its faults are told of the joint config
    if isinstance(given, dict):
        for key in REPLACED:
            section, _, last = key.partition(".")
            if isinstance(given.get(section), dict) and last in given[section]:
                OmegaConf.update(config, key, None, force_add=True)
        try:
            config.merge_with({key: given[key] for key in ("task", "data") if key in given})
        except COMPOSE_ERRORS as error:
            faults.append(f"members.{name}: {(str(error).splitlines() or ['cannot be set'])[0]}.")
    plain, wrong, absent = to_plain(config)
    if plain.get("task", {}).get("name") is None:
        faults.append(
            f"tasks: {name} has no name and no dataset of its own; write a yaml for it, as task/galaxy.yaml is."
        )
        return None
    faults += [f"{text} (For {name}.)" for key, text in wrong.items() if key.startswith(("task.", "data."))]
    for key in [key for key, is_cause in absent.items() if is_cause and key.startswith(("task.", "data."))]:
        _set_missing(plain, key)
    unknown = {key: value for key, value in given.items() if key not in ("task", "data")} if given else {}
    return {"task": plain.get("task", {}), "data": plain.get("data", {}), **unknown}


def _set_missing(plain: dict[str, Any], key: str) -> None:
    *parents, last = key.split(".")
    for parent in parents:
        plain = plain.setdefault(parent, {})
    plain[last] = "???"
