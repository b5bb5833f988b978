"""`WorkQueue`: which rank works on which item next, so that no rank waits for long for one that is slow or lost."""

import math
import time
from collections.abc import Iterator
from uuid import uuid4

from torch.distributed.distributed_c10d import PrefixStore, Store

# An item is claimed again when its claim is so many times as old as the seconds that a rank's own last item took.
PATIENCE = 1.5
# Seconds between two looks at what other ranks have finished.
LOOK_EVERY_S = 0.5


class WorkQueue:
    """Hands out the items 0 to `num_items` - 1 to the ranks that share a `store`, each with a queue of the same `name`.

    An item can be finished twice, since ranks without work claim again what others hold for too long. No two clocks are
    compared: claims are numbered, and a rank knows when it has seen which number.
    """

    def __init__(self, store: Store, name: str, num_items: int) -> None:
        self._store, self.num_items = PrefixStore(name, store), num_items
        self._opened_at = self._looked_at = time.monotonic()
        # The items that were claimed when this rank claimed one, and the time.
        self._claims_seen: list[tuple[int, float]] = []
        self._own: set[int] = set()
        self._item_s: float | None = None
        self._is_given_up = False

    def claims(self) -> Iterator[int]:
        """Items that no other rank has claimed, until none is left."""
        while (item := self._store.add("claims", 1) - 1) < self.num_items:
            self._claims_seen.append((item + 1, time.monotonic()))
            yield from self._work_on(item)

    def claims_again(self) -> Iterator[int]:
        """Items that other ranks hold for too long; waits for others until all items are finished."""
        # The latest claim of each item that is not the first, and when this rank has seen that.
        claims = {item: (b"", self._known_since(item)) for item in range(self.num_items) if item not in self._own}
        num_seen = 0
        while (num_finished := self.num_finished) < self.num_items:
            if num_finished != num_seen:
                num_seen, claims = num_finished, {i: claims[i] for i in claims if not self.is_finished(i)}
                self._item_s = self._item_s or time.monotonic() - self._opened_at  # of another rank, without one here
            item = min(claims, key=lambda i: claims[i][1], default=None)
            if item is None or time.monotonic() - claims[item][1] < PATIENCE * (self._item_s or math.inf):
                time.sleep(LOOK_EVERY_S)
            elif self._claim_again(item, claims):
                yield from self._work_on(item)

    def _claim_again(self, item: int, claims: dict[int, tuple[bytes, float]]) -> bool:
        """Claim an item unless another rank has done so since this one last looked; whether that succeeded."""
        claim = uuid4().hex
        current = self._store.compare_set(f"again/{item}", claims[item][0].decode(), claim)
        claims[item] = (current, time.monotonic())
        if is_own := current.decode() == claim:
            del claims[item]
        return is_own

    def finish(self, item: int) -> None:
        """Note that the result of an item is stored."""
        if self._store.add(f"finished/{item}", 1) == 1:
            self._store.add("num_finished", 1)

    def is_finished(self, item: int) -> bool:
        """Whether a rank has stored the result of an item."""
        return self._store.check([f"finished/{item}"])

    def has_become_finished(self, item: int) -> bool:
        """Like `is_finished`, for a loop: it looks only every `LOOK_EVERY_S` seconds, and is False in between."""
        now = time.monotonic()
        if now - self._looked_at < LOOK_EVERY_S:
            return False
        self._looked_at = now
        self._is_given_up = self.is_finished(item)
        return self._is_given_up

    @property
    def num_finished(self) -> int:
        """How many items the ranks have finished."""
        return self._store.add("num_finished", 0)

    def _work_on(self, item: int) -> Iterator[int]:
        """Yield an item that this rank has claimed, and measure how long the rank takes for it if it finishes it."""
        self._own.add(item)
        self._is_given_up, started = False, time.monotonic()
        yield item
        if not self._is_given_up:
            self._item_s = time.monotonic() - started

    def _known_since(self, item: int) -> float:
        """When this rank has seen that an item is claimed."""
        return next((seen_at for num_claims, seen_at in self._claims_seen if num_claims > item), time.monotonic())
