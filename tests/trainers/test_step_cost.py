"""What a step of RMCL costs: rows through the encoder, counted by hooks, against the closed formula.

Per example, with I steps of PGD, c substitutes tried, g gradients taken again after a change, V views:

    forwards  = 1 [key] + 1 [clean pass] + (I - 1) [PGD] + c + g + V
    backwards =           1              + (I - 1)       + g + V

where PGD starts from the clean image and keeps its last iterate. c and g come from a search written here,
which takes one text at a time. A change is followed by a gradient only if the budget and the loops leave a
word to try, so where a text spends its budget, g is the number of its changes less one.
"""

import contextlib
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from rmcl_hub.attacks.base import CleanPass, JointObjective, frozen, model_inputs, select_rows
from rmcl_hub.attacks.geometry import GeometryAttack
from rmcl_hub.attacks.pgd import PGD
from rmcl_hub.attacks.synonyms import SynonymTable

WORDS = {
    "dog": ["puppy", "cat", "bird", "fish"],
    "big": ["large", "small", "tiny"],
    "small": ["tiny", "sad"],
    "happy": ["glad", "sad", "green"],
    "car": ["auto"],
    "tree": ["flower", "house", "sun"],
    "ball": ["apple", "cup"],
    "sits": ["eats", "holds", "runs"],
    "runs": ["holds", "eats"],
    "man": ["woman", "child"],
}
SYNONYMS = SynonymTable(
    {
        word: [(other, 0.9 - 0.1 * place) for place, other in enumerate(others)]
        for word, others in WORDS.items()
    }
)
TEXTS = [
    "a big dog runs .",
    "the small cat sits near a tree",
    "a blue cup .",
    "the happy man and a small ball",
]
PGD_OPTIONS = {"epsilon": 0.1, "step_size": 0.03}


class EncoderRows:
    """Rows through the transformers of some models, forward and back, and the most that one forward without a
    graph had in the first model.
    """

    def __init__(self, *models):
        self.first = models[0].vilt.encoder
        self.forwards = self.backwards = self.patches = self.largest = 0
        self.paused = False
        for model in models:
            model.vilt.encoder.register_forward_hook(self.count)
            model.vilt.embeddings.patch_embeddings.register_forward_hook(self.count_patches)

    def count(self, module, inputs, output):
        if self.paused:
            return
        rows = len(inputs[0])
        self.forwards += rows
        if output.last_hidden_state.requires_grad:
            output.last_hidden_state.register_hook(self.count_backwards)
        elif module is self.first:
            self.largest = max(self.largest, rows)

    def count_backwards(self, gradient):
        self.backwards += 0 if self.paused else len(gradient)

    def count_patches(self, module, inputs, output):
        self.patches += 0 if self.paused else len(output)

    @contextlib.contextmanager
    def pause(self):
        self.paused = True
        yield
        self.paused = False


class Accounted:
    """Runs a text attack, and the search of this file beside it."""

    def __init__(self, attack, rows=None):
        self.attack, self.rows = attack, rows

    def __call__(self, batch, objective):
        with self.rows.pause():
            self.expected = [
                search_one(self.attack, select_rows(batch, [row]), objective)
                for row in range(len(batch["text"]))
            ]
        self.result = self.attack(batch, objective)
        return self.result


def search_one(attack, pair, objective):
    """The geometry attack on a text of one token a word: text, substitutes tried, gradients taken again and
    changes.
    """
    tokenizer, words = attack.tokenizer, pair["text"][0].split()
    untried = {place for place, word in enumerate(words) if word in WORDS}
    tried = again = changes = 0

    def encoded(words):
        return {**pair, **tokenizer(" ".join(words), return_token_type_ids=True, return_tensors="pt")}

    def look():
        batch = encoded(words)
        vectors = objective.word_embeddings(batch.pop("input_ids")).detach().requires_grad_()
        query = objective.embed({**batch, "inputs_embeds": vectors})
        loss = objective.loss(query, batch)
        of_query, of_words = torch.autograd.grad(loss.sum(), (query, vectors))
        return loss.item(), query.detach()[0], of_query[0], of_words[0].norm(dim=1)[1:]

    loss, query, direction, influence = look()
    stale = False
    for _ in range(attack.max_loops):
        if not untried:
            break
        if stale:
            loss, query, direction, influence = look()
            again += 1
        place = max(untried, key=lambda place: influence[place].item())
        untried.remove(place)
        options = [[*words[:place], other, *words[place + 1 :]] for other in WORDS[words[place]]]
        options = options[: attack.max_candidates]
        tried += len(options)
        with torch.no_grad():
            queries = [objective.embed(encoded(option)) for option in options]
            best = max(range(len(options)), key=lambda i: ((queries[i][0] - query) @ direction).item())
            new = objective.loss(queries[best], encoded(options[best])).item()
        stale = new > loss
        if stale:
            words, changes = options[best], changes + 1
            if changes == attack.max_changed_words:
                break
    return " ".join(words), tried, again, changes


