"""All that the author of a method reads: what a method is, what it may look at, and what it may answer.

pruner: `Pruner`, its `PromptRun`, `About`, and methods with a say over positions (`DroppingPruner`).
budget: how many tokens stay, and the bases of most methods. choosing: pure functions that choose.
entry_view, layer_view, vision_view: what a method may look at. influence: VisiPruner's score.
routing: attention edges of a layer. layout: where the images of a prompt lie. frames: videos among them.
settings: types of settings, with bounds. picture: methods that change the picture.
training_run: what a method may do only while it is trained.
"""
