"""A model into tokens: verify, draft, commit. It knows token ids only, neither text nor files."""
