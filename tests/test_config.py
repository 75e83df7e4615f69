"""The checking of commands: every shipped yaml is good, and every fault is told in plain words."""

from pathlib import Path

import pytest
from hydra import version
from hydra.types import RunMode

from launch import checks
from launch.compose import Composer
from launch.config import find_faults, first_config, validated
from launch.schema import TrainConfig
from launch.values import to_plain

ROOT = Path(__file__).resolve().parents[1]
CONF = ROOT / "conf"
OWN = ("task=classification", "name=leaves", "data=image_folder", "data.root=pictures")
GROUPS = ("task", "data", "backbone", "lora", "trainer", "logger", "experiment")


def options(group: str) -> list[str]:
    return sorted(file.stem for file in (CONF / group).glob("*.yaml") if file.stem != "base")


@pytest.fixture(scope="module")
def composer() -> Composer:
    version.setbase("1.3")
    return Composer("train", CONF)


@pytest.fixture
def faults(composer):
    def find(*overrides: str, multirun: bool = False, complete: bool = True) -> list[str]:
        command = composer.parse(list(overrides), multirun)
        return find_faults(composer, TrainConfig, command, multirun, complete)

    return find


@pytest.fixture
def config(composer):
    def read(*overrides: str) -> TrainConfig:
        command = composer.parse(list(overrides), multirun=False)
        assert find_faults(composer, TrainConfig, command, multirun=False) == []
        return TrainConfig.model_validate(first_config(composer, command))

    return read


def fitting(task: str) -> list[str]:
    """What a task demands of the command, and what a dataset's defaults must give up for it."""
    kind = (CONF / "task" / f"{task}.yaml").read_text(encoding="utf-8").partition("kind: ")[2].split()[0]
    more = [] if kind == "classification" else ["data.classes=null"]
    if kind == "joint":
        more.append("tasks=[age_class,galaxy]")
    return [*more, "task.eye_corners=[0,1]"] if kind == "keypoints" else more


@pytest.mark.parametrize("task", options("task"))
def test_every_task_with_every_dataset(faults, task):
    for data in options("data"):
        found = faults(f"task={task}", f"data={data}", "name=mine", "data.root=here", *fitting(task))
        assert found == [], f"task={task} data={data}"


@pytest.mark.parametrize("group", ["backbone", "lora", "trainer", "logger"])
def test_every_option(faults, group):
    for option in options(group):
        assert faults(*OWN, f"{group}={option}") == [], f"{group}={option}"


@pytest.mark.parametrize("experiment", options("experiment"))
def test_every_experiment(faults, experiment):
    assert faults(f"experiment={experiment}") == []


@pytest.mark.parametrize(
    "file",
    [file for group in GROUPS for file in (CONF / group).glob("*.yaml")],
    ids=lambda file: f"{file.parent.name}/{file.stem}",
)
def test_every_yaml_opens_with_the_command_that_uses_it(file):
    head = file.read_text(encoding="utf-8").splitlines()[:2]
    assert any(line.startswith("# ") and "python train.py " in line for line in head)


def test_a_named_task_brings_its_name_and_dataset(config):
    found = config("task=galaxy")
    assert (found.name, found.data.source) == ("galaxy", "datamodules.galaxy10.Galaxy10")
    assert config("task=galaxy", "data=image_folder", "data.root=x").data.source.endswith("ImageFolder")
    assert config("experiment=demo", "data=image_folder", "data.root=x").data.source.endswith("ImageFolder")


def test_a_generic_task_takes_the_name_given(config):
    found = config(*OWN)
    assert (found.name, found.task.name, found.title) == ("leaves", "leaves", "leaves-r16-s0")


def test_data_arguments_are_apart_from_the_pipeline(config):
    found = config(*OWN[:2], "data=image_csv", "data.root=x", "data.csv={train: a.csv, test: b.csv}")
    expected = {"root": "x", "kind": "classification", "csv": {"train": "a.csv", "test": "b.csv"}}
    assert found.data.arguments() == expected


@pytest.mark.parametrize("spelling", ["trainer.limit_train_batches", "+trainer.limit_train_batches"])
def test_any_trainer_argument_with_or_without_plus(config, composer, spelling):
    assert config(*OWN, f"{spelling}=0.5").trainer["limit_train_batches"] == 0.5
    assert composer.for_hydra([f"{spelling}=0.5"]) == ["++trainer.limit_train_batches=0.5"]