@pytest.fixture
def batch(processor, pairs):
    """A function to the first clean pairs, with captions of this file."""
    from rmcl_hub.datasets_scripts.task_collators import PairCollator

    def build(size=4):
        rows = [{**row, "captions": [text]} for row, text in zip(pairs, TEXTS[:size], strict=False)]
        return PairCollator(processor, max_text_length=24)(rows)

    return build


@pytest.fixture
def step(build_trainer, tiny_model, tiny_tokenizer, batch):
    """A function that takes one step, and gives trainer, counted rows and the text attack's account."""

    def take(projector="moco", size=4, views=("image", "text"), pgd=None, **geometry):
        model = tiny_model(projector=projector, contrastive_temperature=0.2)
        options = {"max_change_share": None, "max_changed_words": 2, "max_length": 24, **geometry}
        text = Accounted(GeometryAttack(tiny_tokenizer, SYNONYMS, **options))
        image = PGD(**{**PGD_OPTIONS, "num_steps": 3, "keep": "last", **(pgd or {})})
        trainer = build_trainer(model, attacks=(image, text), views=list(views))
        models = [model]
        if trainer.key_branch is not None:
            with torch.no_grad():  # a key branch that is not a copy of the query branch
                for weight in trainer.key_branch.encoder.parameters():
                    weight.add_(torch.randn_like(weight), alpha=0.05)
            models.append(trainer.key_branch.encoder)
        text.rows = rows = EncoderRows(*models)
        model.train()
        trainer.compute_loss(model, batch(size)).backward()
        assert trainer.encoder_passes == rows.forwards + rows.backwards
        return trainer, rows, text

    return take


@pytest.mark.parametrize(
    ("projector", "size"), [("moco", 1), ("moco", 4), ("barlow_twins", 2), ("barlow_twins", 4)]
)
@pytest.mark.parametrize(
    ("num_steps", "views", "geometry"),
    [
        (1, ("image", "text"), {}),
        (5, ("image", "text", "both"), {}),
        (3, ("both",), {"max_loops": 1}),
        (3, ("image", "text"), {"max_candidates": 1, "max_changed_words": 9}),
        (3, ("image", "text", "both"), {"max_candidates": 4, "candidate_batch_size": 3}),
    ],
)
def test_a_step_costs_the_lower_bound(step, projector, size, views, num_steps, geometry):
    _, rows, text = step(projector, size, views, {"num_steps": num_steps}, **geometry)
    texts, tried, again, changes = zip(*text.expected, strict=True)
    assert text.result.batch["text"] == list(texts)
    assert sum(tried) > 0
    assert size == 1 or sum(changes) > 0
    shared = 1 + (num_steps - 1) + len(views)
    assert rows.forwards == size * (1 + shared) + sum(tried) + sum(again)
    assert rows.backwards == size * shared + sum(again)


def test_where_the_budget_is_spent_every_change_but_the_last_is_followed_by_a_gradient(step):
    _, _, text = step()
    changes = [changes for *_, changes in text.expected]
    assert max(changes) == 2
    for (_, _, again, changes), budget in zip(text.expected, (2, 2, 0, 2), strict=True):
        if changes == budget:
            assert again == max(changes - 1, 0)


@pytest.mark.parametrize("projector", ["moco", "barlow_twins"])
@pytest.mark.parametrize(
    ("pgd", "views", "forwards", "backwards"),
    [
        # what the best iterate costs: the last one is scored
        ({"keep": "best"}, ["image", "text"], 1 + 3 + 1 + 2, 3 + 2),
        # a random start shares nothing; the word attack differentiates no text without a word to try
        ({"random_start": True}, ["image", "text"], 1 + 3 + 1 + 2, 3 + 2 + 0.75),
        # and to keep the best iterate, the clean image is scored, too
        ({"random_start": True, "keep": "best"}, ["image", "text"], 1 + 1 + 3 + 1 + 1 + 2, 3 + 2 + 0.75),
        ({}, ["image"], 1 + 3 + 1, 3 + 1),
        ({}, ["text"], 1 + 1 + 1, 0.75 + 1),
        ({}, ["both"], 1 + 3 + 1, 3 + 1),
        ({"epsilon": 0.0}, ["image", "text"], 1 + 1 + 1 + 2, 0.75 + 2),
    ],
)
def test_variants_cost_their_own_formula(step, projector, pgd, views, forwards, backwards):
    _, rows, text = step(projector, 4, views, pgd)
    tried, again = (
        (0, 0) if views == ["image"] else (sum(row[column] for row in text.expected) for column in (1, 2))
    )
    assert rows.forwards == 4 * forwards + tried + again
    assert rows.backwards == 4 * backwards + again


