"""What all tests share: no network, one thread, fixed seeds, a toy model, tokenizer and batch, and a Hub."""

import importlib
import os
import shutil
import subprocess
import sys
import tempfile
import threading

# Read by the libraries when they are imported, hence before everything else. The caches are the tests' own.
HF_HOME = tempfile.mkdtemp(prefix="rmcl-hub-tests-")
os.environ.update(
    HF_HOME=HF_HOME,
    HF_HUB_OFFLINE="1",
    HF_HUB_DISABLE_TELEMETRY="1",
    HF_HUB_DISABLE_PROGRESS_BARS="1",
    HF_HUB_DISABLE_XET="1",
    OMP_NUM_THREADS="1",
    TOKENIZERS_PARALLELISM="false",
)

import copy  # noqa: E402
import json  # noqa: E402
import socket  # noqa: E402
from pathlib import Path  # noqa: E402

import huggingface_hub  # noqa: E402
import numpy as np  # noqa: E402
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


@pytest.fixture
def after_quickstart(tiny_config, tiny_tokenizer, tmp_path, monkeypatch):
    """A working folder as the quickstart leaves it, with models of toy size; quick searches are quicker."""
    from transformers import ViltImageProcessor, ViltProcessor

    from rmcl_hub.datasets_scripts.openpairs import vqa_answers
    from rmcl_hub.evaluation.attack_suite import EFFORTS, Effort
    from rmcl_hub.modeling_rmcl import RMCLViltForQuestionAnswering, RMCLViltModel

    monkeypatch.chdir(tmp_path)
    images = ViltImageProcessor(size={"shortest_edge": 32}, size_divisor=16)
    processor = ViltProcessor(image_processor=images, tokenizer=tiny_tokenizer)
    RMCLViltModel(tiny_config).save_pretrained("runs/quickstart/seed-0/rmcl")
    processor.save_pretrained("runs/quickstart/seed-0/rmcl")
    tiny_config.id2label = dict(enumerate(vqa_answers()))
    tiny_config.label2id = {answer: index for index, answer in tiny_config.id2label.items()}
    RMCLViltForQuestionAnswering(tiny_config).save_pretrained("runs/quickstart/model")
    processor.save_pretrained("runs/quickstart/model")
    monkeypatch.setitem(EFFORTS, "quick", Effort(apgd_steps=2, square_queries=4, word_candidates=2))


def random_outcomes(seed, clean_rate, success_rates, num_examples=160):
    """Outcomes drawn with given rates, four questions per concept."""
    from rmcl_hub.evaluation.outcomes import Outcome

    generator = np.random.default_rng(seed)
    outcomes = []
    for index in range(num_examples):
        clean_correct = bool(generator.random() < clean_rate)
        for attack, success in success_rates.items():
            robust = clean_correct and bool(generator.random() >= success)
            words = 0 if attack.startswith("pgd") else 1
            outcomes.append(
                Outcome(
                    id=f"q{index}",
                    cluster=f"concept{index // 4}",
                    question_type=("colour", "object")[index % 2],
                    attack=attack,
                    found_by=attack,
                    label=1,
                    clean_prediction=int(clean_correct),
                    adversarial_prediction=int(robust),
                    clean_correct=clean_correct,
                    adversarial_correct=robust,
                    loss_before=0.5,
                    loss_after=1.5,
                    correct_8bit=robust,
                    delta_linf=0.0 if words else 4 / 255,
                    delta_l2=0.0 if words else 0.5,
                    words_changed=words,
                    num_words=5,
                    text="is the <b>big</b> boat red",
                    adversarial_text="is the large boat red" if words else "is the <b>big</b> boat red",
                )
            )
    return outcomes


def toy_results():
    """A complete `Results`: two models, two seeds, two attacks, retention, retrieval, curves and pictures."""
    from rmcl_hub.evaluation.compare import RETENTION, compare_models, count_conclusions
    from rmcl_hub.evaluation.outcomes import summarise
    from rmcl_hub.evaluation.pictures import picture_pair
    from rmcl_hub.evaluation.retrieval import recall_numbers

    rates = {"control": (0.7, {"pgd-4": 0.5, "words": 0.3}), "rmcl": (0.7, {"pgd-4": 0.2, "words": 0.3})}
    runs = {
        key: {seed: random_outcomes(10 * seed + index, *rates[key]) for seed in (0, 1)}
        for index, key in enumerate(rates)
    }
    task = compare_models(runs["control"], runs["rmcl"], task="VQA", protocol="frozen", num_resamples=200)
    retention = compare_models(runs["control"], runs["rmcl"], task=RETENTION, protocol="", num_resamples=200)
    scores = np.random.default_rng(0).random((12, 12)) + np.eye(12)
    numbers = recall_numbers(scores, np.eye(12, dtype=bool))
    retrieval = {"scorer": "dual", "forwards": 24, "text_to_image": numbers, "image_to_text": numbers}
    ramp = torch.linspace(0, 1, 48).expand(3, 48, 48).clone()
    noise = (torch.rand(3, 48, 48, generator=torch.Generator().manual_seed(0)) - 0.5).sign() * 4 / 255
    mask = torch.ones(48, 48, dtype=torch.long)
    pairs = [
        picture_pair(runs["control"][0][index], ramp, (ramp + noise).clamp(0, 1), mask) for index in (0, 1)
    ]
    curve = {
        str(name): [[step, 5 / (1 + step / 20) + name] for step in range(0, 200, 2)] for name in range(2)
    }
    return {
        "title": "Quickstart <report>",
        "summary": [count_conclusions(task), "Control and RMCL start from the same checkpoint."],
        "config": {"steps": 10, "name": "<script>alert(1)</script>"},
        "seeds": [0, 1],
        "versions": {"torch": "2.0", "python": "3.11"},
        "revision": {"git": "abc123", "data": "def456"},
        "data": {"train": {"pictures": 100}, "test": {"questions": 160, "concepts": 40}},
        "baselines": {"VQA": {"majority": 0.3}},
        "threat_models": {"pgd-4": "white-box attack on image: linf 4/255", "words": "one word in five"},
        "cost": {
            attack: {"forwards": 11.0, "backwards": 10.0, "seconds": 0.02} for attack in ("pgd-4", "words")
        },
        "seconds": {"pretrain": 12.0, "evaluate": 3.0},
        "models": {
            key: {
                "name": name,
                "description": "Trained on drawings.",
                "tasks": {"VQA": {"frozen": summarise(runs[key])}},
                "retention": summarise(runs[key]),
                "retrieval": {"openpairs": retrieval},
            }
            for key, name in (("control", "Continued"), ("rmcl", "RMCL"))
        },
        "comparisons": task + retention,
        "curves": [{"title": "Loss", "x_label": "step", "y_label": "nats", "series": curve}],
        "examples": [
            {
                **pair,
                "model": "control",
                "task": "VQA",
                "protocol": "frozen",
                "answers": ["no", "yes & <i>no</i>"],
            }
            for pair in pairs
        ],
        "notes": ["The pictures are drawings."],
    }


