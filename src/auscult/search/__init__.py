"""Nearest neighbours and self-join of descriptor vectors, in blocks: exact, and approximate where that is asked for.

Candidates come from a float32 matrix product (faiss, or BLAS for the self-join) or from a GPU's; what decides, the last few
candidates and every near-tie, is computed again in float64. So results do not depend on block sizes, threads, devices or the
order of rows. Of an approximate search (inverted lists, graphs) that holds for what it lists, not for what it misses, which
is measured (``recall.py``).
"""

from .exact import DoubleArray, FloatArray, IntArray
from .join import Pairs, self_join
from .nearest import TopK, top_k

__all__ = ["DoubleArray", "FloatArray", "IntArray", "Pairs", "TopK", "self_join", "top_k"]
