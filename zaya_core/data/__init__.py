"""Text to rows of token ids. It refuses to know models and losses."""
