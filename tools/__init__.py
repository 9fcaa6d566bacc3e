"""Generators of tables in the documentation: in no wheel, run from a checkout."""
