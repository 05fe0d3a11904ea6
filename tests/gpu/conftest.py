"""The small base of the training tests."""

from tests.train.conftest import base  # noqa: F401  (a fixture)
