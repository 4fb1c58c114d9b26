"""A page to search an index in a browser; FastAPI answers, one hand-written page asks."""
