"""Every setting of a run as frozen dataclasses that load without torch, and the loader that turns YAML into them."""
