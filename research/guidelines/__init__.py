"""The experiment on the paper's guidelines (section 6): the same lessons for a plain model and for aligned ones."""
