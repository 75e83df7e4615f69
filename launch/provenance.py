"""What a result was made with."""

import importlib.metadata
import platform
import shutil
import subprocess
from pathlib import Path
from typing import Any

PACKAGES = (
    "torch", "torchvision", "lightning", "timm", "peft", "torchmetrics", "albumentations", "numpy", "pandas",
    "safetensors", "hydra-core", "omegaconf", "wandb",
)  # fmt: skip
ROOT = Path(__file__).resolve().parents[1]


def provenance(root: Path = ROOT) -> dict[str, Any]:
    """Versions, source commit and machine, for ``result.json``.

    ``git`` is None outside a checkout; ``dirty`` counts files that git does not know yet as changes.
    """
    return {
        "versions": {name: version for name in PACKAGES if (version := _version(name)) is not None},
        "git": git_state(root),
        "python": platform.python_version(),
        "platform": platform.platform(),
    }


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def git_state(root: Path = ROOT) -> dict[str, Any] | None:
    """The source's ``commit`` and whether it is ``dirty``; None outside a checkout."""
    if not (root / ".git").exists() or shutil.which("git") is None:
        return None
    commit = _run_git(root, "rev-parse", "HEAD")
    changes = _run_git(root, "status", "--porcelain")
    return None if commit is None or changes is None else {"commit": commit, "dirty": changes != ""}


def _run_git(root: Path, *arguments: str) -> str | None:
    command = ["git", "-C", str(root), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else None
