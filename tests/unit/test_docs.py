"""What is written for users is what the code does."""

from __future__ import annotations

import re

from docs import metrics
from tests.unit.counted import Maps, Processes
from tests.unit.scenes import Guest
from vpmu_agent.metrics import Exporter
from vpmu_agent.watch import Watch


def test_the_table_of_metrics_is_what_the_code_makes() -> None:
    assert metrics.FILE.read_text() == metrics.text(), "make docs"


def test_a_scrape_has_the_families_of_the_table_and_no_others() -> None:
    watch = Watch(Maps(Guest("web01", 4242).life()), Processes(web01=4242), per_counter=True)
    scraped = b"".join(Exporter(watch).scrape(openmetrics=False)).decode()
    exported = re.findall(r"^# TYPE (\w+) (\w+)$", scraped, re.MULTILINE)
    assert re.findall(r"^\| `(\w+)` \| (\w+) \|", metrics.text(), re.MULTILINE) == exported


def test_a_unit_is_the_end_of_the_name() -> None:
    assert metrics.unit("vpmu_call_duration_seconds") == "seconds"
    assert metrics.unit("vpmu_divergences_total") == "divergences"
    assert metrics.unit("vpmu_vm_info") == ""
