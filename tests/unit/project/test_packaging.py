"""The files of packaging/: they agree with each other, with the service, and with what reads them."""

from __future__ import annotations

import configparser
import json
import re
import tomllib
from typing import Any

import pytest
import yaml

from tests.image import bundle
from tests.image.bundle import PACKAGING
from tools import rules
from tools.image import seccomp
from tools.image.build import CONFIG, Source, dependencies, labels

TREE = PACKAGING.parent
VERSION = tomllib.loads((TREE / "pyproject.toml").read_text())["project"]["version"]
KUBERNETES = PACKAGING / "kubernetes"
OLDEST, NEWEST = "1.25", "1.34"
"""Of Kubernetes, whose schemas the DaemonSet is held against."""


def documents(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((KUBERNETES / name).read_text()))


def quadlet() -> configparser.ConfigParser:
    parser = configparser.ConfigParser(interpolation=None, strict=True, delimiters="=", comment_prefixes="#")
    parser.optionxform = str  # type: ignore[assignment, method-assign] # it is meant to be replaced
    parser.read(PACKAGING / "vpmu-agent.container")
    return parser


def service_capabilities() -> set[str]:
    (line,) = (
        line for line in seccomp.UNIT.read_text().splitlines() if line.startswith("AmbientCapabilities=")
    )
    return set(line.partition("=")[2].split())


def test_the_prometheus_rule_is_what_the_rules_make() -> None:
    assert rules.OPERATOR.read_text() == rules.operator(), "make rules"


def test_the_prometheus_rule_has_every_group() -> None:
    (rule,) = documents("prometheusrule.yml")
    files = (rules.RECORDING, rules.ALERTS)
    groups = [group for path in files for group in yaml.safe_load(path.read_text())["groups"]]
    assert rule["spec"] == {"groups": groups}


def test_the_monitor_names_the_job_that_the_alerts_ask_for() -> None:
    (monitor,) = documents("podmonitor.yml")
    (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
    assert {"targetLabel": "job", "replacement": "vpmu-agent"} in endpoint["relabelings"]
    pod = documents("daemonset.yml")[2]["spec"]["template"]
    assert pod["metadata"]["labels"].items() >= monitor["spec"]["selector"]["matchLabels"].items()
    assert endpoint["port"] in [port["name"] for port in pod["spec"]["containers"][0]["ports"]]


def test_every_file_names_this_version() -> None:
    for path in PACKAGING.rglob("*"):
        if path.is_file():
            assert set(re.findall(r"vpmu-agent[:-](\d+\.\d+\.\d+)", path.read_text())) <= {VERSION}, path


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
def test_kubernetes_takes_the_daemonset(version: str) -> None:
    kubernetes_validate = pytest.importorskip("kubernetes_validate", reason="make image-test installs it")
    for document in documents("daemonset.yml"):
        kubernetes_validate.validate(document, version, strict=True)


def test_the_daemonset_asks_for_no_more_than_it_must() -> None:
    namespace, account, daemonset = documents("daemonset.yml")
    pod = daemonset["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert account["automountServiceAccountToken"] is pod["automountServiceAccountToken"] is False
    assert not {"hostNetwork", "hostIPC"} & set(pod)
    assert not [volume for volume in pod["volumes"] if "hostPath" in volume]
    assert "privileged" not in container["securityContext"]
    assert namespace["metadata"]["name"] == account["metadata"]["namespace"]
    assert container["image"].endswith(f"/vpmu-agent:{VERSION}")


def test_all_three_have_the_services_capabilities() -> None:
    """And where they start as root, what it takes to become somebody else."""
    assert bundle.of_podman_run().capabilities == service_capabilities()
    given = {f"CAP_{name.upper()}" for name in quadlet()["Container"]["AddCapability"].split()}
    assert given == service_capabilities()
    assert bundle.of_daemonset().capabilities - service_capabilities() == {
        "CAP_KILL",
        "CAP_SETGID",
        "CAP_SETUID",
    }


def test_the_quadlet_unit_has_the_flags_of_podman_run() -> None:
    unit, flags = quadlet()["Container"], bundle.podman_flags()
    assert unit["DropCapability"] == flags["cap-drop"][0] == "all"
    assert unit["AddCapability"].split() == flags["cap-add"][0].split(",")
    assert unit["NoNewPrivileges"] == "true"
    assert "no-new-privileges" in flags["security-opt"]
    assert unit["ReadOnly"] == "true"
    assert "read-only" in flags
    assert unit["PidsLimit"] == flags["pids-limit"][0]
    assert unit["Ulimit"] == flags["ulimit"][0]
    assert unit["HealthInterval"] == flags["health-interval"][0]
    assert unit["PodmanArgs"].split() == [f"--{name}={flags[name][0]}" for name in ("pid", "memory")]
    assert unit["Image"] == f"localhost/vpmu-agent:{VERSION}"


def test_the_filter_lets_through_what_the_service_may_call() -> None:
    """systemd's groups grow from release to release, so not the other way round as well."""
    rule, *others = json.loads(seccomp.PROFILE.read_text())["syscalls"]
    assert others == seccomp.profile()["syscalls"][1:]
    assert set(rule["names"]) <= seccomp.names()
    assert {"bpf", "perf_event_open", *seccomp.BECOME_USER} <= set(rule["names"])
    assert not {"ptrace", "mount", "init_module", "kexec_load", "setns", "unshare"} & set(rule["names"])


def test_each_permission_has_its_reason_in_the_readme() -> None:
    readme = (PACKAGING / "README.md").read_text()
    for name in bundle.of_daemonset().capabilities:
        assert f"| `{name}` |" in readme
    for name in bundle.podman_flags():
        assert f"`--{name}" in readme, name


def test_the_packages_are_those_that_the_deb_depends_on() -> None:
    depends = "systemd | systemd-standalone-sysusers | systemd-sysusers, python3:any, python3-bpfcc (>= 0.26)"
    assert dependencies(depends) == ["python3", "python3-bpfcc", "systemd-standalone-sysusers"]


def test_what_is_not_known_is_no_label() -> None:
    assert "org.opencontainers.image.revision" not in labels("1", Source(0))
    assert labels("1", Source(0, "abc"))["org.opencontainers.image.revision"] == "abc"


def test_the_image_runs_what_the_service_runs() -> None:
    (line,) = (line for line in seccomp.UNIT.read_text().splitlines() if line.startswith("ExecStart="))
    words = line.partition("=")[2].split()
    assert [words[0]] == CONFIG["Entrypoint"]
    command = CONFIG["Cmd"]
    assert isinstance(command, list)
    assert set(words[1:]) <= set(command)
