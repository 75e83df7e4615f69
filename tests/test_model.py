"""The model that scripts use: one pass for all tasks, and tasks that come and go without a trace."""

import itertools
import json
import random
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor

from launch.errors import AdapterError, UserError
from launch.files import sha256_file
from lightning_modules.backbone import create_backbone
from merging.bundle import BACKBONE, BASE, HEADS
from merging.features import read_features
from merging.model import load
from tests.conftest import SIZE, TINY
from tests.model_cases import KINDS, adapter, files, merged, weights_file

GRAM = {
    "_target_": "merging.gram.gram", "_partial_": True, "weights": None, "normalise": "trace", "ridge": 0.001,
    "cat_share": 0.0,
}  # fmt: skip


def test_all_tasks_answer_in_one_pass(tmp_path: Path, images: Tensor) -> None:
    model = load(merged(tmp_path, ["age", "leaves", "points"]))
    passes = []
    model.backbone.blocks[0].register_forward_hook(lambda *_: passes.append(1))
    answers = model(images)
    assert list(answers) == ["age", "leaves", "points"] == list(model.tasks)
    assert {task: tuple(answer.shape) for task, answer in answers.items()} == {
        "age": (4, 1), "leaves": (4, 3), "points": (4, 8),
    }  # fmt: skip
    assert len(passes) == 1
    assert (model.tasks["age"].factor, model.tasks["age"].unit) == (10.0, "years")


def test_a_model_answers_alike_without_its_members(tmp_path: Path) -> None:
    folder = merged(tmp_path, ["age", "leaves", "points"])
    whole = load(folder)
    shutil.rmtree(folder / "members")
    assert load(folder).tasks == whole.tasks


