"""Meta-World (Yu et al. 2019, arXiv 1910.10897) as a suite: instructions, fast pictures, a misspecified simulator.

The package metaworld is imported when an environment is made, so that names, specs and bounds need no simulator.

Example::

    from worldgym.suite import load_suite
    env = load_suite("metaworld").make_single(task="drawer_open")
"""
