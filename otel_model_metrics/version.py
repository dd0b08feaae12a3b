"""The version, in a file of its own so that the build and the instrumentation scope can read it."""

__version__ = "0.1.0"
