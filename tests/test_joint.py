"""Several tasks, one adapter: configs by name, batches side by side, the criterion, resuming, bundles."""

import json
from pathlib import Path

import pytest
import safetensors.torch
import torch

from datamodules.batches import BatchOrder
from launch.app import CONF
from launch.compose import Composer
from launch.config import find_faults, first_config
from launch.publishing import publish_again
from launch.schema import JointConfig, TrainConfig
from lightning_modules import joint, training
from lightning_modules.adapter import load_bundle
from lightning_modules.backbone import create_backbone, fingerprint, split_qkv
from lightning_modules.module import MultiTaskModule
from lightning_modules.tasks import Task
from tests.commands import run_command
from tests.conftest import SIZE, TINY
from tests.peft_bundle import apply_bundle
from tests.runs import draw_folder, draw_points, overrides, read_results, train_here
from tests.wandb_file import read_records, summary

BOTH = ("task=joint", "tasks=[leaves,dot]")


@pytest.fixture
def conf(tmp_path):
    """A --config-dir with two tasks on drawn pictures: 48 of two classes, 40 with two points."""
    roots = {"leaves": draw_folder(tmp_path / "pictures"), "dot": draw_points(tmp_path / "dots")}
    sources = {"leaves": "image_folder", "dot": "image_csv"}
    kinds = {"leaves": "classification", "dot": "keypoints"}
    for name, root in roots.items():
        for group in ("task", "data"):
            (tmp_path / "conf" / group).mkdir(parents=True, exist_ok=True)
        own = f"defaults: [{kinds[name]}, override /data@_global_.data: {name}]\nname: {name}\n"
        more = "eye_corners: [0, 1]\n" if name == "dot" else ""
        (tmp_path / "conf" / "task" / f"{name}.yaml").write_text(own + more)
        (tmp_path / "conf" / "data" / f"{name}.yaml").write_text(f"defaults: [{sources[name]}]\nroot: {root}\n")
    return tmp_path / "conf"


def config(*arguments):
    composer = Composer("train", CONF)
    return JointConfig.model_validate(first_config(composer, composer.parse(list(arguments), False), TrainConfig))


def faults(*arguments):
    composer = Composer("train", CONF)
    return find_faults(composer, TrainConfig, composer.parse(list(arguments), False), multirun=False)


def test_each_member_is_what_its_own_command_composes():
    shared = ("data.batch_size=16", "backbone=vit_tiny", "seed=3")
    joint = config("task=joint", "tasks=[age_class,landmarks]", *shared, "members.landmarks.data.size=50")
    assert joint.title == "joint_age_class_landmarks-r16-s3"
    assert joint.trainer["max_epochs"] == 40
    composer = Composer("train", CONF)
    for name, more in (("age_class", []), ("landmarks", ["data.size=50"])):
        command = composer.parse([f"task={name}", *shared, "trainer.max_epochs=40", *more], False)
        alone = TrainConfig.model_validate(first_config(composer, command))
        assert joint.singles()[name] == alone


def test_faults_name_the_member():
    own = ("task=joint", "tasks=[age_class,galaxy]")
    assert faults(*own, "lora.rank=32") == []
    assert faults("task=joint") == [
        "tasks is missing: give tasks=..., a list of two or more tasks, e.g. [age_class,galaxy]."
    ]
    assert faults("task=joint", "tasks=[galaxy]") == ["tasks=[galaxy]: must be two or more, each once."]
    assert faults("task=joint", "tasks=[galaxy,galxy]")[0].startswith(
        "tasks=[galaxy,galxy]: galxy: no such task. Did you mean 'galaxy'? Known: age_class"
    )
    assert faults("task=joint", "tasks=[galaxy,regression]") == [
        "tasks: regression has no name and no dataset of its own; write a yaml for it, as task/galaxy.yaml is."
    ]
    assert faults(*own, "members.galaxy.data.size=x") == [
        "members.galaxy.data.size=x: must be a number of examples, 1 or more, or full."
    ]
    assert faults(*own, "members.galaxy.task.metric=rmse") == [
        "members.galaxy.task.metric=rmse: a classification task is measured by accuracy or macro_f1."
    ]
    assert faults(*own, "members.galxy.data.size=3") == [
        "members.galxy: not one of the joint tasks (age_class, galaxy). Did you mean 'galaxy'?"
    ]
    assert faults(*own, "lora.rank=0")[0].startswith("lora.rank=0: heads alone have nothing in common")
    assert faults(*own, "members.galaxy.data.dwnload=true") == [
        "members.galaxy.data.dwnload=true: unknown argument of data source Galaxy10. Did you mean 'download'?"
    ]


