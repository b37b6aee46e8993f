"""`zaya generate --check-lossless`: a Result for each prompt whose greedy text drafts change, one about all; real ones fail it."""

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from zaya_core.errors import ConfigError, RunError
from zaya_core.events import Event, Note, Progress, Result
from zaya_core.stages.generate import GenerateConfig, Opened, drawn_seed
from zaya_core.stages.prompts import Prompt

if TYPE_CHECKING:
    from zaya_core.model.serving import ServingModel


def compared(config: GenerateConfig, opened: Opened, prompts: list[Prompt]) -> Iterator[Event]:
    """Decode every prompt with and without drafts; a RunError if one differs in float32 too, by more than a tie."""
    from zaya_core.engine.check import greedy_difference

    if config.sampler != "lossless":
        raise ConfigError(f"--sampler is {config.sampler}, expected lossless with --check-lossless, which compares it with ar")
    model = opened.model(config)
    yield from opened.described(config, model)
    temperature = opened.how.sampler.temperature
    if temperature:
        yield Note(f"at temperature {temperature:g} lossless and ar share a law and no draws: greedy tokens are compared")
    judge, num_different, real, error = None, 0, [], 0.0
    for index, prompt in enumerate(prompts):
        prompt_ids = prompt.token_ids(opened.tokenizer)
        found = greedy_difference(model, prompt_ids, opened.how)
        if temperature:
            error = max(error, _logprob_error(model, prompt_ids, opened, drawn_seed(config) + index))
        if found is not None:
            judge = judge or _judge(config, opened, model)
            again = greedy_difference(judge, prompt_ids, opened.how)
            values = _described(found, again, judge, opened, num_prompt=len(prompt_ids))
            num_different += 1
            real += [index] if values["is_real"] else []
            yield Result({"index": index} | values)
        yield Progress("check-lossless", index + 1, len(prompts), "prompts")
    summary = {"num_prompts": len(prompts), "num_different": num_different, "num_really_different": len(real)}
    yield Result({"is_lossless": not real} | summary | ({"largest_logprob_error": error} if temperature else {}))
    if real:
        raise RunError(f"lossless is not ar on {len(real)} of {len(prompts)} prompts, the first of them index {real[0]}")


def _judge(config: GenerateConfig, opened: Opened, model: "ServingModel") -> "ServingModel":
    """The network in at least float32."""
    import torch

    return model if model.dtype in (torch.float32, torch.float64) else opened.model(replace(config, dtype="float32"))


def _described(found: Any, again: Any, judge: "ServingModel", opened: Opened, *, num_prompt: int) -> dict[str, Any]:
    """A difference in words and numbers: where, what each way chose, both logits, and what float32 says of it."""
    from zaya_core.engine.check import TIE

    name = str(judge.dtype).removeprefix("torch.")
    return {
        "token": len(found.prefix_ids) - num_prompt,
        "ar_token": opened.tokenizer.decode([found.ar_token_id]),
        "lossless_token": opened.tokenizer.decode([found.lossless_token_id]),
        "ar_logit": found.ar_logit,
        "lossless_logit": found.lossless_logit,
        "margin": found.margin,
        f"margin_in_{name}": found.read_by(judge).margin,
        f"{name}_agrees": again is None,
        "is_real": again is not None and again.margin > TIE,
    }


def _logprob_error(model: "ServingModel", prompt_ids: list[int], opened: Opened, seed: int) -> float:
    from zaya_core.engine.chance import SeededChance
    from zaya_core.engine.check import logprob_error
    from zaya_core.engine.request import Request

    return logprob_error(model, Request(prompt_ids, opened.how, SeededChance(seed)))
