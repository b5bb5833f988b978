"""Items are handed out once, and again when a rank holds one for too long."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from torch.distributed import HashStore

from pipeline.runtime import work_queue
from pipeline.runtime.work_queue import PATIENCE, WorkQueue

ITEM_S = 0.05


@pytest.fixture(autouse=True)
def _looks_often(monkeypatch):
    monkeypatch.setattr(work_queue, "LOOK_EVERY_S", 0.002)


def work(queue: WorkQueue, item_s: float) -> list[tuple[int, bool]]:
    """Take items until all are finished, `item_s` for each; the items, and whether this rank finished them."""
    taken = []
    for items in (queue.claims(), queue.claims_again()):
        for item in items:
            ends_at = time.monotonic() + item_s
            while not (is_given_up := queue.has_become_finished(item)) and time.monotonic() < ends_at:
                time.sleep(0.001)
            if not is_given_up:
                queue.finish(item)
            taken.append((item, not is_given_up))
    return taken


def work_together(num_items: int, *item_s: float) -> tuple[list[list[tuple[int, bool]]], float]:
    """What ranks of these speeds take, and the seconds until all have returned."""
    store = HashStore()
    started = time.monotonic()
    with ThreadPoolExecutor(len(item_s)) as threads:
        queues = [WorkQueue(store, "work", num_items) for _ in item_s]
        taken = list(threads.map(work, queues, item_s))
    return taken, time.monotonic() - started


def test_one_rank_takes_the_items_in_order():
    (taken,), _ = work_together(4, 0.0)
    assert taken == [(item, True) for item in range(4)]


@pytest.mark.parametrize("num_items", [0, 1, 3, 20])
def test_all_items_are_finished_by_ranks_that_take_the_next(num_items):
    taken, _ = work_together(num_items, *[ITEM_S] * 4)
    finished = [item for rank in taken for item, is_finished in rank if is_finished]
    assert set(finished) == set(range(num_items))
    if num_items == 20:
        assert all(len(rank) >= 4 for rank in taken)


def test_straggler_does_not_hold_up_the_others():
    """Three ranks take 4 x ITEM_S for 12 items. With one at a tenth of their speed, its item is made once more."""
    taken, elapsed_s = work_together(12, ITEM_S, ITEM_S, ITEM_S, 10 * ITEM_S)
    assert elapsed_s < 8 * ITEM_S  # 5, and the load of the machine
    assert [is_finished for _, is_finished in taken[3]] == [False]


def test_item_of_a_lost_rank_is_taken_over_once():
    store = HashStore()
    lost = WorkQueue(store, "work", 3)
    assert next(lost.claims()) == 0
    with ThreadPoolExecutor(2) as threads:
        queues = [WorkQueue(store, "work", 3) for _ in range(2)]
        taken = list(threads.map(work, queues, [ITEM_S] * 2))
    assert sorted(item for rank in taken for item, _ in rank) == [0, 1, 2]


def test_item_is_not_taken_over_early():
    store = HashStore()
    first, second = (WorkQueue(store, "work", 2) for _ in range(2))
    held = next(first.claims())
    finish = threading.Timer(PATIENCE * ITEM_S / 2, first.finish, [held])
    finish.start()
    assert work(second, ITEM_S / 2) == [(1, True)]
    assert second.num_finished == 2


def test_rank_without_an_item_waits_as_long_as_another_took_for_one():
    store = HashStore()
    lost, busy, idle = (WorkQueue(store, "work", 2) for _ in range(3))
    assert next(lost.claims()) == 0
    thread = threading.Timer(ITEM_S, busy.finish, [next(busy.claims())])
    started = time.monotonic()
    thread.start()
    assert work(idle, 0.0) == [(0, True)]
    assert time.monotonic() - started > PATIENCE * ITEM_S * 0.9


def test_queues_of_other_names_are_separate():
    store = HashStore()
    assert [work(WorkQueue(store, name, 1), 0.0) for name in "ab"] == [[(0, True)]] * 2