def test_bytes_and_normalised_images_mean_the_same(tmp_path: Path) -> None:
    model = load(merged(tmp_path, ["age", "leaves"]))
    pixels = torch.randint(0, 256, (2, SIZE, SIZE, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    normal = (pixels.permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.5
    torch.testing.assert_close(model(pixels)["leaves"], model(normal)["leaves"], rtol=1e-5, atol=1e-5)


def test_deep_heads_read_what_they_were_fitted_to(tmp_path: Path, images: Tensor) -> None:
    model = load(merged(tmp_path, ["age", "leaves"], realign="deep"))
    features = read_features(model.backbone, [images], deep=True)
    for task, answer in model(images).items():
        torch.testing.assert_close(answer, model.heads[task](features), rtol=0, atol=0)
    assert not model.backbone.blocks[-1]._forward_hooks


def test_a_single_adapter_is_a_model_too(tmp_path: Path, images: Tensor) -> None:
    single = load(adapter(tmp_path, "leaves"))
    torch.testing.assert_close(single(images), load(merged(tmp_path, ["leaves"]))(images), rtol=0, atol=0)
    bare = create_backbone(TINY, SIZE, weights_file(tmp_path))
    assert not torch.equal(single.heads["leaves"](bare(images)), single(images)["leaves"])
    with pytest.raises(AdapterError, match=r"single adapter.*python merge\.py tasks=\[age,leaves\]"):
        single.add(adapter(tmp_path, "age"))


@pytest.mark.parametrize("merge", [None, GRAM], ids=["cat", "gram"])
def test_twenty_steps_end_in_the_bytes_of_the_set_built_at_once(tmp_path: Path, merge: dict | None) -> None:
    start = merged(tmp_path, ["leaves", "age"], merge=merge)
    model, draw = load(start), random.Random(5)
    for step in range(20):
        out = sorted(set(KINDS) - set(model.tasks))
        if out and (len(model.tasks) == 1 or draw.random() < 0.5):
            model.add(adapter(tmp_path, draw.choice(out)))
        else:
            model.remove(draw.choice(sorted(model.tasks)))
        if step % 7 == 6:  # also through the disk, and over what lay there
            model.save(tmp_path / "models" / "half_way")
            model = load(tmp_path / "models" / "half_way")
    if set(model.tasks) == {"leaves", "age"}:
        model.add(adapter(tmp_path, "stone"))
    model.save(tmp_path / "models" / "walked")
    at_once = merged(tmp_path, sorted(model.tasks), merge=merge, folder="at_once")
    assert files(tmp_path / "models" / "walked") == files(at_once)


def test_removing_what_was_added_leaves_no_trace(tmp_path: Path) -> None:
    start = merged(tmp_path, ["age", "leaves"])
    model = load(start)
    model.add(adapter(tmp_path, "stone"))
    model.save(tmp_path / "models" / "three")
    assert files(tmp_path / "models" / "three")[BACKBONE] != files(start)[BACKBONE]
    assert files(tmp_path / "models" / "three")[BASE] == files(start)[BASE]
    model.remove("stone")
    with pytest.raises(UserError, match=r"holds something else \(.*three"):
        model.save(tmp_path / "models")
    model.save(tmp_path / "models" / "again")
    assert files(tmp_path / "models" / "again") == files(start)


def test_any_order_of_adding_gives_the_same_model(tmp_path: Path, images: Tensor) -> None:
    start = merged(tmp_path, ["leaves"])
    found = []
    for order in itertools.permutations(["age", "points", "stone"]):
        model = load(start)
        for name in order:
            model.add(adapter(tmp_path, name))
        model.save(tmp_path / "models" / "_".join(order))
        found.append(files(tmp_path / "models" / "_".join(order)))
    assert all(other == found[0] for other in found[1:])
    assert found[0][BACKBONE] != files(start)[BACKBONE]


def test_saved_models_live_without_the_adapters_they_came_from(tmp_path: Path, images: Tensor) -> None:
    model = load(merged(tmp_path, ["leaves"]))
    model.add(adapter(tmp_path, "age"))
    model.save(tmp_path / "models" / "two")
    shutil.rmtree(tmp_path / "adapters")
    shutil.rmtree(tmp_path / "models" / "model")
    model.remove("leaves")
    again = load(tmp_path / "models" / "two")
    again.remove("leaves")
    torch.testing.assert_close(model(images), again(images), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"realign": "deep"}, "realign=deep"),
        ({"method": "gram_seq", "merge_later": "merging.sequential.gram_seq"}, "looks at images"),
    ],
)
def test_merges_that_need_images_say_so_and_how(tmp_path: Path, images: Tensor, options: dict, reason: str) -> None:
    model = load(merged(tmp_path, ["age", "leaves"], realign=options.get("realign", "none")))
    if "merge_later" in options:
        model.card["recipe"] |= {"method": options["method"], "merge": {"_target_": options["merge_later"]}}
    before = model(images)
    with pytest.raises(AdapterError, match=reason) as error:
        model.add(adapter(tmp_path, "stone"))
    assert "python merge.py tasks=[age,leaves,stone]" in str(error.value)
    given = model.members | {"stone": adapter(tmp_path, "stone")}  # of another rank than merge.yaml's, wherever it lies
    assert all(f" +adapters.{name}={path}" in str(error.value) for name, path in given.items())
    torch.testing.assert_close(model(images), before, rtol=0, atol=0)


def test_what_cannot_be_added_or_removed_changes_nothing(tmp_path: Path, images: Tensor) -> None:
    model = load(merged(tmp_path, ["leaves"]))
    before = model(images)
    with pytest.raises(AdapterError, match="which the model has already"):
        model.add(adapter(tmp_path, "leaves"))
    with pytest.raises(AdapterError, match="only task"):
        model.remove("leaves")
    with pytest.raises(AdapterError, match="has no task 'moss'"):
        model.remove("moss")
    other = adapter(tmp_path, "age")
    card = (other / "card.json").read_text()
    (other / "card.json").write_text(card.replace(model.card["backbone"]["fingerprint"], "f" * 64))
    with pytest.raises(AdapterError, match="fingerprint ffffffffffff"):
        model.add(other)
    (other / "card.json").write_text(
        card.replace('"name": "age"', '"name": "leaves_probability"').replace("_decades", "")
    )
    with pytest.raises(AdapterError, match="leaves and leaves_probability would both answer in the column"):
        model.add(other)
    (other / "card.json").write_text(card.replace('"name": "age"', '"name": "../age"'))
    with pytest.raises(AdapterError, match="no name of a task"):
        model.add(other)
    torch.testing.assert_close(model(images), before, rtol=0, atol=0)


