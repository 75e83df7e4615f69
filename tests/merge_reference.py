"""Dense float64 references for every merge method, in numpy, from the papers' formulas and full SVDs.

Each takes ``parts``: module -> list over adapters of the full weighted delta, adapters in the order of their names, and
gives module -> full merged delta. Slow on purpose, and written without a look at the code under test.
"""

import hashlib

import numpy as np

Parts = dict[str, list[np.ndarray]]
Merged = dict[str, np.ndarray]
NULL = 1e-9  # singular values below this share of the largest are noise


def cat(parts: Parts) -> Merged:
    return {m: sum(ds) for m, ds in parts.items()}


def average(parts: Parts) -> Merged:
    return {m: np.mean(ds, axis=0) for m, ds in parts.items()}


def linear(parts: Parts, scale) -> Merged:
    return {m: sum(ds) * (len(ds) ** -0.5 if scale is None else scale) for m, ds in parts.items()}


def peft_linear(factors: dict[str, list[tuple[float, np.ndarray, np.ndarray]]], scale) -> Merged:
    """From (weight, B, A): every pair of adapters written out, B_i with A_j."""
    merged = {}
    for m, triples in factors.items():
        share = 1 / len(triples) if scale is None else scale
        merged[m] = sum(
            np.sign(share * wj) * np.sqrt(abs(share * wi) * abs(share * wj)) * (bi @ aj)
            for wi, bi, _ in triples
            for wj, _, aj in triples
        )
    return merged


def norm_balanced(factors: dict[str, list[tuple[float, np.ndarray, np.ndarray]]]) -> Merged:
    merged = {}
    for m, triples in factors.items():
        norms = [np.linalg.norm(b @ a) for _, b, a in triples]
        merged[m] = sum(w * np.mean(norms) / n * (b @ a) for n, (w, b, a) in zip(norms, triples, strict=True))
    return merged


def svd(parts: Parts, rank) -> Merged:
    merged = {}
    for m, ds in parts.items():
        k = max(rank_of(d) for d in ds) if rank is None else rank
        u, s, vt = np.linalg.svd(sum(ds), full_matrices=False)
        merged[m] = (u[:, :k] * s[:k]) @ vt[:k]
    return merged


def ties(parts: Parts, density, scale, rank) -> Merged:
    assert rank is None
    return scaled(elect(trim(parts, density)), scale)


def magnitude_prune(parts: Parts, density, scale, rank) -> Merged:
    assert rank is None
    return scaled(cat(trim(parts, density)), scale)


def dare_linear(parts: Parts, names, density, seed, scale, rank) -> Merged:
    assert rank is None
    return scaled(cat(drop(parts, names, density, seed)), scale)


def dare_ties(parts: Parts, names, density, seed, scale, rank) -> Merged:
    assert rank is None
    return scaled(elect(drop(parts, names, density, seed)), scale)


def knots_ties(parts: Parts, density, scale) -> Merged:
    bases, coordinates = {}, {}
    for m, ds in parts.items():
        u, s, vt = np.linalg.svd(np.hstack(ds), full_matrices=False)
        k = int((s > NULL * s[0]).sum())
        bases[m] = u[:, :k]
        coordinates[m] = np.split(s[:k, None] * vt[:k], len(ds), axis=1)
    merged = elect(trim(coordinates, density))
    return {m: scale * bases[m] @ merged[m] for m in parts}


def core_ties(parts: Parts, density, scale) -> Merged:
    bases, cores = {}, {}
    for m, ds in parts.items():
        lefts, rights = [], []
        for d in ds:
            u, s, vt = np.linalg.svd(d)
            k = rank_of(d)
            lefts.append(u[:, :k] * np.sqrt(s[:k]))
            rights.append(vt[:k].T * np.sqrt(s[:k]))
        left, right = column_space(np.hstack(lefts)), column_space(np.hstack(rights))
        bases[m] = left, right
        cores[m] = [left.T @ d @ right for d in ds]
    merged = elect(trim(cores, density))
    return {m: scale * bases[m][0] @ merged[m] @ bases[m][1].T for m in parts}


