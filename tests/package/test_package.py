"""The package in minimal Debians: what it brings, and what stays over an upgrade and after it is gone."""

from __future__ import annotations

import json
import re
from pathlib import Path

from tests.package.conftest import ROOT, VERSION, build
from tests.support.debian import Root

CONFIGURATION = "/etc/vpmu-agent/vpmu-agent.toml"


def test_it_runs(installed: Root) -> None:
    assert installed.run("vpmu-agent", "--version").stdout == f"vpmu-agent, version {VERSION}\n"
    assert installed.run("vpmu-agent", "predict", "--events", "2").stdout.count("create") == 2


def test_the_doctor_finds_its_libraries(installed: Root) -> None:
    """What it says of this machine's kernel is another matter."""
    lines = installed.run("sh", "-c", "vpmu-agent doctor --output json || true").stdout.splitlines()
    statuses = {found["check"]: found["status"] for found in map(json.loads, lines[:-1])}
    assert (statuses["bcc"], statuses["libbpf"]) == ("ok", "ok")


def test_the_manual(installed: Root) -> None:
    assert installed.run("man", "-w", "vpmu-agent").stdout == "/usr/share/man/man1/vpmu-agent.1.gz\n"
    shown = installed.run("man", "--warnings", "vpmu-agent")
    assert "vpmu-agent trace --vm web01" in shown.stdout
    assert shown.stderr == ""


def test_bash_completes(installed: Root) -> None:
    script = """
        . /usr/share/bash-completion/bash_completion
        _completion_loader vpmu-agent
        COMP_WORDS=(vpmu-agent pre) COMP_CWORD=1
        $(complete -p vpmu-agent | grep -o '_[a-z_]*completion') vpmu-agent
        echo "${COMPREPLY[*]}"
    """
    assert installed.run("bash", "-c", script).stdout == "predict\n"


def test_zsh_completes(installed: Root) -> None:
    """At the first Tab of a shell."""
    script = """
        zmodload zsh/zpty
        zpty shell 'TERM=dumb zsh -f -i'
        zpty -w shell 'autoload -U compinit && compinit -u -D && echo rea""dy'
        zpty -r shell shown '*ready*'
        zpty -n -w shell $'vpmu-agent pre\t'
        zpty -r shell shown '*pre*dict*'
        echo completed
    """
    assert installed.run("timeout", "20", "zsh", "-f", "-c", script).stdout == "completed\n"


def test_fish_completes(installed: Root) -> None:
    shown = installed.run("fish", "-c", "complete -C 'vpmu-agent pre'").stdout
    assert [line.split("\t")[0] for line in shown.splitlines()] == ["predict"]


def test_the_service(installed: Root) -> None:
    verified = installed.run("systemd-analyze", "verify", "vpmu-agent.service")
    assert verified.stdout + verified.stderr == ""
    assert installed.run("systemctl", "is-enabled", "vpmu-agent.service").stdout == "enabled\n"
    installed.run("getent", "passwd", "vpmu-agent")


def test_its_configuration_is_right_and_changes_nothing(installed: Root) -> None:
    lines = installed.run("vpmu-agent", "config", "check", "--output", "json").stdout.splitlines()
    assert {json.loads(line)["from"] for line in lines} == {"default"}


def test_dashboards_rules_and_their_runbooks(installed: Root) -> None:
    dashboards = {
        f"/usr/share/vpmu-agent/dashboards/{path.name}" for path in (ROOT / "dashboards").glob("*.json")
    }
    rules = {f"/usr/share/vpmu-agent/rules/{path.name}" for path in (ROOT / "dashboards/rules").glob("*.yml")}
    documents = {
        f"/usr/share/doc/vpmu-agent/{name}"
        for name in ("README.md", "SECURITY.md", "dashboards/README.md", "docs/metrics.md", "docs/page.png")
    }
    assert shipped(installed) >= dashboards | rules | documents
    assert len(dashboards) >= 3
    assert len(rules) >= 2
    alerts = installed.run("cat", "/usr/share/vpmu-agent/rules/alerts.yml").stdout
    (runbooks,) = re.findall(r"^# Runbooks: (\S+\.md)", alerts, re.MULTILINE)
    assert runbooks in documents


def test_what_was_configured_outlives_an_upgrade_and_a_removal(installed: Root, tmp_path: Path) -> None:
    newer = build(tmp_path, f"{VERSION}+1")
    with installed.copy() as root:
        root.run("sh", "-c", f"echo '# mine' >> {CONFIGURATION}")
        root.apt("install", root.put(newer))
        assert root.run("dpkg-query", "-W", "-f", "${Version}", "vpmu-agent").stdout == f"{VERSION}+1"
        assert root.run("tail", "-n", "1", CONFIGURATION).stdout == "# mine\n"
        root.apt("remove", "vpmu-agent")
        assert root.run("tail", "-n", "1", CONFIGURATION).stdout == "# mine\n"
        root.apt("purge", "vpmu-agent")
        root.run("test", "!", "-e", str(Path(CONFIGURATION).parent))


def test_nothing_is_left_of_it(ready: Root, package: Path) -> None:
    with ready.copy() as root:
        file = root.put(package)
        before = root.files()
        root.apt("install", file)
        root.run("vpmu-agent", "--version")
        root.run("touch", "/var/cache/vpmu-agent/kept.bpf")
        root.apt("purge", "vpmu-agent")
        assert root.files() == before


def shipped(root: Root) -> set[str]:
    """The files of the package."""
    return set(root.run("dpkg", "-L", "vpmu-agent").stdout.splitlines())
