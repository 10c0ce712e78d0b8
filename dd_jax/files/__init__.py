"""What lies on a disk: distilled data and pools as files, and what is done with a file alone."""
