"""Exact nearest neighbours and exact self-join of descriptor vectors, in blocks.

Candidates come from a float32 matrix product (faiss, or BLAS for the self-join); what decides, the last few candidates
and every near-tie, is computed again in float64. So results do not depend on block sizes, threads or the order of rows.
"""

from .exact import DoubleArray, FloatArray, IntArray
from .join import Pairs, self_join
from .nearest import TopK, top_k

__all__ = ["DoubleArray", "FloatArray", "IntArray", "Pairs", "TopK", "self_join", "top_k"]
