"""The stream over prepared corpora: every row once, in an order of its arguments alone, resumed exactly."""

import hashlib
from collections import Counter
from itertools import chain, pairwise, product

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from torch.utils.data import DataLoader

from rmcl_hub.datasets_scripts.mixture import MixturePart, MixtureStream
from rmcl_hub.datasets_scripts.schema import FEATURES
from rmcl_hub.datasets_scripts.shards import MANIFEST, Manifest, PreparedCorpus, Shard, SplitManifest


@pytest.fixture
def write_corpus(tmp_path):
    """A function that writes a corpus whose pictures are a few bytes: shards of the given sizes."""

    def write(name, sizes, task="captions", rows_per_group=4):
        folder = tmp_path / name
        (folder / "data").mkdir(parents=True)
        shards, number = [], 0
        for index, size in enumerate(sizes):
            rows = [
                {
                    "image": {"bytes": b"%d" % row, "path": f"{row}.jpg"},
                    "image_id": f"{name}-{row}",
                    "captions": [f"caption {row}"],
                    "concept": str(row),
                    "source": name,
                }
                for row in range(number, number + size)
            ]
            number += size
            file = folder / "data" / f"train-{index:05d}-of-{len(sizes):05d}.parquet"
            schema = FEATURES["captions"].arrow_schema
            pq.write_table(pa.Table.from_pylist(rows, schema=schema), file, row_group_size=rows_per_group)
            digest = hashlib.sha256(file.read_bytes()).hexdigest()
            shards.append(Shard(f"data/{file.name}", size, file.stat().st_size, digest))
        split = SplitManifest(number, number, number, {}, shards)
        manifest = Manifest(name, task, "1.0.0", "none", {"train": split})
        (folder / MANIFEST).write_text(manifest.to_json())
        return PreparedCorpus(str(folder))

    return write


def ids_of_batch(rows):
    return [row and row["image_id"] for row in rows]


def batches_of(parts, workers=0, epoch=0, passed=0, **settings):
    """Ids by batch, as a `DataLoader` hands them out."""
    stream = MixtureStream(parts, **{"batch_size": 3, "buffer_size": 7, **settings})
    stream.set_epoch(epoch)
    stream.resume_at(epoch, passed)
    loader = DataLoader(stream, stream.batch_size, num_workers=workers, collate_fn=ids_of_batch)
    batches = list(loader)
    assert len(batches) == len(loader)  # what Trainer counts its steps by
    return batches


def flat(batches):
    return list(chain.from_iterable(batches))


@pytest.fixture
def two_corpora(write_corpus):
    """36 and 12 rows."""
    return [
        MixturePart(write_corpus("photos", [10, 10, 16]), ["train"]),
        MixturePart(write_corpus("drawings", [12]), ["train"]),
    ]


@pytest.fixture
def everything():
    return {f"photos-{row}" for row in range(36)} | {f"drawings-{row}" for row in range(12)}


@pytest.mark.parametrize(("workers", "world_size"), [(0, 1), (2, 1), (0, 2), (2, 2)])
def test_an_epoch_holds_every_row_once_over_all_processes_and_workers(
    two_corpora, everything, workers, world_size
):
    batches = [
        batch
        for rank in range(world_size)
        for batch in batches_of(two_corpora, workers, rank=rank, world_size=world_size)
    ]
    seen = Counter(image_id for batch in batches for image_id in batch)
    assert seen == Counter(everything)


@pytest.mark.parametrize("workers", [0, 2])
def test_processes_make_the_same_number_of_batches_of_the_same_sizes(two_corpora, everything, workers):
    """48 rows on 5 processes: 9 each; the three left out differ from epoch to epoch."""
    sizes, left_out = set(), set()
    for epoch in range(3):
        seen = []
        for rank in range(5):
            batches = batches_of(two_corpora, workers, epoch, rank=rank, world_size=5, batch_size=4)
            sizes.add(tuple(len(batch) for batch in batches))
            seen += [image_id for batch in batches for image_id in batch]
        assert len(seen) == len(set(seen)) == 45
        left_out.add(frozenset(everything - set(seen)))
    assert sizes == {(4, 4, 1)}
    assert len(left_out) > 1


