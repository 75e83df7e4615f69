"""Every merge method against its dense reference, and against what is written in closed form for small cases."""

import inspect
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import merge_reference as reference
from tests.merge_cases import METHODS, Case, dense, distance, make_case, merge, method, one_thread  # noqa: F401

quick = settings(max_examples=5, deadline=None, derandomize=True, database=None)
VARIANTS: list[tuple[str, dict[str, Any]]] = [
    ("linear", {"scale": 0.3}),
    ("peft_linear", {"scale": 1.0}),
    ("svd", {"rank": 1}),
    ("svd", {"rank": 40}),
    *(
        (name, {"density": d})
        for name in ("ties", "magnitude_prune", "knots_ties", "core_ties")
        for d in (0.0, 0.5, 1.0)
    ),
    *((name, {"density": d, "seed": 3}) for name in ("dare_linear", "dare_ties") for d in (0.2, 1.0)),
    ("core_ties", {"scale": 0.6}),
    ("tsv", {"scale": 2.0}),
    ("iso_cts", {"common": 0.5}),
    ("iso_cts", {"common": 1.0}),
    ("wudi", {"ridge": 0.1}),
    ("gram", {"normalise": "output", "cat_share": 0.3}),
    ("gram", {"normalise": "none", "ridge": 0.1}),
    ("ls_coef", {"normalise": "output"}),
]


def by_reference(name: str, case: Case, hyper: dict[str, Any]) -> dict[str, torch.Tensor]:
    names = sorted(case.deltas)
    modules = sorted(case.deltas[names[0]])

    def factors(module: str) -> list[tuple[float, np.ndarray, np.ndarray]]:
        return [(case.weight(n, module), *(x.numpy() for x in case.deltas[n][module])) for n in names]

    hyper = method(name).keywords | hyper
    del hyper["weights"]
    if name == "peft_linear":
        merged = reference.peft_linear({m: factors(m) for m in modules}, **hyper)
    elif name == "norm_balanced":
        merged = reference.norm_balanced({m: factors(m) for m in modules}, **hyper)
    else:
        parts = {m: [w * b @ a for w, b, a in factors(m)] for m in modules}
        wanted = inspect.signature(getattr(reference, name)).parameters
        extra = {"names": names} if "names" in wanted else {}
        if "inputs" in wanted:
            sources = {m: next(s for s in case.grams[names[0]] if m.startswith(s)) for m in modules}
            extra = {"inputs": {m: [case.grams[n][sources[m]].numpy() for n in names] for m in modules}}
        merged = getattr(reference, name)(parts, **extra, **hyper)
    return {m: torch.from_numpy(x) for m, x in merged.items()}


@pytest.mark.parametrize(("name", "hyper"), [*((name, {}) for name in METHODS), *VARIANTS])
def test_equals_the_dense_reference(name: str, hyper: dict[str, Any]) -> None:
    rank = st.sampled_from([1, 2, 5])

    @quick
    @given(st.lists(rank, min_size=1, max_size=3), st.integers(0, 2**32 - 1), st.booleans())
    def check(ranks: list[int], seed: int, weighted: bool) -> None:
        if name == "peft_linear":
            ranks = ranks[:1] * len(ranks)
        case = make_case(tuple(ranks), seed, weighted)
        assert distance(dense(merge(name, case, **hyper)), by_reference(name, case, hyper)) < 1e-10

    check()


@pytest.mark.parametrize("name", ["tsv", "iso_c", "iso_cts", "wudi", "svd", "core_ties", "knots_ties"])
def test_what_float32_rounds_is_no_direction(name: str) -> None:
    """One adapter, stored as another pair of factors, merges as a copy of it does."""
    case = make_case((5,), seed=8)
    (own,) = ({m: (b.float(), a.float()) for m, (b, a) in delta.items()} for delta in case.deltas.values())
    other = {m: (b / 3, 3 * a) for m, (b, a) in own.items()}
    copies, apart = (replace(case, deltas={"a": own, "b": one}, weights=None) for one in (own, other))
    assert distance(dense(merge(name, apart)), dense(merge(name, copies))) < 1e-4


@pytest.mark.parametrize("name", ["tsv", "iso_c", "iso_cts", "wudi", "svd", "core_ties", "knots_ties"])
def test_reference_with_a_rank_deficient_adapter(name: str) -> None:
    """Factors of rank 5 that hold rank 2, and B that are not of full column rank either."""
    case = make_case((5, 5), seed=8)
    for delta in case.deltas.values():
        for module, (b, a) in delta.items():
            delta[module] = (torch.cat([b[:, :2], b[:, :2], 0 * b[:, :1]], 1), a)
    hyper = {"rank": 3} if name == "svd" else {}
    assert distance(dense(merge(name, case, **hyper)), by_reference(name, case, hyper)) < 1e-8


def test_tsv_takes_its_share_of_directions() -> None:
    """Three adapters of rank 5 in a matrix of width 8: floor(8 / 3) = 2 directions each."""
    case = make_case((5, 5, 5), seed=9)
    small = {n: {m: (b[:8], a[:, :8]) for m, (b, a) in d.items()} for n, d in case.deltas.items()}
    case = Case(small, {})
    for merged in dense(merge("tsv", case)).values():
        assert torch.linalg.matrix_rank(merged) == 6
    assert distance(dense(merge("tsv", case)), by_reference("tsv", case, {})) < 1e-10


def test_iso_spectra() -> None:
    case = make_case((2, 5), seed=10)
    total = dense(merge("cat", case))
    for name in ("iso_c", "iso_cts"):
        for module, merged in dense(merge(name, case)).items():
            s = torch.linalg.svdvals(merged)
            assert s[:7] == pytest.approx([float(s[0])] * 7, rel=1e-10)
            assert s[7:].max() < 1e-10
            if name == "iso_c":
                assert float(s[0]) == pytest.approx(float(torch.linalg.svdvals(total[module])[:7].mean()))


def test_default_scales() -> None:
    """linear: 1 / sqrt(T); average: 1 / T; both 1 for one adapter."""
    for count in (1, 2, 3):
        case = make_case((2,) * count, seed=11)
        total = dense(merge("cat", case))
        assert distance(dense(merge("linear", case)), {m: x / count**0.5 for m, x in total.items()}) < 1e-12
        assert distance(dense(merge("average", case)), {m: x / count for m, x in total.items()}) < 1e-12


def test_peft_linear_with_a_shared_a_is_the_sum() -> None:
    """What makes the study's linear harmless or harmful: the same A init, or another for each task."""
    case = make_case((4, 4), seed=12)
    apart = distance(dense(merge("peft_linear", case)), dense(merge("cat", case)))
    shared = {m: a for m, (_, a) in case.deltas["galaxy"].items()}
    case = Case({n: {m: (b, shared[m]) for m, (b, _) in d.items()} for n, d in case.deltas.items()}, {})
    together = distance(dense(merge("peft_linear", case)), dense(merge("cat", case)))
    assert apart > 0.3
    assert together < 1e-12


def test_plain_sum_in_the_core_is_cat() -> None:
    """Linear operators do not depend on the basis: with agreeing signs everywhere TIES of two copies is one copy."""
    one = make_case((3,), seed=13).deltas["galaxy"]
    for name in ("core_ties", "knots_ties", "ties"):
        merged = dense(merge(name, Case({"a": one, "b": one}, {}), density=1.0))
        assert distance(merged, dense(dict(sorted(one.items())))) < 1e-10
