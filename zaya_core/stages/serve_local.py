"""`zaya serve-local`: an OpenAI-compatible server on this machine."""

import json
import os
import queue
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from zaya_core.assets import BUNDLED
from zaya_core.errors import ConfigError, DataError, RunError
from zaya_core.events import Event, Note, Result, Warn
from zaya_core.option import check_options, option

if TYPE_CHECKING:
    import torch

    from zaya_core.engine.ways import Ways
    from zaya_core.io.checkpoint import Checkpoint
    from zaya_core.model.serving import ServingModel
    from zaya_core.server.answering import Desk
    from zaya_core.server.gate import Rules
    from zaya_core.server.served import Bounds, Served
    from zaya_core.server.worker import Worker

EXAMPLE = "zaya serve-local --port 8000 --sampler mix"
KEY_VARIABLE = "ZAYA_API_KEY"
POOL_SHARE = 0.25  # of the memory that the weights leave
CPU_CROWD = 2  # completions whose products fill its cores
TYPICAL_CONTEXT = 512  # tokens that steps are timed after
LOG_SECONDS = 0.1  # how long a signal may wait to be seen


@dataclass(frozen=True)
class ServeLocalConfig:
    """Options of `zaya serve-local`."""

    model: Path | None = option(None, help="checkpoint directory or Hugging Face id; the bundled model by default", argument=True)
    host: str = option("127.0.0.1", help="address to listen on; other machines reach it only where this is not loopback")
    port: int = option(8000, help="port to listen on; 0 takes a free one", minimum=0, maximum=65535)
    api_key_file: Path | None = option(None, help=f"file of keys, one a line, that clients must send; also ${KEY_VARIABLE}")
    no_api_key: bool = option(False, help="listen beyond loopback without a key")
    allowed_host: tuple[str, ...] = option((), help="another name that clients may call this server by (Host header)")
    cors_origin: tuple[str, ...] = option((), help="origin whose browser pages may use this server; none by default")
    sampler: Literal["lossless", "mix", "ar"] | None = option(
        None, help="what requests get that name no sampler; lossless by default, ar for an autoregressive model"
    )
    draft_up_to: int | None = option(
        None,
        help="beside so many completions unseeded ones start without drafts; by default 2 on a CPU, else never",
        minimum=0,
    )
    max_model_len: int | None = option(None, help="tokens of prompt and answer together; the model's context by default", minimum=2)
    max_num_seqs: int = option(32, help="completions that are decoded together", minimum=1)
    max_queue: int = option(256, help="completions that may wait beyond these; more get 429", minimum=0)
    keep_prefixes: int = option(
        32, help="texts that are kept, while their places are free, so that what goes on from them is not read again", minimum=0
    )
    kv_memory: float | None = option(
        None, help="GiB for keys and values of running completions; by default at most a quarter of the free memory", above=0
    )
    max_body: float = option(8.0, help="MiB that a request may have", above=0)
    request_timeout: float = option(600.0, help="seconds that a request may take, waiting included", above=0)
    drain_timeout: int = option(600, help="seconds that requests in work have once the server is told to stop", minimum=0)
    log_requests: bool = option(False, help="write prompts and answers to the log")
    device: str = option("auto", help="torch device")
    dtype: Literal["auto", "float32", "bfloat16", "float64"] = option("auto", help="dtype of the weights in memory")

    def __post_init__(self) -> None:
        check_options(self)


