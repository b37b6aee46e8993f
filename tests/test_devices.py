"""Hardware sheets from files, and the settings file."""

import pytest

from zaya_core.devices import DEVICES, find_device
from zaya_core.errors import ConfigError
from zaya_core.settings import Settings, Tuned, read_settings

SETTINGS = Settings(
    "m", "d", "bfloat16", "0.8", 16, (Tuned(1, 1024, 16, 3, 2.0), Tuned(8, 1024, 8, 1, 1.5), Tuned(8, 8192, 1, 0, 1.0))
)


def test_every_sheet_names_its_source():
    assert all(sheet.source != "not given" for sheet in DEVICES.values())
    assert all(sheet.reached_source for sheet in DEVICES.values() if sheet.reached_flops)


def test_a_sheet_of_ones_own(tmp_path):
    path = tmp_path / "abacus.yaml"
    path.write_text("flops: 2e12\nbandwidth: 1.0e+10\nmemory_bytes: 64000000000\nlaunch_seconds: 0\n")
    sheet = find_device(str(path))
    assert (sheet.name, sheet.ridge, sheet.launch_seconds, sheet.source) == ("abacus", 200, 0, str(path))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("flops: 1e12\n", "bandwidth, memory_bytes missing"),
        ("flop: 1e12\n", "unknown key 'flop'.*did you mean flops"),
        ("flops: fast\nbandwidth: 1\nmemory_bytes: 1\n", "flops is 'fast', expected a number"),
        ("flops: 0\nbandwidth: 1\nmemory_bytes: 1\n", "flops is 0.0, expected a positive number"),
        ("- 1\n", "holds a list"),
        ("a: [", "no hardware sheet"),
    ],
)
def test_a_bad_sheet_says_what_is_wrong(tmp_path, text, message):
    path = tmp_path / "x.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        find_device(str(path))


def test_unknown_names_and_missing_files():
    with pytest.raises(ConfigError, match="did you mean mi300x"):
        find_device("mi30x")
    with pytest.raises(ConfigError, match="no hardware sheet"):
        find_device("nowhere.yaml")


@pytest.mark.parametrize(("batch", "context", "index"), [(1, 1, 0), (2, 900, 0), (4, 1024, 1), (64, 1024, 1), (8, 100_000, 2)])
def test_settings_choose_the_nearest_cell(batch, context, index):
    assert SETTINGS.choose(batch, context) == SETTINGS.cells[index]


def test_settings_round_trip_and_refusals(tmp_path):
    import json

    path = tmp_path / "s.json"
    path.write_text(json.dumps(SETTINGS.to_json()))
    assert read_settings(path, block_length=16) == SETTINGS
    for block_length, text, message in [
        (8, json.dumps(SETTINGS.to_json()), "blocks of 16, expected the model's 8"),
        (16, "{}", "no settings file"),
        (16, "x", "cannot be read"),
        (16, json.dumps(SETTINGS.to_json() | {"cells": []}), "no cells"),
        (16, json.dumps(SETTINGS.to_json() | {"cells": [{"batch": 1}]}), "damaged"),
        (16, json.dumps(SETTINGS.to_json() | {"cells": [SETTINGS.to_json()["cells"][0] | {"proposals": -1}]}), "damaged"),
    ]:
        path.write_text(text)
        with pytest.raises(ConfigError, match=message):
            read_settings(path, block_length=block_length)