def test_loggers_can_be_combined_or_left_out(config):
    both = config(*OWN, "logger=[wandb,tensorboard]").logger
    assert both.wandb is not None
    assert both.tensorboard
    none = config(*OWN, "~logger").logger
    assert none.wandb is None
    assert not none.tensorboard


def test_paths_with_equals_sign_and_comma(config):
    assert config(*OWN, "data.root='a=b,c'").data.arguments()["root"] == "a=b,c"


@pytest.mark.parametrize("path", ["Fotos für Jörg (2)", "~/写真", "it's #1; a&b!", "a [b]", "ä/{b}", "50%", "C:\\x"])
def test_paths_as_people_name_them(config, composer, path):
    (override,) = composer.quoted([f"data.root={path}"])
    assert config(*OWN, override).data.arguments()["root"] == path
    assert composer.quoted([override]) == [override]


@pytest.mark.parametrize(
    "override",
    ["data.root='a=b", "data.root=a=ü", "lora.targets=[k,ü", "seed=range(0,ü)", "paths.data=ü${paths.dta}", "ü=1", "ü"],
)
def test_what_is_no_text_stays_as_it_is(composer, override):
    assert composer.quoted([override]) == [override]


def test_a_sweep_of_such_paths(composer):
    (override,) = composer.quoted(["data.root=ä b,ö"])
    assert composer.spread(override) == ["data.root='ä b'", "data.root='ö'"]