def run(config: ServeLocalConfig) -> Iterator[Event]:
    """Notes until it is ready, a Result with the address, a line for every request; ends with a signal, once all are answered."""
    began = time.monotonic()
    try:
        from zaya_core.server.answering import Desk
        from zaya_core.server.listening import Listener, bind
        from zaya_core.server.metrics import Metrics
        from zaya_core.server.routes import build
    except ModuleNotFoundError as error:
        raise ConfigError(f"serve-local needs {error.name}", hint='pip install "zaya[serve]"') from error
    from zaya_core.train.interrupt import InterruptFlag

    rules = _rules(config)
    checkpoint = _checkpoint(config)
    log: queue.SimpleQueue[Event] = queue.SimpleQueue()
    desk = Desk(Metrics())
    app = build(desk, rules=rules, origins=config.cors_origin, complain=lambda text: log.put(Warn(text)))
    listening = bind(config.host, config.port)
    url = _url(config.host, listening.getsockname()[1])
    listener = Listener(app, listening, drain_seconds=config.drain_timeout)
    with InterruptFlag() as interrupt:
        listener.start()
        worker = None
        try:
            worker = _open(config, checkpoint, desk, log)
            thread = threading.Thread(target=worker.run, name="engine", daemon=True)
            thread.start()
            yield from _greeting(desk, url, time.monotonic() - began, has_key=bool(rules.keys))
            while not interrupt.is_set:
                yield from _logged(log, LOG_SECONDS)
                if not (thread.is_alive() and listener.is_alive):
                    raise RunError("a thread of the server ended by itself", hint="this is a bug in zaya")
            yield Note("stopping: no new connections, requests in work are answered")
        finally:
            listener.stop()
            if worker is not None:
                worker.close()
                thread.join()
    yield from _logged(log, 0)
    interrupt.stop(f"stopped by a signal; requests in work were given {config.drain_timeout} s to be answered")


def _open(config: ServeLocalConfig, checkpoint: "Checkpoint", desk: "Desk", log: "queue.SimpleQueue[Event]") -> "Worker":
    """Load the model, warm it up, and let requests in."""
    from zaya_core.engine.batch import Engine
    from zaya_core.model.load import load_serving
    from zaya_core.runtime import keep_few_programs, leave_a_core, pick_device, pick_dtype
    from zaya_core.server.answering import Service
    from zaya_core.server.served import describe
    from zaya_core.server.worker import Worker

    device = pick_device(config.device)
    leave_a_core()
    keep_few_programs()
    dtype = pick_dtype(config.dtype, checkpoint.stored_dtype, device, num_elements=checkpoint.num_parameters)
    served = describe(checkpoint, _bounds(config, checkpoint, device, dtype))
    model = load_serving(checkpoint, dtype=dtype, device=device)
    ways = _ways(served, model, checkpoint, log)
    engine = Engine(model, num_slots=served.bounds.num_slots, max_rows=config.max_num_seqs, keep_prefixes=config.keep_prefixes)
    crowd = CPU_CROWD if config.draft_up_to is None and device.type == "cpu" else config.draft_up_to
    worker = Worker(
        engine,
        max_waiting=config.max_queue,
        metrics=desk.metrics,
        complain=lambda text: log.put(Warn(text)),
        draft_up_to=crowd,
        ways=ways,
    )
    worker.warm_up()
    desk.service = Service(
        served=served,
        worker=worker,
        request_seconds=config.request_timeout,
        started_at=int(time.time()),
        tell=lambda text: log.put(Note(text)),
        logs_requests=config.log_requests,
    )
    return worker


def _ways(served: "Served", model: "ServingModel", checkpoint: "Checkpoint", log: "queue.SimpleQueue[Event]") -> "Ways | None":
    """How a lonely completion without a seed may draft, by a short measurement; None where drafts are not the default."""
    from zaya_core.engine.request import Decoding
    from zaya_core.ops.sampling import Sampler
    from zaya_core.stages.tuning import measured_ways

    if served.bounds.default_sampler != "lossless" or served.tidar is None:
        return None
    how = Decoding(1, Sampler(), block_length=served.tidar.block_length, forbidden=served.forbidden)
    ways, says = measured_ways(model, how, checkpoint, batch=1, context=min(TYPICAL_CONTEXT, served.bounds.max_model_len))
    log.put(Note(f"proposals auto, for a single completion without a seed: {says}"))
    return ways


