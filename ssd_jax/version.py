"""The version of the package, as exported files name it."""

VERSION = "0.2.0"
