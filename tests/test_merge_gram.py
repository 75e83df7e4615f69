"""What Gram matrices and closed forms promise: optimality, disjoint domains, the statistics of conflict."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from launch.errors import AdapterError, CommandError
from merging.conflict import conflict, interference
from merging.gram import Normalise, gram
from tests import merge_reference as reference
from tests.merge_cases import NAMES, Case, dense, distance, make_case, merge, one_thread, random_gram, tensor  # noqa: F401

quick = settings(max_examples=6, deadline=None, derandomize=True, database=None)
seeds = st.integers(0, 2**32 - 1)
PLAIN = {"normalise": "trace", "ridge": 0.0, "cat_share": 0.0}


def small(seed: int, count: int = 2, width: int = 12, rank: int = 3) -> Case:
    """One module of ``width``, one Gram per adapter."""
    random = np.random.Generator(np.random.PCG64(seed))
    deltas = {
        n: {"blocks.0.k": (tensor(random.normal(size=(9, rank))), tensor(random.normal(size=(rank, width))))}
        for n in NAMES[:count]
    }
    return Case(deltas, {n: {"blocks.0": tensor(random_gram(random, width))} for n in deltas}, random=random)


def one(delta) -> np.ndarray:
    return dense(delta)["blocks.0.k"].numpy()


def parts(case: Case, normalise: str = "trace") -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Full deltas and Grams times l_i, adapters by name."""
    names = sorted(case.deltas)
    ds = [one(case.deltas[n]) for n in names]
    grams = [case.grams[n]["blocks.0"].numpy() for n in names]
    return ds, [reference.importance(d, g, normalise) * g for d, g in zip(ds, grams, strict=True)]


@pytest.mark.parametrize("normalise", ["trace", "output", "none"])
@quick
@given(seed=seeds)
def test_gram_is_the_best_there_is(normalise: str, seed: int) -> None:
    case = small(seed, count=3)
    ds, grams = parts(case, normalise)
    best = one(merge("gram", case, normalise=normalise, ridge=0.0))
    cost = reference.objective(best, ds, grams)
    weighted = one(merge("ls_coef", case, normalise=normalise))
    sums = [one(merge("cat", case)), one(merge("average", case))]
    for other in (*sums, *ds, weighted):
        assert cost <= reference.objective(other, ds, grams)
    for other in sums:
        assert reference.objective(weighted, ds, grams) <= reference.objective(other, ds, grams) * (1 + 1e-12)
    for _ in range(100):
        nudge = 1e-3 * case.random.normal(size=best.shape)
        assert cost < reference.objective(best + nudge, ds, grams)


@quick
@given(seed=seeds)
def test_what_gram_leaves_is_the_parallel_sum(seed: int) -> None:
    case = small(seed)
    ds, (g, h) = parts(case)
    cost = reference.objective(one(merge("gram", case, ridge=0.0)), ds, [g, h])
    parallel = g @ np.linalg.inv(g + h) @ h
    difference = ds[0] - ds[1]
    assert cost == pytest.approx(np.trace(difference @ parallel @ difference.T), rel=1e-9)
    wanted = sum(np.trace(d @ x @ d.T) for d, x in zip(ds, (g, h), strict=True))
    kappa = conflict(case.deltas, case.grams, ridge=0.0)["blocks.0.k"]
    assert kappa == pytest.approx(cost / wanted, rel=1e-9)
    assert 0 <= kappa <= 1
    swapped = {"galaxy": case.deltas["emotion"], "emotion": case.deltas["galaxy"]}
    grams = {"galaxy": case.grams["emotion"], "emotion": case.grams["galaxy"]}
    assert conflict(swapped, grams, ridge=0.0)["blocks.0.k"] == pytest.approx(kappa, rel=1e-9)


def disjoint(case: Case) -> Case:
    """The adapters' inputs in orthogonal halves of the space."""
    q = np.linalg.qr(case.random.normal(size=(12, 12)))[0]
    halves = np.split(q, len(case.deltas), axis=1)
    grams = {
        n: {"blocks.0": tensor(h @ random_gram(case.random, h.shape[1]) @ h.T)}
        for n, h in zip(case.deltas, halves, strict=True)
    }
    return Case(case.deltas, grams, random=case.random)


