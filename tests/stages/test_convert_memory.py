"""A conversion holds one output shard and little else, however large the checkpoint is."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.io.original_dialect import Original, config_values, random_tensors
from zaya_core.io.weights import write_tensors

SHARD_BYTES = 200 * 10**6
CHILD = f"""
import sys
from functools import partial
from pathlib import Path
from zaya_core.io import weights
from zaya_core.stages import convert
weights.stream_tensors = partial(weights.stream_tensors, max_shard_bytes={SHARD_BYTES})
for event in convert.run(convert.ConvertConfig(Path(sys.argv[1]), Path(sys.argv[2]), mask_token_id=4)):
    pass
"""


def own_memory_bytes(pid):
    """RssAnon + RssShmem: mapped pages of files do not count."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(("RssAnon", "RssShmem")))


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
def test_peak_memory_is_a_shard_and_one_and_a_half_gigabytes(tmp_path):
    net = Original(24, 1024, 8, 2, 64, expert_width=1024, num_experts=32, router=64)
    (tmp_path / "base").mkdir()
    write_tensors(tmp_path / "base", random_tensors(net, dtype=torch.bfloat16), max_shard_bytes=SHARD_BYTES)
    (tmp_path / "base/config.json").write_text(json.dumps(config_values(net)))
    size = sum(path.stat().st_size for path in (tmp_path / "base").iterdir())
    limit = SHARD_BYTES + 1.5e9
    assert size > limit + 5e8, "a conversion that held the whole checkpoint must fail this test"
    child, peak = subprocess.Popen([sys.executable, "-c", CHILD, tmp_path / "base", tmp_path / "out"]), 0
    while child.poll() is None:
        try:
            peak = max(peak, own_memory_bytes(child.pid))
        except OSError:
            break  # it ended in between
        time.sleep(0.02)
    assert child.wait() == 0
    assert 10**8 < peak < limit
    assert len(list((tmp_path / "out").glob("model-*.safetensors"))) > 5
