"""A stream over prepared corpora: mixed, shuffled, cut for processes and workers, resumed at the next row."""

import random
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import count
from typing import NamedTuple

import pyarrow.parquet as pq
from torch.utils.data import IterableDataset, get_worker_info

from .schema import Row
from .shards import PreparedCorpus, open_shard, read_row_group

OPEN_SHARDS = 64
"""Shards that a worker keeps open; their footers stay in memory."""


@dataclass(frozen=True)
class MixturePart:
    """Splits of one corpus, and its share of the draws (None for all: in proportion to their rows)."""

    corpus: PreparedCorpus
    splits: Sequence[str]
    weight: float | None = None


class Block(NamedTuple):
    """A row group of a shard: what is read at once."""

    address: str
    group: int
    rows: int


class MixtureStream(IterableDataset):
    """Rows of prepared corpora of one task, in an order that follows from the arguments alone.

    Without weights an epoch holds every row once, over all processes and workers; so that all processes make
    the same steps, up to `world_size - 1` rows are left out, others in every epoch. With weights an epoch has
    as many rows, each drawn from a corpus with the probability of its weight, and of its share of a corpus a
    worker repeats no row before it has seen all.

    The order depends on seed, epoch, rank, world size, workers, batch and buffer size. What is shuffled are
    places of rows; a picture is read when its turn comes. Hence a run resumes within an epoch at the exact
    next row, buffer included, and reads nothing of what it has passed (`resume_at`).

    Args:
        parts: The corpora.
        batch_size: Rows per batch of one process. Workers take batches in turns, as `DataLoader` asks them.
        seed: Of all orders.
        buffer_size: Places that are shuffled at a time, after a shuffle of all row groups. A worker holds the
            pictures of at most so many rows and one row group.
        rank: Of this process.
        world_size: Number of processes.

    Raises:
        ValueError: If the corpora are of several tasks, if some have weights and some not, or if there are
            fewer rows than processes.
        OSError: If a shard is missing or damaged.
    """

    def __init__(
        self,
        parts: Sequence[MixturePart],
        *,
        batch_size: int,
        seed: int = 0,
        buffer_size: int = 1000,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        _check(parts, batch_size, buffer_size)
        self.batch_size = batch_size
        self.seed = seed
        self.buffer_size = buffer_size
        self.rank = rank
        self.world_size = world_size
        self.epoch = 0
        self._resumed_epoch, self._batches_passed = -1, 0
        blocks = [_blocks(part) for part in parts]
        self.weights = [part.weight for part in parts if part.weight is not None]
        # Without weights all corpora are one pool, whose row groups are shuffled together.
        self.pools = blocks if self.weights else [[block for pool in blocks for block in pool]]
        self.num_rows = sum(_rows(pool) for pool in self.pools)
        if self.num_rows < world_size:
            raise ValueError(f"{self.num_rows} rows cannot be shared by {world_size} processes.")

    def __len__(self) -> int:
        """Rows of an epoch on this process."""
        return self.num_rows // self.world_size

    def set_epoch(self, epoch: int) -> None:
        """Say which epoch the next iteration is."""
        self.epoch = epoch

    def resume_at(self, epoch: int, batches: int) -> None:
        """Let iterations of `epoch` pass over the first batches of this process: their rows come as None.

        What skips batches of a `DataLoader`, as `Trainer` does when it resumes, then skips without reading.
        """
        self._resumed_epoch, self._batches_passed = epoch, batches

    def __iter__(self) -> Iterator[Row | None]:
        """Rows of this worker, in order; None for those that are passed over."""
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        passed = 0
        if self.epoch == self._resumed_epoch:
            passed = _dealt(self._batches_passed * self.batch_size, self.batch_size, worker, workers)
        shards = _OpenShards()
        for position, (portion, row) in enumerate(self._shuffled(worker, workers)):
            if position < passed:
                portion.pass_over(row)
                yield None
            else:
                yield portion.take(row, shards)

    def _shuffled(self, worker: int, workers: int) -> Iterator[tuple["_Portion", int]]:
        """Places of this worker's rows, through the buffer."""
        slot = self.rank * workers + worker
        draws = random.Random(f"{self.seed} {self.epoch} {slot} {self.world_size * workers}")
        buffer: list[tuple[_Portion, int]] = []
        for place in self._mixed(worker, workers, draws):
            if len(buffer) < self.buffer_size:
                buffer.append(place)
                continue
            chosen = draws.randrange(self.buffer_size)
            yield buffer[chosen]
            buffer[chosen] = place
        draws.shuffle(buffer)
        yield from buffer

    def _mixed(self, worker: int, workers: int, draws: random.Random) -> Iterator[tuple["_Portion", int]]:
        num_rows = _dealt(len(self), self.batch_size, worker, workers)
        if not self.weights:
            start = self.rank * len(self)
            start += sum(_dealt(len(self), self.batch_size, before, workers) for before in range(worker))
            yield from self._pool(0, turn=0, start=start, stop=start + num_rows)
            return
        slot, slots = self.rank * workers + worker, self.world_size * workers
        endless = [self._endless(pool, slot, slots) for pool in range(len(self.pools))]
        for _ in range(num_rows):
            yield next(draws.choices(endless, self.weights)[0])

    def _endless(self, pool: int, slot: int, slots: int) -> Iterator[tuple["_Portion", int]]:
        """One pass after the other over this worker's share of a pool."""
        rows = _rows(self.pools[pool])
        if rows < slots:
            raise ValueError(
                f"A corpus of {rows} rows cannot be shared by {slots} workers of all processes; use fewer."
            )
        for turn in count():
            yield from self._pool(pool, turn, rows * slot // slots, rows * (slot + 1) // slots)

    def _pool(self, pool: int, turn: int, start: int, stop: int) -> Iterator[tuple["_Portion", int]]:
        """Places of the rows `start` to `stop` of a pool, whose row groups all workers shuffle alike."""
        blocks = list(self.pools[pool])
        random.Random(f"{self.seed} {self.epoch} {pool} {turn}").shuffle(blocks)
        first = 0  # place of the block's first row in the pool
        for block in blocks:
            rows = range(max(start - first, 0), min(stop - first, block.rows))
            if rows:
                portion = _Portion(block, rows)
                yield from ((portion, row) for row in rows)
            first += block.rows


class _Portion:
    """The rows of a block that one worker has in one pass, read together when the first is taken."""

    def __init__(self, block: Block, rows: range) -> None:
        self.block = block
        self.pending = set(rows)
        self.loaded: dict[int, Row] = {}

    def pass_over(self, row: int) -> None:
        self.pending.remove(row)

    def take(self, row: int, shards: "_OpenShards") -> Row:
        if not self.loaded:
            rows = read_row_group(self.block.address, shards[self.block.address], self.block.group)
            self.loaded = {place: rows[place] for place in self.pending}
        self.pending.remove(row)
        return self.loaded.pop(row)


class _OpenShards(OrderedDict[str, pq.ParquetFile]):
    """The shards read last, open."""

    def __missing__(self, address: str) -> pq.ParquetFile:
        if len(self) == OPEN_SHARDS:
            self.popitem(last=False)[1].close()
        self[address] = open_shard(address)
        return self[address]


def _blocks(part: MixturePart) -> list[Block]:
    addresses = [address for split in part.splits for address in part.corpus.files(split)]
    with ThreadPoolExecutor() as pool:  # footers of shards on the Hub take their time
        return [block for blocks in pool.map(_blocks_of_shard, addresses) for block in blocks]


def _blocks_of_shard(address: str) -> list[Block]:
    with open_shard(address) as shard:
        groups = [shard.metadata.row_group(group) for group in range(shard.metadata.num_row_groups)]
    return [Block(address, group, rows.num_rows) for group, rows in enumerate(groups)]


def _rows(pool: Sequence[Block]) -> int:
    return sum(block.rows for block in pool)


def _dealt(rows: int, batch_size: int, worker: int, workers: int) -> int:
    """How many of `rows` a worker gets, if batches are dealt in turns and only the last is not full."""
    batches, rest = divmod(rows, batch_size)
    return len(range(worker, batches, workers)) * batch_size + (rest if batches % workers == worker else 0)


def _check(parts: Sequence[MixturePart], batch_size: int, buffer_size: int) -> None:
    for corpus in (part.corpus for part in parts):
        if corpus.manifest.format != "parquet":
            raise ValueError(
                f"{corpus.location} has {corpus.manifest.format} shards, in which a row cannot be found "
                "without reading all before it; a mixture needs Parquet: prepare it with --format parquet."
            )
    tasks = {part.corpus.manifest.task for part in parts}
    if len(tasks) != 1:
        raise ValueError(f"A stream needs corpora of one task, got {sorted(tasks) or 'none'}.")
    if len({part.weight is None for part in parts}) != 1:
        raise ValueError("Either all corpora of a mixture have a weight, or none has.")
    if batch_size < 1 or buffer_size < 1:
        raise ValueError(
            f"batch_size and buffer_size must be at least 1, got {batch_size} and {buffer_size}."
        )
