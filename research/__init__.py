"""What made the small model's weights and test set, and the study of training: in no wheel, run from a checkout."""
