"""What a training config may hold. Defaults live in ``conf/``; each field's description is what its error says.

``TrainConfig.checks`` are the faults between fields: ``(keys, function of their values)``. A check runs when none of
its keys has a fault of its own, so that one command reports everything that is wrong with it.
"""

import functools
import re
from collections.abc import Callable, Iterator
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from launch import checks
from launch.labels import training_slug

Check = tuple[tuple[str, ...], Callable[..., Iterator[str]]]


def _number_as_text(value: object) -> object:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return str(value) if is_number else value  # name=2024 is a name, root=2024 a folder


Text = Annotated[str, BeforeValidator(_number_as_text), Field(min_length=1)]
Fraction = Annotated[float, Field(gt=0, lt=1)]
Strength = Annotated[float, Field(ge=0, le=1)]
Name = Annotated[Text, Field(pattern=r"^[a-z0-9_]+$")]
Device = Annotated[  # of higher or zero-led numbers torch makes others or an error of its own
    str,
    Field(
        pattern=r"^(auto|cpu|mps|cuda(:(0|[1-9][0-9]?))?)$", description="auto, cpu, mps, cuda or cuda:N (from cuda:0)"
    ),
]


class Strict(BaseModel):
    """No unknown key, no silent conversion."""

    model_config = ConfigDict(extra="forbid", strict=True)


class Augment(Strict):
    """Random changes of the training images."""

    hflip: bool = Field(description="true or false")
    vflip: bool = Field(description="true or false")
    rotate: float = Field(ge=0, le=180, description="degrees to either side, 0 to 180")
    scale: float = Field(ge=0, lt=1, description="a fraction from 0 (none) to below 1")
    translate: float = Field(ge=0, lt=1, description="a fraction of the side from 0 (none) to below 1")
    brightness: Strength = Field(description="a fraction from 0 (none) to 1")
    contrast: Strength = Field(description="a fraction from 0 (none) to 1")
    saturation: Strength = Field(description="a fraction from 0 (none) to 1")
    hue: float = Field(ge=0, le=0.5, description="a fraction of the colour circle from 0 (none) to 0.5")


class Task(Strict):
    """What is learned."""

    name: Name | None = Field(description="a name of a-z, 0-9 and _, or null (then name=... is demanded)")
    kind: Literal["classification", "regression", "keypoints"] = Field(
        description="classification, regression or keypoints"
    )
    target: str | None = Field(description="a column of the records, or null (label, value or points)")
    metric: Literal["accuracy", "macro_f1", "rmse", "nme"] = Field(description="accuracy, macro_f1, rmse or nme")
    epochs: Annotated[int, Field(ge=1)] = Field(description="a number of epochs, 1 or more")
    augment: Augment | None = Field(description="a mapping (hflip, rotate, ...) or null")
    eye_corners: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=2, max_length=2)] | None = Field(
        default=None, description="the numbers of two points [i,j]; null unless task.kind is keypoints"
    )
    flip_index: list[Annotated[int, Field(ge=0)]] | None = Field(
        default=None, description="each point's number after a horizontal flip, [i,j,...], or null (no flip)"
    )
    units: dict[Name, Annotated[float, Field(gt=0)]] | None = Field(
        default=None, description="a mapping unit: factor, e.g. {years: 10.0}, or null (the target's own unit only)"
    )
    subsets: list[Name] | None = Field(
        default=None, description="a list of columns of the records that hold 0 and 1, or null (none)"
    )


class Data(BaseModel):
    """Where images come from: the keys shared by all sources; the rest are the source's own arguments."""

    model_config = ConfigDict(extra="allow", strict=True)

    source: str = Field(alias="_target_", description="a class of ours such as datamodules.image_csv.ImageCsv")
    size: Literal["full"] | Annotated[int, Field(ge=1)] = Field(description="a number of examples, 1 or more, or full")
    classes: list[Text] | dict[Text, list[Text]] | None = Field(
        description="null (all), a list of class names to keep, or a mapping new: [old, ...]"
    )
    val_fraction: Fraction = Field(description="a fraction between 0 and 1")
    test_fraction: Fraction = Field(description="a fraction between 0 and 1")
    split_seed: int = Field(ge=0, description="a whole number, 0 or more")
    fit: Literal["crop", "pad", "squash"] | None = Field(
        description="crop, pad, squash or null (pad for points, else crop)"
    )
    max_pixels: int = Field(ge=1, description="a whole number of pixels, 1 or more")
    max_broken: float = Field(ge=0, le=1, description="a fraction from 0 to 1")
    batch_size: int = Field(ge=1, description="a whole number, 1 or more")
    num_workers: Literal["auto"] | Annotated[int, Field(ge=0)] = Field(description="auto or a whole number, 0 or more")

    def arguments(self) -> dict[str, Any]:
        """The source's keyword arguments, ``root`` among them."""
        return dict(self.model_extra or {})


