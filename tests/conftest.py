"""What all tests share: no network, one thread, fixed seeds, and a model, tokenizer and batch of toy size."""

import os
import shutil
import tempfile

# Read by the libraries when they are imported, hence before everything else. The caches are the tests' own.
HF_HOME = tempfile.mkdtemp(prefix="rmcl-hub-tests-")
os.environ.update(
    HF_HOME=HF_HOME,
    HF_HUB_OFFLINE="1",
    HF_HUB_DISABLE_TELEMETRY="1",
    HF_HUB_DISABLE_PROGRESS_BARS="1",
    OMP_NUM_THREADS="1",
    TOKENIZERS_PARALLELISM="false",
)

import socket  # noqa: E402

import pytest  # noqa: E402
import torch  # noqa: E402
from transformers import BertTokenizerFast, set_seed  # noqa: E402

LOOPBACK = ("127.0.0.1", "::1", "localhost")
VOCABULARY = """
[PAD] [UNK] [CLS] [SEP] [MASK] ##s ##ing . ,
a the of in on with and is are two three no not there near left right both
red blue green black white big small large tiny happy glad sad round
dog cat puppy bird fish tree flower house car auto ball cup apple
man woman child sun moon star heart face sits runs eats holds
""".split()


def pytest_unconfigure():
    shutil.rmtree(HF_HOME, ignore_errors=True)


@pytest.fixture(autouse=True, scope="session")
def _no_network():
    """Refuse every connection that leaves this machine, and say which one it was."""
    connect, getaddrinfo = socket.socket.connect, socket.getaddrinfo

    def check(host):
        if host not in LOOPBACK:
            raise RuntimeError(f"tests must not use the network, but one tried to reach {host!r}")

    def guarded_connect(self, address):
        if self.family in (socket.AF_INET, socket.AF_INET6):
            check(address[0])
        return connect(self, address)

    def guarded_getaddrinfo(host, *args, **kwargs):
        if host not in (None, "", socket.gethostname()):
            check(host)
        return getaddrinfo(host, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", guarded_connect)
        patch.setattr(socket, "getaddrinfo", guarded_getaddrinfo)
        yield


@pytest.fixture(autouse=True)
def _deterministic():
    """Seed Python, NumPy and torch before every test, and leave the other cores to the other workers."""
    torch.set_num_threads(1)
    set_seed(0)


@pytest.fixture(scope="session")
def vocabulary_file(tmp_path_factory):
    """A WordPiece vocabulary of 67 tokens, one a line."""
    path = tmp_path_factory.mktemp("vocabulary") / "vocab.txt"
    path.write_text("\n".join(VOCABULARY) + "\n")
    return path


@pytest.fixture
def tiny_tokenizer(vocabulary_file):
    """A fresh tokenizer; the path goes in by position because the keyword means nothing to transformers 5."""
    return BertTokenizerFast(str(vocabulary_file))


@pytest.fixture
def tiny_config():
    """Two layers of width 32 on images of 32 x 32 pixels: four patches of 16 x 16."""
    from rmcl_hub.modeling_rmcl import RMCLViltConfig

    return RMCLViltConfig(
        vocab_size=len(VOCABULARY),
        cls_token_id=VOCABULARY.index("[CLS]"),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=40,
        image_size=32,
        patch_size=16,
        projection_dim=16,
        projection_hidden_size=32,
        queue_size=16,
    )


@pytest.fixture
def tiny_batch(tiny_tokenizer):
    """Four pairs of random normalised pixels in [-1, 1] and captions of different lengths."""
    text = [
        "a red dog runs .",
        "the small cat sits near a tree .",
        "a blue ball .",
        "two birds and a happy child .",
    ]
    generator = torch.Generator().manual_seed(0)
    return {
        "pixel_values": torch.rand(len(text), 3, 32, 32, generator=generator) * 2 - 1,
        "pixel_mask": torch.ones(len(text), 32, 32, dtype=torch.long),
        **tiny_tokenizer(text, padding=True, return_token_type_ids=True, return_tensors="pt"),
        "text": text,
    }
