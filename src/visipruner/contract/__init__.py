"""All that the author of a method reads: what a method is, what it may look at, and what it may answer."""
