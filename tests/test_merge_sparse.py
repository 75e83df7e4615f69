"""TIES, DARE and pruning entry by entry, on numbers that can be followed by hand."""

import math

import pytest
import torch
from torch import Tensor

from merging import sparse
from merging.delta import Delta, weighted
from merging.factor import leading
from merging.sparse import dare_linear, dare_ties, magnitude_prune, thresholds, ties
from tests.merge_cases import dense, distance, make_case, merge, one_thread  # noqa: F401

EXACT = {"scale": 1.0, "rank": None}


def entries(rows: list[list[float]]) -> Delta:
    """A delta of one module "k" with just these entries."""
    return {"k": (torch.tensor(rows).double(), torch.eye(len(rows[0])).double())}


def full(delta: Delta) -> Tensor:
    return dense(delta)["k"]


def test_ties_by_hand() -> None:
    one, two = entries([[4.0, -3.0, 1.0, 0.5]]), entries([[-2.0, -5.0, 0.0, 3.0]])
    # Of 4 entries round(0.5 * 4) = 2 stay: (4, -3, 0, 0) and (0, -5, 0, 3); signs +, -, none, +.
    merged = ties({"a": one, "b": two}, None, density=0.5, **EXACT)
    assert full(merged).tolist() == [[4.0, -4.0, 0.0, 3.0]]
    # All kept: 4 - 2 > 0 leaves 4 alone; -3 and -5 agree; 1 alone (0 has no sign and does not count); 0.5 and 3 agree.
    merged = ties({"a": one, "b": two}, None, density=1.0, **EXACT)
    assert full(merged).tolist() == [[4.0, -4.0, 1.0, 1.75]]


def test_a_tied_election_elects_nobody() -> None:
    merged = ties({"a": entries([[2.0, 1.0]]), "b": entries([[-2.0, 1.0]])}, None, density=1.0, **EXACT)
    assert full(merged).tolist() == [[0.0, 1.0]]


def test_weights_vote() -> None:
    """The sign is elected from weighted deltas: 0.4 * 2 loses against 1."""
    one, two = entries([[2.0]]), entries([[-1.0]])
    assert full(ties({"a": one, "b": two}, None, density=1.0, **EXACT)).item() == 2.0
    assert full(ties({"a": one, "b": two}, {"a": 0.4, "b": 1}, density=1.0, **EXACT)).item() == -1.0


@pytest.mark.parametrize("name", ["ties", "magnitude_prune", "dare_linear", "dare_ties", "knots_ties", "core_ties"])
def test_density_0_keeps_nothing(name: str) -> None:
    for merged in dense(merge(name, make_case((2, 3), seed=1), density=0.0)).values():
        assert torch.equal(merged, torch.zeros_like(merged))


def test_density_1() -> None:
    """Pruning and dropping nothing is the sum; TIES is the disjoint mean, not the sum."""
    case = make_case((2, 3), seed=2)
    total = dense(merge("cat", case))
    for name in ("magnitude_prune", "dare_linear"):
        assert distance(dense(merge(name, case, density=1.0)), total) < 1e-12
    assert distance(dense(merge("ties", case, density=1.0)), dense(merge("dare_ties", case, density=1.0))) == 0
    assert distance(dense(merge("ties", case, density=1.0)), total) > 0.1


def test_one_threshold_for_all_modules() -> None:
    """A module of small entries may lose all of them: the share counts over the whole adapter."""
    delta = {"large": (torch.ones(2, 1).double(), torch.ones(1, 2).double() * 9)}
    delta["small"] = (torch.ones(2, 1).double(), torch.arange(1.0, 4).double()[None])
    merged = dense(magnitude_prune({"a": delta}, None, density=0.4, **EXACT))
    assert merged["large"].tolist() == [[9, 9], [9, 9]]
    assert merged["small"].abs().sum() == 0
    assert thresholds(weighted({"a": delta}, None), 0.6) == [3.0]


def test_kept_share() -> None:
    case = make_case((3,), seed=3)
    merged = dense(merge("magnitude_prune", case, density=0.2))
    kept, total = sum(int((x != 0).sum()) for x in merged.values()), sum(x.numel() for x in merged.values())
    assert kept == round(0.2 * total)


def test_dare_is_unbiased_and_seeded() -> None:
    one = {"k": (torch.ones(40, 1).double(), torch.ones(1, 50).double())}
    first = full(dare_linear({"a": one}, None, density=0.25, seed=0, **EXACT))
    assert set(first.unique().tolist()) == {0.0, 4.0}
    assert float(first.mean()) == pytest.approx(1.0, abs=5 * math.sqrt(3 / 2000))
    assert torch.equal(first, full(dare_linear({"a": one}, None, density=0.25, seed=0, **EXACT)))
    assert not torch.equal(first, full(dare_linear({"a": one}, None, density=0.25, seed=1, **EXACT)))
    assert not torch.equal(first, full(dare_linear({"b": one}, None, density=0.25, seed=0, **EXACT)))


def test_dare_chooses_alike_in_any_company() -> None:
    case = make_case((2, 2), seed=4)
    apart = [dense(dare_linear({n: d}, None, density=0.5, seed=0, **EXACT)) for n, d in case.deltas.items()]
    together = dense(dare_linear(case.deltas, None, density=0.5, seed=0, **EXACT))
    assert distance(together, {m: apart[0][m] + apart[1][m] for m in together}) < 1e-12


