"""What a recipe names, found, not there yet with the command that makes it, or wrong."""

import pytest

from rmcl_hub.trainers.recipe import AttackRecipe, CorpusRecipe, DataRecipe, FinetuneRecipe, PretrainRecipe
from rmcl_hub.trainers.recipe_places import find_places, splits_of


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def place(recipe, name):
    (found,) = [found for found in find_places(recipe) if found.name == name]
    return found


def captions(location, name="coco_captions", streaming=True, splits=("train",)):
    entry = CorpusRecipe(str(location), splits=list(splits))
    return PretrainRecipe(data=DataRecipe(corpora={name: entry}, streaming=streaming))


def questions(location, protocol="clean", name="vqav2"):
    data = DataRecipe("vqa", corpora={name: CorpusRecipe(str(location))})
    return FinetuneRecipe("vqa", protocol, init_from="runs/none", data=data)


def test_everything_is_found(tmp_path, caption_manifest, tiny_model):
    tiny_model().save_pretrained(tmp_path / "start")
    (tmp_path / "vectors.txt").write_text("dog 1 2\n")
    recipe = captions(caption_manifest(tmp_path / "shards", "coco_captions", {"train": 7}, write=True))
    recipe.init_from, recipe.attack = "start", AttackRecipe(text={"vectors": "vectors.txt"})
    assert {found.state for found in find_places(recipe)} == {"found"}
    assert [found.name for found in find_places(recipe)] == [
        "init_from",
        "coco_captions",
        "attack.text.vectors",
        "output_dir",
    ]


def test_starting_weights():
    assert place(PretrainRecipe(), "init_from").note == "none, from scratch"
    missing = place(PretrainRecipe(init_from="checkpoints/a"), "init_from")
    assert missing.state == "not there yet"
    command = "python -m rmcl_hub.modeling_rmcl.convert_vilt_checkpoint dandelin/vilt-b32-mlm checkpoints/a"
    assert command in missing.note
    made = place(PretrainRecipe(init_from="runs/rmcl-moco-coco"), "init_from")
    assert "`rmcl-hub pretrain rmcl-moco-coco`" in made.note
    none = place(FinetuneRecipe(), "init_from")
    assert (none.state, none.note[:7]) == ("wrong", "missing")


def test_a_corpus_that_is_not_prepared(tmp_path):
    missing = place(captions("shards/coco"), "coco_captions")
    assert missing.state == "not there yet"
    assert "rmcl-hub data prepare coco_captions --source" in missing.note
    assert "--output-dir shards/coco`" in missing.note


def test_a_split_or_a_shard_that_is_not_there(tmp_path, caption_manifest):
    folder = caption_manifest(tmp_path / "shards", "coco_captions", {"test": 3}, write=True)
    unprepared = place(captions(folder), "coco_captions")
    assert unprepared.state == "not there yet"
    assert "prepare it with --splits train" in unprepared.note
    folder = caption_manifest(tmp_path / "half", "coco_captions", {"train": 3})
    lost = place(captions(folder), "coco_captions")
    assert lost.state == "not there yet"
    assert "train-00000-of-00001.parquet" in lost.note


@pytest.mark.parametrize(
    ("recipe", "name", "message"),
    [
        (captions("shards", splits=["val"]), "coco_captions", "coco_captions has no split 'val'"),
        (captions("shards", name="coco"), "coco", "There is no corpus 'coco'"),
        (questions("shards", protocol="dirty"), "vqav2", "no protocol 'dirty' of 'vqav2'"),
        (questions("shards", name="nlvr3"), "nlvr3", "did you mean 'nlvr2'"),
    ],
)
def test_what_no_preparation_can_make_right(recipe, name, message):
    found = place(recipe, name)
    assert found.state == "wrong"
    assert message in found.note


def test_shards_of_something_else(tmp_path, caption_manifest):
    folder = caption_manifest(tmp_path / "shards", "flickr30k", {"train": 3}, write=True)
    found = place(captions(folder), "coco_captions")
    assert (found.state, found.note) == ("wrong", f"{folder} holds flickr30k, not coco_captions.")
    folder = caption_manifest(tmp_path / "task", "vqav2", {"train_fit": 3}, write=True)
    found = place(questions(folder), "vqav2")
    assert found.state == "wrong"
    assert "rows of 'captions'; this run needs 'vqa'" in found.note


def test_streams_read_parquet_only(tmp_path, caption_manifest):
    folder = caption_manifest(tmp_path / "tars", "coco_captions", {"train": 3}, shard_format="webdataset")
    found = place(captions(folder), "coco_captions")
    assert found.state == "wrong"
    assert "webdataset shards, but streams read parquet" in found.note
    assert place(captions(folder, streaming=False), "coco_captions").state != "wrong"


def test_the_hub_is_not_asked():
    location = "hf://datasets/user/coco@" + "0" * 40
    assert place(captions(location), "coco_captions").state == "not looked up"


def test_folders_where_files_are_expected_and_files_where_folders_are(tmp_path):
    (tmp_path / "vectors").mkdir()
    recipe = PretrainRecipe(attack=AttackRecipe(text={"vectors": "vectors"}))
    assert place(recipe, "attack.text.vectors").state == "wrong"
    (tmp_path / "taken").write_text("")
    assert place(PretrainRecipe(output_dir="taken"), "output_dir").state == "wrong"
    assert place(PretrainRecipe(output_dir="taken/below"), "output_dir").state == "wrong"
    assert place(PretrainRecipe(output_dir="a/new/one"), "output_dir").state == "found"
    assert not (tmp_path / "a").exists()
    assert "not empty" in place(PretrainRecipe(output_dir="."), "output_dir").note


def test_splits_that_train_and_that_select():
    recipe = questions("shards")
    assert splits_of(recipe, "vqav2", CorpusRecipe("x")) == (("train_fit",), ("train_dev",))
    assert splits_of(captions("x"), "coco_captions", CorpusRecipe("x")) == (("train",), ())
