"""What commands are checked against is read from source text: right, and nothing heavy is imported for it."""

import subprocess
import sys

from launch import checks
from launch.checks import ROOT
from launch.signature import arguments, requirements


def test_trainer_signature_is_lightnings():
    import lightning as L  # what the source text is compared with

    signature = checks.trainer_signature()
    accepted = set(L.Trainer.__init__.__wrapped__.__kwdefaults__)
    assert set(signature) == accepted
    assert signature["max_epochs"].kinds == {"int", "null"}
    assert signature["limit_train_batches"].allows(1)
    assert not signature["limit_train_batches"].allows("x")


def test_signature_of_a_class_without_init_is_its_bases(tmp_path):
    (tmp_path / "pack").mkdir()
    base = "class Base:\n    def __init__(self, root: 'str | Path', *, size: int | None = None, any=3): ...\n"
    (tmp_path / "pack" / "base.py").write_text(base)
    (tmp_path / "pack" / "one.py").write_text("from pack.base import Base\nclass One(Base): ...\n")
    found = arguments(tmp_path / "pack" / "one.py", "One")
    assert found is not None
    assert {name: (argument.kinds, argument.required) for name, argument in found.items()} == {
        "root": ({"str"}, True), "size": ({"int", "null"}, False), "any": (None, False),
    }  # fmt: skip
    assert arguments(tmp_path / "pack" / "one.py", "Two") is None


def test_bounds_are_read_where_they_compare_one_argument_with_constants(tmp_path):
    (tmp_path / "one.py").write_text(
        "def merge(deltas, *, density, rank, lr, start, grams):\n"
        "    require(0 <= density <= 1, 'density', density, 'a number from 0 to 1')\n"
        "    require(rank is None or rank >= 1, 'rank', rank, 'from 1 or null')\n"
        "    require(lr > 0 and math.isfinite(lr), 'lr', lr, 'calls something')\n"
        "    require(start in STARTS, 'start', start, 'known elsewhere')\n"
        "    require(len(grams) > rank, 'rank', rank, 'of two arguments')\n"
        "def other(density):\n"
        "    require(density > 5, 'density', density, 'more')\n"
    )
    found = {(key, told): holds for key, holds, told in requirements(tmp_path / "one.py", "merge")}
    assert list(found) == [("density", "a number from 0 to 1"), ("rank", "from 1 or null")]
    density, rank = found.values()
    assert [density(value) for value in (-0.1, 0, 0.5, 1, 1.1)] == [False, True, True, True, False]
    assert [rank(value) for value in (None, 1, 0)] == [True, True, False]


def test_checking_imports_nothing_heavy():
    script = (
        "import sys\nfrom pathlib import Path\nimport launch.app\n"
        "from launch.compose import Composer\nfrom launch.config import find_faults\n"
        "from launch.schema import TrainConfig\n"
        "composer = Composer('train', Path('conf'))\n"
        "find_faults(composer, TrainConfig, composer.parse(['lora.rnk=8'], False), False)\n"
        "print(sorted({'torch', 'lightning', 'pandas', 'wandb', 'timm', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