@quick
@given(seed=seeds, count=st.sampled_from([2, 3]))
def test_disjoint_domains_merge_without_loss(seed: int, count: int) -> None:
    case = disjoint(small(seed, count))
    merged = one(merge("gram", case, ridge=1e-12))
    for name, delta in case.deltas.items():
        inputs = case.grams[name]["blocks.0"].numpy()
        assert np.linalg.norm((merged - one(delta)) @ inputs) < 1e-8 * np.linalg.norm(one(delta) @ inputs)
    assert conflict(case.deltas, case.grams, ridge=1e-12)["blocks.0.k"] < 1e-8


def test_zero_adapter_of_another_domain_is_neutral() -> None:
    case = disjoint(small(1))
    zero = {m: (torch.zeros_like(b), a) for m, (b, a) in case.deltas["emotion"].items()}
    case = Case({"galaxy": case.deltas["galaxy"], "emotion": zero}, case.grams)
    inputs = case.grams["galaxy"]["blocks.0"].numpy()
    merged, alone = one(merge("gram", case, ridge=1e-12)), one(case.deltas["galaxy"])
    assert np.linalg.norm((merged - alone) @ inputs) < 1e-8 * np.linalg.norm(alone @ inputs)


def test_zero_adapter_has_no_say_by_output() -> None:
    case = make_case((3, 2), seed=2)
    alone = Case({"galaxy": case.deltas["galaxy"]}, case.grams)
    zero = {m: (torch.zeros_like(b), a) for m, (b, a) in case.deltas["emotion"].items()}
    both = Case({"galaxy": case.deltas["galaxy"], "emotion": zero}, case.grams)
    for name in ("gram", "ls_coef"):
        merged = dense(merge(name, both, normalise="output"))
        assert distance(merged, dense(merge(name, alone, normalise="output"))) < 1e-10


def test_unseen_inputs_get_the_average() -> None:
    case = small(3)
    unseen = np.linalg.qr(case.random.normal(size=(12, 12)))[0]
    seen = unseen[:, :8]
    grams = {n: {"blocks.0": tensor(seen @ random_gram(case.random, 8) @ seen.T)} for n in case.deltas}
    merged = one(merge("gram", Case(case.deltas, grams), ridge=1e-3))
    average = one(merge("average", case))
    assert np.allclose(merged @ unseen[:, 8:], average @ unseen[:, 8:], atol=1e-10)


def test_cat_share_moves_towards_the_sum() -> None:
    case = make_case((2, 5), seed=4)
    ends = [dense(merge("gram", case)), dense(merge("cat", case))]
    mixed = {m: 0.75 * ends[0][m] + 0.25 * ends[1][m] for m in ends[0]}
    assert distance(dense(merge("gram", case, cat_share=0.25)), mixed) < 1e-12
    assert distance(dense(merge("gram", case, cat_share=1.0)), ends[1]) < 1e-12


def test_interference() -> None:
    case = small(5, count=3)
    names = sorted(case.deltas)
    ratios = interference(case.deltas, case.grams)["blocks.0.k"]
    for j, disturber in enumerate(names):
        for i, sufferer in enumerate(names):
            inputs = np.linalg.cholesky(case.grams[sufferer]["blocks.0"].numpy())
            expected = np.linalg.norm(one(case.deltas[disturber]) @ inputs)
            expected /= np.linalg.norm(one(case.deltas[sufferer]) @ inputs)
            assert float(ratios[j, i]) == pytest.approx(expected, rel=1e-10)
    b, a = case.deltas["galaxy"]["blocks.0.k"]
    larger = interference(case.deltas | {"galaxy": {"blocks.0.k": (3 * b, a)}}, case.grams)["blocks.0.k"]
    g = names.index("galaxy")
    assert float(larger[g, g - 1] / ratios[g, g - 1]) == pytest.approx(3)
    assert float(larger[g - 1, g] / ratios[g - 1, g]) == pytest.approx(1 / 3)


def test_copies_do_not_conflict() -> None:
    case = small(6)
    copies = dict.fromkeys(case.deltas, case.deltas["galaxy"])
    assert conflict(copies, case.grams)["blocks.0.k"] < 1e-12
    opposed = copies | {"galaxy": {m: (-b, a) for m, (b, a) in copies["galaxy"].items()}}
    same = dict.fromkeys(case.grams, case.grams["galaxy"])
    assert conflict(opposed, same)["blocks.0.k"] == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("normalise", ["trace", "output"])
