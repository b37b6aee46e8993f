"""Many clients at once: each gets its own tokens, the queue is bounded, who leaves frees its place, and a signal loses nobody."""

import asyncio
import json
import random
import signal
import socket
import threading
import time
from urllib.parse import urlsplit

import pytest
from openai import AsyncOpenAI

from tests.server.conftest import serving

TEXT = "/v1/completions"
PROMPTS = ["import os\n", "class Tree:\n    ", "def main():\n", "# A comment", "for x in range(10):\n"]


def options(number):
    """A request unlike its neighbours."""
    zaya = {"sampler": ("lossless", "mix", "ar")[number % 3]}
    return {
        "model": "tiny",
        "prompt": PROMPTS[number % len(PROMPTS)] * (1 + number % 4),
        "seed": number,
        "max_tokens": 5 + number % 11,
        "temperature": (0, 0.7, 1.0)[number % 3],
        "top_p": (1.0, 0.9)[number % 2],
        "stop": ["zzzz"] if number % 2 else None,
        "extra_body": {"zaya": zaya, "ignore_eos": number % 5 == 0},
    }


async def ask_all(url, numbers, *, at_once):
    gate = asyncio.Semaphore(at_once)
    async with AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=300) as client:

        async def one(number):
            async with gate:
                if number % 2:
                    stream = await client.completions.create(stream=True, **options(number))
                    return "".join([part.choices[0].text async for part in stream])
                return (await client.completions.create(**options(number))).choices[0].text

        return await asyncio.gather(*map(one, numbers))


def test_concurrent_requests_get_the_tokens_of_serial_ones(server):
    numbers = range(12)
    together = asyncio.run(ask_all(server.url, numbers, at_once=12))
    assert together == asyncio.run(ask_all(server.url, numbers, at_once=1))


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Two places, and two more may wait."""
    directory = tmp_path_factory.mktemp("small")
    with serving(directory / "log", "--max-num-seqs", "2", "--max-queue", "2", "--request-timeout", "20") as running:
        yield running


def begin(server, **body):
    """A streamed request whose answer has begun; closing the connection is the client's leaving."""
    connection = server.connect()
    sent = {"prompt": "import os\n", "max_tokens": 3000, "stream": True, "ignore_eos": True, "zaya": {"sampler": "ar"}} | body
    connection.request("POST", TEXT, json.dumps(sent), {"Content-Type": "application/json"})
    return connection, connection.getresponse()


def test_a_full_queue_answers_429_and_says_when_to_come_back(small):
    streams = [begin(small) for _ in range(4)]
    assert [answer.status for _, answer in streams] == [200] * 4
    small.wait_for("zaya_completions_running", 2)
    small.wait_for("zaya_completions_waiting", 2)
    status, headers, answer = small.ask("POST", TEXT, {"prompt": "x"})
    assert (status, answer["error"]["code"]) == (429, "queue_full")
    assert 1 <= int(headers["retry-after"]) <= 60
    assert small.post(TEXT, prompt="x", n=5)[0] == 400
    for connection, answer in streams:
        answer.close()
        connection.close()
    small.wait_for("zaya_completions_running", 0)
    small.wait_for("zaya_completions_waiting", 0)
    assert small.metric("zaya_kv_slots_reserved") == 0
    assert small.post(TEXT, prompt="x", max_tokens=2)[0] == 200


def test_who_leaves_frees_its_place_within_a_step(small):
    connection, answer = begin(small)
    answer.readline()
    before = small.metric("zaya_generated_tokens_total")
    answer.close()
    connection.close()
    small.wait_for("zaya_completions_running", 0)
    assert small.metric("zaya_generated_tokens_total") - before < 100
    assert small.metric("zaya_kv_slots_reserved") == 0


def test_who_leaves_without_streaming_does_too(small):
    address = urlsplit(small.url)
    body = json.dumps({"prompt": "import os\n", "max_tokens": 3000, "ignore_eos": True})
    head = f"POST {TEXT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    with socket.create_connection((address.hostname, address.port)) as connection:
        connection.sendall((head + body).encode())
        small.wait_for("zaya_completions_running", 1)
    small.wait_for("zaya_completions_running", 0)


def test_a_large_request_is_not_overtaken_for_ever(small):
    """One at work, one large in the queue, small ones behind it: they come in the order of their arrival."""
    holder, other = begin(small, max_tokens=200), begin(small, max_tokens=200)
    ended = []

    def ask(name, tokens):
        small.post(TEXT, prompt="x", max_tokens=tokens, ignore_eos=True)
        ended.append(name)

    large = threading.Thread(target=ask, args=("large", 30))
    large.start()
    small.wait_for("zaya_completions_waiting", 1)
    little = threading.Thread(target=ask, args=("little", 25))
    little.start()
    small.wait_for("zaya_completions_waiting", 2)
    for connection, answer in (holder, other):
        answer.close()
        connection.close()
    large.join()
    little.join()
    assert sorted(ended) == ["large", "little"]


def test_the_loop_does_not_wait_for_the_model(small):
    """While the engine works and a long prompt is read, /health answers at once."""
    connection, answer = begin(small, prompt="x = 1\n" * 1500)
    worst = 0.0
    for _ in range(20):
        began = time.monotonic()
        assert small.ask("GET", "/health")[0] == 200
        worst = max(worst, time.monotonic() - began)
    answer.close()
    connection.close()
    assert worst < 1.0


def test_a_request_that_takes_too_long_is_told(tmp_path):
    with serving(tmp_path / "log", "--request-timeout", "1") as server:
        status, answer = server.post(TEXT, prompt="x", max_tokens=5000, ignore_eos=True)
        assert (status, answer["error"]["code"]) == (503, "timeout")
        connection, answer = begin(server, max_tokens=5000)
        events = answer.read().decode().split("\n\n")
        assert json.loads(events[-2].removeprefix("data: "))["error"]["code"] == "timeout"
        connection.close()
        server.wait_for("zaya_completions_running", 0)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_loses_no_accepted_request(tmp_path, number):
    with serving(tmp_path / "log", "--max-num-seqs", "4") as server:
        answers = []

        def ask(seed):
            answers.append(server.post(TEXT, prompt="import os\n", max_tokens=60, seed=seed, ignore_eos=True))

        threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(10)]
        for thread in threads:
            thread.start()
        server.wait_for("zaya_completions_running", 4)
        server.wait_for("zaya_completions_waiting", 6)
        assert server.stop(number) == 128 + number
        for thread in threads:
            thread.join()
        assert [status for status, _ in answers] == [200] * 10
        assert all(answer["usage"]["completion_tokens"] == 60 for _, answer in answers)


def test_random_leavers_leave_nothing(small):
    chance = random.Random(1)
    address = urlsplit(small.url)
    for _ in range(40):
        body = json.dumps(
            {
                "prompt": "import os\n",
                "max_tokens": 40,
                "stream": chance.random() < 0.7,
                "logprobs": 1,
                "echo": chance.random() < 0.3,
            }
        )
        head = f"POST {TEXT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        raw = (head + body).encode()
        with socket.create_connection((address.hostname, address.port)) as connection:
            connection.sendall(raw[: chance.choice([10, len(head), len(raw) - 3, len(raw), len(raw), len(raw)])])
            time.sleep(chance.random() * 0.05)
    small.wait_for("zaya_completions_running", 0)
    small.wait_for("zaya_completions_waiting", 0)
    assert small.metric("zaya_kv_slots_reserved") == 0
    assert small.post(TEXT, prompt="x", max_tokens=2)[0] == 200