def test_dare_ties_drops_then_elects() -> None:
    """Where only one adapter kept the entry, the merged one is that adapter's, enlarged."""
    case = make_case((2, 2), seed=5)
    kept = [dense(dare_linear({n: d}, None, density=0.5, seed=0, **EXACT)) for n, d in case.deltas.items()]
    merged = dense(dare_ties(case.deltas, None, density=0.5, seed=0, **EXACT))
    for module, x in merged.items():
        alone = (kept[0][module] != 0) & (kept[1][module] == 0)
        assert alone.any()
        assert torch.equal(x[alone], kept[0][module][alone])


@pytest.mark.parametrize("name", ["ties", "magnitude_prune", "dare_linear", "dare_ties"])
def test_truncated_to_a_rank(name: str) -> None:
    case = make_case((2, 5), seed=6)
    exact, cut = merge(name, case), merge(name, case, rank=4)
    for module, x in dense(exact).items():
        u, s, vh = torch.linalg.svd(x, full_matrices=False)
        assert cut[module][0].shape[1] == 4
        assert torch.allclose(dense(cut)[module], u[:, :4] * s[:4] @ vh[:4], atol=1e-10)


@pytest.mark.parametrize("shape", [(12, 20), (20, 12)])
def test_leading_directions_of_poor_matrices(shape: tuple[int, int]) -> None:
    """Of lower rank than asked for, with singular values over five decades, and zero."""
    generator = torch.Generator().manual_seed(8)
    u, v = (torch.linalg.qr(torch.randn(n, 3, dtype=torch.float64, generator=generator))[0] for n in shape)
    sizes = torch.tensor([[1.0, 1e-3, 1e-5], [5.0, 4.0, 0.0], [0.0, 0.0, 0.0]], dtype=torch.float64)
    matrices = torch.stack([u * size @ v.mT for size in sizes])
    left, found, right = leading(matrices, 5)
    # all that squaring leaves; on some processors it is more
    assert torch.allclose((left * found.unsqueeze(-2)) @ right.mT, matrices, rtol=0, atol=1e-8)
    assert torch.allclose(found[:, :3], sizes, rtol=0, atol=1e-9)
    assert (found > 0).sum(-1).tolist() == [3, 2, 0]
    assert not left[found.unsqueeze(-2).expand_as(left) == 0].any()


def random_entries(count: int, *, whole: bool) -> dict[str, Delta]:
    """Three modules of 40 x 60; whole numbers give many entries of equal size, several at the threshold."""
    generator = torch.Generator().manual_seed(7)
    made: dict[str, Delta] = {}
    for number in range(count):
        made[f"task{number}"] = {}
        for module in ("k", "q", "v"):
            b, a = (torch.randn(*shape, generator=generator).double() for shape in ((40, 4), (4, 60)))
            made[f"task{number}"][module] = (b.mul(2).round(), a.mul(2).round()) if whole else (b, a)
    return made


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("density", [0.005, 0.2, 0.7, 0.995])
def test_sampled_bounds_change_no_bit(whole: bool, count: int, density: float, monkeypatch: pytest.MonkeyPatch) -> None:
    deltas = random_entries(count, whole=whole)
    exact = dense(ties(deltas, None, density=density, scale=0.7, rank=None))
    monkeypatch.setattr(sparse, "SAMPLED", 1)
    monkeypatch.setattr(sparse, "MARGIN", 0.05)
    sampled = dense(ties(deltas, None, density=density, scale=0.7, rank=None))
    assert all(torch.equal(sampled[module], exact[module]) for module in exact)


def test_bounds_from_a_good_sample_suffice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sparse, "SAMPLED", 1)
    monkeypatch.setattr(sparse, "MARGIN", 0.1)
    monkeypatch.setattr(sparse, "thresholds", lambda *_: pytest.fail("all entries were sorted"))
    ties(random_entries(2, whole=False), None, density=0.2, **EXACT)


@pytest.mark.parametrize("factor", [0.0, 0.01, 100.0])
def test_a_misleading_sample_changes_no_bit(factor: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the sample sees is smaller or larger than all the rest: the thresholds must be looked up."""
    deltas = random_entries(2, whole=False)
    for delta in deltas.values():
        for start, (b, _) in enumerate(delta.values()):
            b[start :: sparse.STEP] *= factor
    exact = dense(ties(deltas, None, density=0.2, **EXACT))
    calls = []
    monkeypatch.setattr(sparse, "thresholds", lambda *given: calls.append(1) or thresholds(*given))
    monkeypatch.setattr(sparse, "SAMPLED", 1)
    sampled = dense(ties(deltas, None, density=0.2, **EXACT))
    assert calls
    assert all(torch.equal(sampled[module], exact[module]) for module in exact)


def test_exact_results_own_their_memory() -> None:
    """A file of them holds nothing twice."""
    merged = ties(random_entries(2, whole=False), None, density=0.2, **EXACT)
    tensors = [x for pair in merged.values() for x in pair]
    assert len({x.untyped_storage().data_ptr() for x in tensors}) == len(tensors)
    assert all(x.untyped_storage().nbytes() == x.numel() * x.element_size() for x in tensors)
