"""What every merge method of conf/merge must satisfy (MERGING properties), and who is exempt, and that they really are.

A property gives pairs (what the method made, what it must equal), both as module -> full matrix.
"""

import inspect
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from launch.errors import CommandError
from tests.merge_cases import (  # noqa: F401
    METHODS,
    SHAPES,
    Case,
    dense,
    distance,
    lossless,
    make_case,
    merge,
    method,
    one_thread,
    tensor,
)

TOLERANCE = 1e-10
Pair = tuple[dict[str, Tensor], dict[str, Tensor]]
quick = settings(max_examples=5, deadline=None, derandomize=True, database=None)
seeds = st.integers(0, 2**32 - 1)


@st.composite
def cases(draw: st.DrawFn, equal: bool = False, count: int | None = None) -> Case:
    count = draw(st.integers(1, 3)) if count is None else count
    rank = st.sampled_from([1, 2, 5])
    ranks = (draw(rank),) * count if equal else tuple(draw(rank) for _ in range(count))
    return make_case(ranks, draw(seeds), weighted=draw(st.booleans()))


def scaled(case: Case, factor: Callable[[str, str], float]) -> Case:
    """The case with every A multiplied by factor(adapter, module)."""
    deltas = {n: {m: (b, factor(n, m) * a) for m, (b, a) in d.items()} for n, d in case.deltas.items()}
    return replace(case, deltas=deltas)


def orthogonal(case: Case, width: int) -> Tensor:
    q, r = np.linalg.qr(case.random.normal(size=(width, width)))
    return tensor(q * np.sign(np.diag(r)))


def identity(name: str, case: Case) -> Iterator[Pair]:
    """One adapter with weight 1 comes back as it was."""
    first = next(iter(case.deltas))
    one = Case({first: case.deltas[first]}, {first: case.grams[first]})
    yield dense(merge(name, one, **lossless(name))), dense(dict(sorted(case.deltas[first].items())))


def zero_neutral(name: str, case: Case) -> Iterator[Pair]:
    """An adapter with B = 0 changes nothing, wherever it stands."""
    for newcomer in ("aaa", "zzz"):
        like = case.deltas["galaxy"]
        zero = {m: (torch.zeros_like(b), tensor(case.random.normal(size=a.shape))) for m, (b, a) in like.items()}
        weights = None if case.weights is None else case.weights | {newcomer: 0.7}
        more = replace(
            case,
            deltas={newcomer: zero} | case.deltas,
            grams=case.grams | {newcomer: case.grams["galaxy"]},
            weights=weights,
        )
        yield dense(merge(name, more)), dense(merge(name, case))


def relabel(name: str, case: Case) -> Iterator[Pair]:
    """Which adapter bears which name plays no part."""
    names = list(case.deltas)
    other = dict(zip(names, names[1:] + names[:1], strict=True))

    def renamed(by_name: dict) -> dict:
        return {other[n]: x for n, x in by_name.items()}

    weights = None if case.weights is None else renamed(case.weights)
    yield (
        dense(merge(name, Case(renamed(case.deltas), renamed(case.grams), weights))),
        dense(merge(name, case)),
    )


def scale(name: str, case: Case) -> Iterator[Pair]:
    """Twice the deltas, twice the result; the same for any factor, negative too."""
    for factor in (3.0, -0.5):
        expected = {m: factor * x for m, x in dense(merge(name, case)).items()}
        yield dense(merge(name, scaled(case, lambda n, m, f=factor: f))), expected


def weights_first(name: str, case: Case) -> Iterator[Pair]:
    """Weights are nothing but factors of the deltas: all hyperparameters see w_i dW_i."""
    case = replace(case, weights={n: {"blocks.0": 0.4 + i, "k": -0.6} for i, n in enumerate(case.deltas)})
    yield dense(merge(name, case)), dense(merge(name, replace(scaled(case, case.weight), weights=None)))


def gauge(name: str, case: Case) -> Iterator[Pair]:
    """The factors may be any pair with the same product: (B Q, Q^-1 A), as other alpha or rsLoRA write it."""
    deltas = {}
    for adapter, delta in case.deltas.items():
        deltas[adapter] = {}
        for m, (b, a) in delta.items():
            mix = orthogonal(case, b.shape[1]) @ torch.diag(tensor(case.random.uniform(0.5, 4, size=b.shape[1])))
            deltas[adapter][m] = (b @ mix, torch.linalg.solve(mix, a))
    yield dense(merge(name, replace(case, deltas=deltas))), dense(merge(name, case))