def tsv(parts: Parts, scale) -> Merged:
    merged = {}
    for m, ds in parts.items():
        kept = []
        for d in ds:
            u, s, vt = np.linalg.svd(d)
            k = min(rank_of(d), min(d.shape) // len(ds))
            kept.append((u[:, :k], s[:k], vt[:k].T))
        u, s, v = (np.concatenate([x[i] for x in kept], axis=-1) for i in range(3))
        merged[m] = scale * polar(u) @ np.diag(s) @ polar(v).T
    return merged


def iso_c(parts: Parts, scale) -> Merged:
    merged = {}
    for m, ds in parts.items():
        u, s, vt = np.linalg.svd(sum(ds))
        k = rank_of(sum(ds))
        merged[m] = scale * s[:k].mean() * u[:, :k] @ vt[:k]
    return merged


def iso_cts(parts: Parts, common, scale) -> Merged:
    merged = {}
    for m, ds in parts.items():
        u, s, vt = np.linalg.svd(sum(ds))
        total = rank_of(sum(ds))
        own = int(round((1 - common) * total, 9) // len(ds))
        k = total - own * len(ds)
        us, ss, vs = [u[:, :k]], [s[:k]], [vt[:k].T]
        for d in ds:
            ui, si, vti = np.linalg.svd(d - u[:, :k] @ u[:, :k].T @ d)
            n = min(own, int((si > NULL * np.linalg.norm(d)).sum()))
            us.append(ui[:, :n])
            ss.append(si[:n])
            vs.append(vti[:n].T)
        merged[m] = scale * np.concatenate(ss).mean() * polar(np.hstack(us)) @ polar(np.hstack(vs)).T
    return merged


def wudi(parts: Parts, ridge) -> Merged:
    merged = {}
    for m, ds in parts.items():
        width = ds[0].shape[1]
        grams = [d.T @ d / np.sum(d * d) for d in ds]
        share = ridge * np.trace(sum(grams)) / width
        right = sum(d @ g for d, g in zip(ds, grams, strict=True)) + share * sum(ds)
        merged[m] = np.linalg.solve(sum(grams) + share * np.eye(width), right.T).T
    return merged


def gram(parts: Parts, inputs: Parts, normalise, ridge, cat_share) -> Merged:
    """RegMean as written for full weights, sum_i W_i G_i (sum_j G_j)^-1, every G_i with its share of the ridge."""
    merged = {}
    for m, ds in parts.items():
        grams = [importance(d, g, normalise) * g for d, g in zip(ds, inputs[m], strict=True)]
        width = ds[0].shape[1]
        share = ridge * np.trace(sum(grams)) / width / len(ds)
        grams = [g + share * np.eye(width) for g in grams]
        best = sum(d @ g for d, g in zip(ds, grams, strict=True)) @ np.linalg.inv(sum(grams))
        merged[m] = (1 - cat_share) * best + cat_share * sum(ds)
    return merged


def ls_coef(parts: Parts, inputs: Parts, normalise) -> Merged:
    """As an ordinary least-squares problem on square roots of the Grams, solved by lstsq."""
    merged = {}
    for m, ds in parts.items():
        rows, targets = [], []
        for d, g in zip(ds, inputs[m], strict=True):
            root = np.linalg.cholesky(importance(d, g, normalise) * g)
            rows.append(np.stack([(x @ root).ravel() for x in ds], axis=1))
            targets.append((d @ root).ravel())
        c = np.linalg.lstsq(np.concatenate(rows), np.concatenate(targets), rcond=None)[0]
        merged[m] = sum(x * d for x, d in zip(c, ds, strict=True))
    return merged


def importance(d: np.ndarray, g: np.ndarray, normalise: str) -> float:
    return {"none": 1.0, "trace": 1 / np.trace(g), "output": 1 / np.trace(d @ g @ d.T)}[normalise]


def objective(x: np.ndarray, ds: list[np.ndarray], grams: list[np.ndarray]) -> float:
    return sum(np.trace((x - d) @ g @ (x - d).T) for d, g in zip(ds, grams, strict=True))


def rank_of(x: np.ndarray) -> int:
    s = np.linalg.svd(x, compute_uv=False)
    return int((s > NULL * s[0]).sum()) if s[0] > 0 else 0


def column_space(x: np.ndarray) -> np.ndarray:
    u, s, _ = np.linalg.svd(x, full_matrices=False)
    return u[:, s > NULL * s[0]]


def polar(x: np.ndarray) -> np.ndarray:
    u, s, vt = np.linalg.svd(x, full_matrices=False)
    keep = s > NULL * s[0]
    return u[:, keep] @ vt[keep]


def scaled(merged: Merged, scale: float) -> Merged:
    return {m: scale * x for m, x in merged.items()}


def trim(parts: Parts, density: float) -> Parts:
    adapters = range(len(next(iter(parts.values()))))
    kept = {m: [np.zeros_like(d) for d in ds] for m, ds in parts.items()}
    for i in adapters:
        magnitudes = np.sort(np.concatenate([np.abs(ds[i]).ravel() for ds in parts.values()]))[::-1]
        count = round(density * len(magnitudes))
        for m, ds in parts.items():
            if count:
                kept[m][i] = np.where(np.abs(ds[i]) >= magnitudes[count - 1], ds[i], 0)
    return kept


def elect(parts: Parts) -> Merged:
    merged = {}
    for m, ds in parts.items():
        stack = np.stack(ds)
        agree = (np.sign(stack) == np.sign(stack.sum(0))) & (stack != 0)
        merged[m] = np.where(agree, stack, 0).sum(0) / np.maximum(agree.sum(0), 1)
    return merged


def drop(parts: Parts, names, density: float, seed: int) -> Parts:
    dropped = {}
    for m, ds in parts.items():
        dropped[m] = []
        for name, d in zip(names, ds, strict=True):
            key = int(hashlib.sha256(f"{seed}:{name}:{m}".encode()).hexdigest()[:32], 16)
            keep = np.random.Generator(np.random.PCG64(key)).random(d.shape) < density
            dropped[m].append(d * keep / density)
    return dropped
