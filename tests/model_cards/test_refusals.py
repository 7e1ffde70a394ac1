"""What must not be published is found by content, named with its place, and ordinary files raise no alarm."""

import bz2
import gzip
import io
import json
import lzma
import pickle
import tarfile
import zipfile
import zlib
from importlib.resources import files
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file

from rmcl_hub.model_cards import leaked_text, refusals
from rmcl_hub.model_cards.leaked_text import find_local_paths, find_secrets, without_secrets
from rmcl_hub.model_cards.pickles import find_pickles
from rmcl_hub.model_cards.refusals import RefusedError, check, find_problems
from rmcl_hub.model_cards.staged_repository import StagedRepository

CARD = "---\nlicense: mit\n---\n# Toy\n"
# Put together here, so that no scanner takes this file for a leak.
SECRETS = {
    "a Hugging Face token": "hf_" + "Ab1" * 12,
    "a GitHub token": "ghp_" + "a1B2" * 9,
    "a GitLab token": "glpat-" + "x1" * 10,
    "an AWS access key": "AKIA" + "AB12" * 4,
    "an AWS secret key": "aws_secret_access_key = " + "aB3/" * 10,
    "an API key": "sk-proj-" + "a1B2" * 10,
    "a Slack token": "xoxb-" + "123456-abcdef123456",
    "a private key": "-----BEGIN OPENSSH " + "PRIVATE KEY-----",
    "an authorisation header": "Authorization: Bearer " + "abc.def" * 4,
    "a password in an address": "https://bob:s3cr3t" + "@example.org/x",
    "the value of a secret variable": "WANDB_API_KEY=" + "0123456789abcdef" * 2,
}
HARMLESS = [
    "pad_token: '[PAD]', mask_token_id = 103",
    "export HF_TOKEN=$YOUR_TOKEN; HF_TOKEN=hf_...",
    "token = os.environ['HF_TOKEN']",
    'headers = {"Authorization": f"Bearer {token}"}',
    "a risk-averse-and-very-cautious-description-of-everything",
    "git@github.com:user/name.git and https://example.org:8080/a@b",
    "sha256 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
]
ORDINARY_PATHS = [
    "https://example.org/home/user and hf://datasets/user/root/x",
    "open /dev/null, /etc/hosts and /usr/bin/python",
    "~/data, ./home/x, ../tmp/x, a/home/b, and/or /tmp is a folder",
    "/home/<user> or $HOME/x",
    'Q: "yes or no?"\\nA:\\n\\nno',
    "runs/quickstart, see C: and D:",
]


@pytest.fixture
def stage(tmp_path):
    """A function from files, by path, to a sealed repository; text, bytes, or a function that writes them."""

    def build(contents, repo_type="model", **given):
        folder = tmp_path / "staged"
        for path, content in {"README.md": CARD, **contents}.items():
            if content is None:
                continue
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            if callable(content):
                content(folder / path)
            else:
                (folder / path).write_bytes(content.encode() if isinstance(content, str) else content)
        return StagedRepository.seal("toy", repo_type, folder, **given)

    return build


def problems(staged, **given):
    return list(find_problems(staged, **given))


def test_what_may_be_published_passes(stage):
    arrays = {"w": torch.zeros(2)}
    staged = stage(
        {
            "model.safetensors": lambda path: save_file(arrays, path, metadata={"format": "pt"}),
            ".eval_results/openpairs.yaml": "- value: 1\n",
            ".gitattributes": "*.safetensors filter=lfs\n",
            "rows.npy": lambda path: np.save(path, np.arange(3.0)),
            "config.json": '{"architectures": ["X"], "token": "[CLS]"}',
            "text.txt": "\n".join(HARMLESS + ORDINARY_PATHS),
        }
    )
    assert problems(staged) == []
    check(staged)


# Secrets


