"""`zaya generate --chat`: a conversation. It asks for lines through Ask events and answers with Text; it knows no terminal.

Invariant: the history holds whole exchanges, and an answer that was stopped counts as far as it came.
"""

import signal
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin

from zaya_core.config import nearest
from zaya_core.errors import ConfigError, ZayaError
from zaya_core.events import Ask, Drafts, Event, Note, Text, Warn
from zaya_core.option import option_type
from zaya_core.stages.decoding import decoding
from zaya_core.stages.generate import GenerateConfig, Opened, drawn_seed
from zaya_core.stages.prompts import Dresser, Prompt
from zaya_core.stages.tuning import tuned

if TYPE_CHECKING:
    from zaya_core.engine.batch import Engine
    from zaya_core.engine.ways import Ways
    from zaya_core.model.serving import ServingModel
    from zaya_core.stages.completing import Job

PLAIN_STOPS = ("\nUser:",)
SETTABLE = (
    "sampler",
    "mix_weight",
    "block",
    "proposals",
    "draft_temperature",
    "max_new_tokens",
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "repetition_penalty",
    "seed",
)
HELP = (
    "/help              this list",
    "/clear             forget what was said",
    "/again             answer the last question anew",
    "/system [TEXT]     begin with this, and forget what was said; without TEXT, with nothing",
    "/NAME [VALUE]      show or set an option: " + ", ".join(name.replace("_", "-") for name in SETTABLE),
    "/exit              leave, as Ctrl-D does; Ctrl-C stops an answer",
)


def converse(config: GenerateConfig, opened: Opened, dresser: Dresser) -> Iterator[Event]:
    """Ask, answer, until there is no more line or it says /exit."""
    model = opened.model(config)
    opened = yield from opened.settled(config, model, batch=1, context=config.max_new_tokens)
    if not dresser.is_chat:
        yield Warn(f"{opened.checkpoint.path.name} was not tuned for chat: it continues a transcript of User: and Assistant:")
    yield Note("/help lists the commands")
    talk = Conversation(config, opened, dresser, model, drawn_seed(config))
    while True:
        line = yield Ask("> ")
        if line is None:
            return
        words = line.strip()
        if words in ("/exit", "/quit"):
            return
        try:
            yield from talk.command(words[1:]) if words.startswith("/") else talk.say(words)
        except ZayaError as error:
            yield Warn(str(error))


