"""Damaged or hostile weight files are refused by their headers, before a tensor is read; what is written reads back."""

import json
import struct

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.checkpoints import write_random
from tests.models import TINY, random_model
from zaya_core.errors import CheckpointError
from zaya_core.io.checkpoint import Checkpoint, check_tensors, stored_tensors
from zaya_core.io.weights import INDEX, SINGLE, TensorInfo, read_headers, read_tensors, write_tensors
from zaya_core.model.load import load_model


def write_raw(path, header, body=b""):
    """A safetensors file with exactly this header: an object, or the bytes themselves."""
    head = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(head)) + head + body)


def entry(shape, begin, stop, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, stop]}


def refused(directory, *words):
    """The one CheckpointError of these headers, which must hold all the words."""
    with pytest.raises(CheckpointError) as caught:
        read_headers(directory)
    message = str(caught.value)
    assert all(word in message for word in words), message
    return message


@pytest.fixture
def sharded(tmp_path):
    """Ten tensors of 40 bytes in shards of at most 100: five files of two."""
    tensors = {f"t{number}": torch.arange(10.0) + number for number in range(10)}
    write_tensors(tmp_path, tensors.items(), max_shard_bytes=100)
    return tmp_path, tensors


def test_shards_round_trip(sharded):
    directory, tensors = sharded
    names = sorted(path.name for path in directory.iterdir())
    assert names == [f"model-{number:05d}-of-00005.safetensors" for number in range(1, 6)] + [INDEX]
    headers = read_headers(directory)
    found = dict(read_tensors(headers))
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)
    assert torch.equal(dict(read_tensors({"t7": headers["t7"]}))["t7"], tensors["t7"])
    index = json.loads((directory / INDEX).read_text())
    assert index["metadata"]["total_size"] == 400
    # As any other reader of the format sees it.
    assert all(torch.equal(load_file(directory / file)[name], tensors[name]) for name, file in index["weight_map"].items())


def test_a_tensor_larger_than_a_shard_gets_its_own(tmp_path):
    tensors = {"small": torch.ones(2), "large": torch.ones(100), "last": torch.ones(3)}
    write_tensors(tmp_path, tensors.items(), max_shard_bytes=50)
    assert {name: info.file.name for name, info in read_headers(tmp_path).items()} == {
        "small": "model-00001-of-00003.safetensors",
        "large": "model-00002-of-00003.safetensors",
        "last": "model-00003-of-00003.safetensors",
    }


def test_what_fits_is_one_file(tmp_path):
    write_tensors(tmp_path, {"a": torch.ones(5, 2, dtype=torch.bfloat16).T}.items())
    assert [path.name for path in tmp_path.iterdir()] == [SINGLE]
    assert read_headers(tmp_path) == {"a": TensorInfo(tmp_path / SINGLE, "BF16", (2, 5))}


def test_a_file_cut_anywhere_is_refused(tmp_path):
    path = tmp_path / SINGLE
    write_tensors(tmp_path, {"a": torch.arange(8.0), "b": torch.ones(4)}.items())
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        refused(tmp_path, str(path))
    path.write_bytes(whole + b"\0")
    refused(tmp_path, str(path), "is cut")


@pytest.mark.parametrize(
    ("header", "body", "word"),
    [
        (b"\xff\xfe garbage", b"", "no safetensors header"),
        (b"not json", b"", "no safetensors header"),
        (b"[" * 90_000, b"", "no safetensors header"),
        (b"[1, 2]", b"", "not an object"),
        (b'"text"', b"", "not an object"),
        ({"a": 5}, b"", "has the header 5"),
        ({"a": {"dtype": "F32"}}, b"", "expected dtype, shape and data_offsets"),
        ({"a": entry([1], 0, 4, dtype=["F32"])}, b"0000", "expected dtype"),
        ({"a": entry("1", 0, 4)}, b"0000", "expected dtype"),
        ({"a": entry([-1, -1], 0, 4)}, b"0000", "expected dtype"),
        ({"a": entry([1.0], 0, 4)}, b"0000", "expected dtype"),
        ({"a": entry([2**63, 2**63], 0, 4)}, b"0000", "does not fill"),
        ({"a": entry([2**62], 0, 0)}, b"", "does not fill"),
        ({"a": entry([1], 4, 0)}, b"0000", "does not fill"),
        ({"a": entry([1], 0, 4), "b": entry([1], 0, 4)}, b"0000", "expected 4"),
        ({"a": entry([1], 4, 8)}, b"00000000", "expected 0"),
        ({"a": entry([4], 0, 4, dtype="F8_E4M3")}, b"0000", "dtype F8_E4M3"),
        ({"a": entry([2], 0, 8)}, b"0000", "is cut"),
    ],
)
def test_header_garbage(tmp_path, header, body, word):
    write_raw(tmp_path / SINGLE, header, body)
    refused(tmp_path, str(tmp_path / SINGLE), word)


