"""Programs that run in the image."""
