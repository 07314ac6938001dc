"""What differs when `make mutants` runs the tests for each of 1,600 mutants."""

import os

IS_MUTATION_TEST = "MUTANT_UNDER_TEST" in os.environ  # mutmut sets it


def load_profile() -> None:
    """Let hypothesis try 25 examples and report the first that fails, without shrinking it."""
    import hypothesis

    phases = [hypothesis.Phase.explicit, hypothesis.Phase.generate]
    hypothesis.settings.register_profile("mutants", max_examples=25, phases=phases, database=None)
    hypothesis.settings.load_profile("mutants")