def rotation(name: str, case: Case) -> Iterator[Pair]:
    """f(U dW V^T) = U f(dW) V^T for orthogonal U and V (the inputs, thus the Grams, turned alike)."""
    left = {m: orthogonal(case, d_out) for m, (d_out, _) in SHAPES.items()}
    right = {width: orthogonal(case, width) for width in (32, 40)}
    deltas = {n: {m: (left[m] @ b, a @ right[a.shape[1]].T) for m, (b, a) in d.items()} for n, d in case.deltas.items()}
    grams = {n: {s: right[len(g)] @ g @ right[len(g)].T for s, g in by.items()} for n, by in case.grams.items()}
    expected = {m: left[m] @ x @ right[x.shape[1]].T for m, x in dense(merge(name, case)).items()}
    yield dense(merge(name, replace(case, deltas=deltas, grams=grams))), expected


PROPERTIES = {f.__name__: f for f in (identity, zero_neutral, relabel, scale, weights_first, gauge, rotation)}
SPECTRUM = "makes all singular values equal, those of a single adapter too"
COUNTED = "divides by the number of adapters"
ENTRIES = "looks at single entries, which another basis mixes"
EXEMPT = {
    ("iso_c", "identity"): SPECTRUM,
    ("iso_cts", "identity"): SPECTRUM,
    ("average", "zero_neutral"): COUNTED,
    ("linear", "zero_neutral"): COUNTED,
    ("peft_linear", "zero_neutral"): COUNTED,
    ("gram", "zero_neutral"): "a zero delta asks for zero output on its inputs (normalise=output leaves it out)",
    ("ls_coef", "zero_neutral"): "a zero delta asks for zero output on its inputs (normalise=output leaves it out)",
    ("dare_linear", "relabel"): "the random choice belongs to the adapter's name",
    ("dare_ties", "relabel"): "the random choice belongs to the adapter's name",
    ("norm_balanced", "weights_first"): "weights come after the balancing, before it they would cancel",
    ("peft_linear", "weights_first"): "takes the square roots of the weights into A and B apart",
    ("peft_linear", "gauge"): "adds the factors, not the deltas",
    ("ties", "rotation"): ENTRIES,
    ("magnitude_prune", "rotation"): ENTRIES,
    ("dare_linear", "rotation"): ENTRIES,
    ("dare_ties", "rotation"): ENTRIES,
    ("knots_ties", "rotation"): ENTRIES,
}
HELD = [(n, p) for n in METHODS for p in PROPERTIES if (n, p) not in EXEMPT]


@pytest.mark.parametrize(("name", "law"), HELD)
def test_property_holds(name: str, law: str) -> None:
    @quick
    @given(cases(equal=name == "peft_linear"))
    def check(case: Case) -> None:
        for actual, expected in PROPERTIES[law](name, case):
            assert distance(actual, expected) < TOLERANCE

    check()


@pytest.mark.parametrize(("name", "law"), EXEMPT)
def test_exemption_is_real(name: str, law: str) -> None:
    """An exemption that is no longer needed must go: three adapters of rank 2 show the difference."""
    pairs = PROPERTIES[law](name, make_case((2, 2, 2), seed=7))
    assert max(distance(actual, expected) for actual, expected in pairs) > 0.01


@pytest.mark.parametrize("name", METHODS)
def test_order_plays_no_part(name: str) -> None:
    """Bit for bit, for adapters, modules and weights alike; and the inputs stay as they were."""
    case = make_case((2, 2, 2), seed=1, weighted=True)
    before = {n: {m: (b.clone(), a.clone()) for m, (b, a) in d.items()} for n, d in case.deltas.items()}
    turned = Case(
        {n: dict(reversed(d.items())) for n, d in reversed(case.deltas.items())},
        dict(reversed(case.grams.items())),
        dict(reversed(case.weights.items())),
    )
    one, two = merge(name, case), merge(name, turned)
    assert list(one) == list(two) == sorted(SHAPES)
    for module in one:
        assert torch.equal(one[module][0], two[module][0])
        assert torch.equal(one[module][1], two[module][1])
    for n, delta in before.items():
        for module, (b, a) in delta.items():
            assert torch.equal(b, case.deltas[n][module][0])
            assert torch.equal(a, case.deltas[n][module][1])


@pytest.mark.parametrize("name", METHODS)
def test_type_of_the_input(name: str) -> None:
    """Single precision in, single precision out, computed in double; every tensor owns its memory."""
    case = make_case((2, 2), seed=2, weighted=True)
    single = {n: {m: (b.float(), a.float()) for m, (b, a) in d.items()} for n, d in case.deltas.items()}
    exact = {n: {m: (b.double(), a.double()) for m, (b, a) in d.items()} for n, d in single.items()}
    merged = merge(name, replace(case, deltas=single))
    assert distance(dense(merged), dense(merge(name, replace(case, deltas=exact)))) < 1e-6
    for b, a in merged.values():
        for factor in (b, a):
            assert factor.dtype == torch.float32
            assert factor.is_contiguous()
            assert factor.untyped_storage().nbytes() == factor.nbytes
    half = {n: {m: (b.bfloat16(), a.bfloat16()) for m, (b, a) in d.items()} for n, d in single.items()}
    assert {x.dtype for pair in merge(name, replace(case, deltas=half)).values() for x in pair} == {torch.bfloat16}


