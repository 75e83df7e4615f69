"""The LightningModule on drawn numbers: what is trained, logged, checkpointed, and several heads at once."""

import math
from types import SimpleNamespace

import lightning as L
import pytest
import torch
from lightning.pytorch.utilities import CombinedLoader
from torch.utils.data import DataLoader, Dataset

from lightning_modules.backbone import create_backbone, split_qkv
from lightning_modules.callbacks import Bar, training_callbacks
from lightning_modules.lora import add_lora, lora_config
from lightning_modules.model import MLPHead, MultiTaskModel
from lightning_modules.module import MultiTaskModule, warmup_cosine
from lightning_modules.tasks import Task
from tests.conftest import SIZE, TINY

LEAVES = Task("leaves", "classification", "macro_f1", 2)
AGE = Task("age", "regression", "rmse", 1)


class Brightness(Dataset):
    """Images whose mean tells class and number."""

    def __init__(self, kind, count=16):
        generator = torch.Generator().manual_seed(3)
        level = torch.rand(count, generator=generator)
        self.images = level[:, None, None, None] + 0.05 * torch.randn(count, 3, SIZE, SIZE, generator=generator)
        self.targets = (level > 0.5).long() if kind == "classification" else level[:, None]

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return {"image": self.images[index], "target": self.targets[index], "index": index}


def loader(task, batch=8):
    return DataLoader(Brightness(task.kind), batch_size=batch)


def module(*tasks, rank=2):
    torch.manual_seed(7)
    vit = split_qkv(create_backbone(TINY, SIZE))
    if rank:
        add_lora(vit, lora_config(rank, None, ["k", "v"]), init_seed=0)
    heads = {task.name: MLPHead(vit.num_features, task.outputs) for task in tasks}
    return MultiTaskModule(MultiTaskModel(vit, heads), {task.name: task for task in tasks}, lr=1e-2, head_lr=1e-2)


def trainer(tmp_path, **arguments):
    defaults = {"accelerator": "cpu", "max_epochs": 1, "logger": False, "enable_checkpointing": False}
    quiet = {"enable_progress_bar": False, "enable_model_summary": False}
    return L.Trainer(default_root_dir=tmp_path, **(defaults | quiet | arguments))


