"""Registers the suites of this package by name; `worldgym.registry` imports this module at the first lookup."""

from worldgym.moved import NAMES
from worldgym.registry import SUITES
from worldgym.suite import declare_default

SUITES.register_lazily(
    tabletop="envs.tabletop.suite:TabletopSuite", metaworld="envs.metaworld.suite:MetaWorldSuite"
)
declare_default("tabletop")
NAMES["worldgym.data:TABLETOP_ACTION_SPEC"] = "envs.tabletop.specs:TABLETOP_ACTION_SPEC"
NAMES["worldgym.data.episode:TABLETOP_ACTION_SPEC"] = "envs.tabletop.specs:TABLETOP_ACTION_SPEC"
