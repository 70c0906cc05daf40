"""What people look at: previews of a mosaic and of its coverage."""
