"""Where documents come from, and what is said of those that cannot be read."""

import gzip
import json

import datasets
import pytest
import zstandard

from zaya_core.data.sources import read_documents, read_rows, standard_library, weighted
from zaya_core.errors import DataError


def read(path):
    return list(read_documents(str(path)))


def test_a_folder_is_read_in_the_order_of_its_paths(tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "z.py").write_text("z")
    (tmp_path / "b" / "a.jsonl").write_text('{"text": "one"}\n\n{"text": "two", "id": 7}\n')
    (tmp_path / "c.md").write_text("c é", encoding="utf-8")
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "ignored.bin").write_bytes(b"\xff")
    (tmp_path / "d.txt").mkdir()
    assert read(tmp_path) == ["a", "one", "two", "z", "c é"]


def test_a_file_is_read_whatever_its_suffix(tmp_path):
    (tmp_path / "notes").write_text("  as it is \n")
    assert read(tmp_path / "notes") == ["  as it is \n"]


def test_jsonl_keeps_line_ends_and_unicode_of_its_strings(tmp_path):
    texts = ["a\u2028b\x85c", "line\nline", "👩‍👧"]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts), encoding="utf-8")
    assert read(path) == texts


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("{", "not JSON"),
        ("text", "not JSON"),
        ("[1]", "list, expected an object"),
        ('{"txt": "a"}', 'expected an object with a string "text"'),
        ('{"text": 5}', 'expected an object with a string "text"'),
        ('{"text": null}', 'expected an object with a string "text"'),
        ('{"text": "a\\ud800b"}', "the text has half a surrogate pair"),
    ],
)
def test_a_bad_row_is_named_by_file_and_line(tmp_path, line, problem):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "good"}\n\n' + line + "\n")
    with pytest.raises(DataError) as caught:
        read(path)
    assert str(caught.value).startswith(f"{path}:3: {problem}")


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl"])
def test_what_is_not_utf8_is_named(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(b'{"text": "caf\xe9"}\n')
    with pytest.raises(DataError, match=f"{path}.*not UTF-8"):
        read(path)


def test_missing_and_empty_places(tmp_path):
    with pytest.raises(DataError, match=f"--data {tmp_path}/no.txt does not exist"):
        read(tmp_path / "no.txt")
    (tmp_path / "x.bin").write_bytes(b"x")
    with pytest.raises(DataError, match=f"{tmp_path} has no "):
        read(tmp_path)


def test_the_standard_library_is_split_for_good():
    training, held_out = standard_library(held_out=False), standard_library(held_out=True)
    assert not set(training) & set(held_out)
    assert len(set(training)) == len(training) > 300
    assert 0.02 < len(held_out) / len(training) < 0.1
    assert standard_library(held_out=True) == held_out == sorted(held_out)
    both = {path.name for path in (*training, *held_out)}
    assert {"argparse.py", "dataclasses.py", "decoder.py"} <= both
    assert not any({"test", "tests", "site-packages"} & set(path.parts[-4:]) for path in (*training, *held_out))
    assert len(list(read_documents("stdlib-held-out"))) == len(held_out)
    assert all(read_documents("stdlib-held-out"))


ROWS = [{"text": "one"}, {"text": "two"}]


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet"])
def test_rows_come_out_of_every_kind_of_file(tmp_path, suffix):
    lines = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
    path = tmp_path / f"a{suffix}"
    if suffix == ".parquet":
        datasets.Dataset.from_list(ROWS).to_parquet(path)
    else:
        path.write_bytes({".jsonl": bytes, ".jsonl.gz": gzip.compress, ".jsonl.zst": zstandard.compress}[suffix](lines))
    assert [row for _, row in read_rows(str(path))] == ROWS
    assert read(tmp_path) == ["one", "two"], "a folder reads them too"


@pytest.mark.parametrize("suffix", [".jsonl.gz", ".jsonl.zst"])
def test_a_cut_file_is_named(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    whole = {".jsonl.gz": gzip.compress, ".jsonl.zst": zstandard.compress}[suffix](
        b"".join(b'{"text": "%d"}\n' % i for i in range(9999))
    )
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=f"{path} is damaged or cut"):
        read(path)


def test_a_hub_id_out_of_reach_is_said(monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(DataError, match="--data nobody/nothing cannot be had"):
        next(read_rows("nobody/nothing"))


def test_weights(tmp_path):
    assert weighted("a/b.jsonl:0.7") == ("a/b.jsonl", 0.7)
    assert weighted("stdlib") == ("stdlib", None)
    odd = tmp_path / "odd:3"
    odd.touch()
    assert weighted(str(odd)) == (str(odd), None), "a path that exists is a path"
    with pytest.raises(DataError, match="weight is -1"):
        weighted("a:-1")
