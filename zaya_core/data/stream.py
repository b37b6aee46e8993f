"""Token ids to text as they come, never showing half a character."""

from tokenizers.decoders import DecodeStream

from zaya_core.data.tokenizer import TextTokenizer


class TextStream:
    """Feed ids with `push`, get the text that they complete; `text` is all of it."""

    def __init__(self, tokenizer: TextTokenizer) -> None:
        self.tokenizer = tokenizer
        self.text = ""
        self._token_ids: list[int] = []
        self._stream = DecodeStream(skip_special_tokens=True)

    def push(self, token_ids: list[int]) -> str:
        """The text that is certain after these ids; ids of an unfinished character wait."""
        parts = [self._stream.step(self.tokenizer.backend, token_id) or "" for token_id in token_ids]
        self._token_ids += token_ids
        self.text += "".join(parts)
        return "".join(parts)

    def finish(self) -> str:
        """What was still waiting, as the tokenizer shows it."""
        rest = self.tokenizer.decode(self._token_ids)[len(self.text) :]
        self.text += rest
        return rest
