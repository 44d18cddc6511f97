"""Tests for whoever writes an engine or a sampler: inherit a class, say how yours is made, and get all checks.

`exltune.testing.engines.EngineContract` and `exltune.testing.samplers.SamplerContract`, each with an example. They need
pytest and nothing of exltune's repository: models are made on the fly.
"""

import pytest

# Asserts of these modules tell both sides, as those of test files do; it has to be said before they are imported.
pytest.register_assert_rewrite(
    *(f"exltune.testing.engines.{name}" for name in ("caches", "captures", "quants", "scores", "suite")),
    "exltune.testing.samplers",
)
