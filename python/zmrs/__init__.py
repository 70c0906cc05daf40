"""Sky mosaics inside a memory limit that holds."""
