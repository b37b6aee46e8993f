"""Choices about the machine: the dtype that `auto` means, and devices that do not exist."""

import pytest
import torch

from zaya_core import runtime
from zaya_core.errors import ConfigError, DeviceError

CPU, BF16 = torch.device("cpu"), torch.bfloat16


@pytest.mark.parametrize(
    ("fast", "free", "expected"),
    [(True, 10**12, BF16), (False, 10**12, torch.float32), (False, 10**3, BF16)],
)
def test_auto_dtype_of_bfloat16_weights(monkeypatch, fast, free, expected):
    """float32 where the CPU lacks bfloat16 products and the copy fits; the stored dtype otherwise."""
    monkeypatch.setattr(runtime, "has_fast_bfloat16", lambda: fast)
    monkeypatch.setattr(runtime, "available_memory_bytes", lambda: free)
    assert runtime.pick_dtype("auto", BF16, CPU, num_elements=1000) == expected
    assert runtime.pick_dtype("auto", torch.float32, CPU, num_elements=1000) == torch.float32
    assert runtime.pick_dtype("bfloat16", torch.float32, CPU, num_elements=1000) == BF16


def test_names_that_mean_nothing():
    with pytest.raises(ConfigError, match="half"):
        runtime.pick_dtype("half", BF16, CPU, num_elements=1)
    for name in ("cuda:99", "nonsense"):
        with pytest.raises(DeviceError, match=f"--device {name}"):
            runtime.pick_device(name)


def test_memory_is_counted_in_bytes():
    assert 10**8 < runtime.available_memory_bytes() < 10**14
    assert 10**7 < runtime.peak_memory_bytes(CPU) < 10**13
