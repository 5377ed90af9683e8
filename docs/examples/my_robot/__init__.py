"""An example package: a suite, a dataset format, a world model, a judge and a policy for worldgym.

`pip install -e docs/examples` makes the parts known by the entry points in `setup.cfg`; `worldgym list` shows them.
"""
