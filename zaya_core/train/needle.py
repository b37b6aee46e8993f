"""Does the model find the needle? Greedy decoding of the answer, judged in one forward over the whole text."""

import random

import torch

from zaya_core.data.needle import needle_ids
from zaya_core.data.packing import Batch
from zaya_core.data.tokenizer import TextTokenizer
from zaya_core.model.decoder import Zaya
from zaya_core.train.objective import Objective, ar_weights, forward
from zaya_core.train.ranks import Ranks


@torch.no_grad()
def needles_found(model: Zaya, tokenizer: TextTokenizer, length: int, *, num_texts: int, ranks: Ranks) -> float:
    """The share of `num_texts` texts of about `length` tokens whose answer is, token for token, the most probable."""
    chance, found = random.Random(length), 0.0
    for _ in range(num_texts):
        batch = _batch(*needle_ids(tokenizer, chance, length), length).to(model.device)
        own = ranks.span(length)
        hidden, _, _ = forward(model, batch, Objective("ar"), [], ranks)
        row, slot = torch.nonzero(ar_weights(batch)[:, own], as_tuple=True)
        guess = model.logits(hidden[row, slot]).argmax(-1)
        # Every group of ranks reads the same text.
        wrong = ranks.total((guess != batch.token_ids[row, own.start + slot + 1]).sum())
        found += float(wrong == 0)
    return found / num_texts


def _batch(token_ids: list[int], num_answer: int, length: int) -> Batch:
    """One row, padded to `length`, with weight on the answer alone."""
    num_padding = length - len(token_ids)
    slot = torch.arange(length)
    inside = slot < len(token_ids)
    weight = (inside & (slot >= len(token_ids) - num_answer)).float()
    return Batch(
        torch.tensor(token_ids + [0] * num_padding)[None],
        torch.where(inside, 0, -1)[None],
        slot[None],
        torch.ones_like(slot)[None],
        weight[None],
    )
