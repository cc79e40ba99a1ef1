"""The built-in models, one per file."""
