"""Models and processors by name, where they run, their sizes. Most callers need `models.load("testbed")` alone."""

from visipruner.models.loading import LoadedModel, check_name, config_of, load, prepare

__all__ = ["LoadedModel", "check_name", "config_of", "load", "prepare"]
