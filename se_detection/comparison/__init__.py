"""The comparison of two detectors: AP, intervals, error types, tables and one page."""