def test_conflict_of_each_module_is_its_own(normalise: Normalise) -> None:
    """Modules of one shape are stacked; each is told as if it were alone."""
    case = make_case((2, 3), seed=11)
    together = conflict(case.deltas, case.grams, normalise)
    for module, share in together.items():
        alone = conflict({name: {module: delta[module]} for name, delta in case.deltas.items()}, case.grams, normalise)
        assert alone == {module: pytest.approx(share, rel=1e-9)}
    assert max(together.values()) > 1.05 * min(together.values())


@quick
@given(seed=seeds)
def test_wudi_is_a_minimum(seed: int) -> None:
    """Independent row spaces: the loss reaches zero, X D_i^T = D_i D_i^T; a ridge trades it for nearness to the sum."""
    case = small(seed, count=3)
    ds, _ = parts(case)
    merged = one(merge("wudi", case, ridge=0.0))
    for d in ds:
        assert np.linalg.norm((merged - d) @ d.T) < 1e-7 * np.linalg.norm(d @ d.T)
    grams = [d.T @ d / np.sum(d * d) for d in ds]
    losses = [reference.objective(one(merge("wudi", case, ridge=ridge)), ds, grams) for ridge in (0.0, 1e-3, 1e-1, 1e6)]
    assert losses == sorted(losses)
    assert np.allclose(one(merge("wudi", case, ridge=1e12)), sum(ds), atol=1e-8)


@quick
@given(seed=seeds)
def test_wudi_gradient_vanishes_where_the_loss_does_not(seed: int) -> None:
    """Rows that overlap (15 directions in 12 dimensions)."""
    case = small(seed, count=3, rank=5)
    ds, _ = parts(case)
    grams = [d.T @ d / np.sum(d * d) for d in ds]
    merged = one(merge("wudi", case, ridge=0.0))
    gradient = sum((merged - d) @ g for d, g in zip(ds, grams, strict=True))
    assert np.linalg.norm(gradient) < 1e-9 * np.linalg.norm(sum(d @ g for d, g in zip(ds, grams, strict=True)))
    assert reference.objective(merged, ds, grams) > 1e-6


@quick
@given(seed=seeds, rank=st.sampled_from([1, 3]))
def test_svd_is_the_nearest_of_its_rank(seed: int, rank: int) -> None:
    case = small(seed)
    total = one(merge("cat", case))
    error = np.linalg.norm(one(merge("svd", case, rank=rank)) - total)
    for _ in range(20):
        left = np.linalg.qr(case.random.normal(size=(9, rank)))[0]
        assert error < np.linalg.norm(left @ (left.T @ total) - total)
    s = np.linalg.svd(total, compute_uv=False)
    assert error == pytest.approx(np.linalg.norm(s[rank:]), rel=1e-9)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda g: g.pop("galaxy"), r"'galaxy' has no Gram matrix for blocks\.0\.k.*grams\.safetensors"),
        (lambda g: g.update(galaxy={"blocks.1": torch.eye(12)}), "'galaxy' has no Gram matrix for blocks.0.k"),
        (lambda g: g.update(galaxy={"blocks.0": torch.eye(5)}), r"'galaxy' for blocks\.0 is \(5, 5\), not \(12, 12\)"),
        (lambda g: g["galaxy"].update({"blocks.0": torch.full((12, 12), torch.nan)}), "holds NaN"),
    ],
)
def test_faulty_grams(spoil: Callable, message: str) -> None:
    case = small(7)
    spoil(case.grams)
    for name in ("gram", "ls_coef"):
        with pytest.raises(AdapterError, match=message):
            merge(name, case)


def test_impossible_arguments() -> None:
    case = small(8)
    for wrong in ({"ridge": -1.0}, {"cat_share": 1.5}, {"normalise": "size"}):
        key = next(iter(wrong))
        with pytest.raises(CommandError, match=rf"merge\.{key}={wrong[key]} is not possible: give"):
            gram(case.deltas, None, grams=case.grams, **(PLAIN | wrong))
    never = {n: {"blocks.0": torch.diag(torch.tensor([1.0] * 11 + [0.0]))} for n in case.deltas}
    with pytest.raises(CommandError, match=r"cannot be inverted with merge\.ridge=0\.0"):
        gram(case.deltas, None, grams=never, **PLAIN)
