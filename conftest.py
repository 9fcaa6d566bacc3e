"""For every test: one torch thread, because workers share the cores, and no way to a model hub."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
# Threads that wait for each other spin: on busy cores a second one makes these tiny models twenty times slower.
os.environ["OMP_NUM_THREADS"] = "1"

from hypothesis import settings

# Examples that take long on a busy machine are no failure; a build machine tries the same ones every time.
settings.register_profile("here", deadline=None)
settings.register_profile("build", deadline=None, derandomize=True)
settings.load_profile("build" if "CI" in os.environ else "here")