def _bounds(config: ServeLocalConfig, checkpoint: "Checkpoint", device: "torch.device", dtype: "torch.dtype") -> "Bounds":
    """What one request may ask for, from the options, the model's context and the memory that its weights leave."""
    from zaya_core.runtime import free_memory_bytes
    from zaya_core.server.served import Bounds, pool_slots

    context = checkpoint.config.max_position_embeddings
    if config.max_model_len is not None and config.max_model_len > context:
        raise ConfigError(f"--max-model-len is {config.max_model_len}, expected at most {context}, the model's context")
    free = free_memory_bytes(device) - checkpoint.num_parameters * dtype.itemsize
    num_bytes = POOL_SHARE * free if config.kv_memory is None else config.kv_memory * 2**30
    max_model_len = config.max_model_len or context
    num_slots = pool_slots(checkpoint.config, dtype, max_rows=config.max_num_seqs, max_model_len=max_model_len, num_bytes=num_bytes)
    sampler = config.sampler or ("ar" if checkpoint.config.tidar is None else "lossless")
    return Bounds(max_model_len, num_slots, sampler)


def _checkpoint(config: ServeLocalConfig) -> "Checkpoint":
    from zaya_core.io.checkpoint import Checkpoint
    from zaya_core.io.hub import checkpoint_path

    return Checkpoint.open(checkpoint_path(config.model) if config.model else BUNDLED)


def _rules(config: ServeLocalConfig) -> "Rules":
    """Who may come in; a ConfigError where strangers could."""
    from zaya_core.server.gate import Rules, is_everywhere, is_loopback

    keys = _keys(config)
    if not is_loopback(config.host) and not keys and not config.no_api_key:
        raise ConfigError(
            f"--host {config.host} can be reached from other machines, expected a key",
            hint=f"--api-key-file FILE or ${KEY_VARIABLE}; --no-api-key lets everyone in",
        )
    loopback = {"localhost", "127.0.0.1", "::1"} if is_loopback(config.host) or is_everywhere(config.host) else set()
    return Rules(
        hosts=frozenset(name.lower() for name in (*loopback, config.host, *config.allowed_host)),
        keys=keys,
        max_body_bytes=int(config.max_body * 2**20),
        is_everywhere=is_everywhere(config.host),
    )


def _keys(config: ServeLocalConfig) -> tuple[str, ...]:
    keys = [os.environ.get(KEY_VARIABLE, "")]
    if config.api_key_file is not None:
        try:
            keys += config.api_key_file.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"--api-key-file {config.api_key_file} cannot be read: {error}") from error
        if not any(map(str.strip, keys)):
            raise DataError(f"--api-key-file {config.api_key_file} holds no key, expected one a line")
    return tuple(key.strip() for key in keys if key.strip())


def _url(host: str, port: int) -> str:
    from zaya_core.server.gate import is_everywhere

    name = "127.0.0.1" if is_everywhere(host) else host
    return f"http://{f'[{name}]' if ':' in name else name}:{port}"


def _logged(log: "queue.SimpleQueue[Event]", wait_seconds: float) -> Iterator[Event]:
    """What the other threads have said, waiting a moment for the first."""
    try:
        yield log.get(timeout=wait_seconds) if wait_seconds else log.get_nowait()
        while True:
            yield log.get_nowait()
    except queue.Empty:
        return


def _greeting(desk: "Desk", url: str, seconds: float, *, has_key: bool) -> Iterator[Event]:
    """The address, and two snippets to copy."""
    service = desk.open()
    served, engine = service.served, service.worker.engine
    yield Note(
        f"ready after {seconds:.1f} s: {served.name}, {served.bounds.default_sampler}, "
        f"{str(engine.model.dtype).removeprefix('torch.')} on {engine.model.device}; {engine.max_rows} completions at once, "
        f"{served.bounds.max_model_len} tokens each, {served.bounds.num_slots} places of K/V; stop with Ctrl-C"
    )
    body = json.dumps({"model": served.name, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 64})
    header = f" -H 'Authorization: Bearer '${KEY_VARIABLE}" if has_key else ""
    yield Note(f"curl {url}/v1/chat/completions -H 'Content-Type: application/json'{header} -d '{body}'")
    key = f'os.environ["{KEY_VARIABLE}"]' if has_key else '"none"'
    yield Note(
        f"{'import os' + chr(10) if has_key else ''}from openai import OpenAI\n"
        f'client = OpenAI(base_url="{url}/v1", api_key={key})\n'
        f'for chunk in client.completions.create(model="{served.name}", prompt="import os\\n", max_tokens=64, stream=True):\n'
        f'    print(chunk.choices[0].text, end="")'
    )
    yield Result({"url": url, "model": served.name})
