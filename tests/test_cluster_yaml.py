from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

PATH = Path(__file__).parents[1] / "cluster.yaml"


@pytest.fixture
def config() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(PATH.read_text())
    return loaded


def test_rays_own_validator_accepts_it(config: dict[str, Any]) -> None:
    validate_config(prepare_config(copy.deepcopy(config)))


def test_rays_own_validator_would_notice_a_mistake(config: dict[str, Any]) -> None:
    config["head_node_type"] = "haed"
    with pytest.raises(Exception, match="head_node_type"):
        validate_config(prepare_config(copy.deepcopy(config)))


def test_the_head_is_on_demand_and_does_no_work_and_workers_are_spot(config: dict[str, Any]) -> None:
    types = config["available_node_types"]
    head = types.pop(config["head_node_type"])
    assert head["resources"]["CPU"] == 0 and "InstanceMarketOptions" not in head["node_config"]
    for worker in types.values():
        assert worker["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"} and worker["min_workers"] == 0


def test_no_dashboard_is_open_and_no_secret_is_in_it() -> None:
    text = PATH.read_text()
    assert "0.0.0.0" not in text and "--dashboard-host=127.0.0.1" in text  # noqa: S104
    assert not any(word in text.lower() for word in ("secret", "password", "token", "access_key"))
