"""A package of somebody else: a 7-joint arm with two cameras, and everything that worldgym can be given from outside.

Only public names of worldgym are used, and worldgym finds the parts through the entry points of the distribution.
"""
