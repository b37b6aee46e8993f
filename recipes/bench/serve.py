"""`zaya serve-local` under load: figures and checks against a server that this starts.

    python recipes/bench/serve.py load     [--streams 32] [--seconds 60]   tokens/s of one stream and of many, latencies, memory
    python recipes/bench/serve.py leavers  [--count 1000]                  clients that go away at random moments: nothing stays
    python recipes/bench/serve.py seeds    [--streams 32]                  seeded requests together give the tokens of one by one
    python recipes/bench/serve.py turns                                    time to first token of a chat's second turn
    python recipes/bench/serve.py drain    [--streams 32]                  SIGTERM under load: every accepted request is answered

Options after `--` go to the server. The client is plain asyncio, so that it takes little of the processors that it shares.
Exits with 1 where a check does not hold.
"""

import argparse
import asyncio
import json
import random
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

PROMPTS = [json.loads(line)["prompt"] for line in (Path(__file__).parents[1] / "data" / "heldout.jsonl").read_text().splitlines()]
TEXT, CHAT = "/v1/completions", "/v1/chat/completions"


@dataclass
class Client:
    """One server, over plain connections."""

    url: str
    process: subprocess.Popen[str]

    async def send(self, path: str, body: dict[str, Any]) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A request on a connection of its own."""
        address = urlsplit(self.url)
        reader, writer = await asyncio.open_connection(address.hostname, address.port, limit=2**22)
        data = json.dumps(body).encode()
        head = f"POST {path} HTTP/1.1\r\nHost: {address.netloc}\r\nConnection: close\r\nContent-Type: application/json\r\n"
        writer.write(f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data)
        return reader, writer

    async def post(self, path: str, **body: Any) -> tuple[int, dict[str, Any]]:
        """Status and answer."""
        reader, writer = await self.send(path, body)
        head, _, rest = (await reader.read()).partition(b"\r\n\r\n")
        writer.close()
        return int(head.split()[1]), json.loads(rest)

    async def events(self, path: str, **body: Any) -> AsyncIterator[dict[str, Any]]:
        """What a stream says; a status other than 200 is an AssertionError."""
        reader, writer = await self.send(path, body | {"stream": True, "stream_options": {"include_usage": True}})
        status = (await reader.readline()).split()[1]
        assert status == b"200", status
        async for line in reader:
            if line.startswith(b"data: {"):
                yield json.loads(line[6:])
        writer.close()

    async def metric(self, name: str) -> float:
        """One figure of /metrics."""
        address = urlsplit(self.url)
        reader, writer = await asyncio.open_connection(address.hostname, address.port, limit=2**22)
        writer.write(f"GET /metrics HTTP/1.1\r\nHost: {address.netloc}\r\nConnection: close\r\n\r\n".encode())
        text = (await reader.read()).decode()
        writer.close()
        return next(float(line.split()[1]) for line in text.splitlines() if line.startswith(name + " "))

    def resident_bytes(self) -> int:
        """Memory that the server's process holds."""
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:"))


@dataclass
class Figures:
    """What the streams of one run saw."""

    num_tokens: int = 0
    num_requests: int = 0
    num_errors: int = 0
    first_seconds: list[float] = field(default_factory=list)
    chunk_seconds: list[float] = field(default_factory=list)
    token_seconds: list[float] = field(default_factory=list)


async def stream_until(client: Client, end: float, figures: Figures, chance: random.Random, max_tokens: int) -> None:
    """One request after another."""
    while time.monotonic() < end:
        began = last = time.monotonic()
        try:
            num_chunks, usage = 0, None
            body = {"prompt": chance.choice(PROMPTS), "max_tokens": max_tokens, "ignore_eos": True, "seed": chance.randrange(2**31)}
            async for event in client.events(TEXT, **body):
                usage, now = event["usage"] or usage, time.monotonic()
                assert "error" not in event, event
                if not event["choices"] or not event["choices"][0]["text"]:
                    continue
                (figures.chunk_seconds if num_chunks else figures.first_seconds).append(now - last)
                num_chunks, last = num_chunks + 1, now
            assert usage is not None
            assert usage["completion_tokens"] == max_tokens
            figures.num_tokens += max_tokens
            figures.num_requests += 1
            figures.token_seconds.append((last - began - figures.first_seconds[-1]) / (max_tokens - 1))
        except (OSError, AssertionError, ValueError, KeyError) as error:
            figures.num_errors += 1
            print(f"  error: {type(error).__name__} {error}")


