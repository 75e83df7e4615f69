"""What makes another run: every key of a config but those that are named here."""

import copy
import itertools
from collections.abc import Iterator
from typing import Any

import pytest

from launch.app import CONF
from launch.checks import trainer_signature
from launch.compose import Composer
from launch.config import first_config
from launch.merge_schema import MergeConfig
from launch.runs import content_hash
from launch.schema import JointConfig, TrainConfig

EVERYWHERE = {
    "paths.outputs", "paths.data", "resume", "sweep.name", "sweep.fail_fast", "logger.wandb.project",
    "logger.wandb.entity", "logger.wandb.mode", "logger.tensorboard",
}  # fmt: skip
TOLD = {"task.units", "task.subsets"}
FETCHED = {"data.num_workers", "data.download", "data.cache_root"}
SHOWN = {
    "trainer.accelerator", "trainer.strategy", "trainer.enable_progress_bar", "trainer.enable_model_summary",
    "trainer.log_every_n_steps", "trainer.profiler", "trainer.enable_autolog_hparams",
}  # fmt: skip


def keys(node: Any, prefix: str = "") -> Iterator[str]:
    for name, value in node.items():
        if isinstance(value, dict) and value:
            yield from keys(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def with_another(config: dict[str, Any], key: str) -> dict[str, Any]:
    changed = copy.deepcopy(config)
    *parents, last = key.split(".")
    node = changed
    for parent in parents:
        node = node[parent]
    node[last] = "another"
    return changed


def without_effect(script: str, schema: Any, overrides: list[str]) -> set[str]:
    composer = Composer(script, CONF)
    found = first_config(composer, composer.parse(overrides, multirun=False), schema)
    if "trainer" in found:
        found["trainer"] = dict.fromkeys(trainer_signature()) | found["trainer"]
    form = JointConfig if "members" in found else schema
    plain = form.model_validate(found).model_dump(mode="json", by_alias=True)
    own = content_hash(script, plain)
    return {key for key in keys(plain) if content_hash(script, with_another(plain, key)) == own}


@pytest.mark.parametrize("task", ["age_class", "landmarks"])
def test_of_a_training(task: str) -> None:
    found = without_effect("train", TrainConfig, [f"task={task}", "data.download=true"])
    fetched = FETCHED if task == "age_class" else FETCHED - {"data.cache_root"}
    assert found == EVERYWHERE | TOLD | fetched | SHOWN


def test_of_a_joint_training() -> None:
    found = without_effect("train", TrainConfig, ["task=joint", "tasks=[age_class,galaxy]", "data.download=true"])
    own = {f"members.{name}.{key}" for name in ("age_class", "galaxy") for key in TOLD | FETCHED}
    assert found == EVERYWHERE | SHOWN | (own - {"members.galaxy.data.cache_root"})


@pytest.mark.parametrize(
    ("sets", "more"),
    [("sweep=pairs", set()), ("tasks=[age_class,galaxy]", {"sweep.of", "sweep.including"})],
)
def test_of_a_merge(sets: str, more: set[str]) -> None:
    assert without_effect("merge", MergeConfig, [sets]) == EVERYWHERE | {"device"} | more


def test_the_order_of_joined_classes_makes_another_run() -> None:
    """It is the order of the head's outputs; that of a mapping's keys elsewhere decides nothing."""
    one, other = (
        {"data": {"classes": dict(pairs)}} for pairs in itertools.permutations({"a": ["x"], "b": ["y"]}.items())
    )
    assert content_hash("train", one) != content_hash("train", other)
    joint = [{"members": {"one": config}} for config in (one, other)]
    assert content_hash("train", joint[0]) != content_hash("train", joint[1])
    assert content_hash("train", {"a": 1, "b": 2}) == content_hash("train", {"b": 2, "a": 1})
