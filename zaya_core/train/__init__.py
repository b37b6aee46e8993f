"""Tokens into a model: objectives, optimizer, state, one fit. It never prints."""
