"""How the property-based tests run."""

from hypothesis import HealthCheck, settings

settings.register_profile(
    "tests",
    # A machine that others share may take a second for what takes it a millisecond.
    deadline=None,
    # Folders are of a test, not of an example: those that use one empty it themselves.
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("tests")
