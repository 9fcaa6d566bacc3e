"""Models: loading, processors, devices, and the facts about them that costs depend on."""
