"""`deploy/compose.yaml`: of the form that Compose reads, and in step with the product's own settings."""

from __future__ import annotations

import json
import re
from typing import Any

import compose_spec
import pytest
import yaml

from service.configuration import load
from tests.deploy.manifests import DEPLOY

TEXT = (DEPLOY / "compose.yaml").read_text()
COMPOSE: dict[str, Any] = yaml.safe_load(TEXT)


def replicas() -> dict[str, dict[str, Any]]:
    return {name: one for name, one in COMPOSE["services"].items() if name.startswith("evergreen-")}


def test_it_is_of_the_form_that_the_specification_of_compose_demands() -> None:
    compose_spec.PyCompose.from_json(json.dumps(COMPOSE))  # merged before: the parser knows no `<<`

    wrong = {**COMPOSE, "services": {"one": {"image": "one", "stop_grace_perriod": "1s"}}}
    with pytest.raises(ValueError, match="stop_grace_perriod"):
        compose_spec.PyCompose.from_json(json.dumps(wrong))


def test_two_replicas_share_database_and_storage_and_nothing_else() -> None:
    one, two = replicas().values()

    assert one["environment"] == two["environment"]
    assert {"EVERGREEN_STORE__URL", "EVERGREEN_STORE__ARTEFACTS", "EVERGREEN_SECURITY__TOKEN"} <= set(
        one["environment"]
    )
    assert not set(one["volumes"]) & set(two["volumes"]) and not set(one["ports"]) & set(two["ports"])


def test_every_variable_is_a_setting_that_exists_and_the_grace_covers_the_drain() -> None:
    for replica in replicas().values():
        environ = {name: re.sub(r"\$\{[^}]*\}", 40 * "x", value) for name, value in replica["environment"].items()}
        settings = load(environ={"EVERGREEN_HOME": "/data", **environ})  # one that nobody knows is an error

        grace = int(replica["stop_grace_period"].removesuffix("s"))
        assert grace >= settings.serve.stop_timeout_s + settings.serve.drain_timeout_s + 10
        assert settings.serve.port == int(replica["ports"][0].rpartition(":")[2])


def test_a_replica_runs_as_the_image_is_meant_to() -> None:
    for replica in replicas().values():
        assert replica["read_only"] is True and replica["tmpfs"] == ["/tmp"]
        assert replica["cap_drop"] == ["ALL"] and replica["security_opt"] == ["no-new-privileges:true"]
        assert any(volume.endswith(":/data") for volume in replica["volumes"])


def test_every_secret_comes_from_a_file_that_is_not_committed() -> None:
    asked = set(re.findall(r"\$\{([A-Z0-9_]+)", TEXT))
    example = re.findall(r"^([A-Z0-9_]+)=(.*)$", (DEPLOY / "compose" / "example.env").read_text(), re.M)

    assert asked == {name for name, _ in example}
    assert all(value == "" for _, value in example)
    assert "deploy/.env" in (DEPLOY.parent / ".gitignore").read_text()


def test_what_a_service_names_is_there() -> None:
    for name, service in COMPOSE["services"].items():
        for volume in service.get("volumes", ()):
            source = volume.partition(":")[0]
            there = (DEPLOY / source).is_file() if source.startswith("./") else source in COMPOSE["volumes"]
            assert there, f"{name}: {volume}"
        for other in service.get("depends_on", {}):
            assert other in COMPOSE["services"]
        assert all(config["source"] in COMPOSE["configs"] for config in service.get("configs", ()))
        assert "build" in service or re.fullmatch(r"[a-z/]+:[v\d.]+", service["image"]), name
    health = COMPOSE["services"]["postgres"]
    assert health["healthcheck"] and COMPOSE["services"]["evergreen-1"]["depends_on"]["postgres"]


def test_prometheus_asks_every_replica() -> None:
    scrape = yaml.safe_load((DEPLOY / "compose" / "prometheus.yaml").read_text())
    (job,) = scrape["scrape_configs"]

    assert job["static_configs"][0]["targets"] == [f"{name}:3000" for name in replicas()]
    assert job["job_name"] == "evergreen"  # as the rules have it
