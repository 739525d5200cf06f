"""Work in several processes: order, memory, and what happens when a process dies."""

import os
import signal
import time

import pytest

from speechllm.errors import UserError
from speechllm.processes import batched, ordered


def test_results_come_in_the_order_of_the_blocks_from_several_processes():
    def work(block):
        time.sleep(0.02 * (3 - block[0] % 4))  # the first of each four takes longest
        return os.getpid(), [item * 10 for item in block]

    found = list(ordered(work, batched(range(40), 1), workers=3))
    assert [block for block, _ in found] == [[i] for i in range(40)]
    assert [result for _, (_, result) in found] == [[i * 10] for i in range(40)]
    processes = {process for _, (process, _) in found}
    assert len(processes) > 1 and os.getpid() not in processes


def test_one_block_or_one_worker_starts_no_process():
    for blocks, workers in ((1, 4), (5, 1), (0, 4)):
        found = list(ordered(lambda _: os.getpid(), range(blocks), workers))
        assert found == [(block, os.getpid()) for block in range(blocks)]


def test_blocks_are_taken_as_results_are():
    taken = []

    def blocks():
        for block in range(1000):
            taken.append(block)
            yield block

    results = ordered(lambda block: block, blocks(), workers=2)
    for _ in range(10):
        next(results)
    assert len(taken) < 30
    results.close()


def test_a_fault_of_the_work_is_raised_here():
    def work(block):
        if block == 5:
            raise UserError("x.tar: not a tar")
        return block

    with pytest.raises(UserError, match=r"x\.tar: not a tar"):
        list(ordered(work, range(10), workers=2))


def test_a_killed_process_is_told_of():
    def work(block):
        if block == 5:
            os.kill(os.getpid(), signal.SIGKILL)
        return block

    with pytest.raises(UserError, match=r"was killed.*max_workers"):
        list(ordered(work, range(10), workers=2))