def test_a_short_set_goes_on_in_its_next_round():
    order = BatchOrder(range(3))
    order.steps = 5
    seen = []
    for epoch in range(3):
        order.set_epoch(epoch)
        assert len(order) == 5
        seen += list(order)
    assert seen == [(number // 3, number % 3) for number in range(15)]
    two = [BatchOrder(range(5), world_size=2, rank=rank) for rank in (0, 1)]
    for part in two:
        part.steps = 3
        part.set_epoch(1)
    assert [list(part) for part in two] == [[(1, 2), (2, 0), (2, 2)], [(1, 3), (2, 1), (2, 3)]]


def test_skill_is_the_way_from_a_constant_answer_to_a_perfect_one():
    age = Task("age", "regression", "rmse", 1)
    train, target = torch.tensor([[1.0], [3.0]]), torch.tensor([[2.0], [4.0]])
    constant = age.constant_score(train, target)
    assert constant == pytest.approx(2**0.5)
    assert [age.skill(score, constant) for score in (constant, 0.0)] == [0.0, 1.0]
    assert age.skill(2 * constant, constant) == pytest.approx(-1.0)
    leaves = Task("leaves", "classification", "accuracy", 3)
    constant = leaves.constant_score(torch.tensor([0, 1, 1]), torch.tensor([1, 1, 2, 0]))
    assert constant == 0.5
    assert leaves.skill(0.75, constant) == 0.5
    assert leaves.constant_score(torch.tensor([0, 1, 1]), torch.tensor([1, 2, 2, 2])) == 0.25, "of the training set"
    face = Task("face", "keypoints", "nme", 4)
    train = torch.tensor([[[0.0, 0.0], [1.0, 1.0]], [[0.0, 0.0], [0.0, 0.0]]])
    assert face.constant_score(train, train) == pytest.approx(100 * 0.5**0.5 / 2)


def test_the_unit_of_a_loss_is_what_the_best_constant_answer_costs():
    leaves = Task("leaves", "classification", "accuracy", 3)
    labels = torch.tensor([0, 1, 1, 1])
    frequencies = torch.tensor([0.25, 0.75, 1e-12]).log().expand(4, 3)
    assert leaves.constant_loss(labels) == pytest.approx(float(leaves.loss(frequencies, labels)), rel=1e-5)
    age = Task("age", "regression", "rmse", 1)
    assert age.constant_loss(torch.tensor([[1.0], [3.0]])) == 1.0
    face = Task("face", "keypoints", "nme", 4)
    points = torch.tensor([[[0.0, 0.0], [1.0, 1.0]], [[0.0, 0.0], [0.0, 0.0]]])
    output = points.mean(0).flatten().expand(2, 4)
    assert face.constant_loss(points) == pytest.approx(float(face.loss(output, points)))


def test_one_adapter_with_a_head_for_each_task(tmp_path, conf):
    more = overrides(tmp_path, "trainer.max_epochs=3", "optimizer.lr=5e-3", "members.dot.data.batch_size=4")
    done = run_command("train.py", ["--config-dir", str(conf), *BOTH, *more])
    assert done.returncode == 0, done.stderr
    (file,) = (tmp_path / "out").glob("runs/train-joint_leaves_dot-r2-s0-*/result.json")
    result = json.loads(file.read_text())
    assert result["metric"] == "skill"
    assert set(result["tasks"]) == {"leaves", "dot"}
    skills = [part["metrics"]["skill"] for part in result["tasks"].values()]
    assert result["score"] == pytest.approx(sum(skills) / 2, abs=1e-6)
    folder = tmp_path / "out/adapters/joint_leaves_dot/r2-s0"
    assert {path.name for path in folder.iterdir()} == {"leaves", "dot"}
    vit = create_backbone(TINY, SIZE, tmp_path / "tiny.safetensors")
    bundles = {name: load_bundle(folder / name, fingerprint(vit)) for name in result["tasks"]}
    adapters = [bundle.tensors for bundle in bundles.values()]
    assert adapters[0].keys() == adapters[1].keys()
    assert all(torch.equal(adapters[0][key], adapters[1][key]) for key in adapters[0])
    assert apply_bundle(split_qkv(vit), bundles["dot"])[1].output.out_features == 4
    for name, bundle in bundles.items():
        alone, _ = train_here([f"task={name}", *more[:-1], "trainer.max_epochs=1"], conf)
        part = result["tasks"][name]
        assert part["data"] == json.loads(json.dumps(alone["data"])), "same fingerprint, same splits"
        assert bundle.card["config"]["data"]["root"] == part_root(conf, name)
        assert TrainConfig.model_validate(bundle.card["config"]).name == name
        assert part["metric"] == alone["metric"]


def part_root(conf, name):
    return (conf / "data" / f"{name}.yaml").read_text().split("root: ")[1].strip()


class Begun(Exception):
    """Raised in place of the first epoch, with what would be fitted."""


def begin(trainer, module, data, checkpoints):
    raise Begun(trainer, module, data)


def test_each_task_starts_as_alone_and_is_weighed_and_compared_by_its_own_constants(tmp_path, conf, monkeypatch):
    for place in (joint, training):
        monkeypatch.setattr(place, "fit", begin)

    def begun(*arguments):
        with pytest.raises(Begun) as caught:
            train_here([*arguments, *overrides(tmp_path, "seed=2")], conf)
        return caught.value.args

    trainer, module, data = begun(*BOTH)
    best, _ = trainer.checkpoint_callbacks
    assert (best.monitor, best.mode, module.seed) == ("val/skill", "max", 2)
    for name, task in module.tasks.items():
        _, single, _ = begun(f"task={name}")
        alone = single.model.heads[name].state_dict()
        assert all(torch.equal(value, alone[key]) for key, value in module.model.heads[name].state_dict().items())
        targets = data.members[name].targets
        assert module.units[name] == pytest.approx(task.constant_loss(targets("train")))
        for stage in ("val", "test"):
            expected = task.constant_score(targets("train"), targets(stage))
            assert module.constants[stage][name] == pytest.approx(expected)
    assert module.constants["val"]["dot"] != pytest.approx(module.constants["test"]["dot"], rel=1e-4)
    assert begun(*BOTH, "task.balance=sum")[1].units == {}


def test_its_own_tasks_are_not_avoided(tmp_path, conf):
    """Neither of them has an adapter that could be asked."""
    result, _ = train_here([*BOTH, *overrides(tmp_path, "trainer.max_epochs=1", "lora.avoid=[leaves,dot]")], conf)
    assert result["epochs"] == 1


def test_the_best_values_that_are_told_to_wandb_are_the_validations(tmp_path, conf, monkeypatch):
    for name in ("WANDB_DATA_DIR", "WANDB_CONFIG_DIR", "WANDB_CACHE_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name))
    more = overrides(tmp_path, "trainer.max_epochs=1", "logger=wandb", "logger.wandb.mode=offline")
    result, run = train_here([*BOTH, *more], conf)
    told = summary(read_records(run.path)[1])
    best = {name.removeprefix("best/"): value for name, value in told.items() if name.startswith("best/")}
    for name, part in result["tasks"].items():
        own = {key.removeprefix(f"{name}/"): value for key, value in best.items() if key.startswith(f"{name}/")}
        assert own == pytest.approx(part["validation"])
        assert own["loss"] != pytest.approx(part["metrics"]["loss"])


def test_where_one_of_its_bundles_is_gone_all_are_published_again(tmp_path, conf):
    result, run = train_here([*BOTH, *overrides(tmp_path, "trainer.max_epochs=1")], conf)
    card = Path(result["bundle"], "dot", "card.json")
    told = card.read_text()
    card.unlink()
    publish_again(JointConfig.model_validate(run.config), run)
    assert card.read_text() == told


def test_stopped_between_epochs_it_ends_with_the_same_bytes(tmp_path, conf, monkeypatch):
    more = overrides(tmp_path, "trainer.max_epochs=3", "lora.dropout=0.1", "members.dot.data.batch_size=4")
    _, whole = train_here([*BOTH, *more, f"paths.outputs={tmp_path / 'undisturbed'}"], conf)
    begin = MultiTaskModule.on_train_epoch_start

    def fail(self):
        if self.current_epoch == 1:
            raise ZeroDivisionError
        begin(self)

    monkeypatch.setattr(MultiTaskModule, "on_train_epoch_start", fail)
    with pytest.raises(ZeroDivisionError):
        train_here([*BOTH, *more], conf)
    monkeypatch.undo()
    result, resumed = train_here([*BOTH, *more], conf)
    assert result["epochs"] == 3
    for name in ("leaves", "dot"):
        for file in ("adapter_model.safetensors", "head.safetensors"):
            one, other = (safetensors.torch.load_file(run.path / "adapter" / name / file) for run in (whole, resumed))
            assert all(torch.equal(one[key], other[key]) for key in one)


def test_two_processes_publish_once(tmp_path, conf):
    more = overrides(tmp_path, "trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2", "trainer.max_epochs=1")
    done = run_command("train.py", ["--config-dir", str(conf), *BOTH, *more, "members.dot.data.batch_size=4"])
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("rank 2: test ") == 1
    (result,) = read_results(tmp_path / "out")
    assert result["bundle"] == str(tmp_path / "out/adapters/joint_leaves_dot/r2-s0")
    for name in ("leaves", "dot"):
        assert load_bundle(Path(result["bundle"], name)).card["task"]["name"] == name
