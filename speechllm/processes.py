"""Work on many blocks in several processes: results in order, memory bounded."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from speechllm.errors import UserError

WORKERS = min(16, os.cpu_count() or 1)  # processes, where nobody says how many
AHEAD = 4  # blocks per process that are handed out before the first result is awaited
T, Block, Result = TypeVar("T"), TypeVar("Block"), TypeVar("Result")
_work: Callable[[Any], Any]  # what this process does, if it is one of the workers


def batched(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Lists of ``size`` items; the last may be shorter."""
    items = iter(items)
    return iter(lambda: list(itertools.islice(items, size)), [])


def ordered(work: Callable[[Block], Result], blocks: Iterable[Block], workers: int) -> Iterator[tuple[Block, Result]]:
    """Each block with ``work(block)``, in the order of the blocks.

    The processes are forked, so that ``work`` may be a closure over whatever is loaded already; blocks and results are
    pickled. One block alone, or one worker, is worked on here.

    Raises:
        UserError: a process was killed.
    """
    blocks = iter(blocks)
    first = list(itertools.islice(blocks, 2))
    blocks = itertools.chain(first, blocks)
    if workers < 2 or len(first) < 2:
        yield from ((block, work(block)) for block in blocks)
        return
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("fork"), initializer=_begin, initargs=(work,))
    waiting: deque = deque()
    try:
        for block in blocks:
            waiting.append((block, pool.submit(_do, block)))
            if len(waiting) == AHEAD * workers:
                done, future = waiting.popleft()
                yield done, future.result()
        for done, future in waiting:
            yield done, future.result()
    except BrokenProcessPool as error:
        raise UserError(
            f"one of {workers} processes was killed, perhaps because memory ran out; use fewer with ++max_workers"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _begin(work: Callable[[Any], Any]) -> None:
    global _work
    _work = work
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes are the parallelism
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # the parent tells of an interruption
    threading.Thread(target=_follow_parent, daemon=True).start()


def _follow_parent() -> None:
    """End with the parent: after its SIGKILL a worker would wait for work for ever."""
    multiprocessing.parent_process().join()
    os._exit(1)


def _do(block: Any) -> Any:
    return _work(block)