@pytest.fixture(scope="session")
def session_results():
    return toy_results()


@pytest.fixture
def results(session_results):
    return copy.deepcopy(session_results)


@pytest.fixture
def random_outcomes_of():
    return random_outcomes


@pytest.fixture
def evaluation_record():
    """An `evaluation.json` as `rmcl-hub evaluate` wrote it: VQA, two threat models, 64 examples."""
    return json.loads((Path(__file__).parent / "evaluation" / "evaluation_record.json").read_text())


@pytest.fixture(scope="session")
def loopback_hub_program():
    """The module tests/loopback_hub.py, which finds the other parts of the program in its folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(Path(__file__).parent)
        return importlib.import_module("loopback_hub")


@pytest.fixture
def loopback_hub(loopback_hub_program):
    """An empty Hub of the test's own, which serves until the test ends; offline mode is off as long.

    `HfApi(endpoint=loopback_hub.endpoint, token=loopback_hub.token("user"))` talks to it from here. What
    reads its address when it is imported, such as `from_pretrained` and `load_dataset`, needs
    `run_against_hub`. After `add_faults([{"method": "PUT", "path": "/__lfs__/", "skip": 1, "kind": "cut"}])`
    the second upload of a large file is cut; `requests` tells what came.
    """
    server = loopback_hub_program.LoopbackHub()
    # huggingface_hub 0.36 takes some addresses from these, whatever address its HfApi was given; and before
    # 1.0 sessions know themselves whether they are offline.
    template = server.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    forget_sessions = getattr(huggingface_hub, "configure_http_backend", lambda: None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        patch.setattr(huggingface_hub.constants, "ENDPOINT", server.endpoint)
        for module in (huggingface_hub.constants, huggingface_hub.file_download):
            patch.setattr(module, "HUGGINGFACE_CO_URL_TEMPLATE", template, raising=False)
        forget_sessions()
        threading.Thread(target=server.serve_forever, args=[0.01], daemon=True).start()
        yield server
        server.shutdown()
        server.server_close()
    forget_sessions()


@pytest.fixture
def hub_environment(loopback_hub, tmp_path):
    """Environment variables of a process that acts as "user" on `loopback_hub`, with empty caches.

    Requests to other machines go to the same Hub as their proxy, which refuses and lists them.
    """
    inherited = (
        name for name in os.environ if not name.startswith("HF_") and not name.upper().endswith("_PROXY")
    )
    return {
        **{name: os.environ[name] for name in inherited},
        "HTTP_PROXY": loopback_hub.endpoint,
        "HTTPS_PROXY": loopback_hub.endpoint,
        "NO_PROXY": "127.0.0.1,localhost",
        "HF_ENDPOINT": loopback_hub.endpoint,
        "HF_TOKEN": loopback_hub.token("user"),
        "HF_HOME": str(tmp_path / "hf_home"),
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_XET": "1",
        "HF_UPDATE_DOWNLOAD_COUNTS": "0",
    }


@pytest.fixture
def run_against_hub(hub_environment, tmp_path):
    """Runs a string of Python code, or `rmcl-hub` with a list of arguments, in `hub_environment`.

    Returns the completed process; `environment` adds variables, or takes those away that are None.
    """

    def run(program, *arguments, environment=None, check=True):
        rmcl_hub = str(Path(sys.executable).with_name("rmcl-hub"))
        command = (
            [sys.executable, "-c", program, *arguments] if isinstance(program, str) else [rmcl_hub, *program]
        )
        variables = {**hub_environment, **(environment or {})}
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env={name: value for name, value in variables.items() if value is not None},
            check=False,
        )
        assert done.returncode == 0 or not check, done.stdout + done.stderr
        return done

    return run
