"""The built-in datasets, models and analyses of retinakit."""
