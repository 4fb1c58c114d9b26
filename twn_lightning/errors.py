"""One family of errors: what a user can mend is a `TwnError`; an `assert` that fails is our bug."""


class TwnError(Exception):
    """Something the user can mend; the message names the setting or file, its value, why not, and the way out."""


class ConfigError(TwnError):
    """A setting is misspelt, of the wrong type, out of range or contradicts another one."""


class DataError(TwnError):
    """A data file, a row of it or a medium it names is missing, unreadable or incomplete."""


class CheckpointError(TwnError):
    """A bundle or checkpoint is missing, incomplete or made for another model."""