@dataclass
class Conversation:
    """What has been said, and how to answer."""

    config: GenerateConfig
    opened: Opened
    dresser: Dresser
    model: "ServingModel"
    seed: int
    messages: list[dict[str, Any]] = field(default_factory=list)
    num_answers: int = 0
    engine: "Engine | None" = None
    ways: "Ways | None" = field(init=False)  # as measured, for whenever --proposals is auto

    def __post_init__(self) -> None:
        self.ways = self.opened.how.ways

    def command(self, words: str) -> Iterator[Event]:
        """Do what a line after its "/" says; ConfigError where it says nothing known."""
        name, _, rest = words.partition(" ")
        name, rest = name.replace("-", "_"), rest.strip()
        if name == "help":
            yield from map(Note, HELP)
        elif name == "clear":
            self.messages = []
        elif name == "system":
            self.config, self.messages = replace(self.config, system_prompt=rest or None), []
            self.dresser = replace(self.dresser, config=self.config)
        elif name == "again":
            yield from self._again()
        elif name in SETTABLE:
            yield Note(self._set(name, rest))
        else:
            known = ["help", "clear", "again", "system", "exit", *SETTABLE]
            raise ConfigError(f"/{name} is no command", hint=nearest(name, known))

    def say(self, words: str) -> Iterator[Event]:
        """The user's words, and the answer to them."""
        if words:
            self.messages.append({"role": "user", "content": words})
            yield from self._answer()

    def _again(self) -> Iterator[Event]:
        if not self.messages:
            raise ConfigError("/again has nothing to answer")
        if self.messages[-1]["role"] == "assistant":
            del self.messages[-1]
        yield from self._answer()

    def _set(self, name: str, text: str) -> str:
        """Set an option from its text, or only show it; one that does not go is a ConfigError, and nothing is set."""
        if text:
            config = replace(self.config, **{name: _value(name, text)})
            how = decoding(config, self.opened.checkpoint, self.opened.tokenizer)
            chooses = config.proposals == "auto" and config.seed is None and how.block_length > 0
            self.opened = replace(self.opened, how=replace(how, ways=self.ways if chooses else None))
            self.config = config
            if name == "seed":
                self.seed, self.num_answers = config.seed or 0, 0
        return f"{name.replace('_', '-')} is {getattr(self.config, name)}"

    def _answer(self) -> Iterator[Event]:
        from zaya_core.stages.completing import Shown, complete
        from zaya_core.train.interrupt import InterruptFlag

        try:
            job = yield from self._job()
        except ZayaError:
            del self.messages[-1]  # it would stand in the way of every later question
            raise
        unwanted = Text if self.config.show_drafts else Drafts
        shown = Shown.of(self.config, drafts=self.config.show_drafts, batch_size=1)
        said: list[str] = []
        with InterruptFlag() as flag, closing(complete(self._engine(job), [job], self.opened.tokenizer, shown=shown)) as events:
            for event in events:
                said += [event.text] if isinstance(event, Text) else []
                if not isinstance(event, unwanted):
                    yield event
                if flag.is_set:
                    break
        self.messages.append({"role": "assistant", "content": "".join(said).strip()})
        self.num_answers += 1
        if flag.is_set and flag.signal_number != signal.SIGINT:
            flag.stop("stopped")

    def _job(self) -> Iterator[Event]:
        """The next answer as a job; returns it. Where the context is full, the oldest exchanges are left out."""
        from zaya_core.stages.completing import Job
        from zaya_core.stages.prompts import check_room

        context, limit = self.opened.checkpoint.config.max_position_embeddings, self.config.max_new_tokens
        begin = 0
        prompt = self._prompt(self.messages)
        while len(prompt.token_ids(self.opened.tokenizer)) + limit > context and begin + 2 < len(self.messages):
            begin += 2
            prompt = self._prompt(self.messages[begin:])
        if begin:
            yield Note(f"the context of {context} tokens is full: the oldest {begin // 2} exchanges are left out")
        check_room(len(prompt.token_ids(self.opened.tokenizer)), limit, context)
        stops = self.config.stop if self.dresser.is_chat else (*self.config.stop, *PLAIN_STOPS)
        how = tuned(self.opened.how, self.opened.settings, batch=1, num_prompt_tokens=len(prompt.token_ids(self.opened.tokenizer)))
        return Job(0, prompt, self.seed + self.num_answers, how, stops)

    def _prompt(self, messages: list[dict[str, Any]]) -> Prompt:
        if self.dresser.is_chat:
            return self.dresser.messages(messages, "--chat")
        return Prompt(transcript(messages, self.dresser.config.system_prompt), "--chat", self.config.raw)

    def _engine(self, job: "Job") -> "Engine":
        """One that has room for the job and what was read before; a larger one replaces it as the conversation grows."""
        from zaya_core.engine.batch import Engine

        request = job.request(self.opened.tokenizer)
        if self.engine is None or not self.engine.has_room(request):
            self.engine = Engine(self.model, num_slots=2 * request.num_slots, max_rows=1, keep_prefixes=1)
        return self.engine


def transcript(messages: list[dict[str, Any]], system: str | None) -> str:
    """A conversation for a model that was never tuned for one."""
    head = f"{system}\n\n" if system else ""
    return head + "".join(f"{message['role'].capitalize()}: {message['content']}\n" for message in messages) + "Assistant:"


def _value(name: str, text: str) -> Any:
    """The text of an option as its type; bounds are the config's own."""
    kind, _ = option_type(GenerateConfig, name)
    command = f"/{name.replace('_', '-')}"
    if get_origin(kind) is Literal:
        if text not in get_args(kind):
            raise ConfigError(f"{command} is {text!r}, expected one of {', '.join(get_args(kind))}")
        return text
    try:
        return kind(text)
    except ValueError:
        raise ConfigError(f"{command} is {text!r}, expected a number") from None