@pytest.mark.parametrize("workers", [0, 2])
def test_the_order_follows_from_seed_and_epoch(two_corpora, workers):
    first = batches_of(two_corpora, workers)
    assert batches_of(two_corpora, workers) == first
    others = [batches_of(two_corpora, workers, epoch=1), batches_of(two_corpora, workers, seed=1)]
    assert all(other != first for other in others)
    assert all(sorted(flat(other)) == sorted(flat(first)) for other in others)


def test_corpora_are_mixed_and_rows_shuffled_beyond_their_groups(write_corpus):
    """In 40 batches of 8, both corpora come in nearly each, and neighbours in the files rarely meet."""
    parts = [MixturePart(write_corpus(name, [160]), ["train"]) for name in ("photos", "drawings")]
    order = flat(batches_of(parts, buffer_size=64, batch_size=8))
    chunks = [{image_id.split("-")[0] for image_id in order[start : start + 8]} for start in range(0, 320, 8)]
    assert sum(len(chunk) == 2 for chunk in chunks) >= 36
    names = [(name, int(row)) for name, row in (image_id.split("-") for image_id in order)]
    neighbours = sum(a[0] == b[0] and b[1] == a[1] + 1 for a, b in pairwise(names))
    assert neighbours < 20  # 1 expected of a full shuffle, 240 without a buffer


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(("workers", "world_size"), [(0, 1), (2, 2)])
def test_a_resumed_epoch_goes_on_at_the_exact_next_row(two_corpora, workers, world_size, weighted):
    if weighted:
        two_corpora = [
            MixturePart(part.corpus, part.splits, weight)
            for part, weight in zip(two_corpora, (1, 3), strict=True)
        ]
    for rank in range(world_size):
        settings = {"rank": rank, "world_size": world_size, "epoch": 2}
        whole = batches_of(two_corpora, workers, **settings)
        for passed in (0, 1, 2, len(whole) // 2, len(whole)):
            resumed = batches_of(two_corpora, workers, passed=passed, **settings)
            assert resumed[passed:] == whole[passed:]
            assert all(set(batch) == {None} for batch in resumed[:passed])


def test_a_buffer_larger_than_the_corpus_shuffles_all_of_it(write_corpus):
    ids = flat(
        batches_of([MixturePart(write_corpus("one", [40], rows_per_group=40), ["train"])], buffer_size=99)
    )
    assert sorted(ids) == sorted(f"one-{row}" for row in range(40))
    assert ids != [f"one-{row}" for row in range(40)]


def test_what_is_passed_over_is_not_read(two_corpora, monkeypatch):
    """48 rows in 13 groups; the last 6 rows lie in at most 6 of them."""
    from rmcl_hub.datasets_scripts import mixture

    read = []
    real = mixture.read_row_group
    monkeypatch.setattr(mixture, "read_row_group", lambda *place: read.append(place) or real(*place))
    batches_of(two_corpora)
    assert len(read) == len(set(read)) == 13  # every group once
    read.clear()
    batches_of(two_corpora, passed=14)
    assert 1 <= len(read) <= 6


def test_only_the_resumed_epoch_passes_over_rows(two_corpora):
    stream = MixtureStream(two_corpora, batch_size=3)
    stream.resume_at(epoch=1, batches=5)
    assert None not in list(stream)
    stream.set_epoch(1)
    assert [row is None for row in stream] == [True] * 15 + [False] * 33
    stream.set_epoch(2)
    assert None not in list(stream)


def test_memory_holds_no_more_rows_than_the_buffer_and_one_group(two_corpora, monkeypatch):
    from rmcl_hub.datasets_scripts import mixture

    portions = []

    class Recorded(mixture._Portion):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            portions.append(self)

    monkeypatch.setattr(mixture, "_Portion", Recorded)
    most = 0
    for _ in MixtureStream(two_corpora, batch_size=3, buffer_size=7):
        most = max(most, sum(len(portion.loaded) for portion in portions))
    assert 4 <= most <= 7 + 4


def test_weights_are_the_shares_of_the_draws_and_shares_are_not_repeated_before_they_end(write_corpus):
    """4,000 draws at 3 : 1 from 3,000 and 1,000 rows turned round: the small corpus gets 3 of 4."""
    parts = [
        MixturePart(write_corpus("large", [1500, 1500], rows_per_group=100), ["train"], 1.0),
        MixturePart(write_corpus("small", [1000], rows_per_group=100), ["train"], 3.0),
    ]
    drawn = flat(batches_of(parts, batch_size=100, buffer_size=1))
    of_small = [image_id for image_id in drawn if image_id.startswith("small")]
    assert len(drawn) == 4000
    assert 2900 <= len(of_small) <= 3100  # 3,000 expected, standard deviation 27
    times = Counter(of_small).values()
    assert max(times) - min(times) <= 1
    for turn in range(2):  # the buffer holds one place, so passes do not overlap
        assert len(set(of_small[1000 * turn : 1000 * (turn + 1)])) == 1000
    assert of_small[:1000] != of_small[1000:2000]


def test_weighted_workers_have_shares_of_their_own(write_corpus):
    parts = [MixturePart(write_corpus("photos", [40]), ["train"], 1.0)]
    shares = [
        {
            image_id
            for batch in batches_of(parts, 2, rank=rank, world_size=2, batch_size=2)
            for image_id in batch
        }
        for rank in range(2)
    ]
    assert not shares[0] & shares[1]
    assert len(shares[0]) == len(shares[1]) == 20


def test_rows_are_the_shards_rows(two_corpora):
    rows = {row["image_id"]: row for row in MixtureStream(two_corpora, batch_size=3)}
    assert rows["photos-7"] == {
        "image": {"bytes": b"7", "path": "7.jpg"},
        "image_id": "photos-7",
        "captions": ["caption 7"],
        "concept": "7",
        "source": "photos",
    }


@pytest.mark.parametrize(
    ("rows", "batch_size", "workers"), list(product((0, 1, 5, 6, 7, 12, 13, 23), (1, 3), (1, 2, 3)))
)
def test_workers_are_dealt_what_a_loop_over_batches_deals(rows, batch_size, workers):
    from rmcl_hub.datasets_scripts.mixture import _dealt

    dealt = [0] * workers
    for turn, start in enumerate(range(0, rows, batch_size)):
        dealt[turn % workers] += min(batch_size, rows - start)
    assert [_dealt(rows, batch_size, worker, workers) for worker in range(workers)] == dealt


def test_errors_say_what_to_do(two_corpora, write_corpus):
    photos, drawings = two_corpora
    other = MixturePart(write_corpus("questions", [4], task="vqa"), ["train"])
    with pytest.raises(ValueError, match=r"corpora of one task, got \['captions', 'vqa'\]"):
        MixtureStream([photos, other], batch_size=2)
    with pytest.raises(ValueError, match="corpora of one task, got none"):
        MixtureStream([], batch_size=2)
    half = MixturePart(drawings.corpus, ["train"], 0.5)
    with pytest.raises(ValueError, match="all corpora of a mixture have a weight, or none"):
        MixtureStream([photos, half], batch_size=2)
    with pytest.raises(ValueError, match="at least 1, got 0 and 1000"):
        MixtureStream([photos], batch_size=0)
    with pytest.raises(ValueError, match="12 rows cannot be shared by 13 processes"):
        MixtureStream([drawings], batch_size=2, world_size=13)
    with pytest.raises(ValueError, match="12 rows cannot be shared by 13 workers"):
        list(MixtureStream([half], batch_size=1, world_size=12)._endless(0, 0, 13))
    with pytest.raises(ValueError, match="no split 'test', only train"):
        MixtureStream([MixturePart(photos.corpus, ["test"])], batch_size=2)


def test_only_parquet_is_mixed(two_corpora):
    two_corpora[0].corpus.manifest.format = "webdataset"
    with pytest.raises(ValueError, match=r"webdataset shards, .* prepare it with --format parquet"):
        MixtureStream(two_corpora, batch_size=2)


def test_a_damaged_shard_is_named_before_training_starts(two_corpora):
    address = two_corpora[0].corpus.files("train")[1]
    with open(address, "r+b") as file:  # noqa: PTH123 - an address, which is a path here
        file.truncate(200)
    with pytest.raises(OSError, match=r"train-00001-of-00003.parquet cannot be read .* Remove it and run"):
        MixtureStream(two_corpora, batch_size=2)
