"""Drawn sets that stay: each is drawn once, as a whole, and known by what it was drawn from."""

import hashlib
import json
import logging
from pathlib import Path

from datamodules.hashes import cpu_count
from datamodules.locks import locked
from datamodules.sample.write import WRITERS
from datamodules.sources import DRAWN
from launch.files import atomic_folder, require_replaceable, write_json

log = logging.getLogger(__name__)


def draw_set(name: str, root: Path, count: int, seed: int, workers: int | None = None) -> bool:
    """Draws a set into ``root`` unless it is there already; an earlier one of another count or seed is replaced.

    Args:
        name: firerisk, utkface, expw, wflw or galaxy10.
        root: folder that appears whole or not at all; give it as ``data.root``.
        count: examples.
        seed: same seed, same pictures.
        workers: processes that draw; None means one for each core that this process may use.

    Returns:
        Whether it was drawn now.

    Raises:
        UserError: the folder cannot be written, or holds pictures that were not drawn.
    """
    card = {"set": name, "count": count, "seed": seed, "code": _code()}
    with locked(root):
        if _read_card(root) == card:
            log.info("%s is drawn already", root)
            return False
        require_replaceable(root, DRAWN, "set")
        with atomic_folder(root) as folder:
            WRITERS[name](folder, count, seed, workers=cpu_count() if workers is None else workers)
            write_json(folder / DRAWN, card)
    return True


def _read_card(root: Path) -> object:
    try:
        return json.loads((root / DRAWN).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _code() -> str:
    """Digest of the drawing code: what another version of it drew is drawn anew."""
    digest = hashlib.sha256()
    for file in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(file.read_bytes().replace(b"\r\n", b"\n"))
    return digest.hexdigest()[:16]
