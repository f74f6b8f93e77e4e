"""Curation: images are cut into tiles, and those that no network should train on are left out."""
