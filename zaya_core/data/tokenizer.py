"""A checkpoint's tokenizer: text to ids and back, and the ids with a meaning of their own.

Reads tokenizer.json with `tokenizers` alone, so that generating does not wait for transformers to import.
"""

import json
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from zaya_core.errors import CheckpointError, ConfigError
from zaya_core.io.checkpoint import TOKENIZER_FILES
from zaya_core.io.files import read_json, write_json

PAD, EOS, BOS, UNKNOWN, MASK, IM_START, IM_END = "<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "<|im_start|>", "<|im_end|>"
RESERVED = tuple(f"<unused{number}>" for number in range(9))
SPECIALS = (PAD, EOS, BOS, UNKNOWN, MASK, IM_START, IM_END, *RESERVED)

CHATML = """{%- for message in messages -%}
{{- '<|im_start|>' + message['role'] + '\\n' -}}
{%- if message['role'] == 'assistant' -%}
{%- generation -%}{{- message['content'] + '<|im_end|>' -}}{%- endgeneration -%}
{%- else -%}
{{- message['content'] + '<|im_end|>' -}}
{%- endif -%}
{{- '\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}
"""


@dataclass(frozen=True)
class TextTokenizer:
    """tokenizer.json and its neighbours in one directory."""

    directory: Path

    @cached_property
    def backend(self) -> Tokenizer:
        """The `tokenizers` object; a missing or broken file is a CheckpointError."""
        path = self.directory / "tokenizer.json"
        if not path.exists():
            raise CheckpointError(f"{self.directory} has no tokenizer.json", hint="copy the tokenizer's files there")
        try:
            return Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises bare Exception for every parse error
            raise CheckpointError(f"{path} is not a tokenizer: {error}") from error

    @cached_property
    def settings(self) -> dict[str, Any]:
        """tokenizer_config.json, or an empty one."""
        path = self.directory / "tokenizer_config.json"
        return read_json(path) if path.exists() else {}

    @cached_property
    def num_ids(self) -> int:
        """One more than the highest id that the tokenizer knows."""
        return 1 + max(self.backend.get_vocab(with_added_tokens=True).values())

    @cached_property
    def known_ids(self) -> frozenset[int]:
        """Every id that decodes to something."""
        return frozenset(self.backend.get_vocab(with_added_tokens=True).values())

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """Text to ids; `special` adds what the tokenizer adds at the ends (BOS), less a trailing EOS (model.md D10)."""
        encoding = self.backend.encode(text, add_special_tokens=special)
        # The mask marks what the tokenizer added itself: an end that the text spells out stays.
        has_added_end = bool(encoding.ids) and encoding.special_tokens_mask[-1] == 1 and encoding.ids[-1] in self.ending_ids
        return encoding.ids[:-1] if has_added_end else encoding.ids

    def encode_documents(self, texts: list[str]) -> list[list[int]]:
        """Whole documents as a model should see them: BOS as the tokenizer says, EOS; "<eos>" spelled out in a text is text."""
        end = self.eos_id
        self.backend.encode_special_tokens = True
        rows = self.backend.encode_batch_fast(texts, add_special_tokens=True)
        self.backend.encode_special_tokens = False
        return [[*row.ids, *([] if row.ids and row.ids[-1] == end else [end])] for row in rows]

    def decode(self, token_ids: list[int]) -> str:
        """Ids to text, special tokens left out."""
        return self.backend.decode(token_ids, skip_special_tokens=True)

    def id_of(self, token: str) -> int | None:
        """The id of a token, None if there is none."""
        return self.backend.token_to_id(token)

    def special_id(self, role: str) -> int | None:
        """The id of `eos_token`, `bos_token` or `pad_token` by tokenizer_config.json."""
        token = self.settings.get(role)
        token = token.get("content") if isinstance(token, dict) else token
        return self.id_of(token) if token else None

    @property
    def eos_id(self) -> int:
        """The id that ends a document."""
        found = self.special_id("eos_token")
        if found is None:
            raise CheckpointError(f"{self.directory / 'tokenizer_config.json'} names no eos_token of the vocabulary")
        return found

    @cached_property
    def ending_ids(self) -> frozenset[int]:
        """Ids that end a document or a turn."""
        ids = {self.id_of(token) for token in (EOS, IM_END, "<end_of_turn>", "<|endoftext|>")}
        if self.settings.get("eos_token"):
            ids.add(self.eos_id)
        return frozenset(index for index in ids if index is not None)

    def copy_to(self, directory: Path) -> None:
        """Copy the tokenizer's files as they are."""
        for name in TOKENIZER_FILES:
            if (self.directory / name).exists():
                shutil.copyfile(self.directory / name, directory / name)


def train_tokenizer(texts: Iterable[str], vocab_size: int, directory: Path) -> None:
    """Byte-level BPE with ZAYA1's special ids (pad 0, bos 2, mask 4), reserved ids, ChatML tokens and a chat template."""
    if vocab_size < len(SPECIALS) + 256:
        raise ConfigError(f"vocabulary of {vocab_size} is too small, expected at least {len(SPECIALS) + 256}")
    backend = Tokenizer(models.BPE())
    # A digit is a token: numbers line up, and one never seen is written as well as any other.
    digits = pre_tokenizers.Digits(individual_digits=True)
    backend.pre_tokenizer = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIALS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    backend.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, SPECIALS.index(BOS))]
    )
    backend.save(str(directory / "tokenizer.json"))
    names = {"pad_token": PAD, "eos_token": EOS, "bos_token": BOS, "unk_token": UNKNOWN}
    write_json(directory / "special_tokens_map.json", names)
    settings = names | {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    write_json(directory / "tokenizer_config.json", settings)
    (directory / "chat_template.jinja").write_text(CHATML, encoding="utf-8")


def add_token(directory: Path, token: str, index: int) -> None:
    """Add `token` to tokenizer.json at id `index`, which must be the next free one."""
    path = directory / "tokenizer.json"
    backend = Tokenizer.from_file(str(path))
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False)])
    if backend.token_to_id(token) != index:
        raise ConfigError(f"{token} got id {backend.token_to_id(token)} in {path}, expected {index}")
    backend.save(str(path))
    settings_path = directory / "tokenizer_config.json"
    settings = read_json(settings_path) if settings_path.exists() else {}
    if "added_tokens_decoder" in settings:
        entry = {"content": token, "lstrip": False, "rstrip": False, "normalized": False, "single_word": False, "special": True}
        settings["added_tokens_decoder"][str(index)] = entry
        settings_path.write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def remove_token(directory: Path, token: str) -> None:
    """The reverse of `add_token`."""
    path = directory / "tokenizer.json"
    values = read_json(path)
    values["added_tokens"] = [item for item in values["added_tokens"] if item["content"] != token]
    path.write_text(json.dumps(values, ensure_ascii=False, indent=2), encoding="utf-8")
    settings_path = directory / "tokenizer_config.json"
    settings = read_json(settings_path) if settings_path.exists() else {}
    if "added_tokens_decoder" in settings:
        decoder = settings["added_tokens_decoder"]
        settings["added_tokens_decoder"] = {key: item for key, item in decoder.items() if item["content"] != token}
        settings_path.write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