def test_more_loops_cost_nothing_once_the_budget_is_spent(step):
    (_, ten, text), (_, fifty, _) = (step(max_changed_words=1, max_loops=loops) for loops in (10, 50))
    assert [changes for *_, changes in text.expected] == [1, 1, 0, 1]
    assert (ten.forwards, ten.backwards) == (fifty.forwards, fifty.backwards)


def test_chunks_bound_the_rows_of_a_forward_and_nothing_else(step):
    found = {}
    for chunk in (1, 3, 100):
        _, rows, text = step("moco", 4, ["text"], candidate_batch_size=chunk)
        assert rows.largest == chunk or 3 < rows.largest < chunk
        found[chunk] = (rows.forwards, rows.backwards, text.result.batch["text"])
        assert_close(text.result.loss_after, found.setdefault("loss", text.result.loss_after))
    assert found[1] == found[3] == found[100]


def test_a_word_attack_embeds_the_patches_once(step):
    _, rows, _ = step()
    assert rows.patches == 4 * (1 + 3 + 1 + 2)  # keys, PGD with the clean pass, word attack, queries


@pytest.fixture
def mixed_batch(tiny_tokenizer):
    """Four pairs in double precision whose pictures differ in size, padded."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.rand(4, 3, 48, 48, generator=generator, dtype=torch.float64) * 1.6 - 0.8
    mask = torch.zeros(4, 48, 48, dtype=torch.long)
    for row, (height, width) in enumerate([(32, 32), (48, 32), (48, 48), (32, 48)]):
        mask[row, :height, :width] = 1
    tokens = tiny_tokenizer(TEXTS, padding=True, return_token_type_ids=True, return_tensors="pt")
    return {"pixel_values": pixels * mask[:, None], "pixel_mask": mask, **tokens, "text": TEXTS}


def attack_together(model, tokenizer, batch, keys):
    """PGD and the geometry attack on one clean pass, against a contrastive loss."""
    queue = F.normalize(torch.randn(16, 16, generator=torch.Generator().manual_seed(1)).double(), dim=1)

    def embed(batch):
        return F.normalize(model.joint_embedding(**model_inputs(batch)), dim=1)

    def loss(query, batch):
        logits = torch.cat([(query * batch["key"]).sum(dim=1, keepdim=True), query @ queue.T], dim=1) / 0.2
        return -logits.log_softmax(dim=1)[:, 0]

    def embed_images(batch):
        return dict(
            zip(
                ("image_embeds", "pixel_mask"),
                model.embed_image(batch["pixel_values"], batch["pixel_mask"]),
                strict=True,
            )
        )

    batch = {**batch, "key": keys}
    objective = JointObjective(embed, loss, model.get_input_embeddings(), CleanPass(batch), embed_images)
    geometry = GeometryAttack(tokenizer, SYNONYMS, max_change_share=None, max_changed_words=2)
    with frozen(model):
        image = PGD(**PGD_OPTIONS, num_steps=3, keep="last")(batch, objective)
        return image.batch["pixel_values"], geometry(batch, objective)


def test_order_and_padding_do_not_matter(tiny_model, tiny_tokenizer, mixed_batch):
    """In double precision every sign of every step is that of the pair attacked alone and without padding."""
    model = tiny_model(image_size=48).double()
    keys = F.normalize(torch.randn(4, 16, generator=torch.Generator().manual_seed(2)).double(), dim=1)
    pixels, words = attack_together(model, tiny_tokenizer, mixed_batch, keys)
    assert words.batch["text"] != TEXTS
    order = [2, 0, 3, 1]
    shuffled = attack_together(model, tiny_tokenizer, select_rows(mixed_batch, order), keys[order])
    assert_close(shuffled[0], pixels[order], atol=1e-9, rtol=0)
    assert shuffled[1].batch["text"] == [words.batch["text"][row] for row in order]
    for row in range(4):
        alone = select_rows(mixed_batch, [row])
        height, width = alone["pixel_mask"][0, :, 0].sum(), alone["pixel_mask"][0, 0].sum()
        length = alone["attention_mask"].sum()
        for name, values in alone.items():
            if name != "text":
                alone[name] = values[..., :height, :width] if "pixel" in name else values[:, :length]
        own_pixels, own_words = attack_together(model, tiny_tokenizer, alone, keys[row : row + 1])
        assert_close(own_pixels[0], pixels[row, :, :height, :width], atol=1e-9, rtol=0)
        assert own_words.batch["text"] == words.batch["text"][row : row + 1]
        assert_close(own_words.loss_after[0], words.loss_after[row], atol=1e-9, rtol=0)


class Watched:
    """Runs an attack and compares what it must leave alone: weights, gradients, statistics, batch, draws."""

    generator = None

    def __init__(self, attack, model):
        self.attack, self.model, self.calls = attack, model, 0

    def state(self, batch):
        yield from self.model.state_dict().values()
        yield from (parameter.grad for parameter in self.model.parameters())
        yield from (values for values in batch.values() if torch.is_tensor(values))
        yield torch.get_rng_state()

    def __call__(self, batch, objective):
        before, fields = [value.clone() for value in self.state(batch)], list(batch)
        result = self.attack(batch, objective)
        assert all(torch.equal(old, new) for old, new in zip(before, self.state(batch), strict=True))
        assert (list(batch), batch["text"]) == (fields, TEXTS)
        self.calls += 1
        return result


@pytest.mark.parametrize("projector", ["moco", "barlow_twins"])
def test_attacks_change_no_state(build_trainer, tiny_model, tiny_tokenizer, batch, projector):
    model = tiny_model(projector=projector, hidden_dropout_prob=0.1)
    image = Watched(PGD(**PGD_OPTIONS, num_steps=2), model)
    text = Watched(GeometryAttack(tiny_tokenizer, SYNONYMS, max_length=24), model)
    trainer = build_trainer(model, attacks=(image, text))
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    model.train()
    trainer.compute_loss(model, batch())
    assert image.calls == text.calls == 1
    assert all(module.training for module in model.modules())


class Beside:
    """Runs a word attack twice: with what the step shares, and on its own."""

    def __init__(self, attack):
        self.attack = attack

    def __call__(self, batch, objective):
        self.alone = self.attack(batch, replace(objective, clean=None, embed_images=None))
        self.shared = self.attack(batch, objective)
        return self.shared


@pytest.mark.parametrize("projector", ["moco", "barlow_twins"])
def test_what_is_shared_changes_no_result(build_trainer, tiny_model, tiny_tokenizer, mixed_batch, projector):
    text = Beside(GeometryAttack(tiny_tokenizer, SYNONYMS, max_change_share=0.5))
    model = tiny_model(projector=projector, image_size=48)
    batch = {**mixed_batch, "pixel_values": mixed_batch["pixel_values"].float()}
    build_trainer(model, attacks=(PGD(**PGD_OPTIONS, num_steps=2), text)).compute_loss(model, batch)
    assert text.shared.batch["text"] == text.alone.batch["text"] != TEXTS
    assert_close(text.shared.loss_before, text.alone.loss_before, atol=1e-5, rtol=1e-4)
    assert_close(text.shared.loss_after, text.alone.loss_after, atol=1e-5, rtol=1e-4)
    assert text.alone.forwards - text.shared.forwards == 4
    assert text.alone.backwards - text.shared.backwards == 3  # "a blue cup ." has no word to try


@pytest.mark.parametrize("projector", ["moco", "barlow_twins"])
def test_the_gain_of_an_unscored_attack_is_that_of_its_query(
    build_trainer, tiny_model, image_attack, text_attack, projector
):
    image_attack.attack = PGD(**PGD_OPTIONS, num_steps=2, keep="last")
    trainer = build_trainer(tiny_model(projector=projector), views=["image", "text"])
    trainer.train()
    logged = trainer.state.log_history[0]
    clean = image_attack.results[0].loss_before.mean().item()
    assert logged["attack_gain_image"] == pytest.approx(logged["loss_image"] - clean, abs=1e-5)
    assert logged["attack_gain_image"] > 1e-3

    image_attack.attack = PGD(**PGD_OPTIONS, num_steps=2, keep="last", random_start=True)
    trainer = build_trainer(tiny_model(projector=projector), views=["both"])
    trainer.train()
    logged = trainer.state.log_history[0]
    assert "attack_gain_image" not in logged  # no query has the attacked image alone
    assert logged["attack_gain_text"] > 0
