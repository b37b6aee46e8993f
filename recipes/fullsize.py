"""Convert and run a checkpoint of ZAYA1-8B's size and shape, in either dialect, and print time and peak memory of each step.

    python recipes/fullsize.py native|original [FOLDER]

Needs about 54 GB of disk in FOLDER (default: the system's temporary folder) and deletes what it wrote. Memory is the process's
anonymous and shared pages, sampled twenty times a second: mapped pages of the checkpoint's files can be dropped and do not count.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

ZAYA = (sys.executable, "-m", "zaya_cli")
GENERATE = ("--dtype", "bfloat16", "--max-new-tokens", "8", "--prompt", "def main():", "--seed", "0", "--json", "-q")


def main() -> None:
    """Write, copy, convert, generate with both samplers."""
    dialect, *folder = sys.argv[1:]
    with tempfile.TemporaryDirectory(prefix="fullsize-", dir=folder[0] if folder else None) as name:
        work = Path(name)
        timed("write", *ZAYA, "init", "zaya1-8b", work / "native", "--dtype", "bfloat16", "-q")
        base = work / "native"
        if dialect == "original":
            base = work / "original"
            timed("write the original dialect", sys.executable, __file__, "write-original", base, work / "native")
            shutil.rmtree(work / "native")
        drop_caches()
        copy_seconds, _ = timed("cp -r", "cp", "-r", base, work / "copy")
        shutil.rmtree(work / "copy")
        drop_caches()
        _, printed = timed("convert", *ZAYA, "convert", base, work / "tidar", "--json", "-q")
        result = json.loads(printed.splitlines()[-1])
        shutil.rmtree(base)
        print(f"{dialect}: writing the weights took {result['write_seconds']:.1f} s,", end=" ")
        print(f"{copy_seconds / result['write_seconds']:.2f} of the speed of cp -r; parity: {result['max_delta_logit']}")
        for sampler in ("ar", "lossless"):
            _, printed = timed(f"generate, {sampler}", *ZAYA, "generate", work / "tidar", "--sampler", sampler, *GENERATE)
            row = json.loads(printed.splitlines()[-1])
            print(f"  {row['token_ids']} {row['stats']['prefill_seconds']:.1f} + {row['stats']['decode_seconds']:.1f} s")


def write_original(directory: Path, tokenizer: Path) -> None:
    """Random weights under the original dialect's names, streamed to shards."""
    import torch

    from tests.io.original_dialect import Original, config_values, random_tensors
    from zaya_core.data.tokenizer import TextTokenizer
    from zaya_core.io.weights import write_tensors

    sizes = {"num_half_layers": 80, "hidden": 2048, "q_heads": 8, "kv_heads": 2, "head_dim": 128, "expert_width": 2048}
    net = Original(**sizes, num_experts=16, router=256, vocab=262272, theta=1e6, block="zaya_block")
    directory.mkdir()
    write_tensors(directory, random_tensors(net, dtype=torch.bfloat16))
    (directory / "config.json").write_text(json.dumps(config_values(net, "list") | {"max_position_embeddings": 32768}))
    TextTokenizer(tokenizer).copy_to(directory)


def timed(what: str, *command: str | Path) -> tuple[float, str]:
    """Run to success; print and return seconds, return stdout."""
    began, peak = time.perf_counter(), 0
    with tempfile.TemporaryFile("w+") as out:
        process = subprocess.Popen([str(part) for part in command], stdout=out)
        while process.poll() is None:
            peak = max(peak, own_memory_bytes(process.pid))
            time.sleep(0.05)
        seconds = time.perf_counter() - began
        if process.returncode:
            sys.exit(f"{what} failed with exit code {process.returncode}")
        print(f"{what:28} {seconds:8.1f} s {peak / 1e9:6.2f} GB", flush=True)
        out.seek(0)
        return seconds, out.read()


def own_memory_bytes(pid: int) -> int:
    """RssAnon + RssShmem of a process, 0 once it is gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(("RssAnon", "RssShmem")))


def drop_caches() -> None:
    """Start from the disk, where the system allows it."""
    os.sync()
    switch = Path("/proc/sys/vm/drop_caches")
    if os.access(switch, os.W_OK):
        switch.write_text("3")


if __name__ == "__main__":
    if sys.argv[1:2] == ["write-original"]:
        write_original(Path(sys.argv[2]), Path(sys.argv[3]))
    elif sys.argv[1:2] in (["native"], ["original"]):
        main()
    else:
        sys.exit(__doc__)