FAULTS = [
    ("lora.rnk=8", "lora.rnk=8: unknown key. Did you mean 'lora.rank'?"),
    ("+lora.rnk=8", "lora.rnk=8: unknown key. Did you mean 'lora.rank'?"),
    ("++lora.rnk=8", "lora.rnk=8: unknown key. Did you mean 'lora.rank'?"),
    ("rank=8", "rank=8: unknown key. Did you mean 'lora.rank'?"),
    ("tsk=galaxy", "tsk=galaxy: unknown key. Did you mean 'task'?"),
    ("sede=3", "sede=3: unknown key. Did you mean 'seed'?"),
    ("task.augment.hflp=true", "task.augment.hflp=true: unknown key. Did you mean 'task.augment.hflip'?"),
    ("lora.rank=abc", "lora.rank=abc: must be a whole number, 0 (head only, frozen backbone) or more."),
    ("lora.rank=-1", "lora.rank=-1: must be a whole number, 0 (head only, frozen backbone) or more."),
    ("lora.rank=1.5", "lora.rank=1.5: must be a whole number, 0 (head only, frozen backbone) or more."),
    ("lora.rank=true", "lora.rank=true: must be a whole number, 0 (head only, frozen backbone) or more."),
    ("lora.rank=null", "lora.rank=null: must be a whole number, 0 (head only, frozen backbone) or more."),
    ("lora.rank.x=3", "lora.rank={x:3}: must be a whole number, 0 (head only, frozen backbone) or more."),
    ("lora.alpha=0", "lora.alpha=0: must be a number above 0, or null (= rank)."),
    ("lora.targets=[k,w]", "lora.targets=[k,w]: must be a list of q, k, v, proj, mlp, e.g. [k,v]."),
    ("lora.targets=k", "lora.targets=k: must be a list of q, k, v, proj, mlp, e.g. [k,v]. Did you mean '[k]'?"),
    ("lora.targets=[k,k]", "lora.targets=[k,k]: a target is named twice."),
    ("lora.init_seed=shard", "lora.init_seed=shard: must be shared or per_task. Did you mean 'shared'?"),
    ("optimizer.lr=fast", "optimizer.lr=fast: must be a number above 0, at most 10."),
    ("optimizer=3", "optimizer=3: must be a section with lr, head_lr, weight_decay, b_weight_decay, warmup."),
    ("~seed", "seed is missing: give seed=..., a whole number from 0 to 4294967295."),
    ("~lora.alpho", "~lora.alpho: there is no such key to delete. Did you mean 'alpha'?"),
    ("name=Leaves", "name=Leaves: must be a name of a-z, 0-9 and _."),
    ("name=a/b", "name=a/b: must be a name of a-z, 0-9 and _."),
    ("seed=-1", "seed=-1: must be a whole number from 0 to 4294967295."),
    ("data.size=none", "data.size=none: must be a number of examples, 1 or more, or full."),
    ("data.size=0", "data.size=0: must be a number of examples, 1 or more, or full."),
    ("data.classes=[a]", "data.classes=[a]: a classification needs at least two classes."),
    ("data.classes={x:[a],y:[a]}", "data.classes={x:[a],y:[a]}: named more than once: a."),
    (
        "data.val_fraction=0.9",
        "data.val_fraction=0.9 and data.test_fraction=0.15: together they must be below 1.",
    ),
    (
        "data.val_fraction=0.85",
        "data.val_fraction=0.85 and data.test_fraction=0.15: together they must be below 1.",
    ),
    ("data.root=", "data.root=: must not be empty; null means none."),
    ("data.nam=x", "data.nam=x: unknown argument of data source ImageFolder. Did you mean 'name'?"),
    ("data.name=[x]", "data.name=[x]: must be text or null."),
    ("data.batchsize=3", "data.batchsize=3: unknown argument of data source ImageFolder. Did you mean 'batch_size'?"),
    (
        "task.metric=rmse",
        "task.metric=rmse: a classification task is measured by accuracy or macro_f1.",
    ),
    (
        "task.eye_corners=[1,2]",
        "task.eye_corners=[1,2]: only a keypoints task has points; this one is classification.",
    ),
    ("task.units={years:10.0}", "task.units={years:10.0}: only a regression has units; this task is classification."),
    ("task.units={years:0}", "task.units={years:0}: must be a mapping unit: factor, e.g. {years: 10.0}, or null"),
    (
        "trainer.max_epohcs=3",
        "trainer.max_epohcs=3: unknown argument of Lightning's Trainer. Did you mean 'max_epochs'?",
    ),
    (
        "trainer.strategy=ddp_spawn",
        "trainer.strategy=ddp_spawn: must be one of auto, ddp, ddp_find_unused_parameters_true, "
        "ddp_find_unused_parameters_false.",
    ),
    ("trainer.max_time=soon", "trainer.max_time=soon: must be days:hours:minutes:seconds, e.g. 00:12:00:00, or null."),
    ("trainer.max_epochs=many", "trainer.max_epochs=many: must be a whole number or null."),
    ("trainer.max_epochs=0", "trainer.max_epochs=0: must be 1 or more: the learning rate falls to 0 at the last one."),
    (
        "trainer.max_epochs=-1",
        "trainer.max_epochs=-1: must be 1 or more: the learning rate falls to 0 at the last one.",
    ),
    *(
        (f"trainer.{key}=0", f"trainer.{key}=0: must be 1 or more.")
        for key in ("devices", "num_nodes", "accumulate_grad_batches")
    ),
    ("trainer.limit_train_batches=0", "trainer.limit_train_batches=0: must be more than 0: these batches are learned"),
    ("trainer.limit_val_batches=0.0", "trainer.limit_val_batches=0: must be more than 0: these batches are what the"),
    ("trainer.limit_test_batches=0", "trainer.limit_test_batches=0: must be more than 0: these batches are scored."),
    ("trainer.check_val_every_n_epoch=2", "trainer.check_val_every_n_epoch=2: must be 1: each epoch is validated"),
    ("trainer.val_check_interval=0.5", "trainer.val_check_interval=0.5: must be 1.0 or null: weights are kept"),
    ("trainer.val_check_interval=4", "trainer.val_check_interval=4: must be 1.0 or null: weights are kept"),
    ("paths.outputs='~/out'", "paths.outputs=~/out: must be a folder, with $HOME in place of ~"),
    ("trainer.check_val_every_n_epoch=null", "trainer.check_val_every_n_epoch=null: must be 1: each epoch is"),
    (
        "trainer.barebones=true",
        "trainer.barebones=true: not set here; a run keeps a log and checkpoints, which it would",
    ),
    ("trainer.max_steps=9", "trainer.max_steps=9: not set here; a run is resumed by whole epochs; use trainer.max_epo"),
    *(
        (f"trainer.precision={name}", f"trainer.precision={name}: must be one of auto, 32-true, 16-mixed, bf16-mixed, ")
        for name in ("16-true", "bf16-true", "64-true", "64")
    ),
    ("trainer.logger=true", "trainer.logger=true: not set here; choose it with logger=wandb, csv or tensorboard."),
    ("paths.outputs=", "paths.outputs=: must be a folder, with $HOME"),
    ("task=galxy", "task=galxy: no such option. Did you mean 'galaxy'? Known: "),
    ("data=base", "data=base: no such option. Known: "),
    ("data=null", "data=null: one is needed. Known: "),
    ("logger=[csv,wandbb]", "logger=wandbb: no such option. Did you mean 'wandb'? Known: csv, tensorboard, wandb."),
    ("merge=cat", "merge=cat: unknown key. Known: "),
    ("lora.rank", "lora.rank: cannot be read. An override is written key=value."),
    ("lora.targets=[k,v", "lora.targets=[k,v: cannot be read. No viable alternative at input '[k,v'."),
    ("data.root=a=b", "data.root=a=b: cannot be read. "),
    ("data.root='ü", "data.root='ü: cannot be read. It is malformed. A text with"),
    (
        "lora.rank=8,16",
        "lora.rank=8,16: several values make a sweep, which needs -m. A list is written lora.rank=[8,16]",
    ),
    ("seed=range(0,3)", "seed=range(0,3): several values make a sweep, which needs -m."),
    ("hydra.job.chdr=true", "hydra.job.chdr: unknown key. Did you mean 'chdir'?"),
    ("hydra/launcher=jblib", "hydra/launcher=jblib: no such option. Did you mean 'joblib'? Known: basic, cluster, "),
    ("paths.data=${paths.dta}", "paths.data: Interpolation key 'paths.dta' not found"),
    ("backbone.weights=hubb", "backbone.weights=hubb: no such file (looked in "),
    ("data._target_=os.system", "data._target_=os.system: no such data source of ours. Known: "),
    (
        "data._target_=datamodules.image_folder.Path",
        "data._target_=datamodules.image_folder.Path: no such data source of ours.",
    ),
]


