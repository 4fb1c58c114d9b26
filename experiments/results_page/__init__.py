"""The results page: records in, one Markdown file and its pictures out, the same bytes each time. Loads without torch."""