async def run_streams(client: Client, count: int, seconds: float, max_tokens: int) -> tuple[Figures, float]:
    """`count` streams for so long; their figures and tokens/s."""
    figures, began = Figures(), time.monotonic()
    streams = (stream_until(client, began + seconds, figures, random.Random(number), max_tokens) for number in range(count))
    await asyncio.gather(*streams)
    return figures, figures.num_tokens / (time.monotonic() - began)


async def load(client: Client, options: argparse.Namespace) -> bool:
    """Throughput of one stream and of many; the memory after the first third of the time and after the last."""
    await run_streams(client, 2, 2, 16)
    _, alone = await run_streams(client, 1, min(15, options.seconds), options.max_tokens)
    await run_streams(client, options.streams, options.seconds / 3, options.max_tokens)
    before = client.resident_bytes()
    figures, together = await run_streams(client, options.streams, options.seconds, options.max_tokens)
    after = client.resident_bytes()
    print(f"1 stream: {alone:.0f} tokens/s; {options.streams} streams: {together:.0f} tokens/s, {together / alone:.2f}x")
    print(f"{figures.num_requests} requests of {options.max_tokens} tokens, {figures.num_errors} errors, {options.seconds:.0f} s")
    for name in ("first_seconds", "token_seconds", "chunk_seconds"):
        values = sorted(getattr(figures, name))
        print(f"  {name:14} p50 {1e3 * values[len(values) // 2]:7.1f} ms   p99 {1e3 * values[int(0.99 * len(values))]:7.1f} ms")
    print(f"  memory {before / 2**20:.0f} -> {after / 2**20:.0f} MiB, {after / before - 1:+.1%}")
    return figures.num_errors == 0 and after < 1.05 * before and await is_idle(client)


async def leavers(client: Client, options: argparse.Namespace) -> bool:
    """Connections cut at random moments: in the head, in the body, while waiting, while streaming."""
    chance, gate = random.Random(0), asyncio.Semaphore(16)

    async def leave() -> None:
        async with gate:
            path = chance.choice([TEXT, CHAT])
            asked = {"prompt": PROMPTS[0]} if path == TEXT else {"messages": [{"role": "user", "content": "hello"}]}
            _, writer = await client.send(
                path, asked | {"max_tokens": 200, "stream": chance.random() < 0.7, "n": chance.randint(1, 3)}
            )
            await asyncio.sleep(chance.random() * 0.3)
            if chance.random() < 0.3:
                writer.transport.abort()
            writer.close()

    await asyncio.gather(*(leave() for _ in range(options.count)))
    return await is_idle(client)


async def is_idle(client: Client) -> bool:
    """Does nothing run, wait, or hold a place, and does it still answer?"""
    names = ("zaya_completions_running", "zaya_completions_waiting", "zaya_kv_slots_reserved")
    for _ in range(100):
        values = [await client.metric(name) for name in names]
        if not any(values):
            break
        await asyncio.sleep(0.1)
    status, _ = await client.post(TEXT, prompt="import os\n", max_tokens=2)
    told = ", ".join(f"{name} {value:.0f}" for name, value in zip(names, values, strict=True))
    print(f"afterwards: {told}; a request gets {status}")
    return not any(values) and status == 200


