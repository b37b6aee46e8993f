"""The engine's thread on a small random model: order, failures, scoring against a slow oracle."""

import threading
from dataclasses import replace

import pytest
import torch

from tests.checkpoints import NUM_IDS, write_random
from tests.models import TINY
from zaya_core.config import Tidar
from zaya_core.engine.batch import Engine
from zaya_core.engine.chance import SeededChance
from zaya_core.engine.ways import Way, Ways
from zaya_core.io.checkpoint import Checkpoint
from zaya_core.layout import causal
from zaya_core.model.load import load_model
from zaya_core.model.serving import ServingModel
from zaya_core.server.metrics import Metrics
from zaya_core.server.orders import completion_assignment
from zaya_core.server.refusal import Refusal
from zaya_core.server.schemas import CompletionRequest
from zaya_core.server.scoring import Scoring
from zaya_core.server.served import Bounds, describe
from zaya_core.server.worker import Worker
from zaya_core.server.writing import Writing


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "tidar"
    write_random(path, TINY.with_changes(vocab_size=NUM_IDS + 28, tidar=Tidar(4, 4)), skip_bias=-1.0)
    return Checkpoint.open(path)


def load(checkpoint):
    return load_model(checkpoint, dtype=torch.float32, device=torch.device("cpu"))


class Bench:
    """A worker and what came out of it, in order."""

    def __init__(self, checkpoint, *, num_slots=2000, max_rows=4, max_waiting=8):
        self.served = describe(checkpoint, Bounds(512, num_slots, "lossless"))
        self.complaints, self.pieces, self.scores = [], [], []
        self.engine = Engine(ServingModel(load(checkpoint)), num_slots=num_slots, max_rows=max_rows)
        self.worker = Worker(self.engine, max_waiting=max_waiting, metrics=Metrics(), complain=self.complaints.append)
        self.thread = threading.Thread(target=self.worker.run)

    def writing(self, name, **sent):
        request = CompletionRequest(prompt=[5, 6, 7], **{"seed": 1, "ignore_eos": True} | sent)
        (order,) = completion_assignment(request, self.served).orders
        return Writing(order, self.served, lambda piece: self.pieces.append((name, piece)))

    def run(self, *works, scorings=()):
        """Put all in before the thread starts, and wait until nothing is left."""
        self.worker.submit(works, scorings)
        self.thread.start()
        while not all(work.is_over for work in works) or len(self.scores) < len(scorings):
            threading.Event().wait(0.01)
        self.worker.close()
        self.thread.join()

    def first_seen(self):
        return list(dict.fromkeys(name for name, _ in self.pieces))


def test_a_large_request_is_not_overtaken_by_small_ones(checkpoint):
    bench = Bench(checkpoint, num_slots=160)
    early, large = bench.writing("early", max_tokens=40), bench.writing("large", max_tokens=100)
    bench.run(early, large, bench.writing("little", max_tokens=2), bench.writing("least", max_tokens=2))
    assert bench.first_seen() == ["early", "large", "little", "least"]
    assert [len(work.transcript.tokens) for work in (early, large)] == [40, 100]
    assert bench.engine.num_rows == 0
    assert bench.engine.pool.gap_for(160) == 0


def test_in_a_crowd_only_those_that_may_adapt_start_without_drafts(checkpoint):
    bench = Bench(checkpoint)
    bench.worker.draft_up_to = 1
    works = [bench.writing(name, max_tokens=6, seed=seed) for name, seed in (("first", None), ("second", None), ("seeded", 3))]
    blocks = [bench.worker._suited(work.order).how.block_length for work in works]
    bench.worker._running = {0: works[0]}
    crowded = [bench.worker._suited(work.order).how.block_length for work in works]
    bench.worker._running = {}
    assert (blocks, crowded) == ([4, 4, 4], [0, 0, 4])


def test_a_lonely_text_that_may_adapt_chooses_its_way(checkpoint):
    bench = Bench(checkpoint)
    bench.worker.ways = Ways((Way(0, 0), Way(1, 2)), 0.7)
    free, seeded = (bench.writing(name, max_tokens=6, seed=seed) for name, seed in (("free", None), ("seeded", 3)))
    assert [bench.worker._suited(work.order).how.ways for work in (free, seeded)] == [bench.worker.ways, None]
    bench.run(free, seeded)
    assert [len(work.transcript.tokens) for work in (free, seeded)] == [6, 6]


def test_the_queue_is_bounded_and_refuses_whole_requests(checkpoint):
    bench = Bench(checkpoint, max_rows=2, max_waiting=1)
    bench.worker.submit([bench.writing("a"), bench.writing("b")])
    with pytest.raises(Refusal) as caught:
        bench.worker.submit([bench.writing("c"), bench.writing("d")])
    assert (caught.value.status, caught.value.retry_seconds) == (429, 1)
    bench.worker.submit([bench.writing("e")])
    with pytest.raises(Refusal) as caught:
        bench.worker.submit([bench.writing(name) for name in "fghi"])
    assert caught.value.status == 400


