"""SBU Captions (Ordonez et al., NIPS 2011): photographs of Flickr with what their owners wrote under them."""

from typing import ClassVar

from .official_builder import PublishedFile, SplitSize
from .url_corpus import UrlCorpus


class SbuCaptions(UrlCorpus):
    """A million addresses, many of them dead by now: the thesis had 780 thousand pictures.

    Files: the shards that img2dataset made of `sbu-captions-all.json` (published in
    `sbu-captions-all.tar.gz`), in `train`.
    """

    splits = ("train",)
    published: ClassVar = {
        "sbu-captions-all.tar.gz": PublishedFile(
            url="https://www.cs.rice.edu/~vo9/sbucaptions/sbu-captions-all.tar.gz"
        ),
    }
    documented: ClassVar = {"train": SplitSize(1_000_000, 1_000_000)}
    url_lists: ClassVar = {"train": "sbu-captions-all.json"}
    list_options = "--input_format json --url_col image_urls --caption_col captions"
    source = "sbu_captions"
    licence = "not stated; pictures under the terms of their Flickr owners"
    homepage = "https://www.cs.rice.edu/~vo9/sbucaptions"
