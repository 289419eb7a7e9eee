"""Who answers the Messages API: Anthropic, or on loopback a scripted model or a cassette."""

from harvest_nb.endpoint.endpoint import Endpoint, Event
from harvest_nb.endpoint.library import scenario_names
from harvest_nb.endpoint.open import open_endpoint
from harvest_nb.endpoint.player import Scenario

__all__ = ["Endpoint", "Event", "Scenario", "open_endpoint", "scenario_names"]
