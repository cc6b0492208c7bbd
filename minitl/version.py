"""The version of the package, in the one place where pyproject.toml, the model files and the C header take it from."""

__version__ = "0.3.0"
