"""Random sets of small adapters with their Grams, and the shipped merge methods by the name of their yaml."""

import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import Tensor

from merging.delta import Delta, module_weight

CONF = Path(__file__).parents[1] / "conf" / "merge"
SHIPPED = sorted(path.stem for path in CONF.glob("*.yaml"))
NAMES = ("galaxy", "emotion", "age_class")
SHAPES = {  # module -> (d_out, d_in); three shapes, so that stacking by shape is at work
    "blocks.0.attn.qkv.k": (32, 32),
    "blocks.0.attn.qkv.v": (32, 32),
    "blocks.1.attn.qkv.k": (32, 32),
    "blocks.1.mlp.fc1": (40, 32),
    "blocks.1.mlp.fc2": (32, 40),
}


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """For the module that imports it: on matrices this small, threads only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@dataclass(frozen=True)
class Case:
    """Adapters of one merge; ``random`` is for what a property still has to draw."""

    deltas: dict[str, Delta]
    grams: dict[str, dict[str, Tensor]]
    weights: dict[str, Any] | None = None
    random: np.random.Generator = field(default_factory=lambda: np.random.Generator(np.random.PCG64(0)))

    def weight(self, name: str, module: str) -> float:
        return 1.0 if self.weights is None else module_weight(self.weights[name], module)


def make_case(ranks: tuple[int, ...], seed: int, weighted: bool = False) -> Case:
    """One adapter of each rank; sizes differ by up to four, as those of real tasks do."""
    random = np.random.Generator(np.random.PCG64(seed))
    names = NAMES[: len(ranks)]
    deltas, grams = {}, {}
    for name, rank in zip(names, ranks, strict=True):
        size = 2.0 ** random.uniform(-1, 1)
        deltas[name] = {
            module: (tensor(size * random.normal(size=(d_out, rank))), tensor(random.normal(size=(rank, d_in))))
            for module, (d_out, d_in) in SHAPES.items()
        }
        grams[name] = {
            source: tensor(size * random_gram(random, width))
            for source, width in {
                "blocks.0.attn.qkv": 32,
                "blocks.1.attn": 32,
                "blocks.1.mlp.fc1": 32,
                "blocks.1.mlp.fc2": 40,
            }.items()
        }
    weights = None
    if weighted:
        weights = {name: {"k": 0.8, "blocks.1": 1.3, "blocks": float(random.uniform(0.3, 2))} for name in names}
    return Case(deltas, grams, weights, random)


def random_gram(random: np.random.Generator, width: int) -> np.ndarray:
    tokens = random.normal(size=(2 * width, width)) * np.linspace(0.3, 2, width)
    return tokens.T @ tokens / len(tokens)


def tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array))


def method(name: str, **hyper: Any) -> Any:
    """The function as its yaml configures it, other hyperparameters laid over those it has."""
    shipped = _shipped(name)
    assert set(hyper) <= set(shipped.keywords), f"{name}.yaml has no {set(hyper) - set(shipped.keywords)}"
    return partial(shipped.func, **(shipped.keywords | hyper))


@cache
def _shipped(name: str) -> Any:
    return instantiate(OmegaConf.load(CONF / f"{name}.yaml"))


def takes(name: str, argument: str) -> bool:
    return argument in inspect.signature(method(name).func).parameters


METHODS = [name for name in SHIPPED if not takes(name, "bench")]  # algebra alone; the others pass images


def merge(name: str, case: Case, **hyper: Any) -> Delta:
    """Runs a method on a case, Grams given where it takes them."""
    extra = {"grams": case.grams} if takes(name, "grams") else {}
    return method(name, **hyper)(case.deltas, weights=case.weights, **extra)


def lossless(name: str) -> dict[str, Any]:
    """Hyperparameters at which a method throws nothing away."""
    return {"density": 1.0} if takes(name, "density") else {}


def dense(delta: Delta) -> dict[str, Tensor]:
    return {module: b.double() @ a.double() for module, (b, a) in delta.items()}


def distance(actual: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> float:
    """Largest Frobenius distance of a module, relative to the largest module."""
    assert list(actual) == list(expected)
    size = max(float(x.norm()) for x in expected.values())
    return max(float((actual[m] - expected[m]).norm()) for m in expected) / (size or 1.0)