@pytest.mark.parametrize(("kind", "secret"), SECRETS.items())
def test_a_secret_is_found_with_its_line_and_not_repeated(kind, secret, tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text(f"first\nsecond\n  x = {secret} # third\n")
    found = list(find_secrets(path))
    assert f"line 3: {kind}" in found
    assert secret not in " ".join(found)
    assert secret not in without_secrets(f"error near {secret} here")
    path.write_text("\n".join(HARMLESS))
    assert list(find_secrets(path)) == []


def test_a_secret_is_found_in_bytes_across_the_pieces_that_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr(leaked_text, "CHUNK", 1000)
    monkeypatch.setattr(leaked_text, "OVERLAP", 100)
    secret = SECRETS["a Hugging Face token"].encode()
    for place in (0, 975, 1000, 2500):
        (tmp_path / "x.bin").write_bytes(b"\0\n" * (place // 2) + secret + b"\n" * 700)
        assert list(find_secrets(tmp_path / "x.bin")) == [f"line {place // 2 + 1}: a Hugging Face token"], (
            place
        )


def test_the_token_in_use_is_found_whatever_it_looks_like(stage):
    staged = stage({"notes.txt": "one\nmy odd pass phrase\n"})
    assert problems(staged) == []
    with pytest.raises(
        RefusedError, match=r"notes.txt, line 2: your own token; remove it, and revoke it"
    ) as error:
        check(staged, secrets=["odd pass phrase", ""])
    assert "odd pass" not in str(error.value)


def test_bearer_tokens_are_hidden_in_messages():
    assert without_secrets("sent Bearer abcdefgh12345 twice") == "sent Bearer *** twice"
    assert without_secrets("token xyz.", ["xyz", ""]) == "token ***."


# Paths


@pytest.mark.parametrize(
    "path",
    [
        "/home/bob/data",
        "/Users/bob/data",
        "/root/x",
        "/tmp/pytest-1/model",
        "/mnt/disk/coco",
        "file:///home/bob/x",
        r"C:\Users\bob\x",
        r'"D:\\data\\coco"',
        "C:/Users/bob",
        "PYTHONPATH=/usr/lib:/home/bob/lib",
    ],
)
def test_a_local_path_is_found_with_its_line(path, tmp_path):
    file = tmp_path / "config.json"
    file.write_text(f'{{\n "name": "{path}"\n}}')
    (found,) = find_local_paths(file)
    assert found.startswith("line 2: the local path ")
    file.write_text("\n".join(ORDINARY_PATHS))
    assert list(find_local_paths(file)) == []


def test_given_folders_are_local_paths_wherever_they_lie(tmp_path):
    text = tmp_path / "a.md"
    text.write_text("trained in /opt/lab/run7.\n/opt/lab/run77 is another, so is x/opt/lab/run7\n")
    assert list(find_local_paths(text)) == []
    assert list(find_local_paths(text, [Path("/opt/lab/run7")])) == ["line 1: the local path /opt/lab/run7"]
    text.write_text("the split /data is\nread from /data/coco\n")
    assert list(find_local_paths(text, [Path("/data")])) == ["line 2: the local path /data/coco"]
    text.write_text("a/b / c")
    assert list(find_local_paths(text, [Path("/")])) == []


def nested_table(text):
    kinds = {
        "plain": pa.array(["fine", text]),
        "large": pa.array([text, None], pa.large_string()),
        "coded": pa.array([text, text]).dictionary_encode(),
        "listed": pa.array([["fine"], ["fine", text]]),
        "image": pa.array([{"bytes": b"\x89PNG", "path": text}, None]),
        "deep": pa.array([[{"names": [text]}], []]),
    }
    return {name: pa.table({name: array, "number": [1, 2]}) for name, array in kinds.items()}


@pytest.mark.parametrize("kind", nested_table(""))
def test_strings_of_parquet_files_are_read_whatever_they_are_nested_in(kind, tmp_path):
    path = tmp_path / "rows.parquet"
    pq.write_table(nested_table("/home/bob/pictures/1.png")[kind], path)
    (found,) = find_local_paths(path)
    assert found == f"column '{kind}', row group 0: the local path /home/bob/pictures/1.png"
    pq.write_table(nested_table(SECRETS["a GitHub token"])[kind], path)
    assert list(find_secrets(path)) == [f"column '{kind}', row group 0: a GitHub token"]
    pq.write_table(nested_table("pictures/1.png")[kind], path)
    assert list(find_local_paths(path)) == list(find_secrets(path)) == []


def test_metadata_of_parquet_and_tensor_files_is_read(tmp_path):
    table = pa.table({"number": [1]}).replace_schema_metadata({"origin": "/home/bob/x"})
    pq.write_table(table, tmp_path / "a.parquet")
    assert list(find_local_paths(tmp_path / "a.parquet")) == ["metadata 'origin': the local path /home/bob/x"]
    save_file({"w": torch.zeros(1)}, tmp_path / "a.safetensors", metadata={"from": "/home/bob/x"})
    (found,) = find_local_paths(tmp_path / "a.safetensors")
    assert found == "its metadata: the local path /home/bob/x"


def test_texts_in_a_webdataset_shard_are_read(tmp_path):
    write_tar(tmp_path / "a.tar", {"1.png": b"\x89PNG\0/home/bob", "1.json": b'{"path": "/home/bob/1"}'})
    assert list(find_local_paths(tmp_path / "a.tar")) == ["its member 1.json: the local path /home/bob/1"]


def test_the_embedded_data_raise_no_alarm():
    folder = Path(str(files("rmcl_hub.datasets_scripts").joinpath("openpairs")))
    found = [
        f"{path.name}: {reason}"
        for path in sorted(folder.iterdir())
        for reason in (*find_secrets(path), *find_local_paths(path, [Path.cwd()]), *find_pickles(path))
    ]
    assert found == []
    assert len(list(folder.glob("*.parquet"))) >= 6, "there were captions to read"


# Pickles


def write_zip(path, members):
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def write_tar(path, members):
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))


class Evil:
    def __reduce__(self):
        return print, ("run",)


def dumped(protocol, value=None):
    return pickle.dumps(Evil() if value is None else value, protocol=protocol)


PICKLES = {
    **{f"protocol {number}": dumped(number) for number in range(6)},
    "of a dictionary": dumped(0, {"a": [1]}),
    "cut off, which runs before it fails": dumped(4)[:-1] + b"\xff",
    "gzip": gzip.compress(dumped(4)),
    "bzip2": bz2.compress(dumped(4)),
    "xz": lzma.compress(dumped(4)),
    "zlib, as joblib has it": zlib.compress(dumped(3)),
}


@pytest.mark.parametrize("content", PICKLES.values(), ids=PICKLES)
def test_a_pickle_is_found_under_an_innocent_name(content, tmp_path):
    path = tmp_path / "weights.dat"
    path.write_bytes(content)
    (reason,) = find_pickles(path)
    assert "content is a pickle" in reason


def test_checkpoints_and_arrays_of_objects_are_pickles(tmp_path):
    torch.save({"w": torch.zeros(2)}, tmp_path / "model.dat")
    assert any(
        "its member" in reason and "data.pkl" in reason for reason in find_pickles(tmp_path / "model.dat")
    )
    np.save(tmp_path / "a.npy", np.array([{}, None], dtype=object))
    assert list(find_pickles(tmp_path / "a.npy")) == [
        "it is a NumPy array of Python objects, which are pickled"
    ]
    np.savez(tmp_path / "a.npz", numbers=np.zeros(2), objects=np.array([{}], dtype=object))
    assert [reason.split(":")[0] for reason in find_pickles(tmp_path / "a.npz")] == ["its member objects.npy"]
    write_tar(tmp_path / "a.tar", {"1.txt": b"fine", "1.pyd": b"x", "2.cls": dumped(2)})
    reasons = list(find_pickles(tmp_path / "a.tar"))
    assert reasons == ["its member 1.pyd is loaded as a pickle", "its member 2.cls: its content is a pickle"]


@pytest.mark.parametrize(
    "name", ["pytorch_model.bin", "a.pt", "a.pth", "a.pkl", "A.PICKLE", "a.joblib", "a.ckpt"]
)
def test_names_that_loaders_unpickle_are_refused_whatever_is_in_them(name, tmp_path):
    (tmp_path / name).write_text("text")
    (reason,) = find_pickles(tmp_path / name)
    assert "are loaded as pickles" in reason


def test_other_files_are_no_pickles(tmp_path):
    others = {
        "a.txt": b"(c) 2026 by somebody\nN. B. this is text.\n",
        "numbers.txt": b"I1\n.",
        "empty": b"",
        "a.png": b"\x89PNG\r\n\x1a\n" + bytes(100),
        "like.dat": b"\x80\x02" + bytes(50),
        "notes.gz": gzip.compress(b"text"),
        "broken.gz": b"\x1f\x8b broken",
        "x.txt": b"xylophone",
    }
    for name, content in others.items():
        (tmp_path / name).write_bytes(content)
        assert list(find_pickles(tmp_path / name)) == [], name
    save_file({"w": torch.zeros(20)}, tmp_path / "w.safetensors")
    write_zip(tmp_path / "a.zip", {"a.txt": b"text"})
    assert not [*find_pickles(tmp_path / "w.safetensors"), *find_pickles(tmp_path / "a.zip")]


def test_an_archive_that_cannot_be_looked_into_is_refused(tmp_path):
    (tmp_path / "a.tar").write_bytes(b"no tar" * 200)
    (reason,) = find_pickles(tmp_path / "a.tar")
    assert reason.startswith("this archive cannot be looked into (")


# Manifest, names, card, limits


def test_what_the_manifest_does_not_say_is_refused(stage):
    staged = stage({"a.txt": "1", "b.txt": "2", "c.txt": "3"})
    (staged.folder / "a.txt").write_text("9")
    (staged.folder / "b.txt").unlink()
    (staged.folder / "d.txt").write_text("4")
    assert problems(staged) == [
        "a.txt: changed after the manifest was written; stage again.",
        "d.txt: the manifest does not name it; remove it, or stage again.",
        "b.txt: the manifest names it, but it is not there; stage again.",
    ]


def test_links_are_refused_and_not_followed(stage, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "secret.txt").write_text(SECRETS["a GitHub token"])
    staged = stage({})
    (staged.folder / "folder").symlink_to(tmp_path / "elsewhere")
    (staged.folder / "file.txt").symlink_to(tmp_path / "elsewhere" / "secret.txt")
    found = problems(staged)
    assert [text.split(":")[0] for text in found] == ["file.txt", "folder"]
    assert all("is a link, which the Hub does not follow" in text for text in found)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        (".env", "is hidden"),
        (".cache/x", "is hidden"),
        ("data/.DS_Store", "is hidden"),
        (".eval_results/.hidden.yaml", "is hidden"),
        ("_netrc", "is named like a file of keys or passwords"),
        ("keys/id_ed25519", "is named like a file of keys"),
        ("server.PEM", "is named like a file of keys"),
        ("token", "is named like a file of keys"),
    ],
)
def test_names_of_secret_files_are_refused(path, message, stage):
    (found,) = problems(stage({path: "x"}))
    assert found.startswith(f"{path}: {message}")
    assert found.endswith("stage it again without that file.")


