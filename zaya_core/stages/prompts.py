"""Where prompts come from and how they read to the model: texts as they are, or conversations through a chat template.

Every prompt is checked before any is decoded; a bad one names its file and line. It knows nothing of decoding.
"""

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zaya_core.errors import ConfigError, DataError
from zaya_core.option import flag_name, option

if TYPE_CHECKING:
    from zaya_core.data.chat import ChatTemplate
    from zaya_core.data.tokenizer import TextTokenizer
    from zaya_core.io.checkpoint import Checkpoint


@dataclass(frozen=True)
class PromptConfig:
    """What is to be continued, and in which dress."""

    prompt: str | None = option(
        None, help="text to continue; read from stdin when neither this nor --prompt-file is given", short="p"
    )
    prompt_file: Path | None = option(None, help="file whose text is continued")
    input: Path | None = option(None, help='.jsonl of prompts, one {"prompt": TEXT} or {"messages": [...]} a line')
    system_prompt: str | None = option(None, help="what a conversation begins with")
    raw: bool = option(False, help="take the text exactly as given: no chat template, no BOS, no other special token is added")

    def check_one_source(self, *also: str) -> None:
        """A ConfigError where more than one of the fields is given that say what to do."""
        given = [name for name in ("prompt", "prompt_file", "input", *also) if getattr(self, name) not in (None, False)]
        if len(given) > 1:
            raise ConfigError(f"{' and '.join(flag_name(name) for name in given)} exclude each other")


@dataclass(frozen=True)
class Prompt:
    """`text` is what the results call the prompt; `read` is what the model reads, as text, if that is something else."""

    text: str
    place: str
    is_raw: bool = False
    read: str | None = field(default=None, repr=False)

    @property
    def is_chat(self) -> bool:
        """Does it end where the assistant speaks?"""
        return self.read is not None

    def token_ids(self, tokenizer: "TextTokenizer") -> list[int]:
        """A conversation's template writes its own special tokens; to a text the tokenizer adds what it adds."""
        if self.read is not None:
            return tokenizer.encode(self.read, special=False)
        return tokenizer.encode(self.text, special=not self.is_raw)


@dataclass(frozen=True)
class Dresser:
    """Makes prompts of texts and of conversations for one checkpoint, as PromptConfig says."""

    config: PromptConfig
    template: "ChatTemplate"
    is_chat: bool  # texts too become a user's words

    @classmethod
    def of(cls, config: PromptConfig, checkpoint: "Checkpoint", tokenizer: "TextTokenizer") -> "Dresser":
        """The template applies to texts if the checkpoint was tuned for chat, unless --raw."""
        from zaya_core.data.chat import chat_template

        return cls(config, chat_template(tokenizer), not config.raw and is_tuned_for_chat(checkpoint, tokenizer))

    def text(self, text: str, place: str) -> Prompt:
        """A prompt of this text, wrapped as a user's words where the model expects that."""
        if self.is_chat:
            return Prompt(text, place, read=self._rendered([{"role": "user", "content": text}], place))
        if self.config.system_prompt is not None:
            hint = 'leave it out, or give rows of {"messages"}' if not self.config.raw else "leave out --raw"
            raise ConfigError("--system-prompt has no place before a plain text", hint=hint)
        return Prompt(text, place, self.config.raw)

    def messages(self, messages: Any, place: str) -> Prompt:
        """A prompt of this conversation, which is always rendered."""
        from zaya_core.data.examples import check_messages

        check_messages(place, messages)
        if self.config.raw:
            raise DataError(f'{place}: "messages" cannot be taken as they are', hint="leave out --raw")
        read = self._rendered(messages, place)
        return Prompt(read, place, read=read)

    def _rendered(self, messages: list[dict[str, Any]], place: str) -> str:
        system = self.config.system_prompt
        if system is not None and messages[0]["role"] != "system":
            messages = [{"role": "system", "content": system}, *messages]
        try:
            return self.template.render(messages, add_generation_prompt=True)
        except DataError as error:
            raise DataError(f"{place}: {error.message}", hint=error.hint) from error


def read_all(dresser: Dresser) -> list[Prompt]:
    """The prompts that the config names, in order."""
    config = dresser.config
    if config.input is not None:
        prompts = list(_rows(config.input, dresser))
        if not prompts:
            raise DataError(f"--input {config.input} holds no prompt")
        return prompts
    if config.prompt is not None:
        return [dresser.text(config.prompt, "--prompt")]
    source = f"--prompt-file {config.prompt_file}" if config.prompt_file else "stdin"
    try:
        text = config.prompt_file.read_text(encoding="utf-8") if config.prompt_file else sys.stdin.read()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{source} cannot be read: {error}") from error
    return [dresser.text(text, source)]


def check_room(num_prompt_tokens: int, max_new_tokens: int, context: int, *, place: str = "") -> None:
    """A DataError unless a prompt of so many tokens has some, and leaves room in the context for the new ones."""
    where = f"{place}: " if place and not place.startswith(("--", "stdin")) else ""
    if num_prompt_tokens == 0:
        raise DataError(f"{where}the prompt has no tokens", hint="give some text, or leave out --raw so that BOS is added")
    if num_prompt_tokens + max_new_tokens > context:
        raise DataError(
            f"{where}the prompt has {num_prompt_tokens} tokens and --max-new-tokens is {max_new_tokens}, "
            f"expected at most {context} together, the model's context",
            hint="shorten the prompt or lower --max-new-tokens",
        )


def is_tuned_for_chat(checkpoint: "Checkpoint", tokenizer: "TextTokenizer") -> bool:
    """By its lineage: some stage trained it on conversations. Of one made elsewhere, that has a template, we believe it."""
    from zaya_core.data.chat import own_template

    paper = checkpoint.certificate()
    while paper is not None:
        if paper.get("chat"):
            return True
        if paper.get("parent") is None:
            return False
        paper = paper["parent"].get("certificate")
    return own_template(tokenizer) is not None


def _rows(path: Path, dresser: Dresser) -> Iterator[Prompt]:
    from zaya_core.data.sources import read_jsonl

    for place, row in read_jsonl(path, "--input"):
        if "messages" in row:
            yield dresser.messages(row["messages"], place)
        elif isinstance(row.get("prompt"), str):
            yield dresser.text(row["prompt"], place)
        else:
            raise DataError(f'{place}: expected an object with a string "prompt" or with "messages"')
