"""Miniature corpora in their official layouts, and shards of COCO."""

import shutil

import pytest


def write_miniatures(root, task_names):
    """Miniatures of the corpora whose task is among these, by corpus: their folders."""
    from rmcl_hub.datasets_scripts.build_miniatures import WRITERS
    from rmcl_hub.datasets_scripts.corpora import CORPORA

    names = [name for name in WRITERS if CORPORA[name].task in task_names]
    for name in names:
        WRITERS[name](root / name)
    return {name: root / name for name in names}


@pytest.fixture(scope="session")
def miniature_corpora(tmp_path_factory):
    """Folders of the caption corpora by name, 48 usable pictures each; tests leave them as they are."""
    return write_miniatures(tmp_path_factory.mktemp("corpora"), {"captions"})


@pytest.fixture
def copy_of(miniature_corpora, tmp_path):
    """Makes a copy of a miniature corpus that a test may change."""
    return lambda name: shutil.copytree(miniature_corpora[name], tmp_path / name)


@pytest.fixture
def prepare_coco(miniature_corpora, tmp_path):
    """Writes shards of the miniature COCO to a folder of the test's own; the arguments are `prepare`'s."""
    from rmcl_hub.datasets_scripts.coco_captions import CocoCaptions
    from rmcl_hub.datasets_scripts.prepare import prepare

    def prepare_there(name="prepared", rows_per_shard=10, **arguments):
        arguments = {"num_workers": 1, "unofficial": True, "rows_per_shard": rows_per_shard, **arguments}
        prepare(CocoCaptions, miniature_corpora["coco_captions"], tmp_path / name, **arguments)
        return tmp_path / name

    return prepare_there


@pytest.fixture(scope="session")
def task_corpora(tmp_path_factory):
    """Folders of VQAv2, NLVR2 and SNLI-VE by name; tests leave them as they are."""
    return write_miniatures(tmp_path_factory.mktemp("tasks"), {"vqa", "nlvr2", "snli_ve"})


@pytest.fixture
def copy_of_task(task_corpora, tmp_path):
    """Makes a copy of a miniature task that a test may change."""
    return lambda name: shutil.copytree(task_corpora[name], tmp_path / name)
