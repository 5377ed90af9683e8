"""The chunk model: one pass of the network per action chunk, with explicit positions of hand and objects."""
