"""The tables of docs/families.md: families by features and by methods, and what is checked of each pair."""
