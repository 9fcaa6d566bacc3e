"""Pruning methods, one file each. A method never touches a model: it looks at a `LayerView` and answers."""