async def seeds(client: Client, options: argparse.Namespace) -> bool:
    """Requests of all samplers, temperatures and lengths."""

    async def ask(number: int) -> list[str]:
        zaya = {"sampler": ("lossless", "mix", "ar")[number % 3]}
        asked = {
            "prompt": PROMPTS[number % len(PROMPTS)],
            "seed": number,
            "max_tokens": 40 + number,
            "temperature": (1, 0.7, 0)[number % 3],
        }
        status, answer = await client.post(TEXT, **asked, zaya=zaya, logprobs=1, ignore_eos=True)
        assert status == 200, answer
        return answer["choices"][0]["logprobs"]["tokens"]

    together = await asyncio.gather(*map(ask, range(options.streams)))
    alone = [await ask(number) for number in range(options.streams)]
    differing = [number for number, (one, other) in enumerate(zip(together, alone, strict=True)) if one != other]
    print(f"{options.streams} requests, {sum(map(len, alone))} tokens: {len(differing)} differ {differing or ''}")
    return not differing


async def turns(client: Client, options: argparse.Namespace) -> bool:
    """Time to first token of a new history of about 2000 tokens, and of the next turn of the same conversation."""
    chance, firsts, seconds = random.Random(1), [], []
    for _ in range(5):
        story = "\n".join(f"x{chance.randrange(10**6)} = {chance.randrange(10**6)}" for _ in range(190))
        messages = [{"role": "system", "content": story}, {"role": "user", "content": "Explain this."}]
        answer, first, usage = await first_token(client, messages)
        firsts.append(first)
        messages += [{"role": "assistant", "content": answer}, {"role": "user", "content": "And again?"}]
        seconds.append((await first_token(client, messages))[1])
    before, after = (1e3 * statistics.median(values) for values in (firsts, seconds))
    print(
        f"{usage['prompt_tokens']} tokens of history: first token after {before:.0f} ms, then {after:.0f} ms, {before / after:.1f}x"
    )
    return before / after >= 3


async def first_token(client: Client, messages: list[dict[str, str]]) -> tuple[str, float, dict[str, Any]]:
    """The answer, seconds to its first token, usage."""
    began, first, text, usage = time.monotonic(), None, "", {}
    async for event in client.events(CHAT, messages=messages, max_tokens=24, ignore_eos=True, seed=1):
        for choice in event["choices"]:
            if choice["delta"].get("content"):
                first = first or time.monotonic() - began
                text += choice["delta"]["content"]
        usage = event["usage"] or usage
    assert first is not None
    return text, first, usage


async def drain(client: Client, options: argparse.Namespace) -> bool:
    """All requests are in, then the signal comes."""
    asked = [
        asyncio.ensure_future(client.post(TEXT, prompt=PROMPTS[n % 50], max_tokens=100, ignore_eos=True))
        for n in range(options.streams)
    ]
    while await client.metric("zaya_completions_running") + await client.metric("zaya_completions_waiting") < options.streams:
        await asyncio.sleep(0.05)
    client.process.send_signal(signal.SIGTERM)
    answers = await asyncio.gather(*asked, return_exceptions=True)
    whole = sum(not isinstance(answer, BaseException) and answer[1]["usage"]["completion_tokens"] == 100 for answer in answers)
    code = client.process.wait(60)
    print(f"SIGTERM with {options.streams} requests in work: {whole} answered whole, exit code {code}")
    return whole == options.streams and code == 128 + signal.SIGTERM


CHECKS: dict[str, Callable[[Client, argparse.Namespace], Awaitable[bool]]] = {
    "load": load,
    "leavers": leavers,
    "seeds": seeds,
    "turns": turns,
    "drain": drain,
}


def main() -> int:
    """Start a server, check it, stop it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("check", choices=CHECKS)
    parser.add_argument("--streams", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--max-tokens", type=int, default=128)
    parser.add_argument("--count", type=int, default=1000)
    given = sys.argv[1:]
    border = given.index("--") if "--" in given else len(given)
    options = parser.parse_args(given[:border])
    command = [sys.executable, "-m", "zaya_cli", "serve-local", "--port", "0", "--json", "-q", *given[border + 1 :]]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        client = Client(json.loads(process.stdout.readline())["url"], process)
        return 0 if asyncio.run(CHECKS[options.check](client, options)) else 1
    finally:
        process.kill()
        process.wait()


if __name__ == "__main__":
    sys.exit(main())