def test_bundles_that_lie_are_refused(tmp_path: Path) -> None:
    path = merged(tmp_path, ["age", "leaves"])
    card = (path / "card.json").read_text()
    with pytest.raises(AdapterError, match=r"No merged model at .* There are: model"):
        load(path.with_name("modle"))
    (path / "card.json").write_text(card.replace('"leaves": {', '"../leaves": {'))
    with pytest.raises(AdapterError):
        load(path)
    (path / "card.json").write_text("[" * 100_000)
    with pytest.raises(AdapterError, match=r"card\.json"):
        load(path)
    (path / "card.json").write_text(card.replace('"image_size": 32', '"image_size": 64'))
    with pytest.raises(AdapterError, match="do not fit"):
        load(path)
    (path / "card.json").write_text(card)
    base = safetensors.torch.load_file(path / BASE)
    safetensors.torch.save_file({name: value + 1e-3 for name, value in base.items()}, path / BASE)
    with pytest.raises(AdapterError, match=r"base\.safetensors is missing, or not the file that card\.json tells of"):
        load(path)
    told = json.loads(card)
    told["files"][BASE] = sha256_file(path / BASE)
    (path / "card.json").write_text(json.dumps(told))
    model = load(path)
    with pytest.raises(AdapterError, match="frozen weights"):
        model.remove("age")


@pytest.mark.parametrize("name", [BACKBONE, HEADS, BASE])
def test_files_of_another_model_are_refused(tmp_path: Path, name: str) -> None:
    path = merged(tmp_path, ["age", "leaves"])
    other = merged(tmp_path, ["age", "leaves"], folder="other")
    for file in (BACKBONE, HEADS, BASE):
        tensors = safetensors.torch.load_file(other / file)
        safetensors.torch.save_file({key: 2 * value for key, value in tensors.items()}, other / file)
    shutil.copy(other / name, path / name)
    with pytest.raises(AdapterError, match=f"{name} is missing, or not the file"):
        load(path)


def test_members_that_are_other_adapters_by_now_are_not_merged_anew(tmp_path: Path, images: Tensor) -> None:
    model = load(merged(tmp_path, ["age", "leaves", "points"]))
    before = model(images)
    shutil.rmtree(model.members["leaves"])
    shutil.copytree(model.members["age"], model.members["leaves"])
    with pytest.raises(AdapterError, match="is another adapter than the one of task leaves"):
        model.remove("points")
    torch.testing.assert_close(model(images), before, rtol=0, atol=0)


@pytest.mark.parametrize("kind", ["merged", "adapter"])
def test_a_folder_that_changed_after_it_was_loaded_is_not_saved_as_the_model(tmp_path: Path, kind: str) -> None:
    def made(name: str) -> Path:
        return merged(tmp_path, [name], folder=name) if kind == "merged" else adapter(tmp_path, name)

    path = made("leaves")
    model = load(path)
    model.save(tmp_path / "same")
    assert files(tmp_path / "same") == files(path)
    shutil.rmtree(path)
    shutil.copytree(made("age"), path)
    with pytest.raises(AdapterError, match="holds another model than was loaded from it"):
        model.save(tmp_path / "other")
    shutil.rmtree(path)
    with pytest.raises(AdapterError, match="is gone; it cannot be copied"):
        model.save(tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_scores_are_told_of_the_adapters_that_were_scored_alone(tmp_path: Path) -> None:
    row = {"metric": "rmse", "score": 0.5, "single": 0.4, "retention": 0.8}
    scores = [{"task": task, **row} for task in ("age", "leaves")]
    model = load(merged(tmp_path, ["age", "leaves"], scores=scores))
    model.remove("age")
    model.save(tmp_path / "leaves")
    assert "was not scored yet" in (tmp_path / "leaves" / "README.md").read_text()
    folder = adapter(tmp_path, "age")
    model.add(folder)
    model.save(tmp_path / "again")
    assert "| age | rmse | 0.5000 |" in (tmp_path / "again" / "README.md").read_text()
    model.remove("age")
    file = folder / "head.safetensors"
    safetensors.torch.save_file({name: 2 * value for name, value in safetensors.torch.load_file(file).items()}, file)
    model.add(folder)
    model.save(tmp_path / "trained_anew")
    assert "was not scored yet" in (tmp_path / "trained_anew" / "README.md").read_text()


def test_threads_may_share_a_model_with_deep_heads(tmp_path: Path, images: Tensor) -> None:
    model = load(merged(tmp_path, ["age", "leaves"], realign="deep"))
    expected = [model(images[index : index + 1]) for index in range(4)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda step: model(images[step % 4 : step % 4 + 1]), range(60)))
    for step, answers in enumerate(found):
        torch.testing.assert_close(answers, expected[step % 4])
