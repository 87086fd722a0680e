"""Reference recommenders that need no language model."""
