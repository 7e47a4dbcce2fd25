"""The filter language: `attempt >= 3 and error.class == "RateLimit"` as a fast, pure test of one record.

The guide is docs/guide/filters.md.
"""

from pipeline.filters.compiler import Filter, Needs, compile_filter
from pipeline.filters.errors import FilterError
from pipeline.filters.row import Decoded, MessageRow, Row
from pipeline.filters.tokens import quoted

__all__ = ["Decoded", "Filter", "FilterError", "MessageRow", "Needs", "Row", "compile_filter", "quoted"]