@pytest.mark.parametrize(("override", "text"), FAULTS, ids=[override for override, _ in FAULTS])
def test_fault(faults, override, text):
    found = faults(*OWN, override)
    assert len(found) == 1, found
    assert found[0].startswith(text)
    assert " +" not in found[0], "the way out is never to add a dead key"


def test_training_has_an_end_that_is_known_at_its_start(faults):
    (text,) = faults(*OWN, "trainer.max_epochs=null", "trainer.max_time=00:00:01:00")
    assert text.startswith("trainer.max_epochs=null: must be 1 or more:")
    assert faults(*OWN, "trainer.max_epochs=9", "trainer.max_time=00:00:01:00") == []


def test_missing_values(faults):
    assert faults("task=keypoints") == [
        "name is missing: this task has no name of its own; give name=..., a name of a-z, 0-9 and _.",
        "data is missing: this task has no dataset of its own; give data=image_folder, data=image_csv or another.",
        "data.root is missing: give data.root=DIR, the folder of the dataset.",
        "task.eye_corners is missing: give task.eye_corners=..., the numbers of two points [i,j]; "
        "null unless task.kind is keypoints.",
    ]
    assert faults("task=keypoints", complete=False) == []  # --cfg job still shows it


def test_everything_at_once(faults):
    found = faults(
        "task=classification", "data=image_csv", "backbone=vit_larg", "lora.rnk=8", "lora.rank=-1", "+foo.bar=1",
        "trainer.max_epohcs=3", "data.csvs=a", "name=A", "optimizer.lr", "data.val_fraction=2", "task.metric=nme",
    )  # fmt: skip
    keys = [
        "backbone=vit_larg:", "optimizer.lr:", "name=A:", "data.val_fraction=2:", "lora.rank=-1:", "lora.rnk=8:",
        "foo={bar:1}:", "data.root is missing:", "task.metric=nme:", "data.csvs=a:", "trainer.max_epohcs=3:",
    ]  # fmt: skip
    assert sorted(text.split(" ")[0].rstrip(":") for text in found) == sorted(
        key.split(" ")[0].rstrip(":") for key in keys
    )


