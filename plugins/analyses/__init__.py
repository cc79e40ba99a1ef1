"""The built-in analyses, one a file."""
