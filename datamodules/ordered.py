"""Results of work that threads do, in the order in which it was given, a few at a time."""

import collections
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from typing import TypeVar

Result = TypeVar("Result")


def in_order(work: Iterable[Future[Result]], most: int) -> Iterator[Result]:
    """Results in the order of ``work``, of which at most ``most`` are taken ahead; the rest waits unasked.

    What was taken and not yet begun is cancelled when the caller stops early.
    """
    waiting: collections.deque[Future[Result]] = collections.deque()
    try:
        for future in work:
            waiting.append(future)
            if len(waiting) >= most:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()
