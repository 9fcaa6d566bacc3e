"""Puts a stock LLaVA together from weights that come inside packages of the Python package index."""
