"""Every type of option from every source, and which source wins."""

import json

import pytest


@pytest.fixture
def config(double, tmp_path):
    """`config("in", yaml="seed: 1")` -> the config the stage got, as JSON."""

    def call(*arguments, yaml=None):
        if yaml is not None:
            (tmp_path / "c.yaml").write_text(yaml)
            arguments = (*arguments, "--config", str(tmp_path / "c.yaml"))
        code, out, err = double(*arguments, "--json", "-q")
        assert code == 0, err
        return json.loads(out.splitlines()[-1])

    return call


@pytest.fixture
def refusal(double, tmp_path):
    """`refusal(yaml)` -> the error line for that file."""

    def call(yaml):
        (tmp_path / "c.yaml").write_text(yaml)
        code, out, err = double("in", "--config", str(tmp_path / "c.yaml"))
        assert (code, out) == (2, "")
        assert err.count("\n") == 1
        return err.removeprefix(f"error: {tmp_path}/c.yaml").strip()

    return call


DEFAULTS = {
    "model": "in",
    "out": "out",
    "batch_size": 4,
    "lr": 1e-3,
    "dtype": "float32",
    "packing": True,
    "data": [],
    "objective": "tidar",
    "seed": None,
    "no_cache": False,
    "cache_dir": None,
    "ends": "well",
}
CHANGED = {
    "model": "base",
    "out": "there",
    "batch_size": 8,
    "lr": 1e-4,
    "dtype": "bfloat16",
    "packing": False,
    "data": ["a.jsonl:0.7", "b.jsonl"],
    "objective": "ar",
    "seed": 7,
    "no_cache": True,
    "cache_dir": "cache",
    "ends": "well",
}


def test_defaults(config):
    assert config("in") == DEFAULTS


def test_every_type_from_flags(config):
    flags = "--lr 1e-4 --dtype bfloat16 --no-packing --data a.jsonl:0.7 --data b.jsonl --objective ar --seed 7 --no-cache"
    assert config("base", "there", "-b", "8", *flags.split(), "--cache-dir", "cache") == CHANGED


def test_every_type_from_yaml(config):
    yaml = """
model: base
out: there
batch-size: 8
lr: 1e-4
dtype: bfloat16
packing: false
data: [a.jsonl:0.7, b.jsonl]
objective: ar
seed: 7
no-cache: true
cache_dir: cache
"""
    assert config(yaml=yaml) == CHANGED


def test_every_type_from_the_environment(config, monkeypatch):
    for name, value in CHANGED.items():
        text = " ".join(value) if isinstance(value, list) else str(value)
        monkeypatch.setenv(f"ZAYA_{name.upper()}", text)
    assert config() == CHANGED


def test_flag_beats_yaml_beats_environment_beats_default(config, monkeypatch):
    assert config("in")["seed"] is None
    monkeypatch.setenv("ZAYA_SEED", "1")
    assert config("in")["seed"] == 1
    assert config("in", yaml="seed: 2")["seed"] == 2
    assert config("in", "--seed", "3", yaml="seed: 2")["seed"] == 3


def test_a_flag_equal_to_the_default_still_wins(config, monkeypatch):
    monkeypatch.setenv("ZAYA_PACKING", "false")
    assert config("in", "--packing", "--batch-size", "4", yaml="batch_size: 9") == DEFAULTS


def test_a_wrong_variable_does_not_matter_where_it_loses(config, monkeypatch):
    monkeypatch.setenv("ZAYA_SEED", "many")
    assert config("in", yaml="seed: 2")["seed"] == 2


def test_an_empty_variable_is_no_variable(config, monkeypatch):
    monkeypatch.setenv("ZAYA_SEED", "")
    assert config("in")["seed"] is None


def test_positional_from_the_environment(config, monkeypatch):
    monkeypatch.setenv("ZAYA_MODEL", "elsewhere")
    assert config()["model"] == "elsewhere"
    assert config("here")["model"] == "here"


@pytest.mark.parametrize("flag", ["--batch-size", "--batch_size"])
def test_dash_and_underscore_flags(config, flag):
    assert config("in", flag, "6")["batch_size"] == 6
    assert config("in", f"{flag}=6")["batch_size"] == 6


@pytest.mark.parametrize("key", ["batch-size", "batch_size"])
def test_dash_and_underscore_keys(config, key):
    assert config("in", yaml=f"{key}: 6")["batch_size"] == 6


@pytest.mark.parametrize(
    ("yaml", "key", "value"),
    [
        ("lr: 1", "lr", 1.0),
        ("dtype: 16", "dtype", "16"),
        ("data: a.jsonl", "data", ["a.jsonl"]),
        ("seed: null", "seed", None),
        ("", "seed", None),
    ],
)
def test_yaml_spellings(config, yaml, key, value):
    assert config("in", yaml=yaml)[key] == value


@pytest.mark.parametrize(
    ("yaml", "line"),
    [
        ("batchsize: 8", ": unknown key 'batchsize' (did you mean batch_size?)"),
        ("batch-sise: 8", ": unknown key 'batch-sise' (did you mean batch_size?)"),
        ("batch_size: many", ": batch_size is 'many', expected a whole number"),
        ("batch-size: 1.5", ": batch-size is 1.5, expected a whole number"),
        ("batch_size: true", ": batch_size is True, expected a whole number"),
        ("batch_size: null", ": batch_size is None, expected a whole number"),
        ("lr: fast", ": lr is 'fast', expected a number"),
        ("lr: false", ": lr is False, expected a number"),
        ("packing: 1", ": packing is 1, expected true or false"),
        ("dtype: [a]", ": dtype is ['a'], expected text"),
        ("cache_dir: true", ": cache_dir is True, expected a path"),
        ("data: [1.5]", ": data is [1.5], expected a list of texts"),
        ("objective: [ar]", ": objective is ['ar'], expected one of tidar, ar"),
        ("- a", ": holds a list, expected `key: value` lines"),
        ("seed: 1\na: [", ":2: not YAML: expected the node content, but found '<stream end>'"),
    ],
)
def test_yaml_refused(refusal, yaml, line):
    assert refusal(yaml) == line


def test_bounds_and_choices_hold_for_yaml(refusal):
    assert refusal("batch_size: 0") == "error: --batch-size is 0, expected at least 1"
    assert refusal("objective: mlm") == "error: --objective is 'mlm', expected one of tidar, ar"


def test_a_wrong_variable_is_named(double, monkeypatch):
    monkeypatch.setenv("ZAYA_SEED", "many")
    code, _, err = double("in")
    assert code == 2
    assert err == "error: environment variable ZAYA_SEED: 'many' is not a valid integer\n"