def test_keypoints(faults):
    own = ("task=keypoints", "name=face", "data=image_csv", "data.root=x")
    assert faults(*own, "task.eye_corners=[36,36]") == ["task.eye_corners=[36,36]: the two points must differ."]
    assert faults(*own, "task.eye_corners=[0,1]", "task.augment.hflip=true")[0].startswith(
        "task.augment.hflip=true: after"
    )
    flip = (*own, "task.eye_corners=[0,1]", "task.augment.hflip=true")
    assert faults(*flip, "task.flip_index=[1,0,2]") == []
    assert faults(*flip, "task.flip_index=[1,0,2]", "task.augment.vflip=true") == [
        "task.augment.vflip=true: points have no order after a vertical flip; use false."
    ]
    assert faults(*flip, "task.flip_index=[1,2,0]")[0].startswith("task.flip_index=[1,2,0]: must hold each number")
    assert faults(*own, "task.eye_corners=[0,1]", "data.fit=squash")[0].startswith("data.fit=squash: stretched")
    assert faults(*OWN, "data.fit=squash") == []
    assert faults(*own, "task.eye_corners=[0,1]", "data.classes=[a,b]")[0].startswith(
        "data.classes=[a,b]: a keypoints task"
    )


@pytest.mark.parametrize(
    ("task", "given", "classes"),
    [
        ("firerisk", "{high:[High,Very_High],low:[Low]}", {"high": ["High", "Very_High"], "low": ["Low"]}),
        ("firerisk", "[High,Low]", ["High", "Low"]),
        ("galaxy", "{a:[Merging],b:[Disturbed]}", {"a": ["Merging"], "b": ["Disturbed"]}),
    ],
)
def test_classes_of_a_command_stand_alone(composer, config, task, given, classes):
    """Hydra would join them with those of the yaml."""
    overrides = [f"task={task}", f"data.classes={given}"]
    assert config(*overrides).data.classes == classes
    cfg = composer.loader.load_configuration("train", composer.for_hydra(overrides), RunMode.RUN)
    assert to_plain(cfg)[0]["data"]["classes"] == classes


def test_classes_of_one_of_several_tasks_stand_alone(composer, faults):
    given = ["task=joint", "tasks=[age_class,galaxy]", "members.galaxy.data.classes={a:[Merging],b:[Disturbed]}"]
    assert faults(*given) == []
    members = first_config(composer, composer.parse(given, multirun=False), TrainConfig)["members"]
    assert members["galaxy"]["data"]["classes"] == {"a": ["Merging"], "b": ["Disturbed"]}
    assert faults(*given[:2], "members.galaxy.data=[1]") == ["members.galaxy: Cannot merge DictConfig with ListConfig."]


def test_choices_of_a_dataset_are_known_before_it_is_read(faults):
    assert faults("task=firerisk", "data.split=spatial", "data.format=files") == []
    assert faults("task=firerisk", "data.split=spacial") == [
        "data.split=spacial: must be official or spatial. Did you mean 'spatial'?"
    ]
    assert faults("task=age_class", "data.crop=hole", "data.format=3") == [
        "data.format=3: must be auto or files or parquet.",
        "data.crop=hole: must be face or whole. Did you mean 'whole'?",
    ]


def test_a_missing_tensorboard_is_a_fault_of_the_command(faults, monkeypatch):
    find = checks.importlib.util.find_spec
    monkeypatch.setattr(checks.importlib.util, "find_spec", lambda name: None if "board" in name else find(name))
    assert faults(*OWN, "logger=csv") == []
    assert faults(*OWN, "logger=[csv,tensorboard]") == [
        "logger=tensorboard: TensorBoard is not installed; `pip install tensorboard`."
    ]


def test_a_comma_in_a_path_is_one_fault_with_a_way_out_that_works(composer, faults):
    own = ["task=classification", "name=x", "data=image_folder"]
    (fault,) = faults(*composer.quoted([*own, "data.root=/tmp/odd dir, \u00fc/pics"]))
    assert fault.startswith("data.root=/tmp/odd dir, \u00fc/pics: several values make a sweep")
    way = "data.root='/tmp/odd dir, \u00fc/pics'"
    assert f'"{way}"' in fault
    assert faults(*composer.quoted([*own, way])) == []


def test_only_heads_on_the_frozen_backbone_read_deep_features(faults):
    (text,) = faults(*OWN, "features=deep", "lora.rank=4")
    assert text.startswith("features=deep: a head beside an adapter (lora.rank=4) reads the class token")
    assert faults(*OWN, "features=deep", "lora.rank=0") == []


def test_validated_model_of_a_composed_config(composer):
    composed = composer.compose(("task=classification", "data=image_folder"), [])
    assert composed is not None
    composed.merge_with({"name": "x", "data": {"root": "y"}, "lora": {"rank": 3}})
    assert validated(composed, TrainConfig).lora.rank == 3
