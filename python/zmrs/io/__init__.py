"""Files in, files out: FITS headers, the output file, scratch."""
