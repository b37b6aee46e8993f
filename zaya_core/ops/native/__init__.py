"""The serving network's forward as C of our own, for CPUs that multiply bfloat16 pairs (AVX512-BF16): compiled at its first use.

`library()` has the compiled functions or says why there are none. It needs a C compiler and torch's OpenMP, which it shares: two
pools of threads would wait for each other's cores. The binary lies in the cache under a hash of all that made it.
"""

import ctypes
import hashlib
import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from zaya_core.runtime import cache_root, cpu_flags

SOURCES = sorted(Path(__file__).parent.glob("*.[ch]"))
NEEDS = ("avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512_bf16", "fma")
FLAGS = ("-O3", "-std=c11", "-fopenmp", "-fPIC", *(f"-m{flag.replace('_', '')}" for flag in NEEDS))
Pointer, Int = ctypes.c_void_p, ctypes.c_int64


class Product(ctypes.Structure):
    """product.h's."""

    _fields_ = (("weight", Pointer), ("bias", Pointer), ("inputs", Int), ("outputs", Int))


class Part(ctypes.Structure):
    """attention.h's."""

    _fields_ = tuple((name, Int) for name in ("first", "count", "clean", "begin", "length"))


class Merge(ctypes.Structure):
    """forward.c's, as all below."""

    _fields_ = tuple((name, Pointer) for name in ("output_scale", "stream_scale", "bias"))


class Layer(ctypes.Structure):
    """One layer's weights."""

    _fields_ = (
        *((name, Pointer) for name in ("input_norm", "post_norm", "router_norm")),
        *((name, Merge) for name in ("attention_merge", "mlp_merge")),
        *((name, Product) for name in ("into", "mix", "out")),
        *((name, Pointer) for name in ("depthwise", "length")),
        *((name, Product) for name in ("down", "first", "second", "last")),
        *((name, Pointer) for name in ("carry", "balance")),
        *((name, Product) for name in ("gate", "up", "shrink")),
        *(("turns", Pointer), ("rotated", Int), ("window", Int)),
    )


class Model(ctypes.Structure):
    """The whole network."""

    _fields_ = (
        *((name, Int) for name in ("num_layers", "hidden", "vocabulary", "queries", "groups", "width", "experts", "passes")),
        *(("eps", ctypes.c_float), ("layers", ctypes.POINTER(Layer)), ("embedding", Pointer), ("is_packed", Int)),
        *((name, Pointer) for name in ("input_bias", "input_scale", "norm")),
    )


class Forward(ctypes.Structure):
    """One forward's slots, and where its results go."""

    _fields_ = (
        *((name, Int) for name in ("slots", "past", "num_parts", "threads")),
        *(("parts", ctypes.POINTER(Part)),),
        *((name, Pointer) for name in ("tokens", "position", "start", "block", "prev", "joined")),
        *(("joined_stride", Int), ("stored", Pointer), ("pool_slots", Int), ("choices", Pointer), ("hidden", Pointer)),
    )


@dataclass(frozen=True)
class Missing:
    """There is no library, and why."""

    why: str


@cache
def library() -> ctypes.CDLL | Missing:
    """The compiled functions."""
    lacking = [flag for flag in NEEDS if flag not in cpu_flags()]
    compiler, openmp = shutil.which(os.environ.get("CC", "cc")), _torch_openmp()
    if lacking:
        return Missing(f"this CPU has no {lacking[0]}")
    if compiler is None:
        return Missing("there is no C compiler")
    if openmp is None:
        return Missing("torch's OpenMP library was not found")
    try:
        return _checked(ctypes.CDLL(str(_built(compiler, openmp))))
    except (OSError, RuntimeError, subprocess.CalledProcessError) as error:
        said = error.stderr.strip().splitlines()[-1:] if isinstance(error, subprocess.CalledProcessError) else []
        return Missing(" ".join([f"{compiler} could not make it: {error}", *said]))


def _built(compiler: str, openmp: str) -> Path:
    """The binary, made if it is not there; other processes may make it at the same time."""
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True).stdout
    made_of = [version, openmp, *FLAGS, *(source.read_text() for source in SOURCES)]
    name = hashlib.sha256("\0".join(made_of).encode()).hexdigest()[:16]
    directory = cache_root() / "native"
    target = directory / f"{name}.so"
    if not target.exists():
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=directory) as own:
            objects, binary = Path(own) / "forward.o", Path(own) / "forward.so"
            source = Path(__file__).parent / "forward.c"
            subprocess.run([compiler, *FLAGS, "-c", str(source), "-o", str(objects)], capture_output=True, text=True, check=True)
            # Linked by hand, with the one OpenMP library that is loaded already.
            command = [compiler, "-shared", str(objects), openmp, "-lm", "-o", str(binary)]
            subprocess.run(command, capture_output=True, text=True, check=True)
            os.replace(binary, target)
    return target


def _torch_openmp() -> str | None:
    """The path of the OpenMP library that torch has loaded; GNU's or one that answers to the same calls."""
    import torch  # noqa: F401

    maps = Path("/proc/self/maps")
    lines = maps.read_text().splitlines() if maps.exists() else []
    paths = {line.split(maxsplit=5)[-1] for line in lines if "/" in line}
    return next((path for path in sorted(paths) if Path(path).name.startswith(("libgomp", "libiomp5", "libomp"))), None)


def _checked(built: ctypes.CDLL) -> ctypes.CDLL:
    """Declare the functions, and compare the structures with theirs."""
    built.zaya_forward.argtypes = [ctypes.POINTER(Model), ctypes.POINTER(Forward)]
    built.zaya_product.argtypes = [ctypes.POINTER(Product), Pointer, Int, Pointer, Int]
    built.zaya_product.restype = built.zaya_sizes.restype = None
    theirs = (Int * 5)()
    built.zaya_sizes(theirs)
    ours = [ctypes.sizeof(part) for part in (Product, Part, Layer, Model, Forward)]
    assert list(theirs) == ours, (list(theirs), ours)
    return built
