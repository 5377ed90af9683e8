"""What a client knows of the uncertainty of a world model behind a server."""

from __future__ import annotations

import pytest
from fakes import DotWorldModel

from worldgym.models.remote import RemoteWorldModel
from worldgym.protocols import uncertainty_kind
from worldgym.serving.server import Server
from worldgym.serving.world_model import WorldModelService


class Disagreeing(DotWorldModel):
    uncertainty_kind = "ensemble"


@pytest.mark.parametrize("model", [DotWorldModel(0.01), Disagreeing(0.01)])
def test_a_client_knows_what_the_uncertainty_of_its_model_is(model):
    with Server(WorldModelService(model), port=0).start() as server:
        assert uncertainty_kind(RemoteWorldModel(server.url)) == uncertainty_kind(model)