@pytest.mark.parametrize("name", METHODS)
@quick
@given(case=cases(equal=True))
def test_rank_and_shape(name: str, case: Case) -> None:
    full_rank = {"ties", "magnitude_prune", "dare_linear", "dare_ties"}
    total = sum(b.shape[1] for b, _ in (next(iter(d.values())) for d in case.deltas.values()))
    for module, (b, a) in merge(name, case).items():
        d_out, d_in = SHAPES[module]
        assert (b.shape[0], a.shape[1]) == (d_out, d_in)
        assert b.shape[1] == a.shape[0]
        bound = min(d_out, d_in) if name in full_rank else total
        assert b.shape[1] <= bound
        assert torch.linalg.matrix_rank(b @ a, rtol=1e-9) <= bound


@pytest.mark.parametrize("name", METHODS)
def test_ranks_16_and_64(name: str) -> None:
    random = np.random.Generator(np.random.PCG64(3))
    deltas = {
        n: {"blocks.0.attn.qkv.k": (tensor(random.normal(size=(96, r))), tensor(random.normal(size=(r, 96))))}
        for n, r in (("galaxy", 16), ("emotion", 64))
    }
    case = Case(deltas, {n: {"blocks.0": torch.eye(96).double()} for n in deltas})
    if name == "peft_linear":
        with pytest.raises(CommandError, match=r"equal ranks, got emotion: 64, galaxy: 16\. Use merge=linear"):
            merge(name, case)
    else:
        assert torch.isfinite(dense(merge(name, case))["blocks.0.attn.qkv.k"]).all()


@pytest.mark.parametrize("name", METHODS)
def test_more_ranks_than_dimensions(name: str) -> None:
    """R = 3 x 5 directions in a 6 x 8 matrix: the core is then as large as the matrix, and all stays finite."""
    random = np.random.Generator(np.random.PCG64(4))
    deltas = {
        n: {"k": (tensor(random.normal(size=(6, 5))), tensor(random.normal(size=(5, 8))))} for n in ("a", "b", "c")
    }
    case = Case(deltas, {n: {"k": tensor(np.eye(8) + 0.1)} for n in deltas})
    merged = dense(merge(name, case, **lossless(name)))["k"]
    assert torch.isfinite(merged).all()
    assert merged.norm() > 0


@pytest.mark.parametrize("name", METHODS)
def test_nothing_but_zeros(name: str) -> None:
    case = make_case((2, 2), seed=5)
    zero = {n: {m: (torch.zeros_like(b), a) for m, (b, a) in d.items()} for n, d in case.deltas.items()}
    for merged in dense(merge(name, replace(case, deltas=zero))).values():
        assert torch.equal(merged, torch.zeros_like(merged))


@pytest.mark.parametrize("name", METHODS)
def test_the_same_adapter_twice(name: str) -> None:
    """Two copies under two names: a result along the adapter itself, not along a noise direction."""
    one = make_case((3,), seed=6)
    twin = Case(dict.fromkeys(("a", "b"), one.deltas["galaxy"]), dict.fromkeys(("a", "b"), one.grams["galaxy"]))
    for module, merged in dense(merge(name, twin, **lossless(name))).items():
        b, a = one.deltas["galaxy"][module]
        basis, rows = torch.linalg.qr(b).Q, torch.linalg.qr(a.T).Q
        assert torch.isfinite(merged).all()
        assert merged.norm() > 0.3 * (b @ a).norm()
        assert (merged - basis @ basis.T @ merged @ rows @ rows.T).norm() < TOLERANCE * merged.norm()


@pytest.mark.parametrize("name", METHODS)
def test_yaml_is_named_after_its_function(name: str) -> None:
    """Result rows bear the name of the yaml, which sets every hyperparameter; Python has no second default."""
    chosen = method(name)
    assert chosen.func.__name__ == name
    parameters = inspect.signature(chosen.func).parameters
    hyper = {k for k, p in parameters.items() if p.kind is p.KEYWORD_ONLY and k != "grams"}
    assert set(chosen.keywords) == hyper | {"weights"}
    assert chosen.keywords["weights"] is None
    assert all(parameters[k].default is inspect.Parameter.empty for k in hyper)
    assert list(parameters)[:2] == ["deltas", "weights"]
