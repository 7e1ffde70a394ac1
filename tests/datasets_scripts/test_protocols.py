from itertools import combinations

import pytest

from rmcl_hub.datasets_scripts.corpora import CORPORA
from rmcl_hub.datasets_scripts.protocols import PROTOCOLS, Gallery, find_protocol


@pytest.mark.parametrize("protocol", PROTOCOLS, ids=lambda protocol: f"{protocol.name}-{protocol.corpus}")
class TestEveryProtocol:
    def test_splits_are_those_of_the_corpus(self, protocol):
        corpus = CORPORA[protocol.corpus]
        assert {*protocol.train, *protocol.validation, *protocol.test} <= set(corpus.splits)
        assert corpus.task == ("captions" if protocol.task == "retrieval" else protocol.task)

    def test_shares_a_split_exactly_where_it_says_that_it_is_contaminated(self, protocol):
        parts = [set(protocol.train), set(protocol.validation), set(protocol.test)]
        shared = any(first & second for first, second in combinations(parts, 2))
        assert shared == bool(protocol.contamination)
        assert protocol.name == "thesis" or not shared

    def test_galleries_of_retrieval_fill_the_documented_split_at_most(self, protocol):
        assert bool(protocol.galleries) == (protocol.task == "retrieval")
        for gallery in protocol.galleries:
            pictures = sum(CORPORA[protocol.corpus].documented[split].images for split in protocol.test)
            assert gallery.size * gallery.count <= pictures


def test_the_numbers_of_the_literature():
    """COCO's 5K, and its 1K as the mean of five; Flickr30k's 1K; the thesis's 500."""
    assert find_protocol("clean", "coco_captions").galleries == (Gallery(1000, 5), Gallery(5000, 1))
    assert find_protocol("clean", "flickr30k").galleries == (Gallery(1000),)
    assert find_protocol("thesis", "coco_captions").galleries == (Gallery(500),)


def test_the_thesis_trains_on_what_it_tests():
    thesis, clean = find_protocol("thesis", "vqav2"), find_protocol("clean", "vqav2")
    assert set(thesis.train) & set(thesis.test)
    assert "thesis Table 4.2" in thesis.contamination
    assert thesis.test == clean.test
    assert not clean.contamination


@pytest.mark.parametrize(
    ("name", "corpus"), [("dirty", "vqav2"), ("clean", "sbu_captions"), ("thesis", "snli_ve")]
)
def test_an_unknown_protocol_is_answered_with_those_there_are(name, corpus):
    with pytest.raises(
        ValueError, match=rf"no protocol '{name}' of '{corpus}'; there are: clean of vqav2, thesis"
    ):
        find_protocol(name, corpus)
