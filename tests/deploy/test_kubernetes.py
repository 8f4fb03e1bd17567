"""`deploy/kubernetes`: valid for three releases of Kubernetes, restricted, in step with the product's own settings."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from monitoring.metrics import Metrics
from service.configuration import load
from service.settings import Settings
from tests.deploy.manifests import DEPLOY, KUBERNETES, OVERLAYS, Manifest, drain_job, rendered, the

RELEASES = ("1.30", "1.33", "1.36")
NO_SCHEMA = {"PodMonitor": "the Prometheus operator's; test_prometheus_finds_the_pods looks at it"}


def settings_of(overlay: str) -> Settings:
    """What a pod's settings are, with a store where it must have one."""
    data = dict(the("ConfigMap", rendered(overlay), "evergreen-settings")["data"])
    if overlay == "postgres-s3":
        data["EVERGREEN_STORE__URL"] = "postgresql+psycopg://evergreen@postgres/evergreen"
    return load(environ={"EVERGREEN_HOME": "/data", **data})


def pod_of(overlay: str) -> Manifest:
    spec: Manifest = the("StatefulSet", rendered(overlay))["spec"]["template"]["spec"]
    return spec


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize("overlay", [*OVERLAYS, "drain-job"])
def test_every_resource_is_valid_for_three_releases(overlay: str, release: str) -> None:
    resources = drain_job() if overlay == "drain-job" else rendered(overlay)
    for manifest in resources:
        if manifest["kind"] not in NO_SCHEMA:
            kubernetes_validate.validate(manifest, release, strict=True)


def test_a_resource_that_is_not_valid_is_refused() -> None:
    wrong = {**the("StatefulSet", rendered("sqlite-one"))}
    wrong["spec"] = {**wrong["spec"], "terminationGrace": 5}

    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, RELEASES[-1], strict=True)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_an_overlay_has_what_it_should_have(overlay: str) -> None:
    kinds = sorted(manifest["kind"] for manifest in rendered(overlay))

    both = ["ConfigMap", "Namespace", "NetworkPolicy", "PodDisruptionBudget", "PodMonitor", "Service", "Service"]
    both += ["ServiceAccount", "StatefulSet"]
    more = {"sqlite-one": [], "postgres-s3": ["HorizontalPodAutoscaler", "NetworkPolicy"]}
    assert kinds == sorted(both + more[overlay])
    assert all(m["metadata"].get("namespace", "evergreen") == "evergreen" for m in rendered(overlay))


@pytest.mark.parametrize("pod", [*OVERLAYS, "drain-job"])
def test_a_pod_is_restricted_as_its_namespace_demands(pod: str) -> None:
    spec = the("Job", drain_job())["spec"]["template"]["spec"] if pod == "drain-job" else pod_of(pod)
    whole, (container,) = spec["securityContext"], spec["containers"]

    assert whole["runAsNonRoot"] is True and whole["runAsUser"] == 10001
    assert whole["seccompProfile"] == {"type": "RuntimeDefault"}
    own = container["securityContext"]
    assert (own["allowPrivilegeEscalation"], own["privileged"], own["readOnlyRootFilesystem"]) == (False, False, True)
    assert own["capabilities"] == {"drop": ["ALL"]}
    assert spec["automountServiceAccountToken"] is False
    assert {mount["mountPath"] for mount in container["volumeMounts"]} == {"/data", "/tmp"}  # what the image writes
    assert re.search(r"^USER 10001:10001$", (DEPLOY.parent / "Dockerfile").read_text(), re.M)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_settings_exist_and_the_grace_covers_answering_stopping_and_draining(overlay: str) -> None:
    settings, spec = settings_of(overlay), pod_of(overlay)  # a setting that nobody knows is an error

    before = int(spec["containers"][0]["lifecycle"]["preStop"]["exec"]["command"][1])
    needed = before + settings.serve.stop_timeout_s + settings.serve.drain_timeout_s
    assert settings.serve.drain_timeout_s > 0
    assert spec["terminationGracePeriodSeconds"] >= needed + 10
    assert settings.serve.port == spec["containers"][0]["ports"][0]["containerPort"]
    memory = spec["containers"][0]["resources"]["limits"]["memory"]
    assert settings.training.memory_mb <= int(memory.removesuffix("Gi")) * 1024 / 2


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_a_volume_stays_when_its_replica_is_scaled_away(overlay: str) -> None:
    policy = the("StatefulSet", rendered(overlay))["spec"]["persistentVolumeClaimRetentionPolicy"]

    assert policy == {"whenDeleted": "Retain", "whenScaled": "Retain"}