@pytest.mark.parametrize("length", [1000, 200_000_000, 2**64 - 1])
def test_overlong_header_is_not_allocated(tmp_path, length):
    (tmp_path / SINGLE).write_bytes(struct.pack("<Q", length) + b"{}")
    refused(tmp_path, str(tmp_path / SINGLE), f"claims {length} bytes of a 10-byte file")


@pytest.mark.parametrize(
    "name", ["../x.safetensors", "/etc/x.safetensors", "a/x.safetensors", "..", "x.bin", "", 7, None, ["x.safetensors"]]
)
def test_index_points_nowhere_else(tmp_path, name):
    inside = tmp_path / "model"
    inside.mkdir()
    save_file({"a": torch.ones(2)}, tmp_path / "x.safetensors")
    (inside / INDEX).write_text(json.dumps({"weight_map": {"a": name}}))
    refused(inside, str(inside / INDEX), repr(name))


@pytest.mark.parametrize("content", ["", "[]", "{", "{}", '{"weight_map": {}}', '{"weight_map": ["a"]}', "\xff"])
def test_index_garbage(tmp_path, content):
    (tmp_path / INDEX).write_text(content, encoding="latin-1")
    refused(tmp_path, str(tmp_path / INDEX))


def rewrite_index(directory, change):
    index = json.loads((directory / INDEX).read_text())
    change(index["weight_map"])
    (directory / INDEX).write_text(json.dumps(index))


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (lambda weights: weights.pop("t3"), "t3"),
        (lambda weights: weights.update(ghost=weights["t0"]), "ghost"),
        (lambda weights: weights.update(t0=weights["t9"]), "t0"),
    ],
)
def test_index_and_shards_disagree(sharded, change, name):
    directory, _ = sharded
    rewrite_index(directory, change)
    refused(directory, str(directory / INDEX), "disagree", name)


def test_missing_shard(sharded):
    directory, _ = sharded
    gone = directory / "model-00003-of-00005.safetensors"
    gone.unlink()
    refused(directory, str(gone), "is missing")


def test_pickles_are_named_and_never_read(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (tmp_path.joinpath("ran").touch, ())

    torch.save(Bomb(), tmp_path / "pytorch_model.bin")
    refused(tmp_path, str(tmp_path), "pytorch_model.bin is a pickle")
    assert not (tmp_path / "ran").exists()


def as_headers(tensors):
    return {name: TensorInfo(None, "F32", tuple(tensor.shape)) for name, tensor in tensors.items()}


def test_check_tensors_lists_names(tmp_path):
    expected = stored_tensors(random_model(TINY))
    found = as_headers(expected)
    check_tensors(expected, found, tmp_path)
    moved = {"renamed." + name if "norm" in name else name: info for name, info in found.items()}
    with pytest.raises(CheckpointError, match=r"missing model\.layers\.0\..* and \d+ more; left over renamed\.model"):
        check_tensors(expected, moved, tmp_path)
    name = "model.embed_tokens.weight"
    with pytest.raises(CheckpointError, match=rf"{name} has shape \[97, 33\], expected \[97, 32\]"):
        check_tensors(expected, found | {name: TensorInfo(None, "F32", (97, 33))}, tmp_path)


def test_integer_weights_are_not_floating_point_ones(tmp_path):
    checkpoint = write_random(tmp_path / "model", TINY, tokenizer=False)
    tensors = dict(read_tensors(checkpoint.tensors))
    whole = {name: tensor.to(torch.int8) for name, tensor in tensors.items()}
    save_file(whole, checkpoint.path / SINGLE, metadata={"format": "pt"})
    quantised = Checkpoint.open(checkpoint.path)
    with pytest.raises(CheckpointError, match="no tensor of dtype F64, F32"):
        _ = quantised.stored_dtype
    with pytest.raises(CheckpointError, match=f"{SINGLE}: .* has dtype I8"):
        load_model(quantised, dtype=torch.float32, device=torch.device("cpu"))


def test_shards_are_readable_by_whom_the_umask_lets(tmp_path):
    (tmp_path / "plain").touch()
    write_tensors(tmp_path, [("t", torch.zeros(2))])
    assert (tmp_path / SINGLE).stat().st_mode == (tmp_path / "plain").stat().st_mode