def test_a_text_that_fails_harms_no_other(checkpoint):
    bench = Bench(checkpoint)
    alone = Bench(checkpoint)
    alone.run(alone.writing("good", max_tokens=12))
    good, bad = bench.writing("good", max_tokens=12), bench.writing("bad", max_tokens=12)
    bad.transcript.push = None
    bench.run(bad, good)
    assert [piece.failure.status for name, piece in bench.pieces if name == "bad"] == [500]
    assert [piece.text for name, piece in bench.pieces if name == "good"] == [piece.text for _, piece in alone.pieces]
    assert bench.complaints == ["a text failed: TypeError: 'NoneType' object is not callable"]


class Failing:
    """A grammar that allows everything, or a chance, until it is asked once too often."""

    def __init__(self, method: str, sound: int) -> None:
        self.chance, self.method, self.sound = SeededChance(1), method, sound

    def _count(self, method):
        self.sound -= method == self.method
        if self.sound < 0:
            raise FloatingPointError("not a number")

    def allowed(self, new_ids):
        self._count("allowed")

    def points(self, laws):
        self._count("points")
        return self.chance.points(laws)

    def accept(self, probability):
        self._count("accept")
        return self.chance.accept(probability)


# A grammar is asked once for the first token, then for three drafts, then for the four rows that judge those.
@pytest.mark.parametrize(("method", "sound"), [("allowed", 2), ("allowed", 5), ("points", 1), ("points", 4), ("accept", 1)])
def test_what_goes_wrong_inside_the_engine_for_one_text_harms_no_other(checkpoint, method, sound):
    alone = Bench(checkpoint)
    alone.run(alone.writing("good", max_tokens=12))
    bench = Bench(checkpoint)
    good, bad = bench.writing("good", max_tokens=12), bench.writing("bad", max_tokens=12)
    failing, request = Failing(method, sound), bad.order.request
    how = replace(request.how, constraint=failing if method == "allowed" else None)
    bad.order = replace(bad.order, request=replace(request, how=how, chance=failing))
    bench.run(bad, good)
    assert [piece.failure.status for name, piece in bench.pieces if name == "bad" and piece.failure] == [500]
    assert [piece.text for name, piece in bench.pieces if name == "good"] == [piece.text for _, piece in alone.pieces]
    assert bench.complaints == ["a text failed: FloatingPointError: not a number"]
    assert bench.engine.num_rows == 0


def test_what_goes_wrong_in_a_scoring_or_a_beginning_harms_no_text(checkpoint, monkeypatch):
    alone = Bench(checkpoint)
    alone.run(alone.writing("good", max_tokens=12))
    bench = Bench(checkpoint)
    good, bad = bench.writing("good", max_tokens=12), bench.writing("bad", max_tokens=12)
    add = bench.engine.add

    def failing(request):
        if request is bad.order.request:
            raise MemoryError("none left")
        return add(request)

    def steps(scoring, model):
        yield
        raise FloatingPointError("not a number")

    bench.engine.add = failing
    monkeypatch.setattr(Scoring, "steps", steps)
    heard = []
    bench.worker.submit([], [Scoring([1, 2, 3], num_top=0, forbidden=(), outlet=heard.append)])
    bench.run(good, bad)
    assert heard == [None]
    assert [piece.failure.status for name, piece in bench.pieces if name == "bad"] == [500]
    assert [piece.text for name, piece in bench.pieces if name == "good"] == [piece.text for _, piece in alone.pieces]
    assert sorted(bench.complaints) == [
        "a request could not begin: MemoryError: none left",
        "a scoring failed: FloatingPointError: not a number",
    ]


def test_an_engine_that_fails_ends_what_runs_and_goes_on(checkpoint):
    bench = Bench(checkpoint)
    step, failures = bench.engine.step, [RuntimeError("out of luck")]

    def sometimes():
        if failures:
            raise failures.pop()
        return step()

    bench.engine.step = sometimes
    bench.run(*(bench.writing(name, max_tokens=3) for name in "abcdef"))
    ended = dict(bench.pieces)
    assert [ended[name].failure is not None for name in "abcdef"] == [True] * 4 + [False] * 2
    assert bench.engine.num_rows == 0


def test_scores_are_the_log_softmax_of_one_causal_forward(checkpoint, monkeypatch):
    monkeypatch.setattr("zaya_core.server.scoring.CHUNK", 7)
    monkeypatch.setattr("zaya_core.server.scoring.ROWS", 3)
    model, bench = load(checkpoint), Bench(checkpoint)
    ids = torch.randint(5, NUM_IDS, (40,), generator=torch.Generator().manual_seed(0)).tolist()
    bench.run(scorings=[Scoring(ids, num_top=3, forbidden=bench.served.forbidden, outlet=bench.scores.append)])
    with torch.inference_mode():
        logits = model.logits(model(torch.tensor([ids]), causal(torch.tensor([0]), len(ids))))[0]
    expected = logits.clone().index_fill(-1, torch.tensor(bench.served.forbidden), float("-inf")).log_softmax(-1)
    (scores,) = bench.scores
    assert [score.token_id for score in scores] == ids
    assert (scores[0].logprob, scores[0].top_logprobs) == (None, ())
    for place, score in enumerate(scores[1:], 1):
        assert score.logprob == pytest.approx(float(expected[place - 1, ids[place]]), abs=1e-4)
        values, best = expected[place - 1].topk(3)
        assert [top for top, _ in score.top_logprobs] == best.tolist()
        assert [value for _, value in score.top_logprobs] == pytest.approx(values.tolist(), abs=1e-4)
