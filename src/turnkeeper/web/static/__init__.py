"""Pages served as they are."""
