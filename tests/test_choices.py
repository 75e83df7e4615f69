"""Options of groups, sweeps and recipes: what a command may choose, and what of it is refused."""

import pytest

from launch.app import CONF
from launch.compose import Composer
from launch.config import find_faults
from launch.export_schema import ExportConfig
from launch.merge_schema import MergeConfig
from launch.predict_schema import PredictConfig
from launch.schema import TrainConfig

OWN = ("task=classification", "name=leaves", "data=image_folder", "data.root=pictures")
SCHEMAS = {"train": TrainConfig, "merge": MergeConfig, "predict": PredictConfig, "export": ExportConfig}


def faults(*overrides: str, script: str = "train", multirun: bool = False) -> list[str]:
    composer = Composer(script, CONF)
    return find_faults(composer, SCHEMAS[script], composer.parse(list(overrides), multirun), multirun)


@pytest.mark.parametrize(
    ("override", "fault"),
    [
        ("+task=galaxy", "+task=galaxy: there is a choice of task already; write it without the +."),
        (
            "lora=[norm_cap,frozen_a]",
            "lora=[norm_cap,frozen_a]: one is needed. One after the other they make a sweep: -m lora=norm_cap,frozen_a",
        ),
        ("trainer=cpu,debug", "trainer=cpu,debug: several values make a sweep, which needs -m."),
        (
            "logger=csv,wandb",
            "logger=csv,wandb: several values make a sweep, which needs -m. All of them at once: logger=[csv,wandb].",
        ),
        ("hydra.sweep.dir=x", "hydra.sweep.dir=x: not here; paths.outputs=DIR says where everything goes."),
        ("hydra.job.chdir=true", "hydra.job.chdir=true: not here; paths would be looked for elsewhere"),
    ],
)
def test_a_choice_that_cannot_be(override, fault):
    (found,) = faults(*OWN, override)
    assert found.startswith(fault)


def test_several_loggers_and_recipes_go_together():
    assert faults(*OWN, "logger=[csv,tensorboard]", "experiment=[demo,demo]") == []


def test_a_value_that_cannot_be_read_is_not_said_to_be_missing():
    (found,) = faults(*OWN[:3], "data.root=leaf, a=b")
    assert found.startswith("data.root=leaf, a=b: cannot be read.")


PAIR = ("tasks=[a,b]", "merge=cat,gram")
MODELS = ("model=a,b", "images=x")


@pytest.mark.parametrize(
    ("script", "overrides", "place"),
    [
        ("merge", PAIR, "name=mine"),
        ("predict", MODELS, "output=answers.csv"),
        ("predict", MODELS, "pictures=drawn"),
        ("export", ("model=a", "format=onnx,timm"), "output=here"),
    ],
)
def test_the_jobs_of_a_sweep_do_not_write_over_each_other(script, overrides, place):
    found = faults(*overrides, place, script=script, multirun=True)
    assert found == [f"{place}: all 2 jobs of the sweep would write there, each in place of the last; leave it out."]
    key = place.partition("=")[0]
    swept = [f"{key}=one.csv,two.csv" if key == "output" else f"{key}=one,two", f"{key}=null"]
    for other in swept:
        assert faults(*overrides, other, script=script, multirun=True) == []
    single = [text.partition(",")[0] if "[" not in text else text for text in overrides]
    assert faults(*single, place, script=script, multirun=True) == []


def test_what_is_merged_is_told_in_one_way():
    (found,) = faults("tasks=[a,b]", "sweep=pairs", script="merge")
    assert found.startswith("tasks=[a,b]: tasks, sets and sweep say the same in three ways; give one of them.")


def test_sweep_checks_each_value_with_the_first_of_the_others():
    composer = Composer("train", CONF)
    found = faults(
        *OWN, "lora.rank=0,abc,-3", "trainer=auto,ddp", "seed=range(0,3)", "task=glob(class*)", multirun=True
    )
    rank = "must be a whole number, 0 (head only, frozen backbone) or more."
    assert found[0].startswith("trainer.devices=auto, trainer.strategy=ddp in a sweep (-m): Lightning starts")
    assert found[0].endswith("(With trainer=ddp.)")
    assert found[1:] == [f"lora.rank=abc: {rank}", f"lora.rank=-3: {rank}"]
    command = composer.parse(["lora.rank=1,2,3", "seed=1,2,3,4", "trainer=auto,cpu"], multirun=True)
    assert len(list(composer.points(command))) == 1 + 2 + 3 + 1


@pytest.mark.parametrize(
    "override",
    ["trainer.devices=2", "trainer.devices=[0,1]", "trainer.devices=-1", "trainer.num_nodes=2", "trainer=ddp"],
)
def test_a_job_of_a_sweep_has_one_process(override):
    (found,) = faults(*OWN, override, "seed=0,1", multirun=True)
    assert " in a sweep (-m): Lightning starts the other processes by repeating the whole command" in found
    assert faults(*OWN, override) == []
    assert faults(*OWN, "trainer.devices=[1]", "seed=0,1", multirun=True) == []


def test_globs_leave_hidden_options_out():
    (given,) = Composer("train", CONF).for_hydra(["data=glob(*)"])
    files = {file.stem for file in (CONF / "data").glob("*.yaml")}
    assert set(given.removeprefix("data=").split(",")) == files - {"base"}


def test_a_broken_recipe_is_named_and_the_rest_still_checked(tmp_path):
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "typo.yaml").write_text("# @package _global_\nlora: {rnk: 8}\nseed: x\n")
    (tmp_path / "experiment" / "gone.yaml").write_text("# @package _global_\ndefaults: [override /backbone: vit_bse]\n")
    (tmp_path / "experiment" / "yaml.yaml").write_text("# @package _global_\nlora: {rank: 8\n")
    composer = Composer("train", CONF, extra=str(tmp_path))
    found = {}
    for name in ("typo", "gone", "yaml"):
        command = composer.parse([*OWN, f"experiment={name}", "lora.alpha=-1"], multirun=False)
        found[name] = find_faults(composer, TrainConfig, command, multirun=False)
    alpha = "lora.alpha=-1: must be a number above 0, or null (= rank)."
    assert found["typo"] == [
        alpha,
        "lora.rnk=8: unknown key. Did you mean 'lora.rank'? (Set in experiment/typo.yaml.)",
        "seed=x: must be a whole number from 0 to 4294967295. (Set in experiment/typo.yaml.)",
    ]
    assert found["gone"][0].startswith(
        "experiment/gone.yaml: backbone=vit_bse: no such option. Did you mean 'vit_base'? Known: "
    )
    assert found["gone"][1:] == [alpha]
    assert len(found["yaml"]) == 2
