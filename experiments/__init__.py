"""What we chose: settings, pipeline, tracking and ablations. Loads without torch."""