@pytest.mark.parametrize(
    ("card", "repo_type", "message"),
    [
        (
            None,
            "model",
            r"README.md: is missing; every model needs a card \(`rmcl-hub card` writes a model's\)",
        ),
        ("# No front matter", "dataset", "README.md: names no licence; add `license:` to its front matter"),
        ("---\nlicense: other\n---\n", "model", "says `license: other` without `license_name:`"),
        (
            "---\nlicense: [\n---\n",
            "model",
            "README.md: the front matter is no YAML .*correct what stands between",
        ),
        ("---\nlicense: mit\n---\n", "space", "a Space's front matter says what runs it; add `sdk:`"),
    ],
)
def test_a_repository_without_card_or_licence_is_refused(card, repo_type, message, stage):
    with pytest.raises(RefusedError, match=message):
        check(stage({"README.md": card, "a.txt": "1"}, repo_type))


def test_the_limits_of_the_hub(stage, monkeypatch):
    staged = stage({f"data/{number}.txt": "12345" for number in range(4)})
    monkeypatch.setattr(refusals, "MAX_FILES_OF_FOLDER", 4)
    monkeypatch.setattr(refusals, "MAX_FILES", 6)
    assert problems(staged) == []
    monkeypatch.setattr(refusals, "MAX_FILES_OF_FOLDER", 3)
    monkeypatch.setattr(refusals, "MAX_FILES", 5)
    assert problems(staged) == [
        "it has 6 files, the Hub takes 5; put them into fewer, larger ones.",
        "data: has 4 files, the Hub takes 3 a folder; divide them among folders, or put them into fewer, "
        "larger files.",
    ]
    monkeypatch.setattr(refusals, "MAX_FILE", 5 * 10**9)
    monkeypatch.setattr(StagedRepository, "files", {"w": {"size": 6_100_000_000}})
    assert "w: has 6.1 GB, the Hub takes 5 GB a file; write smaller shards." in problems(staged)


def test_data_that_may_only_be_private_need_a_private_repository(stage):
    staged = stage({}, "dataset", sources={"private_only": "the pictures are others'."})
    check(staged, private=True)
    with pytest.raises(
        RefusedError, match=r"toy may only be private: the pictures are others'\. Push it with --private"
    ):
        check(staged)


def test_many_problems_are_counted_and_damaged_files_named(stage):
    with pytest.raises(
        RefusedError, match=r"(?s)model toy is not fit to be published:\n- .*\n- and 5 more\."
    ):
        check(stage({f"{number}.pkl": "x" for number in range(25)}))
    staged = stage({"a.parquet": b"not parquet", **{f"{number}.pkl": None for number in range(25)}})
    assert any(text.startswith("a.parquet: cannot be read (") for text in problems(staged))


def test_json_of_results_with_pictures_passes(stage, evaluation_record):
    assert problems(stage({"results/evaluation.json": json.dumps(evaluation_record)})) == []