class Backbone(Strict):
    """Which Vision Transformer, with which weights."""

    name: Text = Field(description="a timm model name")
    weights: Text = Field(description="hub, package or the path of a .safetensors file")
    image_size: int = Field(ge=8, le=4096, description="pixels of a side, 8 to 4096")


class Lora(Strict):
    """The adapter."""

    rank: int = Field(ge=0, description="a whole number, 0 (head only, frozen backbone) or more")
    alpha: Annotated[float, Field(gt=0)] | None = Field(description="a number above 0, or null (= rank)")
    targets: Annotated[list[Literal["q", "k", "v", "proj", "mlp"]], Field(min_length=1)] = Field(
        description="a list of q, k, v, proj, mlp, e.g. [k,v]"
    )
    dropout: float = Field(ge=0, lt=1, description="a fraction from 0 to below 1")
    init_seed: Literal["shared", "per_task"] = Field(description="shared or per_task")
    train_a: bool = Field(description="true or false")
    max_norm: Annotated[float, Field(gt=0)] | None = Field(description="a number above 0, or null (no cap)")
    avoid: list[Name] = Field(description="a list of tasks [a,b,...], or []")
    use_rslora: bool = Field(description="true or false")
    use_dora: Literal[False] = Field(description="false: a DoRA adapter is no sum W + BA, so it cannot be merged")


class Optimizer(Strict):
    """Adam."""

    lr: float = Field(gt=0, le=10, description="a number above 0, at most 10")
    head_lr: float = Field(gt=0, le=10, description="a number above 0, at most 10")
    weight_decay: float = Field(ge=0, le=10, description="a number from 0 to 10")
    b_weight_decay: float = Field(ge=0, le=10, description="a number from 0 to 10")
    warmup: float = Field(ge=0, lt=1, description="a fraction of all steps, from 0 to below 1")


class EarlyStopping(Strict):
    """When to stop before ``trainer.max_epochs``."""

    patience: Annotated[int, Field(ge=1)] | None = Field(description="a number of epochs, 1 or more, or null (never)")


class Wandb(Strict):
    """Weights & Biases."""

    project: Text = Field(description="a project name")
    entity: Text | None = Field(description="a user or team name, or null (your default)")
    mode: Literal["auto", "online", "offline"] = Field(description="auto (online when logged in), online or offline")


class Logger(Strict):
    """Loggers beside the CSV, which is always written."""

    wandb: Wandb | None = Field(default=None, description="a mapping (project, entity, mode)")
    tensorboard: bool = Field(default=False, description="true or false")


class Sweep(Strict):
    """Only meant for ``-m``."""

    name: Name | None = Field(description="a name of a-z, 0-9 and _, or null (made from the command)")
    fail_fast: bool = Field(description="true or false")


class Paths(Strict):
    """Folders, relative to the working directory."""

    # Of what reads a path some expand ~ and some do not: one run's files would lie in two places.
    outputs: Annotated[Text, Field(pattern="^[^~]")] = Field(description="a folder, with $HOME in place of ~")
    data: Annotated[Text, Field(pattern="^[^~]")] = Field(description="a folder, with $HOME in place of ~")


class Training(Strict):
    """What ``train.py`` is told whether it learns one task or several."""

    name: Name = Field(description="a name of a-z, 0-9 and _")
    backbone: Backbone
    lora: Lora
    optimizer: Optimizer
    early_stopping: EarlyStopping
    features: Literal["class_token", "deep"] = Field(description="class_token or deep (at rank 0)")
    feature_views: Annotated[int, Field(ge=1)] | None = Field(
        description="a number of augmented views, 1 or more, or null (pass images in every epoch)"
    )
    gram_images: Annotated[int, Field(ge=1)] | None = Field(
        description="a number of training images, 1 or more, or null (no Grams: some merges will not work)"
    )
    trainer: dict[str, Any] = Field(description="a mapping of Lightning Trainer arguments")
    logger: Logger = Field(default_factory=Logger, description="logger=wandb, csv or tensorboard")
    seed: int = Field(ge=0, lt=2**32, description="a whole number from 0 to 4294967295")
    resume: Literal["auto", "restart"] = Field(description="auto (go on where a run stopped) or restart (do it anew)")
    sweep: Sweep
    paths: Paths

    @property
    def title(self) -> str:
        """The readable part of the run's name."""
        return f"{self.name}-{training_slug(self.lora.rank, self.seed, self.features)}"


