"""From a pipeline file to results on disk."""
