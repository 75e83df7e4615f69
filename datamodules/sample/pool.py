"""Drawing many independent pictures on all cores, in order."""

import multiprocessing
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import TypeVar

import cv2
import numpy as np

from launch.progress import track

Job = TypeVar("Job")
Drawn = TypeVar("Drawn")


def generator(seed: int, *stream: int) -> np.random.Generator:
    """A generator of its own for every picture: ``stream`` is a constant of the set and the picture's number.

    Pictures then do not depend on how many there are, or on which process draws them.
    """
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, *stream])))


def draw_all(
    function: Callable[[Job], Drawn],
    jobs: Iterable[Job],
    description: str,
    workers: int = 1,
) -> Iterator[Drawn]:
    """``map`` with a progress bar, in ``workers`` processes; results come in the order of the jobs.

    With more than one worker the calling script needs the usual ``if __name__ == "__main__"``, since the
    processes are spawned (a fork would inherit the threads of torch and OpenCV in an unknown state).
    """
    work = list(jobs)
    if workers <= 1 or len(work) < 2 * workers:
        yield from track(map(function, work), description, total=len(work))
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=cv2.setNumThreads, initargs=(1,)) as pool:
        chunk = max(1, min(16, len(work) // (4 * workers)))
        yield from track(pool.map(function, work, chunksize=chunk), description, total=len(work))