def test_the_drain_job_mounts_a_volume_of_the_replicas_and_says_where_the_store_is() -> None:
    template = the("StatefulSet", rendered("postgres-s3"))["spec"]
    claim = f"{template['volumeClaimTemplates'][0]['metadata']['name']}-{'evergreen'}-3"
    template_of_job = the("Job", drain_job())["spec"]["template"]
    pod = template_of_job["spec"]

    assert pod["volumes"][0]["persistentVolumeClaim"]["claimName"] == claim
    assert pod["containers"][0]["args"][0] == "drain"
    assert pod["containers"][0]["image"] == pod_of("postgres-s3")["containers"][0]["image"]
    reached = the("NetworkPolicy", drain_job())["spec"]["podSelector"]["matchLabels"]
    assert reached.items() <= template_of_job["metadata"]["labels"].items()
    service = the("StatefulSet", rendered("postgres-s3"))["spec"]["selector"]["matchLabels"]
    assert not service.items() <= template_of_job["metadata"]["labels"].items()  # else the Service sent it requests
    secret = {"secretRef": {"name": "evergreen"}}
    assert secret in pod["containers"][0]["envFrom"] and secret in pod_of("postgres-s3")["containers"][0]["envFrom"]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_selector_finds_the_pods(overlay: str) -> None:
    manifests = rendered(overlay)
    labels = the("StatefulSet", manifests)["spec"]["template"]["metadata"]["labels"]

    def found(selector: dict[str, str]) -> bool:
        return bool(selector) and selector.items() <= labels.items()

    services = [m for m in manifests if m["kind"] == "Service"]
    assert all(found(service["spec"]["selector"]) for service in services)
    assert the("StatefulSet", manifests)["spec"]["serviceName"] in {s["metadata"]["name"] for s in services}
    assert found(the("StatefulSet", manifests)["spec"]["selector"]["matchLabels"])
    assert found(the("PodDisruptionBudget", manifests)["spec"]["selector"]["matchLabels"])
    for policy in (m for m in manifests if m["kind"] == "NetworkPolicy"):
        assert found(policy["spec"]["podSelector"]["matchLabels"])
    for spread in pod_of(overlay)["topologySpreadConstraints"]:
        assert found(spread["labelSelector"]["matchLabels"])


def test_prometheus_finds_the_pods() -> None:
    manifests = rendered("postgres-s3")
    monitor = the("PodMonitor", manifests)["spec"]

    labels = the("StatefulSet", manifests)["spec"]["template"]["metadata"]["labels"]
    assert monitor["selector"]["matchLabels"].items() <= labels.items()
    assert labels[monitor["jobLabel"]] == "evergreen"  # the job that deploy/prometheus/rules.yml asks for
    (endpoint,) = monitor["podMetricsEndpoints"]
    ports = pod_of("postgres-s3")["containers"][0]["ports"]
    assert endpoint["path"] == "/metrics" and endpoint["port"] in {port["name"] for port in ports}


def test_the_autoscaler_asks_for_a_metric_that_the_adapter_makes_of_metrics_that_exist(tmp_path: Path) -> None:
    scaler = the("HorizontalPodAutoscaler", rendered("postgres-s3"))["spec"]
    (rule,) = yaml.safe_load((KUBERNETES / "prometheus-adapter.yaml").read_text())["rules"]["custom"]

    asked = {m["pods"]["metric"]["name"] for m in scaler["metrics"] if m["type"] == "Pods"}
    assert asked == {rule["name"]["as"]}
    assert scaler["scaleTargetRef"]["name"] == "evergreen"
    assert "replicas" not in the("StatefulSet", rendered("postgres-s3"))["spec"]  # else each apply undoes the scaling
    used = names_in(rule["metricsQuery"]) | names_in(rule["seriesQuery"])
    assert used and used <= series(tmp_path)


def names_in(text: str) -> set[str]:
    return set(re.findall(r"\bevergreen_[a-z_]+", text))


def series(folder: Path) -> set[str]:
    """Names of the series on `/metrics`."""
    metrics = Metrics(folder, "test-1")
    suffixes: dict[str, tuple[str, ...]] = {"counter": ("_total",), "histogram": ("_sum", "_count", "_bucket")}
    found: set[str] = set()
    collectors: list[Any] = [c for c in vars(metrics).values() if hasattr(c, "_documentation")]
    for one in collectors:
        found |= {one._name + suffix for suffix in suffixes.get(one._type, ("",))}
    metrics.close()
    return found


def test_no_secret_is_committed_and_the_keys_of_the_secret_are_documented() -> None:
    kinds = {manifest["kind"] for overlay in OVERLAYS for manifest in rendered(overlay)}
    keys = re.findall(r"^\| `([A-Z_]+)` \|", (KUBERNETES / "README.md").read_text(), re.M)

    assert "Secret" not in kinds
    assert {"EVERGREEN_STORE__URL", "EVERGREEN_SECURITY__TOKEN"} <= set(keys)
    values = {"EVERGREEN_STORE__URL": "postgresql+psycopg://a@b/c", "EVERGREEN_SECURITY__TOKEN": "x"}
    load(
        environ={"EVERGREEN_HOME": "/data"} | {key: values.get(key, 40 * "x") for key in keys if key.startswith("EVER")}
    )


def test_every_check_that_is_skipped_has_its_reason() -> None:
    lines = (KUBERNETES / "checkov.yaml").read_text().splitlines()

    skipped = [number for number, line in enumerate(lines) if line.strip().startswith("- CKV")]
    assert skipped and all(lines[number - 1].strip().startswith("# ") for number in skipped)
