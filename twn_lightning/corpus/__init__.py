"""A user's files in, vectors out: readers that hold a few rows at a time, parts that are made once, a manifest that says of what."""