def _deep_heads(rank: int, features: str) -> Iterator[str]:
    if rank and features == "deep":
        yield (
            f"features=deep: a head beside an adapter (lora.rank={rank}) reads the class token, so that it can be "
            "merged and realigned. Take lora.rank=0, or merge with realign=deep."
        )


TRAINING_CHECKS: tuple[Check, ...] = (
    (("lora.targets",), checks.targets),
    (("lora.rank", "features"), _deep_heads),
    (("backbone.weights",), checks.weights),
    (("logger.tensorboard",), checks.tensorboard),
    (("trainer",), checks.trainer_arguments),
    (("trainer", "hydra.multirun"), checks.one_process_a_job),
)
TASK_CHECKS: tuple[Check, ...] = (
    (("task.kind", "task.metric"), checks.metric_of_kind),
    (("task.kind", "task.eye_corners"), checks.eye_corners),
    (("task.kind", "task.flip_index", "task.augment"), checks.flip),
    (("task.kind", "task.units"), checks.units),
    (("task.kind", "data.classes"), checks.classes),
    (("task.kind", "data.fit"), checks.fit),
    (("data.val_fraction", "data.test_fraction"), checks.fractions),
    (("data",), checks.source_arguments),
)


class Joint(Strict):
    """What several tasks learned together have in common."""

    name: Name | None = Field(description="a name of a-z, 0-9 and _, or null (joint_ and the tasks' names)")
    kind: Literal["joint"] = Field(description="joint")
    balance: Literal["relative", "sum"] = Field(description="relative or sum")
    epochs: Annotated[int, Field(ge=1)] | None = Field(description="a number of epochs, 1 or more, or null")


class Member(Strict):
    """One of several tasks."""

    task: Task
    data: Data


def _member_faults(members: dict[str, Any] | None) -> Iterator[str]:
    for name, member in (members or {}).items():
        try:
            Member.model_validate(member)
        except ValidationError:
            continue  # told field by field
        for keys, check in TASK_CHECKS:
            values = [functools.reduce(lambda node, part: node.get(part), key.split("."), member) for key in keys]
            for text in check(*values):
                yield re.sub(r"\b(task|data)\.(?=\w)", rf"members.{name}.\1.", text)


def _several(tasks: list[str]) -> Iterator[str]:
    if len(set(tasks)) < max(2, len(tasks)):
        yield f"tasks={checks.show(tasks)}: must be two or more, each once."


def _something_shared(rank: int) -> Iterator[str]:
    if rank == 0:
        yield "lora.rank=0: heads alone have nothing in common; train them one by one, without task=joint."


class JointConfig(Training):
    """Config of ``train.py task=joint``; ``members`` is filled in by ``launch.joint``."""

    task: Joint
    tasks: list[Name] = Field(description="a list of two or more tasks, e.g. [age_class,galaxy]")
    members: dict[str, Member] = Field(description="a mapping of tasks, e.g. {galaxy: {data: {size: 3000}}}")

    checks: ClassVar[tuple[Check, ...]] = (
        (("tasks",), _several),
        (("members",), _member_faults),
        (("lora.rank",), _something_shared),
        *TRAINING_CHECKS,
    )

    def singles(self) -> dict[str, "TrainConfig"]:
        """The config of each task as if it were trained alone, by name."""
        shared = self.model_dump(by_alias=True, exclude={"task", "tasks", "members"})
        return {
            name: TrainConfig.model_validate(shared | {"name": name} | member.model_dump(by_alias=True))
            for name, member in self.members.items()
        }


class TrainConfig(Training):
    """Config of ``train.py``."""

    task: Task
    data: Data

    checks: ClassVar[tuple[Check, ...]] = (*TASK_CHECKS, *TRAINING_CHECKS)
    joint: ClassVar[type[JointConfig]] = JointConfig

    @model_validator(mode="after")
    def _name_of_generic_task(self) -> "TrainConfig":
        if self.task.name is None:
            self.task.name = self.name
        return self

    def singles(self) -> dict[str, "TrainConfig"]:
        """Itself, by name; see ``JointConfig.singles``."""
        return {self.name: self}
