"""Pictures for people. `overlay`: which parts of an image a pruned model still looks at."""
