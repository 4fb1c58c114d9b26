"""How many inputs are encoded fast: full batches of prompts, and full batches of thoughts whatever batches their prompts came in."""
