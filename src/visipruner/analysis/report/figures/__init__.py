"""The smaller figures of the report."""
