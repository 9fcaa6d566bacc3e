"""The report of an analysis: figures, tables and words on one HTML page."""
