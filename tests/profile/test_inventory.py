"""The inventory of this machine for real; vendors' libraries by recorded answers, because none is here."""

import sys
from types import SimpleNamespace

import pytest
import torch

from zaya_core.profile import inventory
from zaya_core.stages.env import EnvConfig, run


def test_this_machine():
    (event,) = run(EnvConfig())
    values = event.values
    assert values["num_threads"] == torch.get_num_threads()
    assert len(values["accelerators"]) == torch.cuda.device_count()
    assert set(values["implies"]) == {"training_attention", "grouped_products", "bfloat16", "fp8"}
    if not torch.cuda.is_available():
        assert values["implies"]["training_attention"] == "tiles"


def broken(*arguments):
    raise RuntimeError("not supported")


def amdsmi(**changes):
    calls = {
        "amdsmi_init": lambda: None,
        "amdsmi_shut_down": lambda: None,
        "amdsmi_get_processor_handles": lambda: ["gpu"],
        "amdsmi_get_power_cap_info": lambda handle: {"power_cap": 750_000_000},
        "amdsmi_get_gpu_compute_partition": lambda handle: "SPX",
        "amdsmi_get_gpu_memory_partition": lambda handle: "NPS1",
    }
    return SimpleNamespace(**calls | changes)


def test_amdsmi(monkeypatch):
    monkeypatch.setitem(sys.modules, "amdsmi", amdsmi())
    whole = {"vendor_library": "amdsmi", "power_cap_watts": 750, "compute_partition": "SPX", "memory_partition": "NPS1"}
    assert inventory.from_amdsmi() == [whole]
    monkeypatch.setitem(sys.modules, "amdsmi", amdsmi(amdsmi_get_power_cap_info=broken, amdsmi_get_gpu_compute_partition=broken))
    assert inventory.from_amdsmi() == [whole | {"power_cap_watts": None, "compute_partition": None}]
    monkeypatch.setitem(sys.modules, "amdsmi", amdsmi(amdsmi_init=broken))
    assert inventory.from_amdsmi() is None


@pytest.mark.parametrize(
    ("script", "cap"),
    [
        ('echo \'{"card0": {"Max Graphics Package Power (W)": "750.0", "Compute Partition": "SPX"}, "system": {}}\'', 750.0),
        ("exit 3", None),
        ("echo nothing", None),
    ],
)
def test_rocm_smi(tmp_path, monkeypatch, script, cap):
    program = tmp_path / "rocm-smi"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    found = inventory.from_rocm_smi()
    assert (found and found[0]["power_cap_watts"]) == cap
    if found:
        assert (found[0]["compute_partition"], found[0]["memory_partition"]) == ("SPX", None)


def test_nvml(monkeypatch):
    library = SimpleNamespace(
        nvmlInit=lambda: None,
        nvmlShutdown=lambda: None,
        nvmlDeviceGetCount=lambda: 1,
        nvmlDeviceGetHandleByIndex=lambda index: index,
        nvmlDeviceGetPowerManagementLimit=lambda handle: 700_000,
        nvmlDeviceGetMigMode=broken,
        nvmlSystemGetDriverVersion=lambda: "570.1",
    )
    monkeypatch.setitem(sys.modules, "pynvml", library)
    assert inventory.from_nvml() == [{"vendor_library": "nvml", "driver": "570.1", "power_cap_watts": 700, "is_partitioned": None}]


def test_no_library_no_answer(monkeypatch):
    monkeypatch.setenv("PATH", "")
    for name in ("amdsmi", "pynvml"):
        monkeypatch.setitem(sys.modules, name, None)
    assert inventory.from_amdsmi() is inventory.from_rocm_smi() is inventory.from_nvml() is None
