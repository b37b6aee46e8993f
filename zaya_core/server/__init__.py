"""The decoding engine behind OpenAI's HTTP interface: what clients may ask, how they are kept apart, what they are told."""
