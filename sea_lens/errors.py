"""The errors that sea_lens raises on purpose; all derive from `SeaLensError`."""


class SeaLensError(Exception):
    """Base of every error that sea_lens raises on purpose. Its message is meant to be shown to the user as it is."""


class InputError(SeaLensError, ValueError):
    """An argument is outside what is allowed, such as an unknown site, layer, backend, feature or option."""


class DemonstrationError(SeaLensError, ValueError):
    """A demonstration, contrast or text cannot be used: empty, contradictory, or longer than the context."""


class ActivationError(SeaLensError, ValueError):
    """An activation is not finite, or carries no information to fit from."""


class MismatchError(SeaLensError, ValueError):
    """Two things do not belong together, such as an edit and a model, or two shards of different runs."""


class FileError(SeaLensError, ValueError):
    """A file is missing, malformed, truncated or of another kind, or cannot be written."""


class MissingPackageError(SeaLensError, ImportError):
    """An optional package is not installed; the message says how to install it."""


class UnsupportedModelError(SeaLensError):
    """TransformerLens, or this model's architecture, cannot do what was asked."""


class SeaLensWarning(UserWarning):
    """Something that is allowed and may not be meant, such as an edit that is in the model already."""
