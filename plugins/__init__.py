"""The datasets, models and analyses that come with retinakit."""
