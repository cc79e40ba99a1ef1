"""The built-in analyses, one per file."""
