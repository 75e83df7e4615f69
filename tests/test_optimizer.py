"""Rates, decays, random numbers and metrics of a training, epoch by epoch."""

import pytest
import torch

from lightning_modules.callbacks import training_callbacks
from lightning_modules.module import MultiTaskModule, warmup_cosine
from tests.test_module import AGE, LEAVES, Brightness, loader, module, trainer


def with_settings(task, **settings):
    return MultiTaskModule(module(task).model, {task.name: task}, **({"lr": 1e-2, "head_lr": 1e-2} | settings))


def test_each_part_has_its_own_rate_and_decay(tmp_path):
    trained = with_settings(LEAVES, lr=2e-3, head_lr=3e-3, weight_decay=0.1, b_weight_decay=0.2)
    trainer(tmp_path).fit(trained, loader(LEAVES))
    told = {
        id(value): (group["initial_lr"], group["weight_decay"])
        for group in trained.optimizers().param_groups
        for value in group["params"]
    }
    found = {name: told.pop(id(value)) for name, value in trained.model.named_parameters() if value.requires_grad}
    assert not told
    for name, settings in found.items():
        if "lora_A" in name:
            assert settings == (2e-3, 0.0), name
        elif "lora_B" in name:
            assert settings == (2e-3, 0.2), name
        else:
            assert settings == (3e-3, 0.1 if name.endswith("weight") else 0.0), name
    assert len(found) == 2 * 2 * len(trained.model.backbone.blocks) + 4


def test_the_rates_change_with_every_step(tmp_path):
    trained, rates = with_settings(LEAVES, lr=2e-3, head_lr=4e-3, warmup=0.5), []
    step = trained.training_step

    def watched(*arguments):
        rates.append([group["lr"] for group in trained.optimizers().param_groups])
        return step(*arguments)

    trained.training_step = watched
    trainer(tmp_path, max_epochs=4).fit(trained, loader(LEAVES, batch=8))
    factor = warmup_cosine(8, 0.5)
    assert [max(found) for found in rates] == pytest.approx([4e-3 * factor(step) for step in range(8)])
    assert [min(found) for found in rates] == pytest.approx([2e-3 * factor(step) for step in range(8)])


def test_random_numbers_of_an_epoch_are_of_the_seed_and_the_epoch(tmp_path):
    def drawn(seed):
        trained, found = with_settings(LEAVES, seed=seed), []
        step = trained.training_step

        def watched(*arguments):
            found.append(float(torch.rand(1)))
            return step(*arguments)

        trained.training_step = watched
        trainer(tmp_path, max_epochs=2).fit(trained, loader(LEAVES, batch=16))
        return found

    assert drawn(0) == drawn(0)
    assert len({*drawn(0), *drawn(1)}) == 4


def test_metrics_of_an_evaluation_are_of_it_alone(tmp_path):
    late = torch.arange(16) >= 13
    tested = with_settings(AGE, subsets={"age": {"late": late}})
    data = Brightness("regression")
    for shift in (0.0, 5.0):
        tested.model.heads["age"].output.bias.data += shift
        with torch.no_grad():
            error = tested.model.eval()(data.images)["age"] - data.targets
        (validated,) = trainer(tmp_path).validate(tested, loader(AGE), verbose=False)
        (scores,) = trainer(tmp_path).test(tested, loader(AGE, batch=6), verbose=False)
        rmse = float(error.square().mean().sqrt())
        assert (validated["val/age/rmse"], scores["test/age/rmse"]) == pytest.approx((rmse, rmse), rel=1e-4)
        assert scores["test/age/rmse_late"] == pytest.approx(float(error[late].square().mean().sqrt()), rel=1e-4)
        torch.testing.assert_close(tested.answers["age"][0] - data.targets, error, rtol=1e-4, atol=1e-4)


def test_a_resumed_run_knows_that_its_last_epoch_was_the_best(tmp_path, monkeypatch):
    scores = [0.1, 0.5, 0.3]
    monkeypatch.setattr(
        MultiTaskModule, "on_validation_epoch_end", lambda self: self.log("val/score", scores[self.current_epoch])
    )
    for epochs, resume in ((2, {}), (3, {"ckpt_path": tmp_path / "last.ckpt", "weights_only": True})):
        callbacks = training_callbacks(str(tmp_path), "val/score", "max", None, bar=False)
        runner = trainer(tmp_path, max_epochs=epochs, callbacks=callbacks, enable_checkpointing=True)
        runner.fit(module(LEAVES), loader(LEAVES), loader(LEAVES), **resume)
    best = torch.load(tmp_path / "best.ckpt", weights_only=True)
    assert (best["epoch"], best["metrics"]["val/score"]) == (1, 0.5)