def snapshot(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


@pytest.mark.parametrize("rank", [0, 2])
def test_adapter_and_head_learn_and_the_backbone_stays(tmp_path, rank):
    trained = module(LEAVES, rank=rank)
    before = snapshot(trained.model)
    trainer(tmp_path).fit(trained, loader(LEAVES))
    changed = {name for name, value in trained.model.state_dict().items() if not torch.equal(value, before[name])}
    expected = {name for name in before if ".lora_" in name or name.startswith("heads.")}
    assert changed == expected
    assert any(".lora_" in name for name in changed) == (rank > 0)


def test_it_learns(tmp_path):
    """Brightness is easy: a few epochs bring the macro F1 close to one, from chance."""
    trained = module(LEAVES)
    runner = trainer(tmp_path, max_epochs=15)
    runner.fit(trained, loader(LEAVES))
    (metrics,) = runner.validate(trained, loader(LEAVES), verbose=False)
    assert metrics["val/leaves/macro_f1"] > 0.9


def test_several_tasks_train_together(tmp_path):
    """One backbone pass over all tasks' images gives each head the loss it would have alone."""
    joint = module(LEAVES, AGE)
    batches = {"leaves": next(iter(loader(LEAVES))), "age": next(iter(loader(AGE, batch=4)))}
    losses = {}
    joint.log = lambda name, value, **_: losses.__setitem__(name, float(value))
    total = joint.training_step(batches, 0)
    with torch.no_grad():
        for task in (LEAVES, AGE):
            batch = batches[task.name]
            alone = task.loss(joint.model(batch["image"])[task.name], batch["target"])
            assert losses[f"train/{task.name}/loss"] == pytest.approx(float(alone), rel=1e-5)
    assert float(total.detach()) == pytest.approx(sum(losses.values()), rel=1e-5)
    joint.units = {"age": 4.0}
    expected = losses["train/leaves/loss"] + losses["train/age/loss"] / 4
    assert float(joint.training_step(batches, 0).detach()) == pytest.approx(expected, rel=1e-5)


def test_several_tasks_through_the_trainer(tmp_path):
    joint = module(LEAVES, AGE)
    before = snapshot(joint.model)
    train = CombinedLoader({"leaves": loader(LEAVES), "age": loader(AGE, batch=4)}, "max_size_cycle")
    runner = trainer(tmp_path, max_epochs=2)
    runner.fit(joint, train, [loader(LEAVES), loader(AGE)])
    assert {"val/leaves/macro_f1", "val/age/rmse", "val/age/loss"} <= set(runner.callback_metrics)
    for task in ("leaves", "age"):
        assert not torch.equal(
            joint.model.state_dict()[f"heads.{task}.output.bias"], before[f"heads.{task}.output.bias"]
        )
    predictions = runner.predict(joint, loader(AGE))
    assert predictions[0]["age"].shape == (8, 1)
    assert predictions[0]["leaves"].shape == (8,)


def test_checkpoints_hold_adapter_and_heads_only(tmp_path):
    trained = module(LEAVES)
    runner = trainer(tmp_path, enable_checkpointing=True)
    runner.fit(trained, loader(LEAVES))
    runner.save_checkpoint(tmp_path / "x.ckpt")
    state = torch.load(tmp_path / "x.ckpt", weights_only=True)["state_dict"]
    assert set(state) == {f"model.{name}" for name in trained.model.trainable_state_dict()}
    assert all(".lora_" in name or ".heads." in name for name in state)


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    runner = trainer(tmp_path, enable_checkpointing=True)
    runner.fit(module(LEAVES), loader(LEAVES))
    runner.save_checkpoint(tmp_path / "x.ckpt")
    with pytest.raises(RuntimeError, match="another model"):
        trainer(tmp_path).fit(module(LEAVES, rank=0), loader(LEAVES), ckpt_path=tmp_path / "x.ckpt", weights_only=True)


def test_training_has_dropout_and_plain_attention_evaluation_has_neither(tmp_path):
    trained = module(LEAVES)
    attention = trained.model.backbone.blocks[0].attn
    seen = []

    def look(step):
        def watched(*arguments):
            seen.append((step.__name__, attention.training, attention.fused_attn))
            return step(*arguments)

        return watched

    trained.training_step = look(trained.training_step)
    trained.validation_step = look(trained.validation_step)
    trained.test_step = look(trained.test_step)
    runner = trainer(tmp_path, max_epochs=2)
    runner.fit(trained, loader(LEAVES), loader(LEAVES))
    assert attention.fused_attn, "what follows a training, as Grams do, is evaluation, too"
    runner.test(trained, loader(LEAVES), verbose=False)
    kinds = {("training_step", True, False), ("validation_step", False, True), ("test_step", False, True)}
    assert set(seen) == kinds
    assert len(seen) > 8


def test_head_starts_at_its_center():
    head = MLPHead(8, 2, torch.tensor([3.0, -1.0]))
    assert head.output.bias.tolist() == [3.0, -1.0]
    assert MLPHead(8, 1, torch.tensor([5e6]), scale=2e5)(torch.randn(3, 8)).flatten().tolist() == [5e6] * 3


def test_a_plain_head_gives_the_answers_of_one_with_a_scale():
    head = MLPHead(8, 1, torch.tensor([1900.0]), scale=300.0)
    torch.nn.init.normal_(head.output.weight)
    plain = MLPHead(8, 1)
    plain.load_state_dict(head.plain_state_dict())
    features = torch.randn(5, 8)
    torch.testing.assert_close(plain(features), head(features), rtol=1e-4, atol=0.0)


def test_a_number_is_learned_as_well_in_any_unit():
    features = torch.randn(40, 8, generator=torch.Generator().manual_seed(0))
    age = features[:, :1] + 3.0

    def learned(unit):
        torch.manual_seed(1)
        head, target = MLPHead(8, 1, (age * unit).mean(0), scale=unit), age * unit
        optimizer = torch.optim.AdamW(head.parameters(), lr=1e-2)
        for _ in range(20):
            optimizer.zero_grad()
            (AGE.loss(head(features), target) / unit).backward()
            optimizer.step()
        return head(features).detach() / unit

    for unit in (1e-4, 1e5):
        torch.testing.assert_close(learned(unit), learned(1.0), rtol=1e-2, atol=1e-2)


def test_heads_answer_in_float32_whatever_the_backbone_computes_in():
    head = MLPHead(8, 1, torch.tensor([1991.0]))
    with torch.autocast("cpu", torch.bfloat16):
        assert head(torch.zeros(1, 8, dtype=torch.bfloat16)).item() == 1991.0


def test_biases_of_heads_do_not_decay(tmp_path):
    trained = MultiTaskModule(module(AGE).model, {"age": AGE}, lr=1e-2, head_lr=1e-2, weight_decay=0.1)
    trainer(tmp_path, max_epochs=1).fit(trained, loader(AGE), loader(AGE))
    head = trained.model.heads["age"]
    decays = {
        id(value): group["weight_decay"] for group in trained.optimizers().param_groups for value in group["params"]
    }
    assert [decays[id(value)] for value in (head.hidden.weight, head.hidden.bias, head.output.bias)] == [0.1, 0.0, 0.0]


def test_learning_rate_rises_and_falls():
    factor = warmup_cosine(100, 0.1)
    rates = [factor(step) for step in range(100)]
    assert rates[9] == max(rates) == 1.0
    assert rates[:10] == sorted(rates[:10])
    assert rates[9:] == sorted(rates[9:], reverse=True)
    assert 0 < rates[0] <= 0.1
    assert rates[-1] < 0.01


def test_the_bar_counts_epochs_as_the_log_does():
    bar = Bar()
    bar._trainer = SimpleNamespace(max_epochs=5)
    assert bar._get_train_description(2) == "Epoch 3/5"


def test_a_moved_run_keeps_its_best_checkpoint(tmp_path, monkeypatch):
    scores = [0.5, 0.1, 0.3]
    monkeypatch.setattr(
        MultiTaskModule, "on_validation_epoch_end", lambda self: self.log("val/score", scores[self.current_epoch])
    )

    def fit(folder, epochs, **resume):
        callbacks = training_callbacks(str(tmp_path / folder), "val/score", "max", None, bar=False)
        runner = trainer(tmp_path, max_epochs=epochs, callbacks=callbacks, enable_checkpointing=True)
        runner.fit(module(LEAVES), loader(LEAVES), loader(LEAVES), **resume)

    fit("old", 2)
    (tmp_path / "old").rename(tmp_path / "new")
    fit("new", 3, ckpt_path=tmp_path / "new/last.ckpt", weights_only=True)
    assert torch.load(tmp_path / "new/best.ckpt", weights_only=True)["epoch"] == 0
    assert torch.load(tmp_path / "new/last.ckpt", weights_only=True)["epoch"] == 2
    assert not (tmp_path / "old").exists()


def test_classes_are_scored_over_subsets_that_some_batches_have_no_example_of(tmp_path):
    late = torch.arange(16) >= 13
    plain = module(LEAVES)
    tested = MultiTaskModule(plain.model, {"leaves": LEAVES}, lr=1e-2, head_lr=1e-2, subsets={"leaves": {"late": late}})
    (scores,) = trainer(tmp_path).test(tested, loader(LEAVES, batch=6), verbose=False)
    data = Brightness("classification")
    with torch.no_grad():
        answers = tested.model.eval()(data.images)["leaves"].argmax(1)
    expected = LEAVES.metrics()[LEAVES.metric](answers[late], data.targets[late])
    assert scores[f"test/leaves/{LEAVES.metric}_late"] == pytest.approx(float(expected))


def test_subsets_are_scored_over_the_whole_test_set(tmp_path):
    """Batches of 6 and masks that leave some batches without an example: no mean of batches would do."""
    masks = {"late": torch.arange(16) >= 13, "some": torch.arange(16) % 3 == 0}
    plain = module(AGE)
    tested = MultiTaskModule(plain.model, {"age": AGE}, lr=1e-2, head_lr=1e-2, subsets={"age": masks})
    (scores,) = trainer(tmp_path).test(tested, loader(AGE, batch=6), verbose=False)
    data = Brightness("regression")
    with torch.no_grad():
        error = tested.model.eval()(data.images)["age"] - data.targets
    for name, mask in masks.items():
        assert scores[f"test/age/rmse_{name}"] == pytest.approx(float(error[mask].square().mean().sqrt()), rel=1e-4)
    assert scores["test/age/rmse_late"] != pytest.approx(scores["test/age/rmse"], rel=1e-3)
    (short,) = trainer(tmp_path, limit_test_batches=1).test(tested, loader(AGE, batch=6), verbose=False)
    assert scores.keys() - short.keys() == {"test/age/rmse_late"}, "it has no example in the first batch"
    assert all(math.isfinite(value) for value in short.values())
