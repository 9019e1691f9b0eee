"""The page in a browser. The screenshots are in build/page/, to be looked at; docs/page.png is light.png."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest

from tests.page.browser import Browser
from tests.page.conftest import HOSTILE, Shown
from tests.support.web import ALICE, written
from vpmu_agent.web.web_file import WebFile

BUILD = Path(__file__).parents[2] / "build" / "page"

CONTRAST = """
(() => {
  const parts = text => text.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [0.2126 * r, 0.7152 * g, 0.0722 * b].reduce((sum, c, i) => {
    const weight = [0.2126, 0.7152, 0.0722][i], part = c / weight / 255;
    return sum + weight * (part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4);
  }, 0);
  const behind = part => {
    for (; part; part = part.parentElement) {
      const colour = parts(getComputedStyle(part).backgroundColor);
      if (colour[3] !== 0) return light(colour);
    }
    return 1;
  };
  const texts = [...document.querySelectorAll("body *")].filter(part =>
    part.checkVisibility() && [...part.childNodes].some(node => node.nodeType === 3 && node.data.trim()));
  return Math.min(...texts.map(part => {
    const [low, high] = [light(parts(getComputedStyle(part).color)), behind(part)].sort((a, b) => a - b);
    return (high + 0.05) / (low + 0.05);
  }));
})()
"""
"""The least contrast of a text with what is behind it, as WCAG 2 counts it: 4.5 is enough to be read."""


def calls(browser: Browser) -> int:
    """Of the VM that has most of them."""
    return int(browser.text("#vms tbody tr td:nth-child(4)").replace(",", ""))


def test_it_is_live(browser: Browser, shown: Shown) -> None:
    browser.show(shown.url)
    assert "db01" in browser.text("#vms")
    before = calls(browser)
    browser.wait("/[µm]s\\/s/.test(document.querySelector('#vms').innerText)")
    assert calls(browser) > before
    assert browser.complaints == []


def test_a_vm_is_starved_until_it_is_not(browser: Browser, shown: Shown) -> None:
    browser.show(shown.url)
    browser.wait("document.querySelector('#starving').innerText.includes('web02')")
    said = "2 of 4 counters starved; on CPU 3 otel-profiler (pid 99) has 4 events, pinned"
    assert said in browser.text("#starving")
    assert "otel-profiler" in browser.text("#holders")
    shown.host.starving = frozenset()
    browser.wait("document.querySelector('#starving').innerText.startsWith('None: ')")
    assert "2 starved" not in browser.text("#vms")
    shown.host.no_census = "cannot read the census: refused"
    browser.wait("document.querySelector('#starving').innerText.includes('refused')")
    assert "?" in browser.text("#totals")
    assert browser.complaints == []


def test_what_is_shown_can_be_true(shown: Shown) -> None:
    state = shown.host.overview.state()
    assert len(state.vms) == 5
    assert {call.vm for call, _ in state.last} == {each.vm for each in state.diverging}
    assert all(state.since_ns < call.time_ns < state.time_ns for call, _ in state.last)
    assert state.all_divergences == sum(each.count for each in state.diverging)


@pytest.mark.parametrize(
    ("name", "width", "height", "scheme"),
    [
        ("light", 1180, 1400, "light"),
        ("dark", 1180, 1400, "dark"),
        ("tablet", 720, 1400, "light"),
        ("phone", 390, 1400, "light"),
        ("small", 360, 1400, "dark"),
    ],
)
def test_it_can_be_read(
    browser: Browser, shown: Shown, name: str, width: int, height: int, scheme: str
) -> None:
    browser.show(shown.url, width=width, height=height, scheme=scheme)
    browser.wait("document.querySelector('#vms').innerText.includes('s/s')")
    browser.screenshot(BUILD / f"{name}.png")
    assert browser.evaluate("document.documentElement.scrollWidth") == width
    assert browser.evaluate(CONTRAST) >= 4.5
    assert browser.complaints == []


@pytest.mark.parametrize("shown", [[]], indirect=True)
def test_a_host_where_nothing_has_happened_yet(browser: Browser, shown: Shown) -> None:
    browser.show(shown.url, width=390, height=900)
    browser.screenshot(BUILD / "empty.png")
    assert "No VM has used its PMU yet." in browser.text("#vms")
    shown.host.missing = "KVM was unloaded"
    browser.wait("document.querySelector('#state').innerText.includes('Not watching')")
    assert "KVM was unloaded" in browser.text("#state")
    assert browser.evaluate(CONTRAST) >= 4.5


@pytest.mark.parametrize("shown", [[HOSTILE]], indirect=True)
def test_a_vm_named_to_do_harm_is_a_text(browser: Browser, shown: Shown) -> None:
    browser.show(shown.url, width=390, height=1400)
    for _ in range(2):  # as it came, and as the script has taken it
        for part in ("#vms", "#diverging", "#last"):
            assert HOSTILE in browser.text(part)
        assert browser.evaluate("document.images.length") == 0
        assert browser.evaluate("document.title").endswith(": vpmu-agent")
        browser.wait("document.querySelector('#vms').innerText.includes('s/s')")
    assert browser.evaluate("document.documentElement.scrollWidth") == 390
    assert browser.complaints == []


def test_it_is_live_behind_a_password(browser: Browser, tmp_path: Path) -> None:
    users = written(tmp_path, f"basic_auth_users: {{alice: {ALICE}}}")
    with closing(Shown("db01", web=WebFile(users, pytest.fail))) as shown:
        shown.start()
        browser.show(shown.url.replace("//", "//alice:secret@"))
        seen = browser.text("#time")
        browser.wait(f"document.querySelector('#time').innerText !== {seen!r}")
        assert not browser.evaluate("document.querySelector('#gone').checkVisibility()")
    assert browser.complaints == []


def test_an_agent_that_does_not_answer_is_said_not_to(browser: Browser, shown: Shown) -> None:
    browser.show(shown.url)
    assert not browser.evaluate("document.querySelector('#gone').checkVisibility()")
    network = {"latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}
    browser.ask("Network.emulateNetworkConditions", offline=True, **network)
    try:
        browser.wait("document.querySelector('#gone').checkVisibility()")
        browser.screenshot(BUILD / "gone.png")
        assert "db01" in browser.text("#vms")
    finally:
        browser.ask("Network.emulateNetworkConditions", offline=False, **network)
    browser.wait("!document.querySelector('#gone').checkVisibility()")


def test_what_is_selected_stays_until_it_is_copied(browser: Browser, shown: Shown) -> None:
    browser.show(shown.url)
    browser.evaluate("getSelection().selectAllChildren(document.querySelector('#totals'))")
    seen = browser.text("#time")
    browser.evaluate("new Promise(done => setTimeout(done, 3000))")
    assert browser.text("#time") == seen
    browser.evaluate("getSelection().removeAllRanges()")
    browser.wait(f"document.querySelector('#time').innerText !== {seen!r}")


def test_without_a_script_it_is_all_there_and_comes_again(browser: Browser, shown: Shown) -> None:
    browser.ask("Emulation.setScriptExecutionDisabled", value=True)
    try:
        browser.show(shown.url)
        assert "db01" in browser.text("#vms")
        seen = browser.text("#time")
        browser.wait(f"document.querySelector('#time')?.innerText !== {seen!r}", 15)
    finally:
        browser.ask("Emulation.setScriptExecutionDisabled", value=False)


def test_it_can_be_used_with_a_keyboard_and_be_read_aloud(browser: Browser, shown: Shown) -> None:
    browser.show(shown.url)
    places = []
    for _ in range(2):
        browser.press("Tab")
        places.append(browser.evaluate("document.activeElement.pathname"))
        assert browser.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    assert places == ["/metrics", "/api/v1/state"]
    tables = "[...document.querySelectorAll('table')]"
    assert browser.evaluate(f"{tables}.length") == 4
    assert browser.evaluate(f"{tables}.every(t => t.closest('section[aria-labelledby]'))")
    assert browser.evaluate(f"{tables}.every(t => [...t.tHead.rows[0].cells].every(c => c.scope === 'col'))")
    assert browser.evaluate(
        f"{tables}.every(t => [...t.tBodies[0].rows].every(r => r.cells[0].scope === 'row'))"
    )
